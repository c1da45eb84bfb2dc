"""The signals that methods get equal what the models' own eager attention and features say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny
import torch

import vtprune
from vtprune import Context, Reduction, Signal
from vtprune.engine import taps
from vtprune.pruner import Pruner

NAMES = [
    "encoder_attention",
    "encoder_keys",
    "encoder_features",
    "encoder_cls",
    "image_hash",
    "text",
    "text_mask",
    "last_token_attention",
    "queries",
    "keys",
    "hidden",
    "origin",
    "is_patch",
]


@dataclass(frozen=True)
class Spy(Pruner):
    """Keeps every fourth token and writes down what it saw."""

    name: ClassVar[str] = "spy"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026
    summary: ClassVar[str] = "for tests"
    signals: ClassVar[frozenset[Signal]] = frozenset(Signal)
    seen: ClassVar[list[dict[str, Any]]] = []

    layer: int = 2

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def reduce(self, context: Context, keep: int) -> Reduction:
        names = NAMES if Signal.ENCODER_CLS in self.signals else [name for name in NAMES if name != "encoder_cls"]
        self.seen.append({name: getattr(context, name) for name in names})
        kept = torch.arange(keep).mul(context.tokens // keep).expand(context.batch, -1)
        return Reduction(kept)


class SpyWithoutCls(Spy):
    """The same for towers without a CLS token."""

    signals: ClassVar[frozenset[Signal]] = frozenset(Signal) - {Signal.ENCODER_CLS, Signal.CLIP_TEXT}


@torch.no_grad()
def spy(model: Any, inputs: dict[str, torch.Tensor], pruner: type[Spy] = Spy) -> dict[str, Any]:
    pruner.seen.clear()
    with vtprune.pruning(model, pruner(), 9, **tiny.question_side(pruner())):
        model(**inputs)
    assert len(pruner.seen) == 1
    return pruner.seen[0]


@torch.no_grad()
def eager_attentions(inputs: dict[str, torch.Tensor], **settings: Any) -> Any:
    model: Any = tiny.tiny_llava("eager", **settings)
    output = model(**inputs, output_attentions=True)
    vision = model.model.vision_tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    return output, vision, model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_signals_equal_eager_attention(attention: str, padding: str) -> None:
    inputs = tiny.prompt([1, 1, 1], padding=padding)
    output, vision, reference = eager_attentions(inputs)
    seen = spy(tiny.tiny_llava(attention), inputs)
    # vision_feature_layer -2 is the output of layer index 1 of 3.
    torch.testing.assert_close(seen["encoder_attention"], vision.attentions[1][:, :, 0, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen["encoder_features"], vision.hidden_states[-2][:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen["encoder_cls"][:, 0], vision.hidden_states[-2][:, 0], atol=1e-5, rtol=0)
    layer = reference.model.vision_tower.encoder.layers[1]
    keys = layer.self_attn.k_proj(layer.layer_norm1(vision.hidden_states[1]))[:, 1:]
    torch.testing.assert_close(seen["encoder_keys"].transpose(1, 2).flatten(2), keys, atol=1e-5, rtol=0)

    ids = inputs["input_ids"]
    for row in range(3):
        visual = (ids[row] == tiny.IMAGE).nonzero().flatten()
        last = inputs["attention_mask"][row].nonzero().max()
        expected = output.attentions[1][row, :, last, visual]
        torch.testing.assert_close(seen["last_token_attention"][row], expected, atol=1e-5, rtol=0)
        text = (ids[row] != tiny.IMAGE) & (inputs["attention_mask"][row] == 1)
        assert torch.equal(seen["text_mask"][row], text)
        embedded = reference.get_input_embeddings()(ids[row][text])
        torch.testing.assert_close(seen["text"][row][text], embedded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_mean_received_attention_of_a_tower_without_cls(attention: str) -> None:
    inputs = tiny.prompt([1, 1])
    _, vision, _ = eager_attentions(inputs, siglip=True)
    seen = spy(tiny.tiny_llava(attention, siglip=True), inputs, SpyWithoutCls)
    torch.testing.assert_close(seen["encoder_attention"], vision.attentions[1].mean(dim=2), atol=1e-5, rtol=0)


def test_decoder_states_give_the_attention_map() -> None:
    inputs = tiny.prompt([1])
    output, _, _ = eager_attentions(inputs)
    seen = spy(tiny.tiny_llava("sdpa"), inputs)
    keys = seen["keys"].repeat_interleave(2, dim=1)
    logits = seen["queries"] @ keys.transpose(-1, -2) * 16**-0.5
    visual = (inputs["input_ids"][0] == tiny.IMAGE).nonzero().flatten()
    expected = output.attentions[1][0][:, visual][:, :, visual]
    causal = torch.ones(36, 36, dtype=torch.bool).tril()
    # Up to each row's normalisation over the other keys, differences of logits are ratios of probabilities.
    ours = (logits[0] - logits[0].diagonal(dim1=-2, dim2=-1).unsqueeze(-1))[:, causal]
    ratio = expected.clamp_min(1e-30).log()
    theirs = (ratio - ratio.diagonal(dim1=-2, dim2=-1).unsqueeze(-1))[:, causal]
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_hash_depends_on_the_picture_alone() -> None:
    inputs = tiny.prompt([1, 1, 1])
    together = spy(tiny.tiny_llava(), inputs)["image_hash"]
    alone = tiny.prompt([1])
    alone["pixel_values"] = inputs["pixel_values"][1:2]
    assert together.unique().numel() == 3
    assert torch.equal(spy(tiny.tiny_llava(), alone)["image_hash"], together[1:2])


def test_anyres_signals_follow_the_patches() -> None:
    model: Any = tiny.tiny_llava_next()
    inputs = tiny.anyres_prompt([(48, 90)], model)
    seen = spy(model, inputs)
    layout = vtprune.adapters.find_adapter(model).layouts("image", [], inputs)[0]
    patches = torch.tensor(layout.patches)
    eager: Any = tiny.tiny_llava_next("eager")
    with torch.no_grad():
        views = inputs["pixel_values"][0]
        vision = eager.model.vision_tower(views, output_attentions=True, output_hidden_states=True)
    received = vision.attentions[1][:, :, 0, 1:].transpose(1, 2).flatten(0, 1)
    is_patch = patches >= 0
    assert torch.equal(seen["is_patch"][0], is_patch)
    torch.testing.assert_close(seen["encoder_attention"][0].T[is_patch], received[patches[is_patch]], atol=1e-5, rtol=0)
    assert (seen["encoder_attention"][0].T[~is_patch] == -1).all()
    assert (~is_patch).sum() == layout.segments[1].height


def test_undeclared_signal_is_refused() -> None:
    class Blind(Spy):
        signals: ClassVar[frozenset[Signal]] = frozenset()

    with pytest.raises(KeyError, match="encoder_attention"):
        spy(tiny.tiny_llava(), tiny.prompt([1]), Blind)


def test_only_declared_signals_are_collected() -> None:
    model: Any = tiny.tiny_llava()
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def watched() -> int:
        return sum(module in taps._watchers for module in model.modules())

    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
    # A model that another test left wrapped keeps the function tapped.
    was_stock = "_tapped" not in stock.__qualname__
    with vtprune.pruning(model, "divprune", 9):
        assert not watched()
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is stock
    with vtprune.pruning(model, "fastv", 9):
        assert watched() == 1
        assert (ALL_ATTENTION_FUNCTIONS["sdpa"] is not stock) == was_stock
        with vtprune.pruning(tiny.tiny_llava(), "fastv", 9):
            pass
        assert watched() == 1
        assert (ALL_ATTENTION_FUNCTIONS["sdpa"] is not stock) == was_stock
    assert not watched()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is stock
