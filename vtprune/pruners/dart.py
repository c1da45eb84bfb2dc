"""DART: a few pivot tokens, and the tokens least like them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_integer
from vtprune.ops.gather import as_float, split_by, take
from vtprune.ops.pivots import unlike_pivots
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Pruner, Reduction, Signal, check_layer
from vtprune.registry import register


class Pivots(NamedTuple):
    """The pivots of a batch, each kind ascending.

    Args:
        image: Tokens of the image, `(batch, image)`.
        text: Slots of the running sequence, `(batch, text)`.
        live: `False` where a row has not that much text, `(batch, text)`.
    """

    image: torch.Tensor
    text: torch.Tensor
    live: torch.Tensor


@register
@dataclass(frozen=True)
class DART(Pruner):
    """Keeps the tokens with the largest keys as pivots, and those whose states differ most from a pivot's.

    Pivots are the image's tokens and the words behind the image whose keys in the layer before have the highest L1
    norm over all heads. One pivot after another takes its share of the budget from the tokens left, those with the
    lowest cosine to its state after the decoder's last norm; words themselves are no visual tokens and add none.
    Budgets below the number of image pivots, and prompts with less text than text pivots, make fewer pivots.

    Two differences from the paper's code: pivots pick in the order image, text, each ascending, instead of the hash
    order of a set; and what does not divide among them goes to the first ones, where the code rounds down and keeps
    fewer than asked for. To repeat a run of it, ask for `image_pivots + q * (image_pivots + text_pivots)` tokens.

    Args:
        layer: Decoder layer before which tokens are removed, at least 1; keys are those of layer `layer - 1`.
        image_pivots: At least 1.
        text_pivots: At least 0.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> DART(layer=5).layers
        (5,)
    """

    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4

    name = "dart"
    paper = "DART, EMNLP 2025, arXiv 2502.11494"
    year = 2025
    summary = "Keeps a few tokens with large keys and those least like them and like the words with large keys."
    signals = frozenset({Signal.DECODER_STATES})
    query_aware = True
    default_positions = "keep"
    golden = "dart.npz"

    def __post_init__(self) -> None:
        check_layer(self.layer, lowest=1, owner=self.name)
        check_integer(self.name, "image_pivots", self.image_pivots, low=1)
        check_integer(self.name, "text_pivots", self.text_pivots, low=0)

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer before which tokens are removed."""
        return (self.layer,)

    def pivots(self, context: Context, keep: int) -> Pivots:
        """The tokens and words with the largest keys; no more tokens than `keep`."""
        image = stable_topk(_key_norms(context.keys), min(self.image_pivots, keep))
        slots, follows = context.text_slots, context.text_follows
        norms = _key_norms(context.keys_at(slots)).masked_fill(~follows, -torch.inf)
        text = stable_topk(norms, min(self.text_pivots, slots.shape[1])).sort(dim=1).values
        return Pivots(image.sort(dim=1).values, slots.gather(1, text), follows.gather(1, text))

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the image pivots and what each pivot picks."""
        image, text, live = self.pivots(context, keep)
        states = context.final_norm(context.hidden)
        pivots = torch.cat([take(states, image), context.final_norm(context.hidden_at(text))], dim=1)
        live = torch.cat([torch.ones_like(image, dtype=torch.bool), live], dim=1)
        taken = torch.zeros_like(context.is_patch).scatter(1, image, True)
        picked = unlike_pivots(states, pivots, keep - image.shape[1], live=live, taken=taken)
        return Reduction(split_by(taken | picked, keep)[0])


def _key_norms(keys: torch.Tensor) -> torch.Tensor:
    """L1 norms of `(batch, heads, any, head_dim)` keys over all heads, `(batch, any)`."""
    return as_float(keys).abs().sum(dim=(1, 3))
