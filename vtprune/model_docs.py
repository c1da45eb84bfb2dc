"""The document on model families, written from what the conformance suite recorded over the test zoo."""

from __future__ import annotations

from typing import Any

from vtprune.method_docs import markdown_table

_VIDEO = ", video"
_KINDS = {"image": "images", "video": "videos"}
_HEAD = """\
# Models

Written by `python -m vtprune.docs` from `docs/models.json`, which `PYTHONPATH=tests python -m zoo.record` writes by
running `vtprune.adapters.check_adapter` over a tiny random model of each type: what stands here did run. No weights of
a real model were at hand; `vtprune check --model NAME` runs the same on one.

What *passes* means: a budget that keeps everything is bit-identical, and so is the model after `unwrap`; logits of a
pruned run equal those of the stock model in which removed tokens are only masked as keys, to 1e-4 in fp32 (states of
recurrent layers: equal those of the stock layer fed with the surviving tokens alone), over three stages, both position
modes, with and without cache; a row does not feel its batch mates (three pictures of different size, left padding);
`generate` with cache equals recomputing without it.
"""
_TERMS = """\
## What words mean here

* **Encoder attention.** `CLS`: from the tower's CLS token. `received`: towers without one; the attention that a patch \
receives, averaged over all patches of its picture, crop or frame; within windows, patches outside give nothing. Where \
n x n patches become one token, the mean over them. `none`: rows of the tower are not the patches of tokens (latent \
queries, discrete codes, convolutions, attention of other libraries); methods that need it are refused.
* **Features before the projector.** Where patches are merged on the way, features are taken after the merge.
* **Images.** Tiles, crops and thumbnails of one picture are one image with several views, and a budget is that of the \
picture; a video is one image whose frames are views. `report.stages[i].places` tells view, row and column of each \
kept token.
* **Positions.** With `positions="pack"` gaps close. Where a token has three numbers (time, row, column), a number \
goes that only removed tokens had, in any of the three places; all larger ones move up.
* **Windows and chunks** of attention are measured in columns of the prompt: who stays sees no farther back \
because others are gone.
* **Recurrent layers** (linear attention, Mamba, short convolutions) behind a stage take in the survivors alone: \
what was removed leaves no trace in their state. Layers before the stage took in everything.
* **Last stage.** Where later layers attend to keys that an earlier one made, or to a choice of keys, tokens cannot be \
removed between the two.
* **Stock differs.** What the unwrapped model itself does not hold (a batch that differs from its rows, a cache that \
differs from recomputation) cannot be asked of the wrapped one, and is not.
"""


def supported(records: dict[str, Any]) -> list[str]:
    """Model types all of whose runs passed on the CPU."""
    return [name for name, record in sorted(records["types"].items()) if _passes(record, "cpu")]


def family_list(records: dict[str, Any]) -> str:
    """The supported model types in a few lines, for the README."""
    names = supported(records)
    with_videos = sum("video" in records["types"][name]["about"]["kinds"] for name in names)
    about = records["environments"]["cpu"]
    listed = ", ".join(f"`{name}`" for name in names)
    return (
        f"{len(names)} model types pass the suite (transformers {about['transformers']}), {with_videos} of them with "
        f"videos: {listed}."
    )


