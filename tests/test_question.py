"""From prompts back to questions: chat templates of all usual formats, hand-made prompts, ids and padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_llava
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast

from vtprune.eval.embedded import MODEL_DIR, load_model
from vtprune.question import QuestionReader, load_tokenizer, read_question

QUESTION = "What does the sign say?\nAnswer with a word."
IMAGE = 100_000
"""A placeholder id outside of every vocabulary."""

VICUNA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% else %}{{ m.role.upper() + ': ' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ '<image>\n' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{{ '</s>' if m.role == 'assistant' else ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Takes parts only, as the templates of LLaVA processors do.
PARTS = (
    "{% for m in messages %}{{ m.role.upper() + ': ' }}"
    "{% for part in m.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ '<|vision_start|><image><|vision_end|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}"
    "{% set sys = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set sys = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% set text = m.content if m.content is string else m.content[-1].text %}"
    "{% if m.role == 'user' %}{{ '<s>[INST] ' + (sys if loop.first else '') + text + ' [/INST]' }}"
    "{% else %}{{ ' ' + text + ' </s>' }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content %}"
    "{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ '<start_of_image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ '<|image_1|>\n' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# No mark of its own for turns of the user.
PLAIN = (
    "<s>{% for m in messages %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %} :"
)
# Takes strings only, and closes turns with words that are no special tokens.
WORDS = (
    "{% for m in messages %}{{ '### ' + {'user': 'Question', 'assistant': 'Reply'}[m.role] + ': ' }}{{ m.content }}"
    "{{ ' ### End\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### Reply:' }}{% endif %}"
)

CHAT_TAGS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
HEADER_TAGS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|image|>")
TURN_TAGS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>")
PHI_TAGS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|image_1|>")

TEMPLATES = {
    "vicuna": (VICUNA, (), "</s>"),
    "parts": (PARTS, (), "</s>"),
    "chatml": (CHATML, CHAT_TAGS, "<|im_end|>"),
    "llama-2": (LLAMA_2, (), "</s>"),
    "llama-3": (LLAMA_3, HEADER_TAGS, "<|eot_id|>"),
    "gemma": (GEMMA, TURN_TAGS, "<eos>"),
    "phi": (PHI, PHI_TAGS, "<|end|>"),
}


def byte_tokenizer(template: str | None = None, tags: Sequence[str] = (), end: str = "</s>") -> Any:
    """One token a byte, and the special tokens; decoding gives every text back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=end,
        pad_token="<pad>",
        additional_special_tokens=[AddedToken(tag, special=True) for tag in ("<image>", *tags)],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def ids_of(tokenizer: Any, text: str, tokens: int = 5) -> torch.Tensor:
    """The ids of a prompt, each image as several placeholders that the tokenizer does not know."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    image = tokenizer.convert_tokens_to_ids("<image>")
    return torch.tensor([new for old in ids for new in ([IMAGE] * tokens if old == image else [old])])


def turn(role: str, text: str, image: bool = False) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"}] * image + [{"type": "text", "text": text}]}


@pytest.mark.parametrize("known", [True, False], ids=["its-template", "no-template"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(name: str, known: bool) -> None:
    template, tags, end = TEMPLATES[name]
    tokenizer = byte_tokenizer(template, tags, end)
    first = turn("user", QUESTION, image=True)
    dialogue = [turn("user", "Is it a car?", image=True), turn("assistant", "User: no."), turn("user", QUESTION)]
    prompts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        for messages in ([first], dialogue)
        for generate in (True, False)
    ]
    reader = tokenizer if known else byte_tokenizer(None, tags, end)
    for prompt in prompts:
        assert read_question(prompt, reader) == QUESTION
        found = QuestionReader(reader, IMAGE).read(ids_of(tokenizer, prompt)[None])
        assert found == [QUESTION]


@pytest.mark.parametrize("known", [True, False], ids=["its-template", "no-template"])
@pytest.mark.parametrize("name", ["vicuna", "chatml", "llama-2", "llama-3", "phi"])
def test_system_prompts(name: str, known: bool) -> None:
    template, tags, end = TEMPLATES[name]
    tokenizer = byte_tokenizer(template, tags, end)
    messages = [{"role": "system", "content": "Talk like a pirate."}, {"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "pirate" in prompt
    assert read_question(prompt, tokenizer if known else byte_tokenizer(None, tags, end)) == QUESTION


HAND_MADE = {
    "vicuna": "A chat between a curious user and an assistant. USER: <image>\n{} ASSISTANT:",
    "vicuna with an answer": "A chat. USER: <image>\n{} ASSISTANT: a dog</s>",
    "vicuna, no space": "<s>USER:<image>\n{}ASSISTANT:",
    "v0": "A chat between Human and AI.###Human: <image>\n{}###Assistant:",
    "idefics": "User:<image>{}<end_of_utterance>\nAssistant:",
    "chatml": "<|im_start|>user\n<image>\n{}<|im_end|>\n<|im_start|>assistant\n",
    "chatml, two turns": "<|im_start|>user\nwhy?<|im_end|><|im_start|>user\n{}<|im_end|>",
    "idefics, no reply": "User:<image>{}<end_of_utterance>\n",
    "llama-2": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\n{} [/INST]",
    "llama-2, two turns": "<s>[INST] <image> why? [/INST] so [INST] {} [/INST]",
    "llama-3": "<|start_header_id|>user<|end_header_id|>\n\n<image>{}<|eot_id|>",
    "llama-4": "<|header_start|>user<|header_end|>\n\n<image>{}<|eot|><|header_start|>assistant<|header_end|>",
    "gemma": "<bos><start_of_turn>user\n<start_of_image>{}<end_of_turn>\n<start_of_turn>model\n",
    "phi": "<|user|>\n<image>\n{}<|end|>\n<|assistant|>\n",
    "deepseek": "<|User|>: <image>\n{}\n\n<|Assistant|>:",
    "no role": "<s><image>\n{}",
    "image behind": "<s>{}\n<image>",
}


@pytest.mark.parametrize("template", [None, *TEMPLATES], ids=str)
@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_prompts_in_any_format(name: str, template: str | None) -> None:
    """Whatever the tokenizer's own template is, the prompt need not follow it."""
    tokenizer = byte_tokenizer(*TEMPLATES[template]) if template else byte_tokenizer()
    question = "What is on the left?"
    assert read_question(HAND_MADE[name].format(question), tokenizer) == question


