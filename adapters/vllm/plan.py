"""How many tokens of each image stay: the one count that prompts, profiling and the model itself go by."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from vtprune.adapters.vllm.eligibility import Abilities, refusal
from vtprune.adapters.vllm.options import KEY, Options, read_text
from vtprune.costs import LayerCosts
from vtprune.layout import ImageLayout
from vtprune.pruner import Signal


class Plan:
    """One way of pruning, fitted to one model.

    Args:
        options: The method and the budget.
        abilities: What the model gives to look at.

    Raises:
        ValueError: They cannot be served.
    """

    def __init__(self, options: Options, abilities: Abilities) -> None:
        self.options = options
        self.abilities = abilities
        self.pruner = options.pruner.fit(abilities.depths)
        none = (0,) * abilities.depths.decoder
        self._shape = LayerCosts(none, none, none, 0)  # of which only the number of layers counts here
        if (reason := refusal(self.pruner, options.budget, abilities)) is not None:
            raise ValueError(f"{KEY}: {reason}; choose one that docs/serving.md lists")
        self.signals = self.pruner.signals | (self.pruner.optional_signals - abilities.missing.keys())
        self.encoder_layers = tuple(
            layer % abilities.depths.encoder
            for layer in (self.pruner.encoder_layers if Signal.ENCODER_LAYERS in self.signals else ())
        )

    def schedule(self, layout: ImageLayout) -> tuple[int, ...]:
        """Tokens of an image after each stage of the method.

        Raises:
            ValueError: The budget is out of the method's reach for this image.
        """
        (keep,) = self.options.budget.resolve(self.pruner, [layout], self._shape, text_tokens=0)
        if keep >= layout.tokens:
            return (layout.tokens,) * len(self.pruner.layers)
        return self.pruner.schedule(layout.tokens, keep)

    def kept(self, layout: ImageLayout) -> int:
        """Tokens of an image that reach the decoder."""
        return self.schedule(layout)[-1]


class Plans:
    """The plans of a model, by the text of their options.

    Args:
        config: The model's configuration, with the server's own options in it.
        abilities: What the model gives to look at.

    Raises:
        TypeError: The options are of the wrong type.
        ValueError: There are none, or they cannot be served.
    """

    def __init__(self, config: Any, abilities: Abilities) -> None:
        given = getattr(config, KEY, None)
        if given is None:
            raise ValueError(
                f'{abilities.name} needs to know what to keep: --hf-overrides \'{{"architectures": '
                f'["{abilities.name}"], "{KEY}": {{"pruner": "divprune", "budget": 64}}}}\''
            )
        self.default = Options.read(given)
        self._find = lru_cache(maxsize=256)(lambda text: Plan(read_text(text), abilities))
        self._find(self.default.text)

    def of(self, text: str) -> Plan:
        """The plan for options that were read before."""
        return self._find(text)

    def requested(self, given: object) -> Plan:
        """The plan for what a request says under `mm_processor_kwargs`, which may be nothing.

        Raises:
            TypeError: Something of the wrong type.
            ValueError: What it asks for cannot be served.
        """
        return self._find(Options.read(given, self.default).text)
