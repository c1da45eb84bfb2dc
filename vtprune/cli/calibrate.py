"""FitPrune's schedule for a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vtprune.cli.common import DeviceOption, DtypeOption, JsonOption, ModelOption, check_output, print_json, refusing


def calibrate_command(
    model: ModelOption = "embedded",
    target: Annotated[
        str, typer.Option(help="What the schedule must meet: average:192 (tokens over the layers) or flops:0.3.")
    ] = "average:192",
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures; without it fresh scenes are drawn (embedded model only).")
    ] = None,
    question: Annotated[str, typer.Option(help="What to ask about the pictures of a folder.")] = "Describe the image.",
    samples: Annotated[int, typer.Option(min=1, help="Pictures to look at, at most.")] = 64,
    output: Annotated[Path, typer.Option(help="JSON file of the schedule.")] = Path("fitprune.json"),
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the drawn scenes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Fits FitPrune's schedule to a model: how many tokens each decoder layer can spare."""
    with refusing():
        from vtprune.budget import Budget
        from vtprune.eval.pictures import open_picture

        limit = Budget.parse(target)
        check_output(output)
        if images is not None:
            files = sorted(path for path in images.iterdir() if path.is_file())[:samples]
            examples: list[tuple[Any, str]] = [(open_picture(path), question) for path in files]
        elif model == "embedded":
            examples = _fresh_scenes(samples, seed)
        else:
            raise ValueError("--images is missing; only the embedded model comes with pictures of its own")

        from rich.progress import Progress

        from vtprune.eval.calibrate import calibrate
        from vtprune.eval.models import load

        loaded = load(model, device=device, dtype=dtype)
        with Progress(disable=as_json, transient=True) as progress:
            bar = progress.add_task("pictures", total=len(examples))
            found = calibrate(loaded, examples, limit, advance=lambda: progress.advance(bar))
    method = f"fitprune(shares=({', '.join(f'{share:.4f}' for share in found.shares)},))"
    record = {
        "model": model,
        "target": str(limit),
        "pruner": method,
        "budget": found.keep,
        "shares": list(found.shares),
        "alpha": found.alpha,
        "average_tokens": found.average_share * found.tokens,
        "samples": found.samples,
        "visual_tokens": found.tokens,
    }
    output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(record)
        return
    typer.echo(f"{found.samples} pictures of {found.tokens} tokens; alpha {found.alpha:.4f}")
    typer.echo(f"{record['average_tokens']:.1f} tokens on average over the layers, {found.keep} left at the end")
    typer.echo(f"use it: --pruner '{method}' --budget {found.keep}")
    typer.echo(str(output))


def _fresh_scenes(count: int, seed: int) -> list[tuple[Any, str]]:
    """Drawn scenes that no question set holds."""
    import random

    from vtprune.eval.embedded.scenes import questions, render, sample_scene

    rng = random.Random(f"calibration {seed}")
    found = []
    for _ in range(count):
        scene = sample_scene(rng)
        found.append((render(scene), rng.choice(questions(scene, rng)).text))
    return found
