"""How many visual tokens may stay: five ways to say it, resolved into a number per image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from vtprune.costs import DecoderShape, LayerCosts, average_tokens, prefill_flops
from vtprune.layout import ImageLayout
from vtprune.pruner import Pruner

_KINDS = ("tokens", "ratio", "average", "flops", "adaptive")
_PER = ("image", "view", "prompt")
_CONVENTIONS = ("true", "nominal")

# A budget read off an earlier report must give the same tokens again, though quotients of integers are rounded.
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class Budget:
    """How many visual tokens may stay; exactly one of the first five is given.

    Args:
        tokens: Tokens that stay. More than there are keeps all.
        ratio: Share of the tokens that stays, in (0, 1], rounded to whole tokens (half to even), at least one.
        average: Mean over the decoder layers of the tokens each one counts. Methods that prune between layers keep
            fewer at the end, so that the mean is met; it is never exceeded.
        flops: Share of the language model's prefill FLOPs for the unpruned prompt, in (0, 1], never exceeded. All
            images of the prompt shrink by one factor.
        adaptive: `True` leaves the number to the method, image by image; only for methods with a count of their own.
        per: What `tokens`, `ratio` and `average` speak of: each image, each encoder view (thumbnail or crop) or all
            images of the prompt together, which then share by size.
        convention: For `average`. `"true"` counts the tokens that a layer really processes; `"nominal"` counts the
            layer just before a removal with what is left after it, as published tables of some methods do. Where the
            setting that tables call by this number is known (`Pruner.presets`), 576 tokens and 32 layers get exactly
            that one, whatever its mean.

    Raises:
        TypeError: A value of the wrong type, or not exactly one of the four kinds.
        ValueError: A value out of range, or an option that has no meaning for the kind.

    Example:
        >>> str(Budget(tokens=64))
        '64 tokens per image'
    """

    tokens: int | None = None
    ratio: float | None = None
    average: float | None = None
    flops: float | None = None
    adaptive: bool | None = None
    per: Literal["image", "view", "prompt"] = "image"
    convention: Literal["true", "nominal"] = "true"

    def __post_init__(self) -> None:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise TypeError(
                f"Budget takes exactly one of {', '.join(_KINDS)}, got {' and '.join(given) or 'none'}; "
                f"for example Budget(tokens=64)"
            )
        if self.tokens is not None:
            _check_tokens(self.tokens)
        if self.ratio is not None:
            _check_real("ratio", self.ratio, highest=1, hint="for a number of tokens use tokens=")
        if self.average is not None:
            _check_real("average", self.average, highest=None, hint="it is a number of tokens, such as average=64")
        if self.flops is not None:
            _check_real(
                "flops", self.flops, highest=1, hint="it is a share of the unpruned prompt's, such as flops=0.3"
            )
        if self.adaptive is not None and self.adaptive is not True:
            raise TypeError(f"Budget: adaptive must be True or left out, got {self.adaptive!r}")
        if self.adaptive and self.per != "image":
            raise ValueError(f"Budget: per={self.per!r} has no meaning for an adaptive budget; leave it out")
        if self.per not in _PER:
            raise ValueError(f"Budget: per must be one of {', '.join(map(repr, _PER))}, got {self.per!r}")
        if self.convention not in _CONVENTIONS:
            raise ValueError(
                f"Budget: convention must be one of {', '.join(map(repr, _CONVENTIONS))}, got {self.convention!r}"
            )
        if self.flops is not None and self.per == "view":
            raise ValueError(
                "Budget: per='view' has no meaning for flops, which speaks of the whole prompt; leave it out"
            )
        if self.convention == "nominal" and self.average is None:
            raise ValueError(f"Budget: convention='nominal' goes with average only, got {given[0]}; leave it out")

    @classmethod
    def parse(cls, value: int | float | str | Budget) -> Budget:
        """Reads a budget in short form: an integer is tokens per image, a float in (0, 1] a ratio.

        Text is read the same way; a kind may stand in front: `"64"`, `"0.25"`, `"average:64"`, `"flops:0.3"`; the
        average that published tables name is `"nominal:64"`, and `"adaptive"` leaves the number to the method.

        Raises:
            TypeError: Neither a number, a text nor a `Budget`.
            ValueError: A text that is no budget, or a value out of range.

        Example:
            >>> Budget.parse("average:64")
            Budget(tokens=None, ratio=None, average=64, flops=None, adaptive=None, per='image', convention='true')
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, str):
            return cls._parse_text(value)
        if isinstance(value, int):
            return cls(tokens=value)
        if isinstance(value, float):
            return cls(ratio=value)
        raise TypeError(
            f"a budget is an integer (tokens per image), a float in (0, 1] (ratio) or a vtprune.Budget, got {value!r}"
        )

    @classmethod
    def _parse_text(cls, text: str) -> Self:
        if text.strip() == "adaptive":
            return cls(adaptive=True)
        kind, _, number = text.rpartition(":")
        kind = kind.strip()
        try:
            value: int | float = int(number)
        except ValueError:
            try:
                value = float(number)
            except ValueError:
                value = math.nan
        if math.isnan(value) or kind not in ("", "nominal", *_KINDS[:-1]):
            raise ValueError(
                f"{text!r} is no budget; write tokens per image (64), a ratio in (0, 1] (0.25), average:64, "
                "nominal:64, flops:0.3 or adaptive"
            )
        if kind == "nominal":
            return cls(average=value, convention="nominal")
        if not kind:
            kind = "tokens" if isinstance(value, int) else "ratio"
        options: dict[str, Any] = {kind: value}
        return cls(**options)

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens} {'token' if self.tokens == 1 else 'tokens'} per {self.per}"
        if self.ratio is not None:
            return f"{100 * self.ratio:.12g}% of the tokens of each {self.per}"
        if self.adaptive:
            return "as many tokens as the method finds right"
        if self.average is not None:
            return f"{self.average:.12g} tokens per {self.per} on average over the decoder layers ({self.convention})"
        return f"{100 * (self.flops or 0):.12g}% of the language model's prefill FLOPs of each prompt"

    def resolve(
        self, pruner: Pruner, images: Sequence[ImageLayout], shape: DecoderShape | LayerCosts, text_tokens: int
    ) -> list[int]:
        """The `keep` that the method gets for each image of one prompt.

        Args:
            pruner: The method, whose schedule says how many tokens each decoder layer sees.
            images: The images of the prompt.
            shape: The decoder.
            text_tokens: Tokens of the prompt that are no image tokens.

        Raises:
            ValueError: Out of reach for this method and prompt: even one token per image is too much.
        """
        if self.adaptive:
            return [image.tokens for image in images]
        if self.convention == "nominal" and self.per == "image" and self.average is not None:
            presets = [pruner.preset(self.average, image.tokens, shape.layers) for image in images]
            if all(keep is not None for keep in presets):
                return [keep for keep in presets if keep is not None]
        together = self.per == "prompt" or self.flops is not None
        keeps: list[int] = []
        for group in [images] if together and images else [[image] for image in images]:
            sizes = [image.tokens for image in group]
            views = group[0].views if self.per == "view" else 1
            for image, keep in zip(group, self._keeps(pruner, sizes, views, shape, text_tokens), strict=True):
                keeps.append(pruner.attainable(image, keep))
        return keeps

    def _keeps(
        self, pruner: Pruner, sizes: list[int], views: int, shape: DecoderShape | LayerCosts, text_tokens: int
    ) -> list[int]:
        """Divides the budget of one group of images, of `sizes` tokens each, among them."""
        if self.tokens is not None:
            return _share(self.tokens * views, sizes)
        if self.ratio is not None:
            return _share(max(len(sizes), round(self.ratio * sum(sizes))), sizes)
        if self.average is not None:

            def mean(keeps: list[int]) -> float:
                return average_tokens(_visual_lengths(pruner, sizes, keeps, shape.layers, self.convention))

            return _largest(sizes, self.average * views, mean, f"{self} with {pruner.name}")
        assert self.flops is not None
        whole = prefill_flops(shape, [text_tokens + sum(sizes)] * shape.layers)

        def relative(keeps: list[int]) -> float:
            visual = _visual_lengths(pruner, sizes, keeps, shape.layers, "true")
            return prefill_flops(shape, [text_tokens + count for count in visual]) / whole

        return _largest(sizes, self.flops, relative, f"{self} with {pruner.name} (flops={self.flops})")


