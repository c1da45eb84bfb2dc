"""Sweeps over methods, budgets and tasks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtprune.cli.common import (
    INTERRUPTED,
    DeviceOption,
    JsonOption,
    PositionsOption,
    TextTowerOption,
    print_json,
    refusing,
    require,
)

if TYPE_CHECKING:
    from vtprune.eval.ray_pool import RayPool
    from vtprune.eval.sweep import Sweep
    from vtprune.eval.sweep_config import SweepConfig


def sweep_command(
    model: Annotated[
        list[str] | None,
        typer.Option(help="'embedded', a folder or a model of the hub; several, comma-separated. [default: embedded]"),
    ] = None,
    pruners: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods, comma-separated, as in 'random,fastv(layer=3)'; names joined by / run one after another; "
            "'all' means every one. [default: a selection that runs in minutes]"
        ),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            help="Comma-separated: tokens per image (64), ratios (0.25), average:64, flops:0.3. "
            "[default: 192,128,64,32] The full model is always measured too."
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="lmms-eval tasks, comma-separated. [default: vtprune_scenes]")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Tasks and budgets that go together: embedded, quick, paper or video.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="YAML file with these options under their names; the command line wins.")
    ] = None,
    seeds: Annotated[
        list[str] | None,
        typer.Option(help="Methods that draw run with each of these, comma-separated. [default: 0,1,2]"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions per task; all by default.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; the same one resumes. [default: results/sweep]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Questions answered together. [default: 32]")] = None,
    device: DeviceOption = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto (that of the weights), float32, bfloat16 or float16. [default: auto]")
    ] = None,
    positions: PositionsOption = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folder with further lmms-eval task files.")] = None,
    text_tower: TextTowerOption = None,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines",
            help="Measure random, stride, pool and downsample too, also at the true averages of other methods. "
            "[default: baselines]",
        ),
    ] = None,
    prefill_repeats: Annotated[
        int | None, typer.Option(help="Timed runs of a batch to its first token, for each cell. [default: 3]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be measured and how long it takes at most.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(help="Spread cells over the Ray cluster at this address, such as auto; local starts one here."),
    ] = None,
    ray_workers: Annotated[
        int | None, typer.Option(help="Ray actors. [default: one a GPU, or one a machine without]")
    ] = None,
    ray_cpus: Annotated[int, typer.Option(help="CPU cores of a Ray actor.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measures methods and budgets on benchmark tasks; a run that was stopped goes on where it was."""
    require("eval", "lmms_eval", "datasets", "matplotlib")
    if ray is not None:
        require("ray", "ray")
    with refusing():
        from vtprune.eval.grid import split_words
        from vtprune.eval.sweep import Sweep, print_outcome, print_plan
        from vtprune.eval.sweep_config import make_config, read_grid

        words = {"models": model, "budgets": budgets, "tasks": tasks}
        config = make_config(
            preset,
            {} if grid is None else read_grid(grid),
            {
                **{name: tuple(split_words(given or ())) for name, given in words.items()},
                "pruners": tuple(pruners or ()),
                "seeds": tuple(_whole_number("seeds", word) for word in split_words(seeds or ())),
                "limit": limit,
                "output": output,
                "batch_size": batch_size,
                "device": device,
                "dtype": dtype,
                "positions": positions,
                "include": tuple(include_path or ()),
                "text_tower": text_tower,
                "baselines": baselines,
                "prefill_repeats": prefill_repeats,
            },
        )
        sweep = Sweep(config)
        if dry_run:
            print_plan(sweep.plan(), sweep)
            return
        spread = _ray_pool(config, ray, ray_workers, ray_cpus) if ray is not None else None
        measure = None if spread is not None else sweep.prepare()
    try:
        with spread or nullcontext():
            outcome = sweep.run(measure, spread=spread)
    except KeyboardInterrupt:
        typer.echo("stopped; finished cells are kept, and the same command goes on with the others", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        typer.echo(f"vtprune: results cannot be written any more: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        print_json(outcome.records)
    else:
        from rich.console import Console

        print_outcome(outcome, Console())
        written = () if len(outcome.failed) == len(outcome.records) else _report(sweep)
        for path in (sweep.store.path, *outcome.images.values(), *written):
            typer.echo(path)
    if outcome.failed:
        raise typer.Exit(1)


def _report(sweep: Sweep) -> tuple[Path, ...]:
    from vtprune.eval.report.write import write_report

    return write_report([sweep.store.folder], include=sweep.config.include).paths


def _whole_number(name: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{name} must be whole numbers, got {word!r}") from None


def _ray_pool(config: SweepConfig, address: str, workers: int | None, cpus: int) -> RayPool:
    from vtprune.eval.ray_pool import RayPool

    return RayPool(config, address, workers=workers, cpus=cpus)
