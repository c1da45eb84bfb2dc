"""CLIP's text tower and projections, for methods that compare image patches with the question."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vtprune.quiet import no_loading_bar

EMBEDDED = "embedded"
"""The CLIP model beside the embedded LLaVA."""

_ACCEPTED = (
    "text_tower= takes the folder of a transformers CLIPModel with its tokenizer, an open_clip name with a tag such as "
    "'ViT-L-14-336/openai', 'embedded', or a vtprune.text_tower.TextTower"
)
# hidden size, layers, patch and image size of the vision tower
_DEFAULTS = {
    (256, 6, 8, 192): EMBEDDED,
    (768, 12, 32, 224): "ViT-B-32/openai",
    (768, 12, 16, 224): "ViT-B-16/openai",
    (1024, 24, 14, 224): "ViT-L-14/openai",
    (1024, 24, 14, 336): "ViT-L-14-336/openai",
}

TextModel = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From ids `(rows, length)` to embeddings pooled as CLIP does and those of the last position, `(rows, clip_dim)`."""


class TextEmbeddings(NamedTuple):
    """Texts in CLIP's joint space, not normalised.

    Args:
        pieces: Embedding of each piece of a text, `(texts, pieces, clip_dim)`; zero where a text has fewer pieces.
        mask: `True` where there is a piece, `(texts, pieces)`; at least one in each row.
        truncated: Embedding of a text cut off at the tower's length, its end token kept, `(texts, clip_dim)`.
        last: The state at the last position of a text's first line, `(texts, clip_dim)`.
    """

    pieces: torch.Tensor
    mask: torch.Tensor
    truncated: torch.Tensor
    last: torch.Tensor


class TextTower(nn.Module):
    """A frozen CLIP text tower with both projections; `to` moves it and sets its number type.

    Args:
        text: Module that is a `TextModel`.
        tokenize: From texts to the ids of each, begin and end tokens included, none cut off.
        visual_norm: The layer norm behind CLIP's vision tower.
        visual_projection: From the vision tower's width to the joint space, without bias.
        length: Positions of the text tower; 77 in CLIP.
        padding: Id that fills a short text up where its last position is asked for.

    Example:
        >>> tower = load_text_tower("embedded", None)
        >>> tower.encode(["what color is the circle ?"]).pieces.shape
        torch.Size([1, 1, 128])
    """

    def __init__(
        self,
        text: nn.Module,
        tokenize: Callable[[Sequence[str]], list[list[int]]],
        visual_norm: nn.Module,
        visual_projection: nn.Linear,
        *,
        length: int,
        padding: int,
    ) -> None:
        super().__init__()
        self.text = text
        self.visual_norm = visual_norm
        self.visual_projection = visual_projection
        self.length = length
        self.padding = padding
        self._tokenize = tokenize
        self.requires_grad_(False).eval()

    @property
    def vision_width(self) -> int:
        """Width of the vision tower whose features `project` takes."""
        return self.visual_projection.in_features

    @property
    def dim(self) -> int:
        """Width of the joint space."""
        return self.visual_projection.out_features

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        """Embeds texts of any length.

        The pieces are CDPruner's (arXiv 2506.10967, published code): the ids of the whole text, zeros behind them, in
        rows of `length`, each pooled by CLIP's own rule. In a text of several rows only the last one holds the end
        token; the others are pooled where the rule happens to point, the first one at its begin token.

        `truncated` is what CLIP itself makes of a text: TRIM (arXiv 2409.10994) uses it.

        `last` is that of Recoverable Compression (arXiv 2409.01179, published code): the first line alone, cut off
        at `length` or filled up with `padding` (the end token in CLIP), seen from the last position.

        Raises:
            ValueError: There is no text.
        """
        if not texts:
            raise ValueError("there is no text to encode")
        wholes = self._tokenize(texts)
        pieces = [[ids[start : start + self.length] for start in range(0, len(ids), self.length)] for ids in wholes]
        firsts = self._tokenize([text.strip().partition("\n")[0] for text in texts])
        most = max(len(rows) for rows in pieces)
        ids = torch.zeros(len(texts), most + 2, self.length, dtype=torch.long)
        ids[:, most:] = self.padding
        for entry, rows, whole, first in zip(ids, pieces, wholes, firsts, strict=True):
            for place, row in (*enumerate(rows), (most, self._cut(whole)), (most + 1, self._cut(first))):
                entry[place, : len(row)] = torch.tensor(row)
        device = self.visual_projection.weight.device
        with torch.autocast(device.type, enabled=False):
            pooled, last = self.text(ids.flatten(0, 1).to(device))
        mask = torch.arange(most) < torch.tensor([[len(rows)] for rows in pieces])
        mask = mask.to(device)
        pooled = pooled.unflatten(0, (len(texts), most + 2))
        last = last.unflatten(0, (len(texts), most + 2))[:, most + 1]
        return TextEmbeddings(pooled[:, :most].masked_fill(~mask.unsqueeze(-1), 0), mask, pooled[:, most], last)

    def _cut(self, ids: list[int]) -> list[int]:
        """At most `length` ids, the last one kept."""
        return ids if len(ids) <= self.length else [*ids[: self.length - 1], ids[-1]]

    @torch.no_grad()
    def project(self, features: torch.Tensor, norm: bool = True) -> torch.Tensor:
        """Sends states of the vision tower into the joint space, `(..., vision_width)` to `(..., clip_dim)`.

        Args:
            features: States of CLS or patches, on the tower's device; they are given the tower's number type.
            norm: Whether CLIP's last layer norm comes before the projection.
        """
        with torch.autocast(features.device.type, enabled=False):
            states = features.to(self.visual_projection.weight.dtype)
            projected: torch.Tensor = self.visual_projection(self.visual_norm(states) if norm else states)
        return projected