def per_layer_tokens(
    pruner: Pruner, tokens: int, keep: int, depth: int, convention: Literal["true", "nominal"] = "true"
) -> list[int]:
    """Visual tokens of one image that each decoder layer counts.

    Args:
        pruner: The method.
        tokens: Tokens of the image.
        keep: The resolved budget of the image; with `tokens` or more of them no stage runs.
        depth: Decoder layers.
        convention: `"true"` or `"nominal"`, see `Budget`.

    Raises:
        ValueError: A stage lies beyond the last layer, or the schedule has not one count per stage.
    """
    if keep >= tokens:
        return [tokens] * depth
    layers, counts = pruner.layers, pruner.schedule(tokens, keep)
    if len(layers) != len(counts):
        raise ValueError(f"{pruner.name} has {len(layers)} stages but its schedule has {len(counts)} counts")
    if layers and layers[-1] >= depth:
        raise ValueError(
            f"{pruner.name} removes tokens before decoder layer {layers[-1]}, but the model's layers are "
            f"0 to {depth - 1}; choose a lower layer"
        )
    per_layer = [tokens] * depth
    for layer, count in zip(layers, counts, strict=True):
        first = max(layer - 1, 0) if convention == "nominal" else layer
        per_layer[first:] = [count] * (depth - first)
    return per_layer


