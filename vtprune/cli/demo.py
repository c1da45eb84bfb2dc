"""The page for looking."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from vtprune.cli.common import DeviceOption, DtypeOption, ModelOption, TextTowerOption, refusing, require


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
    require("demo", "gradio")
    with refusing():
        # Looking for garbage among all that is imported takes a fifth of the start; `launch` switches it on again.
        gc.disable()
        from vtprune.demo.app import launch

        launch(model, device=device, dtype=dtype, text_tower=text_tower, share=share, port=port)