def test_roles_quoted_by_the_user() -> None:
    tokenizer = byte_tokenizer(*TEMPLATES["vicuna"])
    question = "Who says ASSISTANT: hello, and what: no?"
    prompt = tokenizer.apply_chat_template([turn("user", question)], tokenize=False, add_generation_prompt=True)
    assert read_question(prompt, tokenizer) == question
    assert read_question(prompt, byte_tokenizer()) == question
    assert read_question("USER: Is SUPERUSER: a word? ASSISTANT:", tokenizer) == "Is SUPERUSER: a word?"
    quoted = "What follows User: and Human: here?"
    assert read_question(f"<|im_start|>user\n{quoted}<|im_end|>", byte_tokenizer()) == quoted


@pytest.mark.parametrize("generate", [True, False])
def test_a_template_of_strings(generate: bool) -> None:
    tokenizer = byte_tokenizer(WORDS)
    dialogue = [("user", "Is it?"), ("assistant", "No."), ("user", "Where does it say User: go?")]
    messages = [{"role": role, "content": content} for role, content in dialogue]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    for owner in (tokenizer, SimpleNamespace(tokenizer=tokenizer, chat_template=None)):
        assert read_question(prompt, owner) == dialogue[-1][1]


def test_a_template_without_roles() -> None:
    tokenizer = byte_tokenizer(PLAIN)
    prompt = tokenizer.apply_chat_template([turn("user", "a: b?", image=True)], tokenize=False)
    assert prompt == "<s> <image> a: b? :"
    assert read_question("<s> a: b? :", tokenizer) == "a: b?"
    assert read_question("<s> USER: a: b? ASSISTANT:", tokenizer) == "a: b?"
    assert read_question("a: b?", tokenizer) == "a: b?"


def test_a_broken_template() -> None:
    tokenizer = byte_tokenizer("{{ raise_exception('no') }}")
    assert read_question("USER: why? ASSISTANT:", tokenizer) == "why?"


