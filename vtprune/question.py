"""The user's question, read back from the prompt that a model is given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

import torch

_QUESTION, _ANSWER, _NEXT = "vtprunefirst", "vtpruneanswer", "vtprunesecond"  # no template has or changes these
_PIECE = re.compile(r"\s+|<[^<>\s]*>|\[[^\[\]\s]*\]|[^\s<\[]+|.")
_TAG = re.compile(r"[<\[].+[>\]]", re.DOTALL)
_PLACEHOLDER = re.compile(r"<\|[^<>|]*\|>|</?(?:image|video|img|vid|(?:start|end)_of_image)>|\[IMG(?:_BREAK|_END)?\]")
_SYSTEM_IN_TURN = re.compile(r"<<SYS>>.*?<</SYS>>", re.DOTALL)


@dataclass(frozen=True)
class _Format:
    """How a prompt marks a user's turn: the text between the last `opening` and the first of `closings` to be found."""

    opening: re.Pattern[str]
    closings: tuple[re.Pattern[str], ...]

    def read(self, text: str) -> str | None:
        openings = [*self.opening.finditer(text)]
        if not openings:
            return None
        turn = text[openings[-1].end() :]
        ends = (closing.search(turn) for closing in self.closings)
        end = next((found.start() for found in ends if found), len(turn))
        return turn[:end]


def _format(opening: str, *closings: str) -> _Format:
    return _Format(re.compile(opening), tuple(re.compile(closing) for closing in closings))


_ASSISTANT = r"(?:<end_of_utterance>\s*|###\s*)?\b(?:ASSISTANT|Assistant)\s*:"
# Marks that are tokens of their own come first: a user cannot type them, but "User:" may be quoted.
_KNOWN = (
    _format(r"<\|im_start\|>\s*user\b", r"<\|im_end\|>"),
    _format(r"<\|start_header_id\|>\s*user\s*<\|end_header_id\|>", r"<\|eot_id\|>"),
    _format(r"<\|header_start\|>\s*user\s*<\|header_end\|>", r"<\|eot\|>"),
    _format(r"<start_of_turn>\s*user\b", r"<end_of_turn>"),
    _format(r"\[INST\]", r"\[/INST\]"),
    _format(r"<[|｜][Uu]ser[|｜]>\s*:?", r"<[|｜][Aa]ssistant[|｜]>"),  # noqa: RUF001
    _format(r"\b(?:USER|User|HUMAN|Human)\s*:", rf"{_ASSISTANT}\s*\Z", r"<end_of_utterance>", _ASSISTANT),
)


class QuestionReader:
    """Reads the user's question from the ids of prompts.

    How a user's turn is marked is learned from the chat template: what stands before and behind a text of ours. A
    prompt without these marks is searched for those of the usual formats (ChatML, Llama 2 to 4, Gemma, Phi, Vicuna);
    one without any is taken whole. Of several turns the last one of the user counts. A system prompt that the format
    puts into the user's turn without marking it, as Gemma's does, cannot be told from the question.

    Args:
        processor: The model's processor or tokenizer.
        image_token_id: The placeholder of images, which may lie outside the tokenizer's vocabulary.
        video_token_id: The placeholder of videos, if there is one.

    Example:
        >>> from vtprune.eval.embedded import load_model
        >>> _, processor = load_model()
        >>> reader = QuestionReader(processor, processor.image_token_id)
        >>> prompt = "<s> look at the picture . user : <image> what color is the circle ? assistant :"
        >>> reader.read(processor.tokenizer(prompt, return_tensors="pt")["input_ids"])
        ['what color is the circle ?']
    """

    def __init__(self, processor: Any, image_token_id: int, video_token_id: int | None = None) -> None:
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._formats = _formats(processor)
        self._tags = _tags(processor)
        self._placeholders = {image_token_id, video_token_id}
        self._image_token_id = image_token_id

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> list[str]:
        """The question of each prompt; empty where the user wrote nothing.

        The ids are copied to the host: one synchronisation with the device.

        Args:
            input_ids: `(batch, length)`.
            attention_mask: `(batch, length)`, or longer at the left, where it tells of a cache; padding is zero.
        """
        if attention_mask is not None:
            present = attention_mask[:, -input_ids.shape[1] :] != 0
            input_ids = input_ids.masked_fill(~present, self._image_token_id)
        texts = [
            self._tokenizer.decode([id_ for id_ in row if id_ not in self._placeholders], skip_special_tokens=False)
            for row in input_ids.tolist()
        ]
        return [_read(text, self._formats, self._tags) for text in texts]


