"""A tiny random LLaVA with its processor in a folder, and a task with questions about drawn scenes beside it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vtprune.eval.embedded.scenes import questions, sample_scene

TASK = "tiny_scenes"
IMAGE = 199
TOKENS = 36
"""Visual tokens of a picture."""

_TEMPLATE = (
    "<s>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} :"
)

_YAML = """\
task: {task}
dataset_path: text
dataset_kwargs: {{data_files: {{test: questions.jsonl}}}}
test_split: test
output_type: generate_until
process_docs: !function vtprune.eval.scene_task.read
doc_to_visual: !function vtprune.eval.scene_task.picture
doc_to_text: !function vtprune.eval.scene_task.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 3}}
process_results: !function vtprune.eval.scene_task.score
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def tiny_model() -> LlavaForConditionalGeneration:
    """Six decoder layers, four encoder layers, 36 visual tokens; answers depend on the picture."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=48, patch_size=8
    )
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=IMAGE + 1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(3)
    model.eval()
    return model


def save_tiny_model(folder: Path) -> Path:
    """Writes the model and a word-level processor."""
    words = "what color is the there a how many where which number word written yes no . ? top left".split()
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": IMAGE}
    vocabulary = special | {word: 4 + number for number, word in enumerate(words)}
    vocabulary |= {f"w{number}": number for number in range(4 + len(words), IMAGE)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        # The wrong side on purpose: generation needs the left one.
        padding_side="right",
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    processor = LlavaProcessor(
        pictures,
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    tiny_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_questions(folder: Path, count: int) -> Path:
    """Writes a task file and its questions, of several kinds and lengths."""
    folder.mkdir()
    rng = random.Random(3)
    lines = []
    for number in range(count):
        scene = sample_scene(rng)
        question = rng.choice(questions(scene, rng))
        lines.append(
            {
                "id": f"q{number}",
                "kind": question.kind,
                "question": question.text,
                "answer": question.answer,
                "scene": scene.to_json(),
            }
        )
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / f"{TASK}.yaml").write_text(_YAML.format(task=TASK))
    return folder
