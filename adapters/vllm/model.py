"""vLLM's models with fewer image tokens: shared by all families."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

from vtprune.adapters.base import Adapter
from vtprune.adapters.vllm.eligibility import Abilities
from vtprune.adapters.vllm.options import KEY
from vtprune.adapters.vllm.plan import Plan, Plans
from vtprune.adapters.vllm.selection import Left, prune_features
from vtprune.adapters.vllm.tower import describe, watched
from vtprune.engine.vision import VisionRecord
from vtprune.layout import ImageLayout, join_layouts

if TYPE_CHECKING:
    from torch.nn import Module as _Model
else:
    _Model = object


class PrunedModel(_Model):
    """Mixed into a model class of vLLM: the tower runs as it does there, and what it makes is pruned.

    Pictures that ask for different things are encoded together and pruned apart.
    """

    # vLLM remembers these for a class until the file of that class changes, whatever happens to this one.

    supports_encoder_tp_data: ClassVar[bool] = False  # each device would see the attention of its own pictures only
    supports_mm_device_do_normalize: ClassVar[bool] = False  # methods draw from the pixels as transformers makes them
    supports_encoder_cudagraph: ClassVar[bool] = False  # what a method looks at is taken while the tower runs

    positions: ClassVar[str] = "pack"
    """A placeholder that is not there takes no position, where positions are plain numbers."""

    config: Any
    adapter_class: ClassVar[type[Adapter]]
    abilities_of: ClassVar[Any]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        abilities: Abilities = type(self).abilities_of(config)
        self.plans = Plans(config, abilities)
        self.adapter = self.adapter_class(self)
        self.width = int(config.get_text_config().hidden_size)
        self._most_tokens = vllm_config.scheduler_config.max_num_encoder_input_tokens

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The image tokens that stay, `(kept, dim)` for each picture."""
        if kwargs.get(KEY) is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        plans = [self.plans.of(bytes(text.tolist()).decode()) for text in kwargs.pop(KEY)]
        found: list[torch.Tensor] = []
        start = 0
        for end in self._ends(self.picture_tokens(kwargs, len(plans))):
            found += self._embed_part(self.pictures(kwargs, start, end), plans[start:end])
            start = end
        return found

    def _ends(self, tokens: Sequence[int]) -> list[int]:
        """Where to cut pictures that the tower is given in several runs.

        vLLM measures at its start what the tower needs for as many pictures as fit in unpruned; it schedules by the
        placeholders that are left, and so may hand over many more at once.
        """
        ends, total = [], 0
        for number, count in enumerate(tokens):
            if number and total + count > self._most_tokens:
                ends.append(number)
                total = 0
            total += count
        return [*ends, len(tokens)]

    def picture_tokens(self, kwargs: dict[str, Any], pictures: int) -> list[int]:
        """Tokens of each picture before pruning; given by the family.

        Args:
            kwargs: What the model is given of them.
            pictures: Their number.
        """
        raise NotImplementedError

    def pictures(self, kwargs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """What the model is given of some of the pictures; by default all of it has one entry a picture."""
        return {name: value[start:end] for name, value in kwargs.items()}

    def watched_inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the adapter is told of what the tower is given, under the names that transformers has for it."""
        return kwargs

    def _embed_part(self, kwargs: dict[str, Any], plans: Sequence[Plan]) -> list[torch.Tensor]:
        signals = frozenset().union(*(plan.signals for plan in plans))
        layers = sorted({layer for plan in plans for layer in plan.encoder_layers})
        with watched(self.adapter, signals, layers, self.watched_inputs(kwargs), self._gathered) as record:
            features = self.encode(kwargs, layers)
        counts = self.entry_tokens(kwargs, features)
        describe(record, [tokens for picture in counts for tokens in picture], signals)
        ends = list(accumulate(len(picture) for picture in counts))
        entries = [range(end - len(picture), end) for end, picture in zip(ends, counts, strict=True)]
        return self._pruned(features, entries, record, plans)

    def encode(self, kwargs: dict[str, Any], layers: Sequence[int]) -> Sequence[torch.Tensor]:
        """All tokens of each picture, `(tokens, dim)`.

        Args:
            kwargs: What the model is given of the pictures.
            layers: Encoder layers that must run, whether the features need them or not.
        """
        features: Any = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        return list(features)

    def entry_tokens(self, kwargs: dict[str, Any], features: Sequence[torch.Tensor]) -> list[list[int]]:
        """For each picture the tokens of each of the tower's entries that it is made of; by default there is one.

        Args:
            kwargs: What the model is given of the pictures.
            features: All tokens of each.
        """
        return [[len(picture)] for picture in features]

    def _pruned(
        self,
        features: Sequence[torch.Tensor],
        entries: Sequence[range],
        record: VisionRecord,
        plans: Sequence[Plan],
    ) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for plan in dict.fromkeys(plans):
            numbers = [number for number, wanted in enumerate(plans) if wanted is plan]
            states = [features[number][:, : self.width] for number in numbers]
            every = prune_features(states, [entries[number] for number in numbers], record, plan, self.positions)
            for number, left in zip(numbers, every, strict=True):
                layouts = tuple(record.layouts[entry] for entry in entries[number])
                found[number] = self.finished(left, features[number], join_layouts(layouts))
        return [found[number] for number in range(len(plans))]

    def finished(self, left: Left, features: torch.Tensor, layout: ImageLayout) -> torch.Tensor:
        """What vLLM keeps of a picture, `(kept, any)`; by default what the decoder gets.

        Args:
            left: What the method left.
            features: All that the tower made of the picture, `(tokens, any)`.
            layout: Where its tokens lay.
        """
        return left.states

    def _gathered(self, states: torch.Tensor) -> torch.Tensor:
        """Heads `(batch, rows, heads, dim)` of all devices."""
        vision = self.config.vision_config
        total = int(getattr(vision, "num_attention_heads", None) or vision.num_heads)
        if get_tensor_model_parallel_world_size() == 1 or states.shape[2] == total:
            return states
        gathered: torch.Tensor = tensor_model_parallel_all_gather(states.contiguous(), dim=2)
        return gathered
