"""vLLM's input processing with fewer placeholders: shared by all families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import EmbeddingItems
from vllm.multimodal.processing import PromptUpdate, PromptUpdateDetails

from vtprune.adapters.vllm.eligibility import Abilities
from vtprune.adapters.vllm.options import KEY
from vtprune.adapters.vllm.plan import Plan, Plans
from vtprune.layout import ImageLayout

if TYPE_CHECKING:
    from vllm.multimodal.processing import BaseMultiModalProcessor as _Processor
    from vllm.multimodal.processing import BaseProcessingInfo as _Info
else:
    _Info = _Processor = object


class PrunedInfo(_Info):
    """Mixed into the processing info of a family: knows the plans, and how a picture's tokens lie.

    What the class it is mixed into says of the number of image tokens stays that of the unpruned model: vLLM then
    measures the tower on as many pictures at once as it would without pruning.
    """

    abilities_of: Any
    """Function from a configuration to what its model gives to look at; given by the family."""

    def __init__(self, ctx: Any) -> None:
        super().__init__(ctx)
        config: Any = ctx.get_hf_config()
        abilities: Abilities = type(self).abilities_of(config)
        self.plans = Plans(config, abilities)
        configured = ctx.get_mm_config().mm_processor_kwargs or {}
        if KEY in configured:
            raise ValueError(
                f"{KEY} in --mm-processor-kwargs is for single requests; give what holds for all by --hf-overrides"
            )

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Those of unpruned pictures, which requests may ask for, whatever the dummy ones keep."""
        found: Mapping[str, int] | None = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        if found is not None:
            return found
        model: Any = self
        most = {"image": int(model.get_max_image_tokens())}
        if mm_counts.get("video"):
            most["video"] = int(model.get_max_video_tokens(seq_len, mm_counts))
        return {modality: count for modality, count in most.items() if modality in mm_counts}

    def image_layout(self, items: Any, number: int, mm_kwargs: Mapping[str, object], data: Any) -> ImageLayout:
        """Where the tokens of a picture would lie if none were removed; given by the family.

        Args:
            items: The pictures of the request.
            number: Which of them.
            mm_kwargs: Options of the request for the processor.
            data: What the processor made of them.
        """
        raise NotImplementedError


class PrunedProcessor(_Processor):
    """Mixed into the multimodal processor of a family, whose info is a `PrunedInfo`."""

    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Reads the options of the request, and makes them, or the server's, part of each image's hash."""
        plan = self.info.plans.requested(inputs.hf_processor_mm_kwargs.get(KEY))
        kwargs = {**inputs.hf_processor_mm_kwargs, KEY: plan.options.text}
        return super().apply(replace(inputs, hf_processor_mm_kwargs=kwargs), timing_ctx)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        text, others = _take(hf_kwargs)
        processed = super()._apply_hf_processor_main(mm_items, others)
        images = mm_items.get("image")
        if images and not isinstance(images, EmbeddingItems):
            processed[KEY] = [torch.tensor(list(text.encode()), dtype=torch.uint8)] * len(images)
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        _, others = _take(hf_processor_mm_kwargs)
        fields = super()._get_mm_fields_config(hf_inputs, others)
        return {**fields, KEY: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        text, others = _take(hf_processor_mm_kwargs)
        plan: Plan = self.info.plans.of(text)
        updates = super()._get_prompt_updates(mm_items, others, out_mm_kwargs)
        return [self._shortened(update, plan, mm_items, others, out_mm_kwargs) for update in updates]

    def _shortened(
        self, update: PromptUpdate, plan: Plan, mm_items: Any, mm_kwargs: Mapping[str, object], data: Any
    ) -> PromptUpdate:
        """An update that puts in as many placeholders of a picture as stay."""
        images = mm_items.get("image")
        if update.modality != "image" or isinstance(images, EmbeddingItems):
            return update
        original = update.content

        def content(number: int) -> Any:
            whole = original(number) if callable(original) else original
            layout = self.info.image_layout(images, number, mm_kwargs, data)
            return _without(whole, layout.tokens, plan.kept(layout))

        return replace(update, replacement=content)


def _take(kwargs: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """The text of the options, and what is for transformers' processor."""
    others = dict(kwargs)
    return str(others.pop(KEY)), others


def _without(whole: Any, tokens: int, kept: int) -> PromptUpdateDetails:
    """What replaces a picture's mark in a prompt, with the surplus of its placeholders left out.

    Raises:
        RuntimeError: There are not as many placeholders as the picture has tokens.
    """
    details = whole if isinstance(whole, PromptUpdateDetails) else PromptUpdateDetails.from_seq(whole)
    ids = list(details.full)
    holds = [True] * len(ids) if details.is_embed is None else details.is_embed(ids).tolist()
    if sum(holds) != tokens:
        raise RuntimeError(f"expected {tokens} placeholders of a picture, vLLM puts in {sum(holds)}")
    surplus = tokens - kept
    shorter = []
    for found, is_placeholder in zip(ids, holds, strict=True):
        if is_placeholder and surplus:
            surplus -= 1
        else:
            shorter.append(found)
    return replace(details, full=shorter)
