"""The Gradio app: see which tokens survive. `vtprune demo` starts it, and so does a Space with this folder."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Set first: Gradio reads its settings when it is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from vtprune.budget import Budget
from vtprune.demo import cards
from vtprune.demo.drawing import Look
from vtprune.demo.examples import Example, load_examples
from vtprune.demo.form import BUDGETS, POSITIONS, Form
from vtprune.demo.option_form import READ, form_html
from vtprune.demo.options import build
from vtprune.demo.page import VIEWS, Page
from vtprune.demo.session import Ask, Outcome, Setting, Studio
from vtprune.demo.state import TABS
from vtprune.eval.models import EMBEDDED, load
from vtprune.registry import list_pruners

COMPARED = ("random", "stride", "divprune", "visionzip", "fastv", "cdpruner")
STYLE = Path(__file__).with_name("style.css")

_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
_QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

_POINTS = """
const pick = event => {
  const point = event.target.closest('[data-point]');
  if (!point || (event.type === 'keydown' && event.key !== 'Enter' && event.key !== ' ')) return;
  event.preventDefault();
  trigger('select', {index: Number(point.dataset.point)});
};
element.addEventListener('click', pick);
element.addEventListener('keydown', pick);
"""


_WHOLE_LINK = "link => link.startsWith('?') ? location.origin + location.pathname + link : link"


def _path_of(payload: Any) -> str | None:
    """Where an upload lies: `read_upload` opens it, and says what is wrong with it."""
    return None if payload is None else str(payload.path)


def build_app(studio: Studio, examples: Sequence[Example] | None = None) -> Any:
    """The app around a model.

    Raises:
        DemoError: The model cannot be pruned.
    """
    page = Page(studio, examples or load_examples())
    first = page.examples[0]
    allowance = Budget(tokens=min(64, page.layout.tokens))
    *_, start = studio.look(Ask((first.picture,), first.question), Setting(build(["divprune"]), allowance))
    assert isinstance(start, Outcome)
    most = page.layout.tokens
    budget_start = start.pruned.tokens
    first_form = Form(
        None, None, None, 0, first.question, ["divprune"], {}, budget_start, next(iter(BUDGETS)), next(iter(POSITIONS))
    )

    with gr.Blocks(
        title="vtprune: see which tokens survive", analytics_enabled=False, delete_cache=(3600, 14400)
    ) as app:
        gr.HTML(
            '<div class="intro"><h1>Which parts of a picture does the model need?</h1>'
            f"<p>The model sees a picture as <b>{most} tokens</b>. A pruning method keeps the <b>bright cells</b> "
            "and removes the dark ones. Does the answer stay the same?</p></div>"
        )
        parts: dict[str, Any] = {}
        with gr.Row():
            with gr.Column(scale=4, min_width=320, elem_classes="settings"):
                picture = gr.Image(
                    first.picture,
                    type="filepath",
                    image_mode=None,
                    label="Picture",
                    height=190,
                    elem_id="picture",
                    sources=["upload", "clipboard", "webcam"],
                    buttons=[],
                    webcam_options=gr.WebcamOptions(mirror=False),
                )
                # Gradio would open the file itself, and fail on damaged ones without telling why.
                picture.preprocess = _path_of  # type: ignore[method-assign]
                shelf = gr.HTML(
                    cards.shelf([(each.picture, each.question) for each in page.examples]),
                    js_on_load=_POINTS,
                    elem_id="examples",
                )
                question = gr.Textbox(first.question, label="Question", elem_id="question", lines=1, max_lines=3)
                methods = gr.Dropdown(
                    list_pruners(),
                    value=["divprune"],
                    multiselect=True,
                    label="Pruning method",
                    info="Several run one after another.",
                    elem_id="methods",
                )
                budget = gr.Slider(1, most, value=budget_start, step=1, label="Budget, tokens", elem_id="budget")
                count = gr.HTML(
                    page.count(["divprune"], {}, budget_start, next(iter(BUDGETS)), page.layout), elem_id="count"
                )
                film = gr.File(
                    label="or a video",
                    file_types=["video", ".gif"],
                    height=110,
                    visible=page.takes_videos,
                    elem_id="film",
                )
                with gr.Accordion("More settings", open=False, elem_id="more"):
                    kind = gr.Radio(list(BUDGETS), value=next(iter(BUDGETS)), label="The budget counts tokens")
                    positions = gr.Radio(
                        list(POSITIONS),
                        value=next(iter(POSITIONS)),
                        label="Positions of the tokens that stay",
                        info="keep: as they were; pack: numbered anew without gaps",
                    )
                    more = gr.File(
                        label="More pictures for the same question", file_count="multiple", elem_id="more-pictures"
                    )
                    option_form = gr.HTML(form_html(["divprune"]), js_on_load=READ, elem_id="options")
            with gr.Column(scale=7, min_width=320, elem_classes="results"):
                parts["message"] = gr.HTML(elem_id="message")
                with gr.Tabs() as tabs:
                    with gr.Tab("Look", id=TABS[0]):
                        with gr.Row():
                            ask = gr.Button("Ask", variant="primary", elem_id="ask")
                            stops = [gr.Button("Stop", scale=0, min_width=90, elem_id="stop-look")]
                        parts["answers"] = gr.HTML(
                            cards.answers(first.question, start, most, "divprune", first.truth(first.question)),
                            elem_id="answers",
                        )
                        with gr.Row():
                            with gr.Column(scale=5, min_width=300):
                                parts["overlay"] = gr.HTML(cards.overlays(start, Look()), elem_id="overlay")
                            with gr.Column(scale=4, min_width=280):
                                parts["costs"] = gr.HTML(cards.costs(start), elem_id="costs")
                                view = gr.Radio(list(VIEWS), value=next(iter(VIEWS)), label="Show", elem_id="view")
                                grid = gr.Checkbox(False, label="grid of all cells", elem_id="grid")
                    with gr.Tab("Compare", id=TABS[1]):
                        compared = gr.Dropdown(
                            list_pruners(), value=list(COMPARED), multiselect=True, label="Methods", elem_id="compared"
                        )
                        with gr.Row():
                            compare = gr.Button("Compare", variant="primary", elem_id="compare")
                            stops.append(gr.Button("Stop", scale=0, min_width=90, elem_id="stop-compare"))
                            parts["png"] = gr.DownloadButton("Download as PNG", interactive=False, elem_id="png")
                        parts["gallery"] = gr.HTML(elem_id="gallery")
                    with gr.Tab("Sweep the budget", id=TABS[2]):
                        with gr.Row():
                            sweep = gr.Button("Sweep", variant="primary", elem_id="sweep")
                            stops.append(gr.Button("Stop", scale=0, min_width=90, elem_id="stop-sweep"))
                        parts["plot"] = gr.HTML(
                            '<p class="caption">From how few tokens does the model still give the same answer? '
                            "Sweep, then click a point to see its tokens.</p>",
                            js_on_load=_POINTS,
                            elem_id="plot",
                        )
                        parts["point"] = gr.HTML(elem_id="point")
                    with gr.Tab("Layers", id=TABS[3]):
                        with gr.Row():
                            back = gr.Button("Earlier", elem_id="earlier")
                            onward = gr.Button("Later", elem_id="later")
                        parts["stage"] = gr.Slider(
                            1, 2, value=1, step=1, label="Stage", interactive=False, elem_id="stage"
                        )
                        parts["stages"] = gr.HTML(page.stage_html(start, 1), elem_id="stages")
                with gr.Accordion("Python for this, and a link to it", open=False):
                    parts["snippet"] = gr.Code(
                        page.program(first_form, [first_form.setting()]),
                        language="python",
                        label="Python",
                        elem_id="snippet",
                    )
                    parts["link"] = gr.Textbox(
                        label="Link to this page (a picture of your own is not part of it)",
                        interactive=False,
                        buttons=["copy"],
                        elem_id="link",
                    )
        options = gr.State({})
        example = gr.State(0)
        linked = gr.State({})
        parts["layout"] = gr.State(page.layout)
        parts["outcome"] = gr.State(start)
        parts["swept"] = gr.State([])
        parts |= {"budget": budget, "count": count}
        entered = [picture, more, film, example, question, methods, options, budget, kind, positions]
        counted: list[Any] = [methods, options, budget, kind, parts["layout"]]

        def shows(run: Callable[..., Iterator[dict[str, Any]]]) -> Callable[..., Iterator[dict[Any, Any]]]:
            """Lets an event speak of parts of the page by their names."""

            def event(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
                for named in run(*values, request=request):
                    yield {parts[name]: value for name, value in named.items()}

            return event

        def once(run: Callable[..., dict[str, Any]]) -> Callable[..., dict[Any, Any]]:
            return lambda *values: {parts[name]: value for name, value in run(*values).items()}

        measured = [parts[name] for name in ("message", "layout", "budget", "count")]
        outputs = [part for part in parts.values() if part not in (*measured[1:],)]
        looking = [view, grid, *entered]
        running: list[Any] = [
            # Who asks again while an answer comes is answered next, about what the form shows then.
            ask.click(shows(page.look), looking, outputs, trigger_mode="always_last", **_MODEL),
            question.submit(shows(page.look), looking, outputs, trigger_mode="always_last", **_MODEL),
            compare.click(shows(page.compare), [compared, *entered], outputs, **_MODEL),
            sweep.click(shows(page.sweep), entered, outputs, **_MODEL),
        ]
        for button in stops:
            button.click(page.stop, None, parts["message"], cancels=running, **_QUICK)

        gr.on([methods.change, budget.change, kind.change], page.count, counted, count, **_QUICK)
        methods.change(form_html, [methods, options], option_form, **_QUICK)
        option_form.input(page.enter, None, options, **_QUICK).then(page.count, counted, count, **_QUICK)
        measure: dict[str, Any] = {"fn": once(page.measure), "inputs": entered, "outputs": measured, **_QUICK}
        shelf.select(page.example, None, [picture, question, film, example], **_QUICK).then(**measure)
        picture.input(lambda: None, None, example, **_QUICK).then(**measure)
        picture.clear(lambda: None, None, example, **_QUICK)
        gr.on([more.change, film.change], **measure)
        redraw = lambda found, view, grid: cards.overlays(found, Look(VIEWS[view], grid))  # noqa: E731
        for control in (view, grid):
            control.change(redraw, [parts["outcome"], view, grid], parts["overlay"], **_QUICK)
        stage_parts = [parts["stage"], parts["stages"]]
        parts["stage"].release(once(page.stage), [parts["outcome"], parts["stage"]], stage_parts, **_QUICK)
        for button, step in ((back, -1), (onward, 1)):
            button.click(
                once(lambda found, place, step=step: page.stage(found, place + step)),
                [parts["outcome"], parts["stage"]],
                stage_parts,
                **_QUICK,
            )

        def pick(found: list[Outcome], event: gr.EventData) -> dict[Any, Any]:
            return once(page.point)(found, int(event.index))

        parts["plot"].select(pick, parts["swept"], [parts["plot"], parts["point"]], **_QUICK)

        parts["link"].change(None, parts["link"], parts["link"], js=_WHOLE_LINK, **_QUICK)
        app.load(None, None, parts["link"], js="() => location.href", **_QUICK)
        # Of a page without a link nothing is touched: somebody quick may have changed the form by now.
        # Through the queue, because only then a state says that it has changed.
        app.load(page.linked, None, linked, **_QUICK | {"queue": True})
        restored = [
            picture,
            example,
            question,
            methods,
            options,
            budget,
            kind,
            positions,
            parts["message"],
            tabs,
            compared,
        ]
        linked.change(page.restore, linked, restored, **_QUICK).then(
            shows(page.follow), [linked, compared, *looking], outputs, **_MODEL
        )
        app.unload(page.leave)
        gr.events.api(page.answer, api_name="ask", concurrency_limit=1, concurrency_id="model")
    return app


def launch(
    model: str = EMBEDDED,
    *,
    device: str | None = None,
    dtype: str = "auto",
    text_tower: str | None = None,
    share: bool = False,
    port: int | None = None,
    host: str | None = None,
    block: bool = True,
) -> str:
    """Loads a model and serves the app.

    Args:
        model: `"embedded"`, a folder or a hub id.
        device: Such as `"cuda:0"`; by default the accelerator, if any.
        dtype: Number type; by default that of the weights.
        text_tower: Of methods that read the question, see `vtprune.wrap`.
        share: Whether Gradio makes a public link, which needs its servers.
        port: By default the first free one from 7860 on.
        host: Address to listen at; by default this machine alone.
        block: Whether to serve until interrupted.

    Returns:
        The address of the app.

    Raises:
        ValueError: The model cannot be loaded or pruned.
        OSError: The port is not free.
    """
    if port is not None:
        _check_port(host, port)
    studio = Studio(load(model, device=device, dtype=dtype, text_tower=text_tower))
    app = build_app(studio)
    app.queue(max_size=64)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = app.launch(
        share=share,
        server_port=port,
        server_name=host,
        theme=theme,
        css_paths=[STYLE],
        footer_links=["api"],
        prevent_thread_lock=True,
        show_error=False,
        max_file_size="40mb",
        ssr_mode=False,
        enable_monitoring=False,
    )
    gc.enable()  # the command line switches it off for the start
    if block:
        app.block_thread()
    return str(address)


def _check_port(host: str | None, port: int) -> None:
    """Tells before a model is loaded that somebody else listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host or "127.0.0.1", port))
        except OSError as error:
            raise OSError(
                f"port {port} cannot be had ({error.strerror}); name another one, or none for the first free one"
            ) from error


if __name__ == "__main__":
    launch(os.environ.get("VTPRUNE_MODEL", EMBEDDED), host=os.environ.get("GRADIO_SERVER_NAME"))
