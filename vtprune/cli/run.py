"""One question to the full and to the pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtprune.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PositionsOption,
    TextTowerOption,
    check_output,
    print_json,
    refusing,
)

if TYPE_CHECKING:
    from vtprune.eval.compare import Comparison


def run_command(
    image: Annotated[
        Path | None, typer.Option(help="Picture; without one the embedded model gets a drawn scene.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about the picture.")] = None,
    model: ModelOption = "embedded",
    pruner: Annotated[
        str, typer.Option(help="Method, as in divprune or 'fastv(layer=3)'; see vtprune list.")
    ] = "divprune",
    budget: Annotated[str, typer.Option(help="Tokens per image (64), a ratio (0.25), average:64 or flops:0.3.")] = "64",
    positions: PositionsOption = None,
    output: Annotated[Path, typer.Option(help="PNG of the kept tokens.")] = Path("overlay.png"),
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Of methods that draw, and of the drawn scene.")] = 0,
    text_tower: TextTowerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Asks one question of the full and of the pruned model, and draws which tokens survived."""
    with refusing():
        from vtprune.budget import Budget
        from vtprune.eval.grid import parse_positions, parse_pruner

        method, allowance = parse_pruner(pruner, seed=seed), Budget.parse(budget)
        policy = parse_positions(positions)
        check_output(output)
        from vtprune.eval.pictures import open_picture

        picture = None if image is None else open_picture(image)
        truth = None
        if picture is None:
            if model != "embedded":
                raise ValueError("--image is missing; only the embedded model comes with pictures of its own")
            picture, question, truth = _drawn_scene(question, seed)
        if not question or not question.strip():
            raise ValueError("--question is missing; say what to ask about the picture")

        from vtprune.eval.compare import compare
        from vtprune.eval.models import load

        loaded = load(model, device=device, dtype=dtype, text_tower=text_tower)
        found = compare(loaded, picture, question, method, allowance, positions=policy, max_new_tokens=max_new_tokens)
    from vtprune.demo.overlay import overlay

    overlay(found.seen, found.layout, found.kept, legend=f"{found.method}, {found.budget}").save(output, format="PNG")
    if as_json:
        print_json({"model": model, "question": question, "truth": truth, **found.to_dict(), "overlay": str(output)})
    else:
        _print_comparison(model, question, truth, found, output)


def _drawn_scene(question: str | None, seed: int) -> tuple[Any, str, str | None]:
    """A held-out scene; with its own question and answer unless the user asks another."""
    from vtprune.eval.embedded import load_questions
    from vtprune.eval.embedded.scenes import render

    held_out = load_questions()
    chosen = held_out[seed % len(held_out)]
    if question is not None:
        return render(chosen.scene), question, None
    return render(chosen.scene), chosen.question, chosen.answer


def _print_comparison(model: str, question: str, truth: str | None, found: Comparison, output: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{model}: {question}"), box=box.SIMPLE_HEAD, caption=f"positions: {found.positions}")
    table.add_column("")
    table.add_column("full", justify="right")
    table.add_column(f"{found.method}, {found.budget}", justify="right")
    both = found.full, found.pruned
    table.add_row("answer", *[f"[bold]{escape(run.answer)}[/]" for run in both])
    table.add_row("visual tokens", *[str(run.tokens) for run in both])
    table.add_row("mean over the layers", *[f"{run.average_tokens:.1f}" for run in both])
    table.add_row("prefill GFLOPs, language model", *[f"{run.prefill_flops / 1e9:.2f}" for run in both])
    table.add_row("KV cache, MiB", *[f"{run.kv_bytes / 2**20:.2f}" for run in both])
    table.add_row("time to first token, ms", *[f"{1e3 * run.first_token_seconds:.1f}" for run in both])
    console = Console()
    console.print(table)
    if truth is not None:
        console.print(f"right answer: {truth}")
    console.print(f"kept tokens: {output}", soft_wrap=True)
