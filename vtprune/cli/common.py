"""What commands share: options, refusals and output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

REFUSED = 2
"""Exit code for wrong arguments, as of the option parser itself."""
INTERRUPTED = 130
"""That of a command that Ctrl-C ended, as in shells."""

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


@contextmanager
def refusing() -> Iterator[None]:
    """Turns what the user got wrong into one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"vtprune: {message}", err=True)
        raise typer.Exit(REFUSED) from error


def require(extra: str, *modules: str) -> None:
    """Ends the command with exit code 2 where an extra is not installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        packages = ", ".join(missing).replace("_", "-")
        typer.echo(f"vtprune: this command needs {packages}: pip install 'vtprune[{extra}]'", err=True)
        raise typer.Exit(REFUSED)


def check_output(path: Path) -> None:
    """Refuses a file that cannot be written, with a ValueError."""
    if path.is_dir():
        raise ValueError(f"output {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"folder {path.parent} of the output does not exist")


def print_json(value: Any) -> None:
    """Prints a value for machines."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def print_tables(tables: Sequence[Table], notes: Sequence[str] = ()) -> None:
    """Prints tables, and notes below them, for people."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    # A file or a pipe has no width of its own, and the tables are wide.
    console = console if console.is_terminal else Console(width=200)
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(f"* {escape(note)}", soft_wrap=True)
