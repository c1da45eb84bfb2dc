"""The one-liner: wrap a stock model, unwrap it, and ask what the last prefill did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import nn

from vtprune.budget import Budget
from vtprune.pruner import Pruner, Signal
from vtprune.registry import make_pruner
from vtprune.reporting import Report

if TYPE_CHECKING:
    from vtprune.adapters.base import Adapter
    from vtprune.engine.engine import Engine
    from vtprune.engine.recordings import Graph
    from vtprune.question import QuestionReader
    from vtprune.text_tower import TextTower

_ATTRIBUTE = "_vtprune_engine"

ModelT = TypeVar("ModelT", bound=nn.Module)


def wrap(
    model: ModelT,
    pruner: str | Pruner | Sequence[str | Pruner],
    budget: int | float | str | Budget,
    *,
    positions: Literal["keep", "pack"] | None = None,
    images_per_prompt: int | None = None,
    text_tower: str | PathLike[str] | TextTower | None = None,
    processor: Any = None,
    graph: bool | Graph = False,
    **options: Any,
) -> ModelT:
    """Makes a vision-language model prune its visual tokens, in place; `generate` is called as before.

    Args:
        model: A conditional-generation model of transformers whose family has an adapter.
        pruner: Name of a method, an instance such as `vtprune.FastV(layer=2)`, or a list of these, which run in order
            under the one budget (`["visionzip", "pyramiddrop"]`).
        budget: An integer is tokens per image, a float in (0, 1] a ratio; see `Budget` for averages and FLOPs.
            A budget that keeps everything leaves the output bit-identical.
        positions: `"keep"` lets survivors keep their rotary positions, `"pack"` renumbers them without gaps. The
            default is that of the code behind the method's published numbers.
        images_per_prompt: Promise that every prompt of a batch holds this many images; a batch is then pruned
            without asking the device which image belongs to which prompt.
        text_tower: CLIP's text side, for methods that compare patches with the question: a name of open_clip such as
            `"ViT-L-14-336-quickgelu/openai"`, a folder with a CLIP model of transformers, `"embedded"`, or a loaded
            `TextTower`. The default is the one that belongs to the model's vision tower.
        processor: The model's processor or tokenizer, with which the same methods read the question from the prompt;
            by default that of the model's own folder.
        graph: Whether vision tower, prefill with the selection in it, and decoding on a static cache
            (`generate(cache_implementation="static")`) are recorded in CUDA graphs at first and replayed from then
            on; a `Graph` says how. The first prompt of each size takes seconds, all others no kernel launches. Needs
            a CUDA device; what cannot be recorded runs as ever, and a warning says why. Weights, their number type
            and the attention implementation must stay as they are while the model is wrapped.
        **options: Hyper-parameters of a method that is given by name.

    Returns:
        The same object.

    Raises:
        TypeError: `model` is no transformers model, or an argument has the wrong type.
        ValueError: The model is wrapped already or not supported, or an argument is out of range. Nothing is changed.

    Example:
        >>> model = wrap(model, "divprune", budget=64)  # doctest: +SKIP
    """
    from vtprune.adapters import find_adapter
    from vtprune.engine.engine import Engine
    from vtprune.engine.recordings import Graph

    stock = _stock(model)
    method = make_pruner(pruner, **options)
    limit = Budget.parse(budget)
    where = method.default_positions if positions is None else positions
    if where not in ("keep", "pack"):
        raise ValueError(f"positions must be 'keep' or 'pack', got {positions!r}")
    if images_per_prompt is not None and (not isinstance(images_per_prompt, int) or images_per_prompt < 1):
        raise ValueError(f"images_per_prompt must be an integer of at least 1, got {images_per_prompt!r}")
    if not isinstance(graph, bool | Graph):
        raise TypeError(f"graph must be True, False or a Graph of settings, got {graph!r}")
    recording = Graph() if graph is True else graph or None
    if (present := attached_engine(model)) is not None:
        raise ValueError(
            f"{type(model).__name__} is wrapped already, with {present!r}; call vtprune.unwrap(model) first"
        )
    adapter = find_adapter(stock)
    tower, reader = _question_side(adapter, method, text_tower, processor)
    engine = Engine(stock, adapter, method, limit, where, images_per_prompt, tower, reader, recording)
    engine.attach()
    stock.__dict__[_ATTRIBUTE] = engine
    return model


def unwrap(model: ModelT) -> ModelT:
    """Undoes `wrap`: no hook, attribute or override remains.

    Returns:
        The same object.

    Raises:
        ValueError: The model is not wrapped.
    """
    engine = attached_engine(model)
    if engine is None:
        raise ValueError(f"{type(model).__name__} is not wrapped")
    engine.detach()
    del _stock(model).__dict__[_ATTRIBUTE]
    return model


@contextmanager
def pruning(
    model: ModelT,
    pruner: str | Pruner | Sequence[str | Pruner],
    budget: int | float | str | Budget,
    *,
    positions: Literal["keep", "pack"] | None = None,
    images_per_prompt: int | None = None,
    text_tower: str | PathLike[str] | TextTower | None = None,
    processor: Any = None,
    graph: bool | Graph = False,
    **options: Any,
) -> Iterator[ModelT]:
    """`wrap` for the length of a `with` block; undone also when the block raises.

    Example:
        >>> with pruning(model, "visionzip", budget=128):  # doctest: +SKIP
        ...     output = model.generate(**inputs)
    """
    wrap(
        model,
        pruner,
        budget,
        positions=positions,
        images_per_prompt=images_per_prompt,
        text_tower=text_tower,
        processor=processor,
        graph=graph,
        **options,
    )
    try:
        yield model
    finally:
        unwrap(model)


def report(model: nn.Module) -> Report:
    """What the last prefill with images kept, and what it costs.

    Raises:
        ValueError: The model is not wrapped, or has not seen an image since.
    """
    engine = attached_engine(model)
    if engine is None:
        raise ValueError(f"{type(model).__name__} is not wrapped; call vtprune.wrap(model, ...) first")
    if engine.last_report is None:
        raise ValueError("the wrapped model has not seen a prompt with images yet; run it first")
    return engine.last_report


def _question_side(
    adapter: Adapter, method: Pruner, text_tower: str | PathLike[str] | TextTower | None, processor: Any
) -> tuple[TextTower | None, QuestionReader | None]:
    """What a method needs to compare patches with the question; nothing for others."""
    if Signal.CLIP_TEXT not in method.signals:
        return None, None
    from vtprune.question import QuestionReader, load_tokenizer
    from vtprune.text_tower import load_text_tower

    model: Any = adapter.model
    if (reason := adapter.missing.get(Signal.CLIP_TEXT)) is not None:
        raise ValueError(
            f"{method.name} compares patches with text in CLIP's joint space: {reason}; choose another method "
            "(vtprune list)"
        )
    tower = load_text_tower(text_tower, model.config.vision_config)
    assert adapter.vision.projector is not None
    weight = next(adapter.vision.projector.parameters())
    reader = QuestionReader(load_tokenizer(model) if processor is None else processor, adapter.image_token_id)
    return tower.to(weight.device), reader


def _stock(model: nn.Module) -> nn.Module:
    """The model of transformers inside one that PEFT has wrapped."""
    inner: Any = getattr(model, "get_base_model", None)
    return _stock(inner()) if callable(inner) and hasattr(model, "peft_config") else model


def attached_engine(model: nn.Module) -> Engine | None:
    """The engine around a wrapped model; `None` where there is none."""
    return getattr(_stock(model), "__dict__", {}).get(_ATTRIBUTE)
