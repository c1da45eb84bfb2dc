"""Runs the conformance suite over the zoo and writes down what passed: `PYTHONPATH=tests python -m zoo.record cpu`.

The result is docs/models.json, from which `python -m vtprune.docs` writes docs/models.md and the README's list. Runs of
several environments stand beside each other in it; a run replaces only its own part.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import vtprune
from vtprune.adapters import check_adapter, find_adapter
from vtprune.adapters.base import Adapter
from zoo import common

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("fastv", "divprune", "visionzip", "cdpruner", "pyramiddrop", "random")
NOT_BUILT = {
    "evolla": "shows proteins to its decoder by cross-attention adapters, not as tokens of the prompt",
    "vision-encoder-decoder": "is an encoder-decoder of any two models: its decoder has no visual tokens",
}
HALF = 0.08
"""Largest difference of logits allowed in bf16, as a share of the largest logit."""


def describe(name: str, model: PreTrainedModel) -> dict[str, Any]:
    """What a type is and can give, independent of the environment."""
    adapter = find_adapter(model)
    layers = range(len(adapter.layers))
    found: dict[str, Any] = {
        "class": type(model).__name__,
        "adapter": "generic" if type(adapter) is Adapter else type(adapter).__module__.rpartition(".")[2],
        "kinds": sorted({placeholder.kind for placeholder in adapter.placeholders}),
        "merge": adapter.vision.merge,
        "cls": adapter.vision.has_cls,
        "recurrent": any(adapter.is_recurrent(layer) for layer in layers),
        "windows": any(adapter.window(layer) or adapter.chunk(layer) for layer in layers),
        "experts": any("experts" in path for path, _ in adapter.decoder.named_modules()),
        "last_stage": adapter.last_stage < len(adapter.layers) - 1,
        "missing": {str(signal): reason for signal, reason in sorted(adapter.missing.items())},
        "methods": {},
    }
    module = common.load(name)
    if hasattr(module, "NOTE"):
        found["note"] = module.NOTE
    for method in METHODS:
        pruner = vtprune.make_pruner(method).fit(adapter.depths)
        lacking = [str(signal) for signal in sorted(pruner.signals) if signal in adapter.missing]
        if lacking:
            found["methods"][method] = f"needs {lacking[0]}"
            continue
        try:
            vtprune.wrap(model, pruner, 5, **common.question_side(model, method))
        except ValueError as error:
            found["methods"][method] = str(error)
            continue
        try:
            rows = [[common.picture(*module.SIZES[0])]]
            model(**_on(module.inputs(model, rows), model))
            found["methods"][method] = "runs"
        finally:
            vtprune.unwrap(model)
    return found


def check(name: str, attention: str, device: str, dtype: torch.dtype, kind: str) -> dict[str, Any]:
    """One run of the suite: the largest deviation, and what the stock model itself does not hold."""
    module = common.load(name)
    try:
        model = common.build(name, attention).to(device, dtype)
        inputs, alone = example(module, model, kind)
        with torch.no_grad():
            model(**_on(inputs, model))
    except Exception as error:  # not ours: nothing is wrapped yet
        return {"unsupported": _short(error)}
    options: dict[str, Any] = {"suppress_tokens": common.MARKS}
    if dtype != torch.float32:
        with torch.no_grad():
            logits = model(**_on(inputs, model)).logits.float()
        options["tolerance"] = HALF * logits[logits > torch.finfo(torch.bfloat16).min / 2].abs().max().item()
        options["exact_generation"] = False
    checks = check_adapter(model, inputs=inputs, alone=alone, **options)
    limits = [check.name for check in checks if "stock model" in check.name]
    return {"error": max(check.error or 0.0 for check in checks), "limits": limits}


def example(module: ModuleType, model: PreTrainedModel, kind: str) -> tuple[common.Inputs, list[common.Inputs] | None]:
    """Inputs of a batch, and of its rows where it holds pictures."""
    if kind == "video":
        videos = [[common.video(4, *module.SIZES[0], seed=1)], [common.video(4, *module.SIZES[1], seed=2)]]
        return module.video_inputs(model, videos), None
    rows = [[common.picture(*size, seed=number)] for number, size in enumerate(module.SIZES)]
    return common.together_and_alone(module, model, rows)


def _on(inputs: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    first = next(model.parameters())
    return {
        key: value.to(first.device, first.dtype if value.is_floating_point() else None)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in inputs.items()
    }


def settings(device: str) -> list[tuple[str, str, torch.dtype]]:
    """Label, attention implementation and precision of the runs on a device."""
    if device == "cpu":
        return [("sdpa", "sdpa", torch.float32), ("eager", "eager", torch.float32)]
    return [
        ("sdpa", "sdpa", torch.float32),
        ("flex", "flex_attention", torch.float32),
        ("sdpa bf16", "sdpa", torch.bfloat16),
    ]


def run(name: str, device: str) -> dict[str, Any]:
    """The record of one type in this environment."""
    module = common.load(name)
    try:
        model = common.build(name).to(device)
    except Exception as error:  # a release that has the type in name only
        return {"refused": f"the tiny model cannot be built in this release: {_short(error)}"}
    try:
        find_adapter(model)
    except ValueError as error:
        return {"refused": str(error)}
    if not hasattr(module, "inputs"):
        return {"refused": "no inputs are made for it here"}
    record: dict[str, Any] = {"runs": {}}
    for label, attention, dtype in settings(device):
        for kind in ("image", "video"):
            if kind == "video" and not hasattr(module, "video_inputs"):
                continue
            key = label if kind == "image" else f"{label}, video"
            try:
                record["runs"][key] = check(name, attention, device, dtype, kind)
            except Exception as error:  # whatever it is, it is what this table tells of the type
                record["runs"][key] = {"failed": _short(error)}
                traceback.print_exc(limit=-4, file=sys.stdout)
    done = record["runs"].values()
    if any("error" in run for run in done) and not any("failed" in run for run in done):
        record["about"] = describe(name, model)
    return record


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def main() -> None:
    """Runs all types, or those named, and renews their part of the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", help="name of the column: cpu, or what the device is called")
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "models.json")
    parser.add_argument("--part", default="0/1", help="k/n: only every n-th type, from the k-th on")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.backends.cuda.matmul.allow_tf32 = False
    written = json.loads(options.out.read_text()) if options.out.exists() else {"environments": {}, "types": {}}
    written["environments"][options.environment] = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "device": options.device if options.device == "cpu" else torch.cuda.get_device_name(),
    }
    first, step = map(int, options.part.split("/"))
    for name in (options.types or common.model_types())[first::step]:
        start = time.perf_counter()
        record = run(name, options.device)
        mine = written["types"].setdefault(name, {"environments": {}})
        if "about" in record and (options.environment == "cpu" or "about" not in mine):
            mine["about"] = record["about"]
        mine["environments"][options.environment] = {key: record[key] for key in ("refused", "runs") if key in record}
        print(
            f"{name}: {json.dumps(record.get('runs', record))[:200]} ({time.perf_counter() - start:.1f} s)", flush=True
        )
        _write(options.out, written)
    if options.environment == "cpu":
        for name, reason in NOT_BUILT.items():
            written["types"].setdefault(name, {"environments": {"cpu": {"refused": reason}}})
        _write(options.out, written)


def merge(paths: Sequence[Path], out: Path) -> None:
    """Joins the files of several parts, of one environment or of several, into `out`."""
    whole = json.loads(out.read_text()) if out.exists() else {"environments": {}, "types": {}}
    for path in paths:
        part = json.loads(path.read_text())
        whole["environments"] |= part["environments"]
        for name, record in part["types"].items():
            mine = whole["types"].setdefault(name, {"environments": {}})
            mine.setdefault("about", record.get("about"))
            if mine["about"] is None:
                del mine["about"]
            mine["environments"] |= record["environments"]
    _write(out, whole)


def _write(path: Path, records: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
