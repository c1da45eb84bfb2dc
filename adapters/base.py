"""The adapter interface: everything the engine asks of a model family, with what most families share as the default."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask

from vtprune.adapters.decoders import (
    count_costs,
    find_attention,
    find_decoder,
    is_recurrent,
    key_sources,
    layer_config,
)
from vtprune.adapters.towers import find_layers, find_projector, find_tower, merge_side
from vtprune.costs import DecoderShape, LayerCosts
from vtprune.engine.cache_names import CACHE
from vtprune.layout import ImageLayout, merged_layout, square_layout, video_layout
from vtprune.pruner import Depths, Signal

Grouping = Callable[[Sequence[int], Sequence[tuple[int, int]]], Sequence[int]]
Word = Literal["feature", "run", "first", "before", "after"]
Borders = Word | Grouping
"""What makes several entries of the image features one image: a word, or a function.

The function is given a row's token ids and the first and last column of each entry's placeholders, and tells how many
entries each image has.
"""


@dataclass(frozen=True)
class Vision:
    """The vision side of a model, as far as methods may look at it.

    Args:
        layers: All encoder layers in order; none where the tower is not seen through.
        attentions: The attention module of each.
        features: Numbers of the layers whose outputs feed the projector; the attention of the last one counts.
        projector: Module that maps one row of features to one token. `None` where it is not so, because patches are
            merged on the way: features are then taken after the merge, as the tokens that enter the decoder.
        cls: Row of each view that is a CLS token, which the model drops before projecting; `None` without one.
        prefix: Rows of each view before its patches: CLS and registers.
        merge: Side of the square of patches that becomes one token.
        blocks: Whether the tower's rows keep the patches of such a square together, instead of raster order.
        twins: Towers of the same form for other kinds of input; what is seen of them counts as that of this one.
    """

    layers: tuple[nn.Module, ...] = ()
    attentions: tuple[nn.Module, ...] = ()
    features: tuple[int, ...] = ()
    projector: nn.Module | None = None
    cls: int | None = None
    prefix: int = 0
    merge: int = 1
    blocks: bool = False
    twins: tuple[Vision, ...] = ()

    @property
    def has_cls(self) -> bool:
        """Whether each view has a CLS token."""
        return self.cls is not None

    @property
    def extra_rows(self) -> int:
        """Rows of each view that are no patches."""
        return max(self.prefix, int(self.has_cls))

    @property
    def feature_layers(self) -> tuple[nn.Module, ...]:
        """The layers whose outputs feed the projector."""
        return tuple(self.layers[number] for number in self.features)

    def patches(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the tower `(views, rows, ...)` without CLS and registers."""
        return rows[:, : self.cls] if self.cls is not None and self.cls < 0 else rows[:, self.prefix :]


@dataclass(frozen=True)
class Placeholder:
    """A kind of visual input.

    Args:
        kind: `"image"` or `"video"`.
        token: The id in the prompt that its features replace.
        encode: Name of the method of `Adapter.base` that makes these features.
    """

    kind: str
    token: int
    encode: str


