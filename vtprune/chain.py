"""Several methods one after another, under one budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from vtprune.context import Context
from vtprune.layout import ImageLayout
from vtprune.ops.checks import check_positive
from vtprune.pruner import Depths, Pruner, Reduction, Signal


@dataclass(frozen=True)
class Chain(Pruner):
    """Runs methods in order: each works on what the one before it left.

    The budget speaks of what is left at the end. By default all methods remove the same factor: of 576 tokens and a
    budget of 16 the first of two leaves 96. Where methods share a decoder layer, the earlier one in the chain runs
    first.

    Args:
        pruners: The methods, two or more; their stages must lie in this order.
        shares: Tokens that each method but the last leaves, as multiples of the budget, each 1 or more, not rising:
            `(3.0,)` lets the first of two leave three times as many tokens as the second.

    Raises:
        TypeError: `pruners` holds something else than methods.
        ValueError: Fewer than two methods, stages that do not ascend, a method that needs whole images after another
            one, or `shares` of the wrong length or out of range.

    Example:
        >>> from vtprune.registry import make_pruner
        >>> chain = make_pruner(["divprune", "fastv"])
        >>> chain.layers, chain.schedule(576, 16)
        ((0, 2), (96, 16))
    """

    pruners: tuple[Pruner, ...]
    shares: tuple[float, ...] | None = None

    paper = "Composition of methods"
    year = 2026
    summary = "Runs methods one after another under one budget."

    def __post_init__(self) -> None:
        if not isinstance(self.pruners, tuple) or not all(isinstance(pruner, Pruner) for pruner in self.pruners):
            raise TypeError(f"chain: pruners must be a tuple of methods, got {self.pruners!r}")
        if len(self.pruners) < 2:
            raise ValueError(f"chain: give two methods or more, got {[pruner.name for pruner in self.pruners]}")
        for earlier, later in zip(self.pruners, self.pruners[1:], strict=False):
            if later.layers[0] < earlier.layers[-1]:
                raise ValueError(
                    f"chain: {later.name} prunes before layer {later.layers[0]}, in front of {earlier.name} at layer "
                    f"{earlier.layers[-1]}; put {later.name} first or choose other layers"
                )
            if _has_fixed_sizes(earlier) or _drops_all(earlier):
                raise ValueError(
                    f"chain: {earlier.name} cannot keep any given number of tokens, so it can only come last"
                )
            if later.whole_images:
                raise ValueError(f"chain: {later.name} needs whole images and so can only come first")
        if self.shares is None:
            return
        if not isinstance(self.shares, tuple) or len(self.shares) != len(self.pruners) - 1:
            raise ValueError(
                f"chain: shares must be a tuple with one number for each of the first {len(self.pruners) - 1} methods, "
                f"got {self.shares!r}"
            )
        for share in self.shares:
            check_positive(self.name, "shares", share)
        if min(self.shares) < 1 or list(self.shares) != sorted(self.shares, reverse=True):
            raise ValueError(f"chain: shares must be 1 or more and must not rise, got {self.shares!r}")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The names of the methods, joined by `/`."""
        return "/".join(pruner.name for pruner in self.pruners)

    @property
    def signals(self) -> frozenset[Signal]:  # type: ignore[override]
        """All that any of the methods looks at."""
        return frozenset().union(*(pruner.signals for pruner in self.pruners))

    @property
    def optional_signals(self) -> frozenset[Signal]:  # type: ignore[override]
        """All that any of the methods looks at where the model has it."""
        return frozenset().union(*(pruner.optional_signals for pruner in self.pruners))

    @property
    def training_free(self) -> bool:  # type: ignore[override]
        """Whether all methods are."""
        return all(pruner.training_free for pruner in self.pruners)

    @property
    def query_aware(self) -> bool:  # type: ignore[override]
        """Whether any method is."""
        return any(pruner.query_aware for pruner in self.pruners)

    @property
    def merges(self) -> bool:  # type: ignore[override]
        """Whether any method does."""
        return any(pruner.merges for pruner in self.pruners)

    @property
    def reorders(self) -> bool:  # type: ignore[override]
        """Whether any method does."""
        return any(pruner.reorders for pruner in self.pruners)

    @property
    def whole_images(self) -> bool:  # type: ignore[override]
        """Whether the first method does."""
        return self.pruners[0].whole_images

    @property
    def default_positions(self) -> str:  # type: ignore[override]
        """That of the last method, whose positions the rest of the model sees."""
        return self.pruners[-1].default_positions

    @property
    def weighs_attention(self) -> bool:
        """Whether any method does."""
        return any(pruner.weighs_attention for pruner in self.pruners)

    @property
    def is_adaptive(self) -> bool:
        """Whether all methods are."""
        return all(pruner.is_adaptive for pruner in self.pruners)

    def fit(self, depths: Depths) -> Self:
        """Fits every method."""
        return replace(self, pruners=tuple(pruner.fit(depths) for pruner in self.pruners))

    @property
    def layers(self) -> tuple[int, ...]:
        """The stages of all methods."""
        return tuple(layer for pruner in self.pruners for layer in pruner.layers)

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """The encoder layers of all methods, one after another."""
        return tuple(layer for pruner in self.pruners for layer in pruner.encoder_layers)

    def stage_signals(self, stage: int) -> frozenset[Signal]:
        """Those of the method that the stage belongs to."""
        pruner, own = self._owner(stage)
        return pruner.stage_signals(own)

    def stage_encoder_layers(self, stage: int) -> tuple[int, ...]:
        """Those of the method that the stage belongs to."""
        pruner, own = self._owner(stage)
        return pruner.stage_encoder_layers(own)

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        """The methods' own schedules, each from what the one before it leaves to its share."""
        counts: list[int] = []
        present = tokens
        for pruner, share in zip(self.pruners, self._targets(tokens, keep), strict=True):
            target = min(present, share)
            own = pruner.schedule(present, target) if target < present else (present,) * len(pruner.layers)
            counts += own
            present = counts[-1]
        return tuple(counts)

    def attainable(self, layout: ImageLayout, keep: int) -> int:
        """What the last method can meet; where it drops everything, the budget speaks of what came before it."""
        last = self.pruners[-1]
        return keep if _drops_all(last) else last.attainable(layout, keep)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Lets the method of the stage choose."""
        return self._owner(context.stage)[0].reduce(context, keep)

    def reduce_adaptive(self, context: Context) -> Reduction:
        """Lets the method of the stage choose as many as it likes."""
        return self._owner(context.stage)[0].reduce_adaptive(context)

    def config(self) -> dict[str, Any]:
        """The hyper-parameters of each method."""
        return {
            "pruners": [{"name": pruner.name, **pruner.config()} for pruner in self.pruners],
            "shares": self.shares,
        }

    def _owner(self, stage: int) -> tuple[Pruner, int]:
        """The method that a stage of the chain belongs to, and the stage's number there."""
        for pruner in self.pruners:
            if stage < len(pruner.layers):
                return pruner, stage
            stage -= len(pruner.layers)
        raise ValueError(f"{self.name} has {len(self.layers)} stages, not {stage + len(self.layers) + 1}")

    def _targets(self, tokens: int, keep: int) -> list[int]:
        """Tokens that each method is to leave."""
        end = [0] if _drops_all(self.pruners[-1]) else []
        steps = len(self.pruners) - len(end)
        if self.shares is not None:
            return [*(round(share * keep) for share in self.shares), keep][:steps] + end
        return [max(keep, round(tokens * (keep / tokens) ** (step / steps))) for step in range(1, steps + 1)] + end


def _drops_all(pruner: Pruner) -> bool:
    """Whether a method leaves nothing, whatever the budget."""
    return pruner.schedule(2, 1)[-1] == 0


def _has_fixed_sizes(pruner: Pruner) -> bool:
    return type(pruner).attainable is not Pruner.attainable and not _drops_all(pruner)
