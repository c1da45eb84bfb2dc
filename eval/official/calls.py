"""What each loop is called with in a benchmark: the tensors of one picture, from what vtprune's stages see of it.

A call does for one picture, through all stages of a method, what the published code does for it. It starts where
vtprune's selection does, at queries, keys and features that the model has computed anyway; whole attention maps are
made within the call, because the methods that read them make the model compute them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from vtprune.engine.stage_context import StageContext
from vtprune.engine.taps import AttentionStates
from vtprune.eval.official.aim import aim_drop, aim_merge
from vtprune.eval.official.attention import attention_logits, causal_mask, eager_map
from vtprune.eval.official.cdpruner import cdpruner
from vtprune.eval.official.dart import dart, dart_pivots
from vtprune.eval.official.divprune import divprune
from vtprune.eval.official.entropyprune import entropyprune
from vtprune.eval.official.fastv import fastv
from vtprune.eval.official.fitprune import fitprune
from vtprune.eval.official.flashvlm import flashvlm
from vtprune.eval.official.globalcom2 import globalcom2
from vtprune.eval.official.gprune import gprune
from vtprune.eval.official.hiprune import hiprune
from vtprune.eval.official.hired import hired
from vtprune.eval.official.holov import holov
from vtprune.eval.official.m3 import m3
from vtprune.eval.official.mustdrop import mustdrop, mustdrop_keys
from vtprune.eval.official.pact import pact
from vtprune.eval.official.prumerge import prumerge
from vtprune.eval.official.pyramiddrop import pyramiddrop
from vtprune.eval.official.recoverable import recoverable
from vtprune.eval.official.scope import scope
from vtprune.eval.official.sparsevlm import sparsevlm, sparsevlm_plus, text_raters
from vtprune.eval.official.tome import tome
from vtprune.eval.official.trim import trim
from vtprune.eval.official.visionzip import visionzip
from vtprune.eval.official.vispruner import fastervlm, vispruner
from vtprune.eval.official.vscan import vscan


@dataclass(frozen=True)
class Seen:
    """One picture at one stage of a prefill with one picture a prompt.

    Args:
        pruner: The method, fitted to the model.
        context: What it was given.
        image: Number of the picture among those of the context.
        keep: Tokens that stay.
    """

    pruner: Any
    context: StageContext
    image: int
    keep: int

    @property
    def tokens(self) -> int:
        """Its tokens that are present."""
        return self.context.tokens

    @cached_property
    def start(self) -> int:
        """First slot of its tokens in the running sequence, which they fill without gaps."""
        return int(self.context.slots[self.image, 0])

    @property
    def hidden(self) -> torch.Tensor:
        """States of its tokens, `(1, tokens, dim)`."""
        return self.context.hidden[self.image, None]

    @property
    def sequence(self) -> torch.Tensor:
        """States of the whole running sequence, `(1, length, dim)`."""
        return self.context._hidden[self._row]

    @property
    def places(self) -> torch.Tensor:
        """Columns of the sequence in the prompt, `(length,)`."""
        return self.context._tokens.columns[self._row][0]

    @cached_property
    def views(self) -> int:
        """Encoder views of the picture.

        Raises:
            ValueError: They do not all have the same number of tokens.
        """
        sizes = [len(view) for view in self.context.view_tokens]
        if len(set(sizes)) > 1:
            raise ValueError(f"the published code is run on whole views of one size; this picture's have {sizes}")
        return len(sizes)

    @cached_property
    def share(self) -> int:
        """Tokens of each view that stay."""
        return self.keep // self.views

    @property
    def view_states(self) -> torch.Tensor:
        """States of the patches, view by view, `(views, patches, dim)`."""
        return torch.stack([self.hidden[0, view] for view in self.context.view_tokens[: self.views]])

    @property
    def features(self) -> torch.Tensor:
        """What the projector was given, `(views, patches, encoder_dim)`."""
        patches = self.context._record.patch_features
        return patches.view(-1, self.context.layout.patches_per_view, patches.shape[-1])[self._views]

    @property
    def cls(self) -> torch.Tensor:
        """The CLS tokens beside those features, `(views, 1, encoder_dim)`."""
        return self.context._record.cls[self._views, None]

    def encoder(self, layer: int) -> AttentionStates:
        """Queries and keys of an encoder layer, `(views, heads, patches + 1, head_dim)`."""
        calls = self.context._record.states_of(layer % len(self.context._run.engine.vision.layers))
        assert len(calls) == 1
        return _rows(calls[0], self._views)

    def encoder_output(self, layer: int) -> torch.Tensor:
        """States of the patches that leave an encoder layer, `(views, patches, encoder_dim)`."""
        outputs = self.context._record.outputs[layer % len(self.context._run.engine.vision.layers)]
        assert len(outputs) == 1
        return outputs[0][self._views, 1:]

    @property
    def feature_layer(self) -> AttentionStates:
        """Queries and keys of the encoder layer that the projector's features come from."""
        return self.encoder(self.context._run.engine.vision.features[-1])

    @property
    def before(self) -> AttentionStates:
        """Queries and keys of the decoder layer before the stage, `(1, heads, length, head_dim)`."""
        return _rows(self.context._run.states_before(self.context.layer), self._row)

    def ahead(self, rotated: bool) -> AttentionStates:
        """Queries and keys of the decoder layer behind the stage."""
        return _rows(self.context._ahead(rotated), self._row)

    @property
    def span(self) -> slice:
        """Its slots."""
        return slice(self.start, self.start + self.tokens)

    @property
    def _row(self) -> slice:
        row = int(self.context._rows[self.image])
        return slice(row, row + 1)

    @property
    def _views(self) -> slice:
        first = self.context._view_offsets[self.image]
        return slice(first, first + self.context.layout.views)


