"""The command line, `vtprune list | run | check | sweep | report | ... | demo`; heavy imports come late."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vtprune.eval.compare import Comparison
    from vtprune.eval.ray_pool import RayPool
    from vtprune.eval.sweep import Sweep
    from vtprune.eval.sweep_config import SweepConfig

REFUSED = 2
"""Exit code for wrong arguments, as of the option parser itself."""
INTERRUPTED = 130

app = typer.Typer(
    name="vtprune",
    help="Prunes the visual tokens of vision-language models, and measures what that costs and buys.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[str, typer.Option(help="'embedded', a folder or a model of the hub.")]
DeviceOption = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; by default the accelerator, if any.")]
DtypeOption = Annotated[str, typer.Option(help="auto (that of the weights), float32, bfloat16 or float16.")]
PositionsOption = Annotated[
    str | None, typer.Option(help="keep or pack rotary positions; by default what the method's paper did.")
]
TextTowerOption = Annotated[
    str | None,
    typer.Option(help="CLIP text tower of methods that read the question: a folder or an open_clip name; fitting one."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for machines.")]


def main() -> None:
    """Runs the command line."""
    app()


@app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """Lists the pruning methods."""
    from vtprune.method_docs import stage_text
    from vtprune.registry import pruner_classes

    rows: list[dict[str, Any]] = []
    for name, cls in pruner_classes().items():
        method = cls()
        rows.append(
            {
                "name": name,
                "year": cls.year,
                "layers": list(method.layers),
                "acts": stage_text(method),
                "signals": sorted(signal.value for signal in cls.signals),
                "query_aware": cls.query_aware,
                "training_free": cls.training_free,
                "merges": cls.merges,
                "adaptive": method.is_adaptive,
                "positions": cls.default_positions,
                "options": method.config(),
                "summary": cls.summary,
                "paper": cls.paper,
            }
        )
    if as_json:
        _print_json(rows)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption="layers of a decoder with 32; more in docs/methods.md and with --json")
    for column in ("name", "removes tokens", "what it does", "notes"):
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        notes = {
            "sees the question": row["query_aware"],
            "makes new tokens": row["merges"],
            "own count": row["adaptive"],
            "needs training": not row["training_free"],
        }
        table.add_row(row["name"], row["acts"], row["summary"], ", ".join(note for note in notes if notes[note]))
    Console().print(table)


@app.command("run")
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
    with _refusing():
        from vtprune.budget import Budget
        from vtprune.eval.grid import parse_positions, parse_pruner

        method, allowance = parse_pruner(pruner, seed=seed), Budget.parse(budget)
        policy = parse_positions(positions)
        _check_output(output)
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
        _print_json({"model": model, "question": question, "truth": truth, **found.to_dict(), "overlay": str(output)})
    else:
        _print_comparison(model, question, truth, found, output)


@app.command("check")
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
    with _refusing():
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
        _print_json(record)
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


@app.command("sweep")
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
    _require("eval", "lmms_eval", "datasets", "matplotlib")
    if ray is not None:
        _require("ray", "ray")
    with _refusing():
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
        _print_json(outcome.records)
    else:
        from rich.console import Console

        print_outcome(outcome, Console())
        written = () if len(outcome.failed) == len(outcome.records) else _report(sweep)
        for path in (sweep.store.path, *outcome.images.values(), *written):
            typer.echo(path)
    if outcome.failed:
        raise typer.Exit(1)


@app.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(help="Output folder of a sweep, or several that belong together.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the report. [default: the first of the above]")] = None,
    examples: Annotated[int, typer.Option(help="Questions shown with their pictures; 0 loads no task.")] = 12,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folder with further lmms-eval task files.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Writes what a sweep found as one HTML page, Markdown and CSV."""
    _require("eval", "lmms_eval", "jinja2", "scipy")
    with _refusing():
        from vtprune.eval.report.write import write_report

        written = write_report(folders, output, examples=examples, include=include_path or [])
    if as_json:
        _print_json({"cautions": written.content.cautions, "files": [str(path) for path in written.paths]})
        return
    for line in written.content.cautions:
        typer.echo(f"caution: {line}", err=True)
    for path in written.paths:
        typer.echo(path)


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(help="Output folder of a sweep.")],
    second: Annotated[Path, typer.Argument(help="Output folder of another one.")],
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compares two sweeps: each method, budget and task that both measured, question by question."""
    _require("eval", "scipy")
    with _refusing():
        from vtprune.eval.analysis import read_folder
        from vtprune.eval.versus import remarks, versus, versus_markdown, versus_table

        found = versus(read_folder(first), read_folder(second))
        if markdown is not None:
            markdown.write_text(versus_markdown(found, str(first), str(second)), encoding="utf-8")
    if as_json:
        _print_json(found.to_dict())
        return
    _print_tables([versus_table(found, str(first), str(second))], remarks(found))


@app.command("leaderboard")
def leaderboard_command(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of sweeps.")],
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ranks the methods of many sweeps by what is left of the full model's scores."""
    _require("eval", "scipy")
    with _refusing():
        from vtprune.eval.analysis import read_folders
        from vtprune.eval.leaderboard import rankings, to_data, to_markdown, to_tables

        found = rankings(read_folders(folders))
        if not found:
            raise ValueError("no method stands beside a full model of the same task; let the sweep measure it first")
        if markdown is not None:
            markdown.write_text(to_markdown(found), encoding="utf-8")
    if as_json:
        _print_json(to_data(found))
        return
    _print_tables(to_tables(found))