def read_question(text: str, processor: Any) -> str:
    """The user's question in the text of one prompt, special tokens and all.

    Args:
        text: A prompt, such as a chat template makes it.
        processor: The processor or tokenizer with that template.
    """
    return _read(text, _formats(processor), _tags(processor))


def load_tokenizer(model: Any) -> Any:
    """The tokenizer of a model that came from a folder or the Hub's cache; nothing is downloaded.

    Raises:
        ValueError: There is none.
    """
    from transformers import AutoTokenizer

    name = str(getattr(getattr(model, "config", None), "_name_or_path", None) or "")
    reason = "the model was not loaded from a folder"
    if name:
        try:
            return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            # Missing and damaged files end in errors of many libraries.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ValueError(
        f"the question cannot be read from the prompt: {type(model).__name__} ({name or 'no name'}) has no tokenizer "
        f"at hand ({reason}); give the model's processor or tokenizer as processor="
    )


def _read(text: str, formats: tuple[_Format, ...], tags: re.Pattern[str]) -> str:
    turns = (format_.read(text) for format_ in formats)
    turn = next((turn for turn in turns if turn is not None), text)
    for pattern in (_SYSTEM_IN_TURN, tags, _PLACEHOLDER):
        turn = pattern.sub(" ", turn)
    return re.sub(r"[ \t]+", " ", turn).strip()


def _tags(processor: Any) -> re.Pattern[str]:
    """Matches special tokens, if they look like tags: some tokenizers pad with an ordinary character."""
    tokenizer = getattr(processor, "tokenizer", processor)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    for owner in (processor, tokenizer):
        special |= {str(getattr(owner, f"{kind}_token", None) or "") for kind in ("image", "video")}
    return re.compile("|".join(re.escape(token) for token in special if _TAG.fullmatch(token)) or r"(?!)")


def _formats(processor: Any) -> tuple[_Format, ...]:
    """In the order in which they are tried."""
    learned = _learn(processor)
    strong = () if learned is None or not learned[1] else (learned[0],)
    weak = () if learned is None or learned[1] else (learned[0],)
    return *strong, *_KNOWN, *weak


def _learn(processor: Any) -> tuple[_Format, bool] | None:
    """The marks of the chat template, and whether they tell one turn from another; `None` if it has none."""
    first = {"role": "user", "content": _QUESTION}
    turns = [first, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}]
    asked = _render(processor, [first], generate=True)
    if asked is None:
        return None
    before, _, behind = asked.partition(_QUESTION)
    told = _render(processor, [first], generate=False)
    closing = behind if told is None else told.partition(_QUESTION)[2]
    dialogue = _render(processor, turns, generate=True)
    between = "" if dialogue is None else dialogue.partition(_ANSWER)[2].partition(_NEXT)[0]
    opening = _common_end(before, between, _ends(processor))
    if opening:
        closings = [rf"{_loose(behind)}\s*\Z", _loose(behind), _loose(closing)]
        closings = [c for c, text in zip(closings, (behind, behind, closing), strict=True) if text.strip()]
        return _format(rf"(?<!\w){_loose(opening)}", *closings), True
    return _format(rf"\A\s*{_loose(before)}", rf"{_loose(behind)}\s*\Z"), False


def _render(processor: Any, messages: list[dict[str, str]], *, generate: bool) -> str | None:
    """The messages in the chat template, or `None` if it cannot show them."""
    wrapped = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    for owner in _owners(processor):
        for form in (messages, wrapped):
            try:
                text = owner.apply_chat_template(form, tokenize=False, add_generation_prompt=generate)
            except Exception:
                # Templates are programs: they fail in their own ways on content of the other form.
                continue
            if isinstance(text, str) and all(text.count(m["content"]) == 1 for m in messages):
                return text
    return None


def _owners(processor: Any) -> Iterator[Any]:
    for owner in (processor, getattr(processor, "tokenizer", None)):
        if getattr(owner, "chat_template", None):
            yield owner


def _ends(processor: Any) -> set[str]:
    """Tokens that begin or end a turn of any role."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return {str(token) for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)}


def _common_end(one: str, other: str, ends: set[str]) -> str:
    """The whole words and tags with which both end; what ends the turn before is no part of it."""
    common: list[str] = []
    for left, right in zip(reversed(_PIECE.findall(one)), reversed(_PIECE.findall(other)), strict=False):
        if left != right:
            break
        common.insert(0, left)
    return "".join(dropwhile(lambda piece: not piece.strip() or piece in ends, common)).strip()


def _loose(text: str) -> str:
    """A pattern for a text whose blanks decoding may have changed."""
    return r"\s*".join(re.escape(piece) for piece in _PIECE.findall(text) if piece.strip())