def _visual_lengths(
    pruner: Pruner, sizes: list[int], keeps: list[int], depth: int, convention: Literal["true", "nominal"]
) -> list[int]:
    """Visual tokens of all images together that each decoder layer counts."""
    images = [per_layer_tokens(pruner, size, keep, depth, convention) for size, keep in zip(sizes, keeps, strict=True)]
    return [sum(layer) for layer in zip(*images, strict=True)]


def _share(total: int, sizes: list[int]) -> list[int]:
    """Divides `total` tokens in proportion to `sizes`, by largest remainder, at least one to each."""
    whole = sum(sizes)
    if total >= whole:
        return list(sizes)
    if total < len(sizes):
        raise ValueError(
            f"a budget of {total} tokens per prompt cannot be shared by {len(sizes)} images; give at least {len(sizes)}"
        )
    keeps = [max(1, total * size // whole) for size in sizes]
    fractions = [total * size % whole if total * size >= whole else -1 for size in sizes]
    for index in sorted(range(len(sizes)), key=lambda i: -fractions[i])[: max(0, total - sum(keeps))]:
        keeps[index] += 1
    while sum(keeps) > total:
        keeps[keeps.index(max(keeps))] -= 1
    return keeps


def _largest(sizes: list[int], limit: float, cost: Callable[[list[int]], float], what: str) -> list[int]:
    """The most tokens, in one common ratio to `sizes`, whose cost is not above `limit`; costs grow with the tokens."""

    def keeps(numerator: int) -> list[int]:
        return [max(1, numerator * size // largest) for size in sizes]

    largest = max(sizes)
    if (smallest := cost(keeps(1))) > limit * _ROUNDING:
        raise ValueError(
            f"{what} is out of reach: one token per image already makes {smallest:.6g}, above {limit:.6g}; "
            f"ask for at least {math.ceil(smallest * 1e4) / 1e4:.12g} or prune at an earlier layer"
        )
    low, high = 1, largest
    while low < high:
        middle = (low + high + 1) // 2
        if cost(keeps(middle)) <= limit * _ROUNDING:
            low = middle
        else:
            high = middle - 1
    return keeps(low)


def _check_tokens(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Budget: tokens must be an integer, got {value!r}; for a share of the tokens use ratio=")
    if value < 1:
        raise ValueError(f"Budget: tokens must be at least 1, got {value}; more than an image has keeps all of them")


def _check_real(name: str, value: object, *, highest: int | None, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Budget: {name} must be a number, got {value!r}; {hint}")
    if not (math.isfinite(value) and value > 0 and (highest is None or value <= highest)):
        allowed = "above 0" if highest is None else f"in (0, {highest}]"
        raise ValueError(f"Budget: {name} must be {allowed}, got {value!r}; {hint}")