@app.command("profile")
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
        _require("eval", "matplotlib")
    with _refusing():
        from vtprune.eval.profile import DEFAULT_BATCHES, DEFAULT_BUDGETS, DEFAULT_PRUNERS, Profile, ProfileConfig

        for file in (plot, markdown):
            if file is not None:
                _check_output(file)
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
        _print_json(to_data(profile.found))
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


@app.command("calibrate")
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
    with _refusing():
        from vtprune.budget import Budget
        from vtprune.eval.pictures import open_picture

        limit = Budget.parse(target)
        _check_output(output)
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
        _print_json(record)
        return
    typer.echo(f"{found.samples} pictures of {found.tokens} tokens; alpha {found.alpha:.4f}")
    typer.echo(f"{record['average_tokens']:.1f} tokens on average over the layers, {found.keep} left at the end")
    typer.echo(f"use it: --pruner '{method}' --budget {found.keep}")
    typer.echo(str(output))


@app.command("demo")
def demo_command(
    model: ModelOption = "embedded",
    share: Annotated[bool, typer.Option("--share", help="Make a public link, through Gradio's servers.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default the first free one from 7860 on.")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    text_tower: TextTowerOption = None,
) -> None:
    """Serves a page that shows which tokens survive, on pictures of your own or drawn ones."""
    _require("demo", "gradio")
    with _refusing():
        # Looking for garbage among all that is imported takes a fifth of the start; `launch` switches it on again.
        gc.disable()
        from vtprune.demo.app import launch

        launch(model, device=device, dtype=dtype, text_tower=text_tower, share=share, port=port)


@app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="'embedded', a folder or a model of the hub.")],
    pruner: Annotated[
        str, typer.Option(help="Method that looks at the picture alone; see docs/serving.md.")
    ] = "divprune",
    budget: Annotated[str, typer.Option(help="Tokens per image (64) or a ratio (0.25).")] = "64",
    print_only: Annotated[bool, typer.Option("--print-only", help="Print the command and do not run it.")] = False,
) -> None:
    """Starts vLLM's OpenAI-compatible server with pruning; all other options are those of `vllm serve`."""
    _require("vllm", "vllm")
    with _refusing():
        import os
        import shlex

        from vtprune.adapters.vllm.command import command, serve_arguments

        arguments = serve_arguments(model, pruner, budget, context.args)
        typer.echo(shlex.join(["vllm", *arguments]))
        if not print_only:
            sys.stdout.flush()
            os.execv(sys.executable, command(arguments))


@contextmanager
def _refusing() -> Iterator[None]:
    """Turns what the user got wrong into one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"vtprune: {message}", err=True)
        raise typer.Exit(REFUSED) from error


def _require(extra: str, *modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        packages = ", ".join(missing).replace("_", "-")
        typer.echo(f"vtprune: this command needs {packages}: pip install 'vtprune[{extra}]'", err=True)
        raise typer.Exit(REFUSED)


def _check_output(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"output {path} is a folder; name a PNG file")
    if not path.parent.is_dir():
        raise ValueError(f"folder {path.parent} of the output does not exist")


def _drawn_scene(question: str | None, seed: int) -> tuple[Any, str, str | None]:
    """A held-out scene; with its own question and answer unless the user asks another."""
    from vtprune.eval.embedded import load_questions
    from vtprune.eval.embedded.scenes import render

    held_out = load_questions()
    chosen = held_out[seed % len(held_out)]
    if question is not None:
        return render(chosen.scene), question, None
    return render(chosen.scene), chosen.question, chosen.answer


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


def _print_tables(tables: Sequence[Table], notes: Sequence[str] = ()) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    # A file or a pipe has no width of its own, and the tables are wide.
    console = console if console.is_terminal else Console(width=200)
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(f"* {escape(note)}", soft_wrap=True)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")
