"""What stands beside the pictures: answers, costs before and after, messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from PIL import Image

from vtprune.demo.drawing import Look, data_uri, overlay_html
from vtprune.demo.session import Outcome, Partial

_SHORT = 60
"""Characters of an answer that is shown in large letters."""

_MARKS = {True: ("right", "✓ right"), False: ("wrong", "✗ wrong")}


def is_right(answer: str, truth: str | None) -> bool | None:
    """Whether an answer is the true one; `None` where that is not known."""
    return None if truth is None else answer.strip().rstrip(".").lower() == truth.lower()


def message(text: str, *, kind: str = "problem") -> str:
    """A line that says what is wrong (`"problem"`) or worth knowing (`"note"`); nothing for no text."""
    role = "alert" if kind == "problem" else "status"
    return f'<div class="message {kind}" role="{role}">{escape(text)}</div>' if text else ""


def shelf(examples: Sequence[tuple[Image.Image, str]]) -> str:
    """Pictures to pick from, each with its question."""
    buttons = "".join(
        f'<button type="button" data-point="{number}" title="{escape(question, quote=True)}">'
        f'<img src="{data_uri(picture, 192)}" alt="{escape(question, quote=True)}"/></button>'
        for number, (picture, question) in enumerate(examples)
    )
    return f'<p class="caption">or one of these:</p><div class="shelf">{buttons}</div>'


def answers(question: str, found: Partial | Outcome, tokens: int, method: str, truth: str | None) -> str:
    """The answers of both models side by side."""
    done = isinstance(found, Outcome)
    full = found.full.answer if isinstance(found, Outcome) else found.full
    pruned = found.pruned.answer if isinstance(found, Outcome) else found.pruned
    every = f"all {found.tokens} tokens" if isinstance(found, Outcome) else f"all {tokens} tokens"
    kept = f"{found.pruned.tokens} tokens, {found.method}" if isinstance(found, Outcome) else method
    finished_full = done or pruned is not None
    return (
        f'<p class="asked"><span class="question">{escape(question)}</span> {_verdict(found)}</p><div class="answers">'
        + _answer("full", every, full, truth if finished_full else None, waiting=not finished_full)
        + _answer("pruned", kept, pruned, truth if done else None, waiting=not done)
        + "</div>"
    )


def _verdict(found: Partial | Outcome) -> str:
    """What has come of it, in a few words."""
    if not isinstance(found, Outcome):
        return ""
    kind, word = ("same", "Same") if found.same else ("other", "Another")
    share = _percent(found.pruned.tokens / found.tokens)
    return f'<span class="verdict {kind}">{word} answer with {share} of the tokens</span>'


def _answer(kind: str, title: str, text: str | None, truth: str | None, *, waiting: bool) -> str:
    mark = ""
    right = is_right(text or "", truth)
    if right is not None:
        name, words = _MARKS[right]
        mark = f'<span class="mark {name}">{words}</span>'
    cursor = '<span class="cursor" aria-hidden="true"></span>' if waiting else ""
    length = " long" if len(text or "") > _SHORT else ""
    return (
        f'<section class="answer {kind}{length}"><h3>{escape(title)}</h3>'
        f'<p><span class="text">{escape(text or "")}</span>{cursor} {mark}</p></section>'
    )


def costs(found: Outcome) -> str:
    """What the prompt costs with all tokens and with the pruned ones."""
    full, pruned = found.full, found.pruned
    rows = [
        ("visual tokens", f"{found.tokens}", f"{pruned.tokens}", pruned.tokens / found.tokens),
        (
            "layers' mean",
            f"{full.average_tokens * len(found.layouts):.0f}",
            f"{pruned.average_tokens * len(found.layouts):.0f}",
            pruned.average_tokens / full.average_tokens,
        ),
        ("prefill FLOPs", *_pair(full.prefill_flops, pruned.prefill_flops, 1000, "", _FLOPS)),
        ("KV memory", *_pair(full.kv_bytes, pruned.kv_bytes, 1024, "B", _BYTES)),
        (
            "prefill time",
            f"{1e3 * full.first_token_seconds:.0f} ms",
            f"{1e3 * pruned.first_token_seconds:.0f} ms",
            pruned.first_token_seconds / full.first_token_seconds,
        ),
    ]
    cells = "".join(
        f'<tr><th scope="row">{name}</th><td>{before}</td><td>{after}</td>'
        f'<td class="share"><span style="width:{min(share, 1):.0%}"></span><b>{share:.0%}</b></td></tr>'
        for name, before, after, share in rows
    )
    return (
        '<table class="costs"><thead><tr><th></th><th scope="col">all tokens</th><th scope="col">pruned</th>'
        f'<th scope="col">left</th></tr></thead><tbody>{cells}</tbody></table>'
    )


_FLOPS = ("", "K", "M", "G", "T", "P")
_BYTES = ("", "Ki", "Mi", "Gi", "Ti")


def _pair(before: float, after: float, step: int, unit: str, prefixes: Sequence[str]) -> tuple[str, str, float]:
    power = min(int(math.log(max(before, 1), step)), len(prefixes) - 1)
    scale = step**power
    return (
        f"{_short(before / scale)} {prefixes[power]}{unit}",
        f"{_short(after / scale)} {prefixes[power]}{unit}",
        after / before,
    )


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.3g}"


def overlays(found: Outcome, look: Look, stage: int = -1) -> str:
    """The pictures with the tokens that are left behind a stage, and what the colours mean."""
    watched = found.stages[stage].images
    parts = [
        overlay_html(picture, layout, seen, look)
        for picture, layout, seen in zip(found.seen, found.layouts, watched, strict=True)
    ]
    return "".join(parts) + caption(found, look, stage)


def caption(found: Outcome, look: Look, stage: int = -1) -> str:
    """A line below the pictures."""
    here = found.stages[stage]
    words = [f"<b>{here.after} of {found.tokens} tokens</b> are left: bright cells with a yellow line."]
    if look.view == "scores":
        if any(image.scores for image in here.images):
            words.append(
                'Colour is the rank of what the method sorts tokens by: <span class="ramp">low to high</span>.'
            )
        else:
            words.append("This method ranks no tokens by a score, so there is no heat map.")
    if look.view == "groups":
        sizes = [list(image.owners.values()) for image in here.images]
        groups = sum(len({owner for owner in owners if owners.count(owner) > 1}) for owners in sizes)
        if groups:
            words.append(f"Cells of one colour were merged into one token ({groups} groups).")
        else:
            words.append("This method merges no tokens here, so there are no groups.")
    return f'<p class="caption">{" ".join(words)}</p>'


def gallery(found: Sequence[Outcome], truth: str | None) -> str:
    """Overlays of several methods with their answers, those nearest to the full model first."""
    if not found:
        return ""
    full = found[0].full.answer
    right = _mark(full, truth)
    head = (
        f'<p class="caption">With all {found[0].tokens} tokens the model says <b>{escape(full)}</b> {right}. '
        "Sorted by the probability that each pruned model gives to that answer.</p>"
    )
    return head + '<div class="gallery">' + "".join(_card(one, truth) for one in by_agreement(found)) + "</div>"


def by_agreement(found: Sequence[Outcome]) -> list[Outcome]:
    """Same answer first, then by the probability of the full model's answer."""
    return sorted(found, key=lambda one: (not one.same, -(one.agreement or 0.0)))


def _card(one: Outcome, truth: str | None) -> str:
    pictures = "".join(
        overlay_html(picture, layout, seen)
        for picture, layout, seen in zip(one.seen, one.layouts, one.stages[-1].images, strict=True)
    )
    same = "same" if one.same else "other"
    probability = math.exp(one.agreement or 0.0)
    return (
        f'<article class="card {same}"><h3>{escape(one.method)}</h3>{pictures}'
        f'<p><span class="text">{escape(one.pruned.answer)}</span> {_mark(one.pruned.answer, truth)}</p>'
        f'<p class="agreement" title="Probability that this model gives to the answer of the full one">'
        f'<span style="width:{probability:.0%}"></span><b>agrees {_percent(probability)}</b>, '
        f"{one.pruned.tokens} tokens</p></article>"
    )


def _mark(answer: str, truth: str | None) -> str:
    right = is_right(answer, truth)
    if right is None:
        return ""
    name, words = _MARKS[right]
    return f'<span class="mark {name}">{words}</span>'


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.01 else f"{share:.0%}"