class Adapter:
    """Shows the engine where things are in one model. A family is one subclass in one file, of what differs.

    Args:
        model: A conditional-generation model, as transformers makes it.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    borders: ClassVar[Word] = "feature"
    """Which entries of the image features make up one image of the prompt.

    `"feature"`: each is an image. `"run"`: those whose placeholders follow one another without text between.
    `"before"` and `"after"`: those up to one whose placeholders follow, or are followed by, the same token as the
    last ones of the prompt are (tiles of one image with marks between them). `"first"`: those from one on whose
    placeholders follow the same token as the first ones of the prompt do.
    """

    slot_positions: ClassVar[bool] = False
    """Whether decoder layers take their `position_ids` for places in the sequence of keys."""
    streams: ClassVar[Literal["first", "last"] | None] = None
    """Whether decoder layers carry several streams of states for each token, and where that dimension is.

    `"first"`: `(streams, batch, length, dim)`. `"last"`: `(batch, length, streams, dim)`.
    """

    host_arguments: ClassVar[frozenset[str]] = frozenset({"image_sizes"})
    """Arguments of the encoding methods whose values the model reads on the host, wherever they are."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @cached_property
    def base(self) -> nn.Module:
        """The module that embeds the prompt and fills in image features; it has `get_image_features`.

        Raises:
            ValueError: No such module.
        """
        inner = getattr(self.model, "model", None)
        for module in (inner, self.model):
            if isinstance(module, nn.Module) and callable(getattr(module, "get_image_features", None)):
                return module
        name = type(self.model).__name__
        if getattr(self.model.config, "vision_config", None) is None:
            raise ValueError(
                f"{name} is a text model: it takes no images; supported are decoder-only models that fill image "
                "placeholders (AutoModelForImageTextToText)"
            )
        raise ValueError(
            f"{name} puts image features into the sequence inside its forward, without placeholders in the prompt and "
            "get_image_features; supported are decoder-only models that fill image placeholders"
        )

    @cached_property
    def decoder(self) -> nn.Module:
        """The text decoder; it has `layers`."""
        return find_decoder(self.model)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers in order."""
        return list(_module(self.decoder, "layers").children())

    @property
    def text_config(self) -> Any:
        """The decoder's configuration."""
        return self.decoder.config

    @property
    def image_token_id(self) -> int:
        """The placeholder token that image features replace.

        Raises:
            ValueError: The configuration names none.
        """
        token = _token(self.model.config, "image_token_id", "image_token_index")
        if token is None:
            raise ValueError(
                f"{type(self.model.config).__name__} names no image_token_id: there are no placeholders whose features "
                "could be pruned"
            )
        return token

    @cached_property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """The kinds of visual input that can be pruned."""
        found = [Placeholder("image", self.image_token_id, "get_image_features")]
        video = _token(self.model.config, "video_token_id", "video_token_index")
        if video is not None and callable(getattr(self.base, "get_video_features", None)):
            found.append(Placeholder("video", video, "get_video_features"))
        return tuple(found)

    @cached_property
    def shape(self) -> DecoderShape | LayerCosts:
        """The decoder's sizes, for the cost model; costs of each layer where layers differ."""
        head: Any = self.model
        output = head.get_output_embeddings()
        counted = count_costs(self.layers, self.text_config, output)
        try:
            shape = DecoderShape.from_config(layer_config(self.text_config, 0))
        except (ValueError, TypeError):
            return counted
        return shape if shape.costs == counted else counted

    @property
    def depths(self) -> Depths:
        """Layers of the decoder and of the vision tower."""
        return Depths(len(self.layers), len(self.vision.layers))

    @property
    def final_norm(self) -> nn.Module:
        """The norm that the decoder ends with."""
        for name in ("norm", "norm_f", "final_layernorm", "final_layer_norm", "embedding_norm", "ln_f"):
            if isinstance(module := getattr(self.decoder, name, None), nn.Module):
                return module
        raise ValueError(f"{type(self.decoder).__name__} ends with no norm that is known")

    def attention_module(self, layer: int) -> nn.Module | None:
        """The self-attention module of a decoder layer; `None` where it is recurrent or has none."""
        return find_attention(self.layers[layer], layer)

    def attention_before(self, layer: int) -> int | None:
        """The last decoder layer before `layer` that has attention; `None` if none has."""
        return next((number for number in range(layer - 1, -1, -1) if self.attention_module(number)), None)

    def layer_kind(self, layer: int) -> str:
        """Layers of one kind share masks and rotary tables (sliding and full attention are two kinds)."""
        kinds = getattr(self.text_config, "layer_types", None)
        return str(kinds[layer]) if kinds and layer < len(kinds) else ""

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer carries a state along the sequence instead of attending (linear attention, convolution)."""
        return is_recurrent(self.layers[layer], self.layer_kind(layer))

    def attends(self, layer: int) -> bool:
        """Whether a layer has attention at all; some have only a state or a mixture of experts."""
        names = (type(module).__name__ for module in self.layers[layer].modules())
        return not self.is_recurrent(layer) and any(re.search("Attention|Attn|MLA", name) for name in names)

    def window(self, layer: int) -> int | None:
        """How many tokens back, itself included, a token of this layer sees; `None` for all."""
        kind = self.layer_kind(layer)
        window = getattr(layer_config(self.text_config, layer), "sliding_window", None)
        if window is None or not ("sliding" in kind or kind == ""):
            return None
        return int(window) if getattr(self.text_config, "use_sliding_window", True) else None

    def chunk(self, layer: int) -> int | None:
        """Length of the chunks that attention of this layer does not leave; `None` without chunks."""
        size = getattr(layer_config(self.text_config, layer), "attention_chunk_size", None)
        return int(size) if size is not None and "chunked" in self.layer_kind(layer) else None

    @cached_property
    def last_stage(self) -> int:
        """The last decoder layer before which tokens may be removed.

        Where later layers attend to the keys that an earlier one made, that one: they must hold the same tokens.
        """
        shared = [source for number, source in enumerate(self.key_sources) if source != number]
        return min(shared, default=len(self.layers) - 1)

    @cached_property
    def key_sources(self) -> list[int]:
        """For each decoder layer the one whose keys it attends to: itself, or an earlier one where keys are shared."""
        return key_sources(self.layers, self.text_config)

    def rotary(self, hidden: torch.Tensor, position_ids: torch.Tensor, layer: int) -> Any:
        """The position embeddings that a decoder layer takes.

        Args:
            hidden: States that enter the layer, all streams.
            position_ids: `(batch, length)`, or `(3, batch, length)` with a time, a row and a column.
            layer: Index of the layer.
        """
        module = _module(self.decoder, "rotary_emb")
        arguments: dict[str, Any] = {}
        if "layer_type" in inspect.signature(module.forward).parameters:
            arguments["layer_type"] = self.layer_kind(layer)
        return module(self.plane(hidden), position_ids, **arguments)

    def plane(self, hidden: torch.Tensor) -> torch.Tensor:
        """One state for each token, `(batch, length, dim)`: the first of several streams, or their mean."""
        if self.streams is None:
            return hidden
        return hidden[0] if self.streams == "first" else hidden.mean(dim=2)

    def rotary_positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """The part of the decoder's `position_ids` that `rotary` takes."""
        # M-RoPE: plain text positions, which only masks are built from, may stand before time, row and column.
        return position_ids[1:] if position_ids.dim() == 3 and position_ids.shape[0] == 4 else position_ids

    def without_rotation(self, position_embeddings: Any) -> Any:
        """Position embeddings of the same form that rotate nothing.

        Raises:
            ValueError: The form is not the usual pair of cosines and sines.
        """
        if not isinstance(position_embeddings, tuple) or len(position_embeddings) != 2:
            raise ValueError(
                f"{type(self.model).__name__} has no pair of rotary tables that could be left out; choose a method "
                "that does not need unrotated states"
            )
        cosines, sines = position_embeddings
        return torch.ones_like(cosines), torch.zeros_like(sines)

    def causal_mask(
        self,
        hidden: torch.Tensor,
        keys: torch.Tensor | None,
        cache: Any,
        layer: int,
        columns: torch.Tensor | None = None,
    ) -> Any:
        """The mask for `hidden` at `layer`, in the form that the attention implementation wants.

        Windows and chunks are measured in columns of the prompt: a token that stays sees no farther back because
        others are gone.

        Args:
            hidden: States that enter the layer, `(batch, length, dim)`.
            keys: Which cached and new tokens may be attended to, `(batch, cached + length)`; `None` for all.
            cache: The model's cache or `None`.
            layer: Index of the layer, whose own cache length counts.
            columns: Column in the prompt of each of them, counted from its first token, `(batch, cached + length)`.
        """
        arguments: dict[str, Any] = {CACHE: cache}
        window, chunk = self.window(layer), self.chunk(layer)
        if columns is not None and (window or chunk):
            where = columns.contiguous()

            def near(batch: Any, head: Any, query: Any, key: Any) -> Any:
                ours, theirs = where[batch, query], where[batch, key]
                if window is not None:
                    return ours - theirs < window
                assert chunk is not None
                return ours // chunk == theirs // chunk

            arguments["and_mask_function"] = near
        return create_causal_mask(
            config=self.text_config,
            inputs_embeds=hidden,
            attention_mask=keys,
            position_ids=None,
            layer_idx=self.key_sources[layer],
            **arguments,
        )

    def ahead_mask(self, hidden: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor | None:
        """The mask for a layer that is run only as far as its attention, where it cannot do without one.

        Args:
            hidden: States that enter the layer, `(batch, length, dim)`.
            present: Which of them hold a token, `(batch, length)`; `None` for all.
        """
        return None

    def injections(self, arguments: dict[str, Any]) -> dict[int, torch.Tensor]:
        """Takes out of the decoder's arguments the features that it would add to visual tokens between layers.

        Returns:
            For each layer before which something is added (DeepStack), features of all visual tokens, `(tokens, dim)`.
        """
        added = arguments.get("deepstack_visual_embeds")
        if added is None:
            return {}
        arguments["deepstack_visual_embeds"] = None
        return {number + 1: features for number, features in enumerate(added)}

    def entering(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        """What the first layer is given for each token, `(batch, length, dim)`, from the decoder's arguments."""
        states: torch.Tensor = arguments["inputs_embeds"]
        return states

    @cached_property
    def tower(self) -> nn.Module | None:
        """The vision tower, where it is one module."""
        return find_tower(self.base)

    @cached_property
    def vision(self) -> Vision:
        """The vision side.

        Raises:
            ValueError: The tower or its settings are not understood.
        """
        tower = self.tower
        if tower is None:
            return Vision()
        layers, attentions = find_layers(tower)
        if not layers:
            return Vision()
        merge, blocks = merge_side(self.model.config, tower)
        projector = find_projector(self.base) if merge == 1 else None
        return Vision(layers, attentions, (len(layers) - 1,), projector, merge=merge, blocks=blocks)

    def borders_of(self, kind: str, inputs: Mapping[str, Any]) -> Borders:
        """`borders` for one run of the vision tower: each entry of a video's features is a video.

        Args:
            kind: `"image"` or `"video"`.
            inputs: The arguments of `get_image_features` or `get_video_features`.
        """
        return "feature" if kind == "video" else self.borders

    def layouts(self, kind: str, counts: Sequence[int], inputs: Mapping[str, Any]) -> list[ImageLayout]:
        """The layout of each entry of the image features, in order: where grids are given those, else squares.

        Args:
            kind: `"image"` or `"video"`.
            counts: Tokens of each entry; one number for all together where the model does not separate them.
            inputs: The arguments of `get_image_features` or `get_video_features`.

        Raises:
            ValueError: An argument that the layout follows from is missing.
        """
        grids = inputs.get(f"{kind}_grid_thw")
        if grids is None:
            return [square_layout(count) for count in counts]
        if isinstance(grids, torch.Tensor):
            grids = grids.tolist()
        side = self.vision.merge
        if len(counts) != len(grids):
            return [video_layout(frames, height // side, width // side) for frames, height, width in grids]
        if side == 1:
            return [merged_layout(count, *grid) for count, grid in zip(counts, grids, strict=True)]
        cells = [(height // side, width // side) for _, height, width in grids]
        # Frames may have been merged too.
        return [
            video_layout(count // (rows * columns), rows, columns)
            for count, (rows, columns) in zip(counts, cells, strict=True)
        ]

    def arrange(
        self, layouts: Sequence[ImageLayout], read: Callable[[], Sequence[Sequence[int]]]
    ) -> Sequence[ImageLayout]:
        """The layouts of the pictures, where only the prompt tells how the entries of the features make them up.

        Args:
            layouts: Of the entries, in order.
            read: Reads the token ids of the prompts that the entries belong to; asks the device.
        """
        return layouts

    def filled_in(
        self, kind: str, layouts: Sequence[ImageLayout], arguments: Mapping[str, Any]
    ) -> Sequence[ImageLayout]:
        """The layouts of the tokens that reach the prompt, where the model drops some of those that were encoded.

        Args:
            kind: `"image"` or `"video"`.
            layouts: Of what was encoded.
            arguments: Those of the forward pass of `base`.
        """
        return layouts

    def view_rows(self, layout: ImageLayout, inputs: Mapping[str, Any]) -> int:
        """Rows of the tower for each view of an image (the largest one), CLS and registers included."""
        side = self.vision.merge
        return layout.patches_per_view * side * side + self.vision.extra_rows

    def feature_counts(self, output: Any) -> list[int]:
        """Tokens of each entry of what `get_image_features` returned; one number where entries are not separated."""
        features = getattr(output, "pooler_output", None)
        if features is None:
            features = getattr(output, "last_hidden_state", None)
        if features is None:
            features = output
        if isinstance(features, torch.Tensor):
            rows = int(features.shape[-2])
            return [rows] if features.dim() == 2 else [rows] * features.shape[:-2].numel()
        if isinstance(features, list | tuple) and all(isinstance(part, torch.Tensor) for part in features):
            return [int(part.shape[:-1].numel()) for part in features]
        return []

    def cells(self, rows: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]) -> torch.Tensor:
        """Brings what the tower has for each of its rows to the patches that tokens stand for, by the mean.

        Args:
            rows: `(rows, ...)`, all views one after another, without CLS and registers.
            layouts: Of the entries of the image features.
            inputs: The arguments of `get_image_features`.

        Returns:
            `(patches, ...)`, those of all layouts one after another.
        """
        side = self.vision.merge
        if side == 1:
            return rows
        if self.vision.blocks:
            return rows.view(-1, side * side, *rows.shape[1:]).mean(dim=1)
        found, start = [], 0
        for layout in layouts:
            height, width = layout.view_shape
            end = start + layout.views * height * width * side * side
            squares = rows[start:end].view(layout.views, height, side, width, side, *rows.shape[1:])
            found.append(squares.mean(dim=(2, 4)).flatten(0, 2))
            start = end
        if start != rows.shape[0]:
            raise RuntimeError(
                f"{type(self).__name__} expected {start} rows in the vision tower and saw {rows.shape[0]}; this is a "
                "bug in the adapter or an unsupported setting of the model"
            )
        return torch.cat(found)

    def pictures(
        self, pixels: torch.Tensor, layouts: Sequence[ImageLayout], inputs: Mapping[str, Any]
    ) -> torch.Tensor | list[torch.Tensor]:
        """The pixels as the processor made them, cut into one part for each layout, or ready to be.

        Padding that depends on the other pictures of a batch is to be cut off here.
        """
        return pixels

    def encode_smaller(self, pixel_values: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Encodes and projects whole pictures shrunk to `height x width` patches, `(images, height * width, dim)`.

        Args:
            pixel_values: As the processor made them; of several views of an image the first shows the whole picture.
            height: Rows of patches.
            width: Patches in a row.

        Raises:
            ValueError: The family's tower takes pictures of one size only.
        """
        raise ValueError(f"the vision tower of {type(self.model).__name__} is not known to take smaller pictures")

    def typical_layout(self) -> ImageLayout | None:
        """The layout of every image where the family has only one, so that budgets can be checked when wrapping."""
        return None

    @cached_property
    def missing(self) -> dict[Signal, str]:
        """Signals that this model cannot give, each with the reason."""
        name = type(self.model).__name__
        gone: dict[Signal, str] = {}
        if not self.vision.layers:
            reason = f"the vision side of {name} has no attention layers whose rows are the patches of its tokens"
            gone |= dict.fromkeys((Signal.ENCODER_ATTENTION, Signal.ENCODER_KEYS, Signal.ENCODER_LAYERS), reason)
        if not self.vision.has_cls:
            gone[Signal.ENCODER_CLS] = f"the vision tower of {name} has no CLS token"
        elif self.vision.projector is None:
            reason = f"{name} merges patches before it projects them, and a CLS token has none to merge with"
            gone[Signal.ENCODER_CLS] = reason
        if self.vision.projector is None or not self.vision.has_cls:
            gone[Signal.CLIP_TEXT] = (
                f"the tower of {name} has no CLS token beside its features, and so is no CLIP tower"
            )
        if type(self).encode_smaller is Adapter.encode_smaller:
            gone[Signal.PIXELS] = f"the vision tower of {name} is not known to take smaller pictures"
        if not any(self.attention_module(layer) for layer in range(len(self.layers))):
            reason = f"no decoder layer of {name} calls transformers' attention functions"
            decoder = (Signal.DECODER_ATTENTION, Signal.DECODER_STATES, Signal.UNROTATED_STATES)
            gone |= dict.fromkeys((*decoder, Signal.NEXT_STATES, Signal.NEXT_UNROTATED_STATES), reason)
        elif not isinstance(getattr(self.decoder, "rotary_emb", None), nn.Module):
            reason = f"{name} has no rotary tables that could be left out"
            gone |= dict.fromkeys((Signal.UNROTATED_STATES, Signal.NEXT_UNROTATED_STATES), reason)
        return gone


def _token(config: Any, *names: str) -> int | None:
    found = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
    return None if found is None else int(found)


def _module(parent: nn.Module, name: str) -> nn.Module:
    child = getattr(parent, name, None)
    if not isinstance(child, nn.Module):
        raise ValueError(f"{type(parent).__name__} has no submodule {name!r}, which its adapter expects")
    return child