Call = Callable[[], list[Any]]
"""Runs a method's published selection on one picture; what each stage chose or made."""


def _rows(states: AttentionStates, rows: slice) -> AttentionStates:
    return AttentionStates(states.queries[rows], states.keys[rows], states.scaling, None)


def _full_width(states: AttentionStates) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys with all heads beside one another, `(views, patches + 1, dim)`."""
    queries, keys = (part.transpose(1, 2).flatten(2) for part in (states.queries, states.keys))
    return queries, keys


def _whole(states: AttentionStates, mask: torch.Tensor | None = None) -> torch.Tensor:
    return eager_map(states.queries, states.keys, states.scaling, mask)


def _halves(tokens: int, count: int) -> list[int]:
    """Merges of each round that bring `tokens` down to `count`."""
    rounds = []
    while tokens > count:
        rounds.append(min(tokens // 2, tokens - count))
        tokens -= rounds[-1]
    return rounds


def _at_least(count: int, total: int) -> float:
    """A share of `total` that rounds down to `count`."""
    return (count + 0.5) / total


def _aim(stages: Sequence[Seen]) -> Call:
    merges = [(one.hidden, _halves(one.tokens, one.keep)) for one in stages if one.context.layer == 0]
    later = [one for one in stages if one.context.layer]
    given = [(one, one.before, one.start, causal_mask(one.sequence.shape[1], one.hidden)) for one in later]

    def call() -> list[Any]:
        merged = [aim_merge(states, rounds) for states, rounds in merges]
        return merged + [
            aim_drop(attention_logits(at.queries, at.keys, at.scaling, mask), start, one.tokens, one.keep)
            for one, at, start, mask in given
        ]

    return call


def _cdpruner(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, features, project = one.view_states, one.features, one.context.clip_project
    text = one.context.clip_text[one.image][one.context.clip_text_mask[one.image]]
    return lambda: [cdpruner(states, project(features), text, one.share).sort(dim=1).values]


def _dart(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    sequence, keys, start, tokens = one.sequence, one.before.keys, one.start, one.tokens
    numbers = one.pruner.image_pivots, one.pruner.text_pivots
    each = (one.keep - numbers[0]) // sum(numbers)
    ratio = 1 - _at_least(each * sum(numbers), tokens)

    def call() -> list[Any]:
        image, text = dart_pivots(keys, start, tokens, *numbers)
        return [dart(one.context.final_norm(sequence), set(image + text), image, start, tokens, ratio) - start]

    return call


def _divprune(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    tokens = one.hidden[0]
    return lambda: [divprune(tokens, one.keep).sort().values]


def _entropyprune(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    queries, start = one.before.queries, one.start
    return lambda: [entropyprune(queries, start, one.tokens, one.keep)[0] - start]


def _fastervlm(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, share = one.feature_layer, one.share
    return lambda: [fastervlm(_whole(states), share)]


def _fastv(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, sequence, start = one.before, one.sequence, one.start
    mask = causal_mask(sequence.shape[1], sequence)
    return lambda: [fastv(sequence, _whole(states, mask), start, one.tokens, one.keep)[0]]


def _fitprune(stages: Sequence[Seen]) -> Call:
    given = [(one, one.before, one.start, causal_mask(one.sequence.shape[1], one.hidden)) for one in stages]

    def call() -> list[Any]:
        return [
            fitprune(_whole(states, mask), start, one.tokens, one.tokens - one.keep)
            for one, states, start, mask in given
        ]

    return call


def _flashvlm(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    features, states, share, context = one.features, one.feature_layer, one.share, one.context
    words = context.text[one.image][context.text_mask[one.image]]

    def call() -> list[Any]:
        attention = _whole(states)
        # The published code takes pictures of one view; of several it is run on each.
        views = range(len(features))
        return [
            torch.stack(
                [
                    flashvlm(each, attention[view : view + 1], context.project(each), words, share)
                    for view, each in ((view, features[view : view + 1]) for view in views)
                ]
            )
        ]

    return call


def _globalcom2(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, features, layout = one.encoder(one.pruner.encoder_layers[0]), one.view_states, one.context.layout
    side = layout.view_shape[0]
    separators = one.hidden[0, ~one.context.is_patch[one.image]]
    patches = features.shape[0] * features.shape[1]
    ratio = (one.keep - len(separators)) / patches

    def call() -> list[Any]:
        scores = (states.queries[:, :, :1] @ states.keys.transpose(2, 3) * states.scaling)[:, :, 0, 1:].mean(dim=1)
        if len(scores) == 1:
            return [scores.topk(one.keep, dim=1).indices]
        rows, columns = layout.crops
        picture = (columns * side, rows * side)
        return [globalcom2(features, scores, separators[0], (columns, rows), picture, ratio)]

    return call


def _gprune(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, share = one.view_states, one.share
    return lambda: [torch.stack([gprune(view, share)[0] for view in states])]


def _hiprune(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    middle, deep = (one.encoder(layer) for layer in one.pruner.encoder_layers)
    return lambda: [hiprune(_whole(middle), _whole(deep), one.share, one.pruner.alpha)]


def _hired(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    early, late = (one.encoder(layer) for layer in one.pruner.encoder_layers)
    rate = _at_least(one.keep, one.views * one.context.layout.patches_per_view)
    return lambda: [hired(_whole(early)[:, :, 0], _whole(late)[:, :, 0], rate, one.pruner.alpha)]


def _holov(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, features, share = one.feature_layer, one.view_states, one.share
    chunks = one.pruner.chunks

    def call() -> list[Any]:
        attention = _whole(states)[:, :, 0, 1:].mean(dim=1)
        return [torch.stack([holov(*view, chunks, share) for view in zip(features, attention, strict=True)])]

    return call


def _m3(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, share = one.view_states, one.share
    return lambda: [m3(states, share)]


def _mustdrop(stages: Sequence[Seen]) -> Call:
    first, thresholds = stages[0], (stages[0].pruner.global_threshold, stages[0].pruner.individual_threshold)
    last_layer, views = first.encoder(first.pruner.encoder_layers[0]), first.context.view_tokens
    given = [
        (one, one.before, one.start, causal_mask(one.sequence.shape[1], one.hidden), one.context.origin[one.image])
        for one in stages
    ]

    def call() -> list[Any]:
        protected = torch.cat([view[mustdrop_keys(each)] for view, each in zip(views, _whole(last_layer), strict=True)])
        found = []
        for one, states, start, mask, origin in given:
            attention = _whole(states, mask)[0, :, start + one.tokens :, start : start + one.tokens]
            found.append(mustdrop(attention, *thresholds, torch.isin(origin, protected).nonzero().squeeze(1)))
        return found

    return call


def _pact(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    patches = one.context.is_patch[one.image]
    bare, turned = one.ahead(False), one.ahead(True)
    queries, bare_keys, keys = (states[0, :, one.span][:, patches] for states in (bare.queries, bare.keys, turned.keys))
    hidden = one.hidden[0, patches]

    def run(cutoff: float) -> Any:
        return pact(
            hidden, queries, bare_keys, keys, keep=one.pruner.keep_share, cutoff=cutoff, recovery=one.pruner.recovery
        )

    # The published code knows a cutoff instead of a budget: one that makes about as many tokens is looked for.
    low, high = 0.0, 2.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if len(run(middle).sizes) > one.keep else (low, middle)
    return lambda: [run(high)]


def _prumerge(stages: Sequence[Seen], *, plus: bool) -> Call:
    (one,) = stages
    # The first row stands for CLS, whose state is not looked at.
    hidden = torch.cat([one.features[:, :1], one.features], dim=1)
    queries, keys = _full_width(one.encoder(one.pruner.encoder_layers[0]))
    patches = one.features.shape[1]
    # Of PruMerge+ with a ratio about as many patches come from attention as are evenly spaced.
    ratio = _at_least((one.share - 1) // 2 if plus else one.share - 1, patches)

    def call() -> list[Any]:
        return [
            [
                prumerge(hidden[view, None], queries[view, None], keys[view, None], ratio=ratio, plus=plus)
                for view in range(len(hidden))
            ]
        ]

    return call


def _pyramiddrop(stages: Sequence[Seen]) -> Call:
    given = [(one, one.ahead(True), one.sequence, one.start) for one in stages]

    def call() -> list[Any]:
        return [
            pyramiddrop(sequence, at.queries, at.keys, at.scaling, start, one.tokens, one.keep)[0]
            for one, at, sequence, start in given
        ]

    return call


def _recoverable(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    layer = one.pruner.encoder_layers[0]
    (queries, keys), output, features = _full_width(one.encoder(layer)), one.encoder_output(layer), one.features
    patches, counts = features.shape[1], one.pruner.split(one.share)
    left = patches - counts.vision
    ratios = (
        _at_least(counts.vision, patches),
        _at_least(counts.text, left),
        _at_least(counts.centres, left - counts.text),
    )
    text = torch.nn.functional.normalize(one.context.clip_text_last[one.image, None].float(), dim=-1)

    def call() -> list[Any]:
        embeds = torch.nn.functional.normalize(one.context.clip_project(output, norm=False).float(), dim=-1)
        similarity = (embeds @ text.T).squeeze(-1) * embeds.shape[-1] ** -0.5
        return [
            [
                recoverable(features[view], queries[view], keys[view], similarity[view], ratios)
                for view in range(len(features))
            ]
        ]

    return call


def _scope(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, features, share = one.feature_layer, one.features, one.share
    return lambda: [scope(features, _whole(states), share).sort(dim=1).values]


def _sparsevlm(stages: Sequence[Seen]) -> Call:
    visual, words = _prompt(stages[0])
    given = [(one, one.before, one.sequence, one.start, causal_mask(one.sequence.shape[1], visual)) for one in stages]
    counts = [one.pruner.split(one.tokens, one.keep)[0] for one in stages]

    def call() -> list[Any]:
        raters = text_raters(visual, words)
        return [
            sparsevlm(sequence, _whole(states, mask), raters, start, one.tokens, count)[0]
            for (one, states, sequence, start, mask), count in zip(given, counts, strict=True)
        ]

    return call


def _sparsevlm_plus(stages: Sequence[Seen]) -> Call:
    visual, words = _prompt(stages[0])
    given = [(one, one.before, one.sequence, one.start, causal_mask(one.sequence.shape[1], visual)) for one in stages]
    places, heads = [one.places for one in stages], stages[0].pruner.heads

    def call() -> list[Any]:
        raters = text_raters(visual, words)
        return [
            sparsevlm_plus(
                sequence,
                _whole(states, mask),
                raters,
                place,
                states.queries.shape[-1],
                start,
                one.tokens,
                one.keep,
                heads=heads,
            )[0]
            for (one, states, sequence, start, mask), place in zip(given, places, strict=True)
        ]

    return call


def _prompt(first: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """What the decoder was given for the picture and for the words behind it."""
    context, end = first.context, first.start + first.context.layout.tokens
    return context.inputs[first.image], context.text[first.image, end:]


def _tome(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states = one.view_states
    rounds = _halves(states.shape[1], one.share)
    return lambda: [tome(states, states, rounds)[0]]


def _trim(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    features, project = one.features, one.context.clip_project
    text, ratio = one.context.clip_text_truncated[one.image, None], _at_least(one.share - 1, features.shape[1])
    return lambda: [trim(features, project(features), text, ratio)[0]]


def _visionzip(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, hidden = one.feature_layer, torch.cat([one.cls, one.features], dim=1)
    split = one.pruner.split(one.share)
    return lambda: [visionzip(hidden, _whole(states), states.keys.mean(dim=1), *split)]


def _vispruner(stages: Sequence[Seen]) -> Call:
    (one,) = stages
    states, features, share = one.feature_layer, one.features, one.share
    return lambda: [vispruner(features, _whole(states), share, one.pruner.important)]


def _vscan(stages: Sequence[Seen]) -> Call:
    # A budget of a third of the tokens or more leaves nothing to the first stage.
    first = [one for one in stages if one.context.layer == 0]
    given = [(one.view_states, [one.encoder(layer) for layer in one.pruner.encoder_layers]) for one in first]
    numbers = [(one.share, one.pruner.window) for one in first]
    drop = _pyramiddrop([one for one in stages if one.context.layer])

    def call() -> list[Any]:
        found = []
        for (states, layers), (share, window) in zip(given, numbers, strict=True):
            shallow, deep = (_whole(layer)[:, :, 0, 1:] for layer in layers)
            views = zip(states, shallow, deep, strict=True)
            found.append(torch.stack([vscan(*view, share, window)[0] for view in views]))
        return found + drop()

    return call


OFFICIAL: dict[str, Callable[[Sequence[Seen]], Call]] = {
    "aim": _aim,
    "cdpruner": _cdpruner,
    "dart": _dart,
    "divprune": _divprune,
    "entropyprune": _entropyprune,
    "fastervlm": _fastervlm,
    "fastv": _fastv,
    "fitprune": _fitprune,
    "flashvlm": _flashvlm,
    "globalcom2": _globalcom2,
    "gprune": _gprune,
    "hiprune": _hiprune,
    "hired": _hired,
    "holov": _holov,
    "m3": _m3,
    "mustdrop": _mustdrop,
    "pact": _pact,
    "prumerge": lambda stages: _prumerge(stages, plus=False),
    "prumerge+": lambda stages: _prumerge(stages, plus=True),
    "pyramiddrop": _pyramiddrop,
    "recoverable": _recoverable,
    "scope": _scope,
    "sparsevlm": _sparsevlm,
    "sparsevlm+": _sparsevlm_plus,
    "tome": _tome,
    "trim": _trim,
    "visionzip": _visionzip,
    "vispruner": _vispruner,
    "vscan": _vscan,
}
"""For each method the call that does its published selection on the stages of one picture."""
