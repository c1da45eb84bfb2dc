"""vLLM's server with pruning."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vtprune.cli.common import refusing, require


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
    require("vllm", "vllm")
    with refusing():
        import os
        import shlex

        from vtprune.adapters.vllm.command import command, serve_arguments

        arguments = serve_arguments(model, pruner, budget, context.args)
        typer.echo(shlex.join(["vllm", *arguments]))
        if not print_only:
            sys.stdout.flush()
            os.execv(sys.executable, command(arguments))
