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
from vtprune.adapters.vllm.selection import prune_features
from vtprune.adapters.vllm.tower import describe, watched
from vtprune.engine.vision import VisionRecord

if TYPE_CHECKING:
    from torch.nn import Module as _Model
else:
    _Model = object


class PrunedModel(_Model):
    """Mixed into a model class of vLLM: the tower runs as it does there, and what it makes is pruned.

    Pictures that ask for different things are encoded together and pruned apart.
    """

    supports_encoder_tp_data: ClassVar[bool] = False  # each device would see the attention of its own pictures only
    supports_encoder_cudagraph: ClassVar[bool] = False  # what a method looks at is taken while the tower runs

    adapter_class: ClassVar[type[Adapter]]
    abilities_of: ClassVar[Any]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        abilities: Abilities = type(self).abilities_of(config)
        self.plans = Plans(config, abilities)
        self.adapter = self.adapter_class(self)
        self._most_tokens = vllm_config.scheduler_config.max_num_encoder_input_tokens

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The image tokens that stay, `(kept, dim)` for each picture."""
        if kwargs.get(KEY) is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        plans = [self.plans.of(bytes(text.tolist()).decode()) for text in kwargs.pop(KEY)]
        found: list[torch.Tensor] = []
        start = 0
        for count, part in self.parts(kwargs, len(plans), self._most_tokens):
            found += self._embed_part(part, plans[start : start + count])
            start += count
        return found

    def parts(self, kwargs: dict[str, Any], images: int, most: int) -> Sequence[tuple[int, dict[str, Any]]]:
        """Divides the pictures among runs of the tower; given by the family.

        vLLM measures at its start what the tower needs for as many pictures as fit in unpruned; it schedules by the
        placeholders that are left, and so may hand over many more at once.

        Args:
            kwargs: All that the model is given of them.
            images: Their number.
            most: Unpruned tokens that a run may make, unless one picture alone makes more.

        Returns:
            For each run the number of its pictures, and what the model is given of these.
        """
        raise NotImplementedError

    def _embed_part(self, kwargs: dict[str, Any], plans: Sequence[Plan]) -> list[torch.Tensor]:
        signals = frozenset().union(*(plan.signals for plan in plans))
        layers = sorted({layer for plan in plans for layer in plan.encoder_layers})
        with watched(self.adapter, signals, layers, kwargs, self._gathered) as record:
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
            left = prune_features(
                [features[number] for number in numbers], [entries[number] for number in numbers], record, plan
            )
            found.update(zip(numbers, left, strict=True))
        return [found[number] for number in range(len(plans))]

    def _gathered(self, states: torch.Tensor) -> torch.Tensor:
        """Heads `(batch, rows, heads, dim)` of all devices."""
        total = int(self.config.vision_config.num_attention_heads)
        if get_tensor_model_parallel_world_size() == 1 or states.shape[2] == total:
            return states
        gathered: torch.Tensor = tensor_model_parallel_all_gather(states.contiguous(), dim=2)
        return gathered
