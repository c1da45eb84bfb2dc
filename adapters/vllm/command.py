"""The command that starts vLLM's server with pruning."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from transformers import AutoConfig

from vtprune.adapters.vllm import architecture_for
from vtprune.adapters.vllm.eligibility import refusal
from vtprune.adapters.vllm.options import KEY, Options
from vtprune.eval.models import resolve_name

_OVERRIDES = "--hf-overrides"


def serve_arguments(model: str, pruner: str, budget: str, others: Sequence[str]) -> list[str]:
    """The arguments of `vllm` that serve a model pruned.

    Args:
        model: `"embedded"`, a folder or a hub id.
        pruner: Method, as on the command line.
        budget: Tokens that stay, as on the command line.
        others: What else vLLM is told; `--hf-overrides` among them are kept beside ours.

    Raises:
        ValueError: The method, the budget or the model cannot be served, or the overrides are no JSON object.
    """
    options = Options.read({"pruner": pruner, "budget": budget})
    if (reason := refusal(options.pruner, options.budget)) is not None:
        raise ValueError(f"{reason}; choose one that docs/serving.md lists")
    place = resolve_name(model)
    architecture = architecture_for(AutoConfig.from_pretrained(place).model_type)
    given, rest = _without_overrides(others)
    overrides = {**given, "architectures": [architecture], KEY: json.loads(options.text)}
    named = [] if place == model or "--served-model-name" in rest else ["--served-model-name", model]
    return ["serve", place, _OVERRIDES, json.dumps(overrides), *named, *rest]


def command(arguments: Sequence[str]) -> list[str]:
    """What starts vLLM with some arguments in this environment, whatever is on the search path."""
    try:
        version("vllm")
    except PackageNotFoundError:
        # Builds for the CPU come as a distribution of another name, without which vLLM's command line does not start.
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *arguments[1:]]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", *arguments]


def _without_overrides(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The overrides among some arguments, and the other arguments."""
    rest = list(arguments)
    found: dict[str, Any] = {}
    for place, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if name != _OVERRIDES:
            continue
        end = place + 1 if equals else place + 2
        text = value if equals else "".join(rest[place + 1 : end])
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{_OVERRIDES} must be a JSON object, got {text!r}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{_OVERRIDES} must be a JSON object, got {text!r}")
        for key in ("architectures", KEY):
            if key in found:
                raise ValueError(f"{_OVERRIDES} may not name {key!r}, which vtprune serve sets; leave it out")
        return found, rest[:place] + rest[end:]
    return found, rest