def load_text_tower(source: str | os.PathLike[str] | TextTower | None, vision_config: Any) -> TextTower:
    """The text tower that belongs to a model's vision tower, in fp32 on the CPU.

    Args:
        source: `"embedded"`, the folder of a transformers `CLIPModel` with its tokenizer, an open_clip name with a tag
            such as `"ViT-L-14-336/openai"`, a tower made elsewhere, or `None` for the one that fits by its sizes.
        vision_config: The configuration of the model's vision tower; `None` checks nothing.

    Raises:
        ValueError: There is no such tower, it cannot be loaded, or it does not belong to the vision tower.

    Example:
        >>> from transformers import CLIPVisionConfig
        >>> config = CLIPVisionConfig(
        ...     hidden_size=256, num_hidden_layers=6, num_attention_heads=4, patch_size=8, image_size=192
        ... )
        >>> load_text_tower(None, config).vision_width
        256
    """
    if isinstance(source, TextTower):
        tower = source
    else:
        _check_clip(vision_config)
        name = _default(vision_config) if source is None else os.fspath(source)
        if name == EMBEDDED:
            from vtprune.eval.embedded import CLIP_DIR

            name = str(CLIP_DIR)
        tower = _from_folder(Path(name)) if Path(name).is_dir() else _from_open_clip(name)
    width = getattr(vision_config, "hidden_size", tower.vision_width)
    if width != tower.vision_width:
        raise ValueError(
            f"the text tower belongs to a vision tower of width {tower.vision_width}, the model's has width {width}; "
            f"{_ACCEPTED}"
        )
    return tower


def _check_clip(vision_config: Any) -> None:
    kind = getattr(vision_config, "model_type", None)
    if vision_config is not None and kind != "clip_vision_model":
        raise ValueError(
            f"the model's vision tower is a {kind}, but only the features of a clip_vision_model lie in CLIP's joint "
            "space; choose a method that needs no 'clip_text' (vtprune list), or give text_tower= a "
            "vtprune.text_tower.TextTower made for this tower"
        )


def _default(vision_config: Any) -> str:
    names = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
    sizes = tuple(getattr(vision_config, name, None) for name in names)
    if sizes not in _DEFAULTS:
        found = ", ".join(f"{name}={size}" for name, size in zip(names, sizes, strict=True))
        raise ValueError(f"no text tower is known for a vision tower with {found}; {_ACCEPTED}")
    return _DEFAULTS[sizes]


