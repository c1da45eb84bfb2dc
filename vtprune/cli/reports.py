"""What sweeps have found: report, comparison and leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtprune.cli.common import JsonOption, print_json, print_tables, refusing, require


def report_command(
    folders: Annotated[list[Path], typer.Argument(help="Output folder of a sweep, or several that belong together.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the report. [default: the first of the above]")] = None,
    examples: Annotated[int, typer.Option(help="Questions shown with their pictures; 0 loads no task.")] = 12,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folder with further lmms-eval task files.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Writes what a sweep found as one HTML page, Markdown and CSV."""
    require("eval", "lmms_eval", "jinja2", "scipy")
    with refusing():
        from vtprune.eval.report.write import write_report

        written = write_report(folders, output, examples=examples, include=include_path or [])
    if as_json:
        print_json({"cautions": written.content.cautions, "files": [str(path) for path in written.paths]})
        return
    for line in written.content.cautions:
        typer.echo(f"caution: {line}", err=True)
    for path in written.paths:
        typer.echo(path)


def compare_command(
    first: Annotated[Path, typer.Argument(help="Output folder of a sweep.")],
    second: Annotated[Path, typer.Argument(help="Output folder of another one.")],
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compares two sweeps: each method, budget and task that both measured, question by question."""
    require("eval", "scipy")
    with refusing():
        from vtprune.eval.analysis import read_folder
        from vtprune.eval.versus import remarks, versus, versus_markdown, versus_table

        found = versus(read_folder(first), read_folder(second))
        if markdown is not None:
            markdown.write_text(versus_markdown(found, str(first), str(second)), encoding="utf-8")
    if as_json:
        print_json(found.to_dict())
        return
    print_tables([versus_table(found, str(first), str(second))], remarks(found))


def leaderboard_command(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of sweeps.")],
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ranks the methods of many sweeps by what is left of the full model's scores."""
    require("eval", "scipy")
    with refusing():
        from vtprune.eval.analysis import read_folders
        from vtprune.eval.leaderboard import rankings, to_data, to_markdown, to_tables

        found = rankings(read_folders(folders))
        if not found:
            raise ValueError("no method stands beside a full model of the same task; let the sweep measure it first")
        if markdown is not None:
            markdown.write_text(to_markdown(found), encoding="utf-8")
    if as_json:
        print_json(to_data(found))
        return
    print_tables(to_tables(found))
