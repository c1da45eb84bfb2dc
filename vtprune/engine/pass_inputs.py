"""What a forward pass of the decoder is given, as one value whose tensors can be listed and replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vtprune.engine.cache_state import CacheState
from vtprune.engine.images import Images

if TYPE_CHECKING:
    from vtprune.engine.vision import VisionRecord
    from vtprune.text_tower import TextEmbeddings


class Leaf(NamedTuple):
    """A tensor among the inputs, and its dimensions that run over the tokens of the prompt."""

    tensor: torch.Tensor
    sequence: tuple[int, ...]


_SEQUENCE = {"inputs_embeds": (1,), "position_ids": (-1,)}


@dataclass(frozen=True)
class PassInputs:
    """A forward pass of the decoder, before it runs.

    Args:
        arguments: What the decoder is called with, the cache left out.
        cache: The cache it was given, or `None`.
        state: What is known about the tokens in that cache.
        mask: The attention mask of the model's entry where that is two-dimensional, else the decoder's, in any form.
        visual: Placeholder positions, `(batch, length)`, when this pass brings images.
        images: The images they belong to.
        ids: The prompt's token ids, `(batch, length)`, where the method reads the question.
        injected: For each layer before which something is added to visual tokens, features of all of them.
        question: CLIP text embeddings of the question, where they are made ahead of the pass.
    """

    arguments: dict[str, Any]
    cache: Any = None
    state: CacheState | None = None
    mask: Any = None
    visual: torch.Tensor | None = None
    images: Images = field(default_factory=Images)
    ids: torch.Tensor | None = None
    injected: dict[int, torch.Tensor] = field(default_factory=dict)
    question: TextEmbeddings | None = None

    @property
    def embeddings(self) -> torch.Tensor:
        """The states of all tokens, `(batch, length, dim)`."""
        states: torch.Tensor = self.arguments["inputs_embeds"]
        return states

    @property
    def positions(self) -> torch.Tensor | None:
        """The decoder's `position_ids`, in the form in which it was given them."""
        return self.arguments.get("position_ids")

    def leaves(self, *, pixels: bool) -> list[Leaf]:
        """All tensors, each once, in an order that depends on the structure alone.

        Args:
            pixels: Those of the pictures too.
        """
        found: dict[int, Leaf] = {}

        def visit(tensor: torch.Tensor, sequence: tuple[int, ...]) -> torch.Tensor:
            found.setdefault(id(tensor), Leaf(tensor, sequence))
            return tensor

        self._traverse(visit, pixels)
        return list(found.values())

    def with_tensors(self, tensors: Iterable[torch.Tensor], *, pixels: bool) -> PassInputs:
        """The same with other tensors in the places of `leaves`; without a cache and what is known of it."""
        new = dict(zip((id(leaf.tensor) for leaf in self.leaves(pixels=pixels)), tensors, strict=True))
        return replace(self._traverse(lambda tensor, _: new[id(tensor)], pixels), cache=None, state=None)

    def _traverse(self, visit: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor], pixels: bool) -> PassInputs:
        def masks(value: Any) -> Any:
            return visit(value, (1,) if value.dim() == 2 else (2, 3)) if isinstance(value, torch.Tensor) else value

        arguments = {
            name: masks(value)
            if name == "attention_mask"
            else visit(value, _SEQUENCE.get(name, ()))
            if isinstance(value, torch.Tensor)
            else value
            for name, value in self.arguments.items()
        }
        records: dict[int, VisionRecord] = {}
        for record in self.images.records:
            if id(record) not in records:
                records[id(record)] = record.traverse(lambda tensor: visit(tensor, ()), pixels)
        return replace(
            self,
            arguments=arguments,
            mask=masks(self.mask),
            visual=None if self.visual is None else visit(self.visual, (1,)),
            images=replace(self.images, records=[records[id(record)] for record in self.images.records]),
            ids=None if self.ids is None else visit(self.ids, (1,)),
            injected={layer: visit(features, ()) for layer, features in self.injected.items()},
            question=None
            if self.question is None
            else type(self.question)(*(visit(tensor, ()) for tensor in self.question)),
        )
