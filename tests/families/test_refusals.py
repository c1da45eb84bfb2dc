"""Models that take pictures in ways that cannot be pruned are refused when wrapping, each for its true reason."""

from __future__ import annotations

import pytest
from zoo import common

import vtprune
from vtprune.adapters import find_adapter

ENCODER_DECODER = r"is an encoder-decoder: its decoder attends to the encoder's output"
CROSS_ATTENTION = r"shows images to its decoder by cross-attention \([\w.]*{}\)"
OWN_GENERATE = r"encodes pictures inside its own generate and hands embeddings to the generate of its language model"

REASONS = {
    "blip": CROSS_ATTENTION.format("crossattention"),
    "blip-2": OWN_GENERATE,
    "diffusion_gemma": r"denoises text with a second one, which attends to the first one's keys",
    "florence2": ENCODER_DECODER,
    "git": r"puts image features into the sequence inside its forward, without placeholders",
    "idefics": CROSS_ATTENTION.format("cross_attn"),
    "instructblip": OWN_GENERATE,
    "instructblipvideo": OWN_GENERATE,
    "kosmos-2": r"has no placeholder token: the argument image_embeds_position_mask says where",
    "kosmos-2.5": r"has no placeholder token: the argument image_embeds_position_mask says where",
    "mistral4": r"is a text model: it takes no images",
    "mllama": CROSS_ATTENTION.format("cross_attn"),
    "pi0": r"has no generate\(\): it does not continue a prompt with text",
    "pix2struct": ENCODER_DECODER,
    "pp_formulanet": ENCODER_DECODER,
    "t5gemma2": ENCODER_DECODER,
    "udop": ENCODER_DECODER,
}


@pytest.mark.parametrize("name", sorted(REASONS.keys() & set(common.model_types())))
def test_refused_for_its_structure(name: str) -> None:
    model = common.build(name)
    with pytest.raises(ValueError, match=REASONS[name]) as refusal:
        vtprune.wrap(model, "random", 5)
    assert str(refusal.value).startswith(type(model).__name__)
    assert "supported are" in str(refusal.value)


def test_every_type_of_the_zoo_without_inputs_is_refused_here() -> None:
    without = {name for name in common.model_types() if not hasattr(common.load(name), "inputs")}
    assert without <= REASONS.keys()


def test_the_model_without_its_head_is_named_as_such() -> None:
    bare = getattr(common.build("llava"), "model", None)
    with pytest.raises(ValueError, match="LlavaModel is the bare llava model without a language-model head"):
        find_adapter(bare)  # type: ignore[arg-type]
