"""Times of methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtprune.cli.common import (
    INTERRUPTED,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PositionsOption,
    TextTowerOption,
    check_output,
    print_json,
    refusing,
    require,
)


def profile_command(
    model: ModelOption = "embedded",
    config: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model an architecture with random weights: llava-1.5-7b, llava-1.5-13b, llava-next-7b "
            "or qwen2.5-vl-7b."
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Decoder layers of --config, to fit small machines.")] = None,
    pruners: Annotated[
        list[str] | None, typer.Option(help="Methods, as for sweep. [default: divprune,visionzip,fastv]")
    ] = None,
    budgets: Annotated[list[str] | None, typer.Option(help="Budgets, as for sweep. [default: 64]")] = None,
    batches: Annotated[
        list[str] | None, typer.Option(help="Batch sizes, comma-separated; one picture a prompt. [default: 1,8]")
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Tokens of a prompt beside the visual ones.")] = 60,
    image: Annotated[Path | None, typer.Option(help="Picture; a made-up one by default.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    attention: Annotated[str | None, typer.Option(help="sdpa, eager, flash_attention_2, ...; by default sdpa.")] = None,
    positions: PositionsOption = None,
    graph: Annotated[bool, typer.Option("--graph", help="Measure with CUDA graphs too.")] = False,
    static: Annotated[
        bool, typer.Option("--static", help="Decode on static caches, which is what graphs of decoding need.")
    ] = False,
    decode: Annotated[int, typer.Option(help="Tokens to decode in each round; 0 for none.")] = 8,
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 20,
    warmup: Annotated[int, typer.Option(help="Rounds before them.")] = 3,
    seed: Annotated[int, typer.Option(help="Of methods that draw, and of random weights.")] = 0,
    text_tower: TextTowerOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results, one line of JSON a row; the same one resumes.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of time against visual tokens.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="File for the tables with all quartiles, in Markdown.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Times methods against the unpruned model and the ideal, and tells from how many visual tokens on they pay."""
    if plot is not None:
        require("eval", "matplotlib")
    with refusing():
        from vtprune.eval.profile import DEFAULT_BATCHES, DEFAULT_BUDGETS, DEFAULT_PRUNERS, Profile, ProfileConfig

        for file in (plot, markdown):
            if file is not None:
                check_output(file)
        profile = Profile(
            ProfileConfig(
                model=model,
                config=config,
                layers=layers,
                pruners=tuple(pruners or DEFAULT_PRUNERS),
                budgets=tuple(budgets or DEFAULT_BUDGETS),
                batches=tuple(batches or DEFAULT_BATCHES),
                text_tokens=text_tokens,
                image=image,
                device=device,
                dtype=dtype,
                attention=attention,
                positions=positions,
                graph=graph,
                static=static,
                decode_tokens=decode,
                repeats=repeats,
                warmup=warmup,
                seed=seed,
                text_tower=text_tower,
                output=output,
            )
        )
        profile.prepare()
    stopped = False
    try:
        profile.run()
    except KeyboardInterrupt:
        more = "" if output is None else ", and the same command goes on with the others"
        typer.echo(f"stopped; finished rows are kept{more}", err=True)
        stopped = True
    except OSError as error:
        typer.echo(f"vtprune: results cannot be written any more: {error}", err=True)
        raise typer.Exit(1) from error
    from vtprune.eval.profile_report import plot_profile, print_found, to_data

    drawn = plot is not None and plot_profile(profile.found, plot)
    if markdown is not None:
        from vtprune.eval.profile_markdown import to_markdown

        markdown.write_text(to_markdown(profile.found), encoding="utf-8")
    if as_json:
        print_json(to_data(profile.found))
    else:
        from rich.console import Console

        console = Console()
        # A file or a pipe has no width of its own, and the tables are wide.
        print_found(profile.found, console if console.is_terminal else Console(width=200))
        for path in (profile.store.path, plot if drawn else None, markdown):
            if path is not None:
                typer.echo(path)
    if stopped:
        raise typer.Exit(INTERRUPTED)
    if profile.found.failed:
        raise typer.Exit(1)
