"""The Python that does what is on screen."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence

from vtprune.budget import Budget
from vtprune.chain import Chain
from vtprune.eval.models import EMBEDDED
from vtprune.pruner import Pruner

_EMBEDDED = """\
from PIL import Image

import vtprune
from vtprune.eval.embedded import load_model

model, processor = load_model()
"""

_NAMED = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtprune

model = AutoModelForImageTextToText.from_pretrained({model!r}, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained({model!r})
"""

_REST = """\

content = [{pictures}, {{"type": "text", "text": {question!r}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device, dtype=model.dtype)

"""

_RUN = """\
with vtprune.pruning(model, {method}, {budget}{positions}{text_tower}, processor=processor):
    output = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
    print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())
    print(vtprune.report(model))
"""

_FILM = '{"type": "video", "video": "video.mp4"}'


def snippet(
    model: str,
    question: str,
    methods: Sequence[Pruner],
    budgets: Sequence[Budget],
    *,
    positions: str | None = None,
    pictures: int = 1,
    text_tower: str | None = None,
    max_new_tokens: int = 64,
) -> str:
    """A program that asks the same.

    Args:
        model: Its name.
        question: What is asked.
        methods: Several are tried in a loop.
        budgets: Several are tried in a loop.
        positions: `"keep"`, `"pack"` or `None` for the method's own.
        pictures: How many, in `picture.png`, or `picture0.png` and so on; 0 for a video.
        text_tower: As for `vtprune.wrap`.
        max_new_tokens: Longest answer.
    """
    files = ["picture.png"] if pictures == 1 else [f"picture{number}.png" for number in range(pictures)]
    images = ", ".join(f'{{"type": "image", "image": Image.open("{file}")}}' for file in files) or _FILM
    head = _EMBEDDED if model == EMBEDDED else _NAMED.format(model=model)
    run = _RUN.format(
        method=_method(methods[0]) if len(methods) == 1 else "pruner",
        budget=_budget(budgets[0]) if len(budgets) == 1 else "budget",
        positions=f', positions="{positions}"' if positions else "",
        text_tower=f", text_tower={text_tower!r}" if text_tower else "",
        max_new_tokens=max_new_tokens,
    )
    if len(budgets) > 1:
        run = _loop("budget", map(_budget, budgets), run)
    if len(methods) > 1:
        run = _loop("pruner", map(_method, methods), run)
    return head + _REST.format(pictures=images, question=question) + run


def _loop(name: str, values: Iterable[str], body: str) -> str:
    items = "".join(f"    {value},\n" for value in values)
    return f"for {name} in [\n{items}]:\n{textwrap.indent(body, '    ')}"


def _method(method: Pruner) -> str:
    if isinstance(method, Chain):
        return f"[{', '.join(map(_method, method.pruners))}]"
    changed = [
        f"{field.name}={getattr(method, field.name)!r}"
        for field in dataclasses.fields(method)
        if getattr(method, field.name) != field.default
    ]
    return f"vtprune.{type(method).__name__}({', '.join(changed)})"


def _budget(budget: Budget) -> str:
    changed = [
        f"{field.name}={getattr(budget, field.name)!r}"
        for field in dataclasses.fields(budget)
        if getattr(budget, field.name) != field.default
    ]
    return f"vtprune.Budget({', '.join(changed)})"
