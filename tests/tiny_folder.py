"""Tiny random models with their processors in folders, and a task with questions about drawn scenes beside it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
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

_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <|vision_start|><|image_pad|><|vision_end|>"
    "{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %} <|im_start|>"
)

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")

WORDS = tuple("what color is the there a how many where which number word written yes no . ? top left".split())

TEXT_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

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
    text = LlamaConfig(**TEXT_SIZES, vocab_size=IMAGE + 1)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))
    _sharpen(model)
    return model


def _sharpen(model: PreTrainedModel) -> None:
    """Larger weights, so that answers depend on the picture; for use, not for training."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(3)
    model.eval()


def _tokenizer(vocabulary: dict[str, int], marks: list[str], end: str = "</s>") -> PreTrainedTokenizerFast:
    """Word by word."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=end,
        unk_token="<unk>",
        additional_special_tokens=marks,
        # The wrong side on purpose: generation needs the left one.
        padding_side="right",
    )


def save_tiny_model(folder: Path) -> Path:
    """Writes the model and a word-level processor."""
    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *WORDS])}
    vocabulary |= {f"w{number}": number for number in range(len(vocabulary), IMAGE)} | {"<image>": IMAGE}
    fast = _tokenizer(vocabulary, ["<image>"])
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


def save_tiny_qwen(folder: Path) -> Path:
    """Writes a tiny Qwen2.5-VL with patches as large as the real one's, and its processor."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"]
    words = [*_SPECIAL, *WORDS]
    words += [f"w{number}" for number in range(IMAGE - len(words))] + marks
    vocabulary = {word: number for number, word in enumerate(words)}
    fast = _tokenizer(vocabulary, marks, end="<|im_end|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = TEXT_SIZES | {"vocab_size": len(words), "rope_parameters": rope, "eos_token_id": vocabulary["<|im_end|>"]}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    ids: dict[str, Any] = {
        name: vocabulary[word]
        for name, word in zip(
            ["vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"], marks, strict=False
        )
    }
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    _sharpen(model)
    pictures = Qwen2VLImageProcessor(patch_size=14)
    processor = Qwen2_5_VLProcessor(pictures, fast, Qwen2VLVideoProcessor(patch_size=14), chat_template=_QWEN_TEMPLATE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
