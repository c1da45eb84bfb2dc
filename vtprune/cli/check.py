"""The invariants on any model."""

from __future__ import annotations

from typing import Annotated

import typer

from vtprune.cli.common import DeviceOption, JsonOption, ModelOption, print_json, refusing


def check_command(
    model: ModelOption = "embedded",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of logits; half precision needs more.")
    ] = (1e-3),
    device: DeviceOption = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto (that of the weights).")] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Tells whether a model can be pruned, and runs the invariants on it: pruned equals masked, and the rest."""
    with refusing():
        from vtprune.adapters import check_adapter, find_adapter
        from vtprune.eval.models import load

        loaded = load(model, device=device, dtype=dtype)
        adapter = find_adapter(loaded.model)
        missing = {str(signal): reason for signal, reason in sorted(adapter.missing.items())}
        failure = None
        try:
            checks = check_adapter(loaded.model, loaded.processor, tolerance=tolerance)
        except AssertionError as error:
            checks, failure = [], str(error)
    record = {
        "model": model,
        "class": type(loaded.model).__name__,
        "adapter": type(adapter).__name__,
        "passes": failure is None,
        "failure": failure,
        "checks": [{"name": check.name, "error": check.error} for check in checks],
        "missing_signals": missing,
    }
    if as_json:
        print_json(record)
    else:
        typer.echo(f"{record['class']}, seen by {record['adapter']}, {loaded.dtype} on {loaded.device}")
        for check in checks:
            typer.echo(f"ok  {check.name}" + ("" if check.error is None else f" ({check.error:.1e})"))
        for signal, reason in missing.items():
            typer.echo(f"--  no {signal}: {reason}")
        if failure is not None:
            typer.echo(f"vtprune: {failure}", err=True)
    if failure is not None:
        raise typer.Exit(1)
