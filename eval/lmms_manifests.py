"""What lmms-eval learns of vtprune when it starts, by the entry point `lmms_eval.models`: ids and where classes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODEL_ID = "vtprune"
"""The id that takes every model family."""


@dataclass(frozen=True)
class Shipped:
    """A chat class of lmms-eval 0.7.3 that has a pruned version.

    Args:
        module: Where it is.
        name: Its name there.
        most_at_once: Prompts that its own loop answers together; what is more goes through that of `VtpruneModel`.
        headless: It loads a model without a head, which cannot generate.
    """

    module: str
    name: str
    most_at_once: float = float("inf")
    headless: bool = False

    @property
    def class_name(self) -> str:
        """The name of its pruned version in `vtprune.eval.lmms_shipped`."""
        return f"Pruned{self.name}"


_LLAVA = Shipped("lmms_eval.models.chat.llava_hf", "LlavaHf", most_at_once=1)

SHIPPED: dict[str, Shipped] = {
    "llava_hf": _LLAVA,
    # lmms-eval's id of that name loads checkpoints of the original repository; those of the hub go through llava_hf.
    "llava_onevision": _LLAVA,
    "qwen2_5_vl": Shipped("lmms_eval.models.chat.qwen2_5_vl", "Qwen2_5_VL"),
    "qwen3_vl": Shipped("lmms_eval.models.chat.qwen3_vl", "Qwen3_VL"),
    "internvl_hf": Shipped("lmms_eval.models.chat.internvl_hf", "InternVLHf", most_at_once=1),
    # It looks for the model's type among configuration classes, and hands processors an argument (`audios`) that
    # transformers 5 refuses: as shipped it answers nothing.
    "huggingface": Shipped("lmms_eval.models.chat.huggingface", "Huggingface", most_at_once=0, headless=True),
}
"""lmms-eval's ids, and the classes that answer for them."""


def manifests() -> list[Any]:
    """The plain id, and one for each shipped class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    classes = {MODEL_ID: "vtprune.eval.lmms.VtpruneModel"}
    for name, shipped in SHIPPED.items():
        classes[f"{MODEL_ID}_{name}"] = f"vtprune.eval.lmms_shipped.{shipped.class_name}"
    return [ModelManifest(model_id=name, chat_class_path=path) for name, path in classes.items()]
