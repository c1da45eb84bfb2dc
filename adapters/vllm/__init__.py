"""Image-token pruning inside vLLM: architectures of their own, chosen by `--hf-overrides`, never in place of vLLM's."""

from __future__ import annotations

ARCHITECTURES: dict[str, tuple[str, str]] = {
    "internvl": ("internvl", "VtpruneInternVLForConditionalGeneration"),
    "llava": ("llava", "VtpruneLlavaForConditionalGeneration"),
    "llava_next": ("llava_next", "VtpruneLlavaNextForConditionalGeneration"),
    "llava_onevision": ("llava_onevision", "VtpruneLlavaOnevisionForConditionalGeneration"),
    "qwen2_5_vl": ("qwen2_5_vl", "VtpruneQwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": ("qwen3_vl", "VtpruneQwen3VLForConditionalGeneration"),
}
"""For each `model_type` the module of its family in this folder, and the architecture that prunes it."""


def register() -> None:
    """The entry point of vLLM's plug-ins: makes the architectures known, without importing them.

    vLLM calls it in each of its processes, in some more than once.
    """
    from vllm import ModelRegistry

    for module, architecture in ARCHITECTURES.values():
        ModelRegistry.register_model(architecture, f"{__name__}.{module}:{architecture}")


def architecture_for(model_type: str) -> str:
    """The architecture that prunes models of a type.

    Raises:
        ValueError: None does.
    """
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"models of type {model_type!r} cannot be served pruned; families that can: "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[model_type][1]
