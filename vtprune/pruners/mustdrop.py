"""MustDrop: tokens that some word of the prompt attends to, by sum or by peak, and the encoder's key set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vtprune.context import Context
from vtprune.ops.checks import check_positive, check_share
from vtprune.ops.gather import as_float
from vtprune.ops.raters import attention_peaks
from vtprune.ops.topk import stable_topk
from vtprune.pruner import Reduction, Signal, StagedPruner
from vtprune.registry import register


@register
@dataclass(frozen=True)
class MustDrop(StagedPruner):
    """Drops tokens whose share of the text's attention and whose highest attention are both low, but no key token.

    The paper has thresholds instead of budgets: with `adaptive=True` each stage drops a token if both values are below
    theirs. A budget keeps the tokens that come nearest to a threshold or exceed it most, key tokens first, and every
    stage the same share. Attention is that of all words behind the image in the layer before, on average over heads;
    without such words the first tokens are kept.

    Only this dual attention filter and its key set are reproduced. The merging of similar windows after the first
    layer of the vision tower and the filtering of the cache of earlier layers after the prefill are not.

    Args:
        stages: Decoder layers before which tokens are removed, ascending, at least 1. `None` takes 3, 7, 11 and 15 of
            32 layers: the paper filters after its layers 2, 6, 10 and 14.
        global_threshold: Of a token's share of the attention to all tokens present, above 0. The paper's pairs are
            0.011 and 0.01 for about 64 tokens, 0.0012 and 0.001 for 128, 0.001 and 0.001 for 192.
        individual_threshold: Of the highest attention that a token gets from one word, above 0.
        protected: Share of the patches that belong to the key set, in [0, 1], rounded up: those that the CLS token of
            the encoder's last layer attends to most.

    Raises:
        TypeError: A field of the wrong type.
        ValueError: A field out of range.

    Example:
        >>> MustDrop().schedule(576, 36)
        (288, 144, 72, 36)
    """

    global_threshold: float = 0.011
    individual_threshold: float = 0.01
    protected: float = 0.08

    name = "mustdrop"
    paper = "MustDrop, arXiv 2411.10803"
    year = 2024
    summary = "Keeps in four layers the encoder's key tokens and those that all words or a single one attend to."
    signals = frozenset({Signal.DECODER_ATTENTION, Signal.ENCODER_LAYERS})
    query_aware = True
    golden = "mustdrop_filter.npz"
    paper_stages = (3, 7, 11, 15)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.name, "global_threshold", self.global_threshold)
        check_positive(self.name, "individual_threshold", self.individual_threshold)
        check_share(self.name, "protected", self.protected)

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """The last layer of the vision tower, unless no token is protected."""
        return (-1,) if self.protected else ()

    def scores(self, context: Context) -> torch.Tensor:
        """How far each token exceeds the threshold that it exceeds more, `(batch, tokens)`; below 1 it is dropped."""
        total, peak = attention_peaks(context.attention_from(context.text_slots), context.text_follows)
        share = total / total.sum(dim=1, keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)
        return torch.maximum(share / self.global_threshold, peak / self.individual_threshold)

    def reduce(self, context: Context, keep: int) -> Reduction:
        """Keeps the key tokens and the highest scores."""
        order = stable_topk(self.scores(context), context.tokens)
        if self.protected:
            is_key = self._is_key(context).gather(1, order).to(torch.uint8)
            order = order.gather(1, is_key.sort(dim=1, descending=True, stable=True).indices)
        return Reduction(order[:, :keep])

    def reduce_adaptive(self, context: Context) -> Reduction:
        """Keeps the key tokens and what reaches a threshold, at least the highest score."""
        scores = self.scores(context)
        valid = scores.scatter(1, stable_topk(scores, 1), torch.inf) >= 1
        if self.protected:
            valid = valid | self._is_key(context)
        kept = torch.arange(context.tokens, device=valid.device).expand_as(valid)
        return Reduction(kept, valid=valid)

    def _is_key(self, context: Context) -> torch.Tensor:
        """The key set among the tokens present, `(batch, tokens)`."""
        patches = sum(patch >= 0 for patch in context.layout.patches)
        attention = as_float(context.encoder_layer(0).attention).mean(dim=1)
        key = stable_topk(attention, min(math.ceil(self.protected * patches), context.tokens))
        return torch.zeros_like(context.is_patch).scatter(1, key, True) & context.is_patch