def models_page(records: dict[str, Any]) -> str:
    """The whole of docs/models.md."""
    parts = [_HEAD, _environments(records), "## Supported\n", _supported_table(records), _TERMS]
    parts += ["## Refused, or not passing\n", _refused_table(records)]
    if others := _not_passed(records):
        parts += ["## Single runs that did not pass\n", others]
    if limits := _limits(records):
        parts += ["## What the stock models do not hold\n", limits]
    parts += ["## Signals that are missing, and why\n", _missing_table(records)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _passes(record: dict[str, Any], environment: str) -> bool:
    runs = record["environments"].get(environment, {}).get("runs", {})
    return any("error" in run for run in runs.values()) and not any("failed" in run for run in runs.values())


def _environments(records: dict[str, Any]) -> str:
    lines = [
        f"* `{name}`: {about['device']}, torch {about['torch']}, transformers {about['transformers']}; "
        f"{sum(_passes(record, name) for record in records['types'].values())} types pass"
        for name, about in sorted(records["environments"].items())
    ]
    return "Columns of the table:\n\n" + "\n".join(lines) + "\n"


def _supported_table(records: dict[str, Any]) -> str:
    environments = sorted(records["environments"])
    head = ("model type", "adapter", "takes", "encoder attention", "decoder", "methods that do not run", *environments)
    rows = []
    for name in supported(records):
        record = records["types"][name]
        about = record["about"]
        lacking = [f"`{method}` ({_why(reason)})" for method, reason in about["methods"].items() if reason != "runs"]
        rows.append(
            (
                f"`{name}`",
                f"`{about['adapter']}`" if about["adapter"] != "generic" else "generic",
                " and ".join(_KINDS[kind] for kind in about["kinds"]),
                _tower(about),
                _decoder(about),
                "; ".join(lacking) or "-",
                *(_outcome(record, environment) for environment in environments),
            )
        )
    return markdown_table(head, rows) + (
        "\n\nTried methods: `fastv`, `divprune`, `visionzip`, `cdpruner`, `pyramiddrop`, `random`. The last columns "
        "name the attention implementations that pass (fp32 unless said), with the largest deviation of logits.\n"
    )


def _tower(about: dict[str, Any]) -> str:
    if "encoder_attention" in about["missing"]:
        return "none"
    merged = f", {about['merge']} x {about['merge']} merged" if about["merge"] > 1 else ""
    return ("CLS" if about["cls"] else "received") + merged


def _decoder(about: dict[str, Any]) -> str:
    words = {"recurrent": "recurrent layers", "windows": "windows", "experts": "experts", "last_stage": "shared keys"}
    return ", ".join(word for key, word in words.items() if about[key]) or "plain"


def _outcome(record: dict[str, Any], environment: str) -> str:
    here = record["environments"].get(environment)
    if here is None:
        return "not in that release"
    if "refused" in here:
        return f"refused: {here['refused']}"
    runs = here["runs"]
    exact = [run["error"] for label, run in runs.items() if "error" in run and "bf16" not in label]
    parts = []
    for word, meaning in (("error", ""), ("failed", "fails: "), ("unsupported", "stock model cannot: ")):
        labels = [label for label, run in runs.items() if word in run]
        plain = [label for label in labels if not label.endswith(_VIDEO)]
        named = [f"{label} + videos" if f"{label}{_VIDEO}" in labels else label for label in plain]
        named += [
            f"videos by {label.removesuffix(_VIDEO)}"
            for label in labels
            if label.endswith(_VIDEO) and label.removesuffix(_VIDEO) not in plain
        ]
        if named:
            parts.append(meaning + ", ".join(named) + (f" ({max(exact):.0e})" if word == "error" and exact else ""))
    return "; ".join(parts)


def _why(reason: str) -> str:
    """A refusal in a few words; that of layers tells of the tiny model, and is not worth repeating in full."""
    if reason.startswith("needs"):
        return reason
    if "several streams" in reason:
        return "makes new tokens, and states have several streams"
    return "default layers do not fit: recurrent or sharing keys"


def _refused_table(records: dict[str, Any]) -> str:
    rows = []
    for name, record in sorted(records["types"].items()):
        if _passes(record, "cpu"):
            continue
        here = record["environments"].get("cpu", {})
        failed = [f"{label}: {run['failed']}" for label, run in here.get("runs", {}).items() if "failed" in run]
        rows.append((f"`{name}`", here.get("refused") or "; ".join(failed) or "not run"))
    return markdown_table(("model type", "reason"), rows) + "\n"


def _not_passed(records: dict[str, Any]) -> str:
    """What single runs of supported types failed with, and what the stock model cannot do in an environment."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in supported(records):
        record = records["types"][name]
        for environment, here in sorted(record["environments"].items()):
            for label, run in here.get("runs", {}).items():
                for word, meaning in (("failed", "fails"), ("unsupported", "the stock model cannot")):
                    if word in run:
                        message = (
                            run[word].replace(record["about"]["class"], "The model").partition(". Please")[0][:160]
                        )
                        found.setdefault((f"{environment}, {label}: {meaning}", message), []).append(f"`{name}`")
    rows = [(where, ", ".join(names), message) for (where, message), names in sorted(found.items())]
    return markdown_table(("run", "model types", "message"), rows) + "\n" if rows else ""


def _limits(records: dict[str, Any]) -> str:
    rows = []
    for name, record in sorted(records["types"].items()):
        if note := record.get("about", {}).get("note"):
            rows.append((f"`{name}`", note, ""))
        found: dict[str, list[str]] = {}
        for environment, here in sorted(record["environments"].items()):
            for label, run in here.get("runs", {}).items():
                for limit in run.get("limits", ()):
                    found.setdefault(limit, []).append(f"{environment} {label}")
        rows += [(f"`{name}`", limit, ", ".join(where)) for limit, where in found.items()]
    return (
        markdown_table(("model type", "what was checked instead, or what to know", "where"), rows) + "\n"
        if rows
        else ""
    )


def _missing_table(records: dict[str, Any]) -> str:
    reasons: dict[str, dict[str, list[str]]] = {}
    for name in supported(records):
        record = records["types"][name]
        for signal, reason in record["about"]["missing"].items():
            general = reason.replace(record["about"]["class"], "the model")
            reasons.setdefault(signal, {}).setdefault(general, []).append(f"`{name}`")
    rows = [
        (f"`{signal}`", reason, ", ".join(names))
        for signal, found in sorted(reasons.items())
        for reason, names in sorted(found.items())
    ]
    return markdown_table(("signal", "reason", "model types"), rows) + "\n"