def test_padding_and_rows() -> None:
    tokenizer = byte_tokenizer()
    texts = ["Why?", "", QUESTION]
    rows = [ids_of(tokenizer, f"<s><image>\n{text}", tokens) for tokens, text in enumerate(texts, 3)]
    length = max(map(len, rows))
    for side in ("left", "right"):
        # The padding is text, so that only the mask tells.
        ids = torch.full((3, length), tokenizer.convert_tokens_to_ids("x"))
        mask = torch.zeros(3, length, dtype=torch.long)
        for row, (entry, present) in zip(rows, zip(ids, mask, strict=True), strict=True):
            place = slice(length - len(row), None) if side == "left" else slice(len(row))
            entry[place] = row
            present[place] = 1
        reader = QuestionReader(tokenizer, IMAGE)
        assert reader.read(ids, mask) == texts
        assert reader.read(ids, torch.cat([torch.ones(3, 7), mask], 1).bool()) == texts
        before = ids.clone()
        assert reader.read(ids) != texts
        assert torch.equal(ids, before)


def test_videos_are_placeholders_too() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("IwIhy?VV", return_tensors="pt")["input_ids"]
    image, video = tokenizer.convert_tokens_to_ids(["I", "V"])
    assert QuestionReader(tokenizer, image, video).read(ids) == ["why?"]
    assert QuestionReader(tokenizer, image).read(ids) == ["why?VV"]


def test_only_tags_are_taken_out() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "!"
    assert read_question("<s>Stop! Is a < b?<image>", tokenizer) == "Stop! Is a < b?"
    assert read_question("What is  in <image> and <image>?", tokenizer) == "What is in and ?"
    processor = SimpleNamespace(tokenizer=tokenizer, image_token="<picture>")
    assert read_question("<picture><picture>why?", processor) == "why?"
    assert read_question("[IMG][IMG_BREAK][IMG_END]why?<|image_pad|></img>", tokenizer) == "why?"


def test_special_tokens_without_a_name() -> None:
    backend = byte_tokenizer().backend_tokenizer
    backend.add_special_tokens(["<odd>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert "<odd>" not in tokenizer.all_special_tokens
    assert read_question("<odd>why?", tokenizer) == "why?"
    bare = SimpleNamespace(all_special_tokens=["<odd>"])
    assert read_question("<odd>why?", bare) == "why?"
    assert read_question("<odd>why?", SimpleNamespace(all_special_tokens=[])) == "<odd>why?"


def test_the_embedded_model() -> None:
    model, processor = load_model()
    tokenizer = load_tokenizer(model)
    dialogue = [turn("user", "where is the ring ?", image=True), turn("assistant", "top left")]
    dialogue += [turn("user", "what color is the circle ?")]
    for system in ([], [turn("system", "look at the user : there is a red star .")]):
        for messages, question in ((dialogue[:1], "where is the ring ?"), (dialogue, "what color is the circle ?")):
            text = processor.apply_chat_template(system + messages, add_generation_prompt=True)
            ids = processor.tokenizer(text.replace("<image>", "<image>" * 9), return_tensors="pt")["input_ids"]
            for known in (processor, processor.tokenizer, tokenizer):
                assert QuestionReader(known, processor.image_token_id).read(ids) == [question]


def test_no_tokenizer(tmp_path: Path) -> None:
    model = tiny_llava()
    with pytest.raises(ValueError, match=r"Generation \(no name\) .* \(the model was not loaded .* processor="):
        load_tokenizer(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"\({tmp_path}\) has no tokenizer at hand \(.+\); give .* processor="):
        load_tokenizer(loaded)
    model.config._name_or_path = "nobody/nothing"
    with pytest.raises(ValueError, match=r"\(nobody/nothing\) has no tokenizer"):
        load_tokenizer(model)


def test_nothing_is_fetched_or_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = AutoTokenizer.from_pretrained

    def from_pretrained(name: str, **options: Any) -> Any:
        asked.append(options)
        return original(name, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    model = SimpleNamespace(config=SimpleNamespace(_name_or_path=str(MODEL_DIR)))
    assert load_tokenizer(model).decode([3]) == "<image>"
    assert asked == [{"local_files_only": True, "trust_remote_code": False}]