class _TransformersText(nn.Module):
    """The text side of transformers' `CLIPModel`."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.model = clip.text_model
        self.projection = clip.text_projection

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(input_ids=ids)
        return self.projection(output.pooler_output), self.projection(output.last_hidden_state[:, -1])


class _OpenClipText(nn.Module):
    """The text side of open_clip's `CLIP`, as its `encode_text` runs it."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.embedding = clip.token_embedding
        self.positions = clip.positional_embedding
        self.transformer = clip.transformer
        self.norm = clip.ln_final
        self.projection = _linear(clip.text_projection)
        self.register_buffer("mask", clip.attn_mask)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.norm(self.transformer(self.embedding(ids) + self.positions, attn_mask=self.mask))
        pooled = states[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        return self.projection(pooled), self.projection(states[:, -1])


def _from_folder(folder: Path) -> TextTower:
    from transformers import AutoConfig, AutoTokenizer, CLIPModel

    try:
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind != "clip":
            raise ValueError(f"it holds a {kind} model, not a CLIPModel")
        with no_loading_bar():
            clip: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        # Missing and damaged files end in errors of many libraries, none of which names the option.
        raise ValueError(f"cannot load a text tower from {str(folder)!r}: {_first_line(error)}; {_ACCEPTED}") from error

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return found

    return TextTower(
        _TransformersText(clip),
        tokenize,
        clip.vision_model.post_layernorm,
        clip.visual_projection,
        length=clip.config.text_config.max_position_embeddings,
        padding=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )


def _from_open_clip(source: str) -> TextTower:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            f"text tower {source!r} is no folder, and open_clip, which would load it by name, is not installed: "
            f"pip install 'vtprune[clip]'; {_ACCEPTED}"
        ) from error
    name, _, tag = source.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = f"open_clip has {name!r} with the tags {', '.join(tags)}" if tags else f"open_clip has no {name!r}"
        raise ValueError(f"text tower {source!r} is no folder, and {known}; {_ACCEPTED}")
    # Weights trained with QuickGELU are offered under both names, but the plain one would run them with GELU.
    quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    try:
        clip = open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick)
    except Exception as error:
        # Downloads fail in many ways.
        raise ValueError(f"cannot load text tower {source!r}: {_first_line(error)}; {_ACCEPTED}") from error
    return from_open_clip(clip, open_clip.get_tokenizer(name))


def from_open_clip(clip: Any, tokenizer: Any) -> TextTower:
    """The text tower of an open_clip model that is loaded already.

    Args:
        clip: An `open_clip.CLIP` with a vision transformer that pools at its CLS token.
        tokenizer: Its `open_clip.SimpleTokenizer`.

    Raises:
        ValueError: The model is of another kind.
    """
    import open_clip
    from open_clip.transformer import VisionTransformer

    visual: Any = getattr(clip, "visual", None)
    if (
        not isinstance(clip, open_clip.CLIP)
        or clip.text_pool_type != "argmax"
        or clip.text_projection is None
        or not isinstance(tokenizer, open_clip.SimpleTokenizer)
        or not isinstance(visual, VisionTransformer)
        or visual.attn_pool is not None
        or visual.pool_type != "tok"
        or visual.final_ln_after_pool
    ):
        raise ValueError(
            f"{type(clip).__name__} with {type(visual).__name__} is no plain CLIP of open_clip (a vision transformer "
            f"with CLS and a text tower pooled at its end token); {_ACCEPTED}"
        )

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return [[tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id] for text in texts]

    return TextTower(
        _OpenClipText(clip),
        tokenize,
        visual.ln_post,
        _linear(visual.proj),
        length=clip.context_length,
        # open_clip pads with 0; OpenAI's own tokenizer in transformers, with which methods were published, pads so.
        padding=tokenizer.eot_token_id,
    )


def _linear(weight: Any) -> nn.Linear:
    """A projection as a module: open_clip keeps a matrix `(in, out)`."""
    if isinstance(weight, nn.Linear):
        return weight
    linear = nn.Linear(weight.shape[0], weight.shape[1], bias=False, dtype=weight.dtype, device=weight.device)
    linear.weight.data.copy_(weight.data.mT)
    return linear


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
