"""Signals of single encoder and decoder layers equal what the stock model computes with eager attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny
import torch

import vtprune
from vtprune import Context, Reduction, Signal
from vtprune.engine.cache_names import CACHE
from vtprune.pruner import Pruner

Seen = dict[str, Any]


@dataclass(frozen=True)
class Witness(Pruner):
    """Halves the tokens at each stage and writes down what it saw at the last one.

    Args:
        stages: Layers before which tokens are removed.
        wanted: Names of the signals to write down.
        needs: Signals to declare.
    """

    name: ClassVar[str] = "witness"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026
    summary: ClassVar[str] = "for tests"
    encoder_layers: ClassVar[tuple[int, ...]] = (0, -1)
    seen: ClassVar[Seen] = {}

    stages: tuple[int, ...] = (2,)
    wanted: tuple[str, ...] = ()
    needs: frozenset[Signal] = frozenset()

    @property
    def signals(self) -> frozenset[Signal]:  # type: ignore[override]
        return self.needs

    def stage_signals(self, stage: int) -> frozenset[Signal]:
        return self.needs if stage == len(self.stages) - 1 else frozenset()

    @property
    def layers(self) -> tuple[int, ...]:
        return self.stages

    def schedule(self, tokens: int, keep: int) -> tuple[int, ...]:
        return tuple(max(keep, tokens >> step) for step in range(1, len(self.stages) + 1))

    def reduce(self, context: Context, keep: int) -> Reduction:
        if context.stage == len(self.stages) - 1:
            self.seen.clear()
            self.seen.update({name: getattr(context, name) for name in self.wanted}, context=context)
        return Reduction(torch.arange(keep).mul(2).expand(context.batch, -1))


@torch.no_grad()
def witness(model: Any, inputs: dict[str, torch.Tensor], pruner: Witness, **more: Any) -> Seen:
    Witness.seen.clear()
    with vtprune.pruning(model, pruner, 1, **tiny.question_side(pruner)):
        model(**inputs, **more)
    return dict(Witness.seen)


def reference(inputs: dict[str, torch.Tensor], **settings: Any) -> tuple[Any, Any, Any]:
    model: Any = tiny.tiny_llava("eager", **settings)
    with torch.no_grad():
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
        vision = model.model.vision_tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    return output, vision, model


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_encoder_layers(attention: str) -> None:
    inputs = tiny.prompt([1, 1])
    _, vision, model = reference(inputs)
    pruner = Witness(needs=frozenset({Signal.ENCODER_LAYERS}))
    context = witness(tiny.tiny_llava(attention), inputs, pruner)["context"]
    for number, layer in enumerate((0, 2)):
        view = context.encoder_layer(number)
        states = vision.hidden_states[layer]
        encoder = model.model.vision_tower.encoder.layers[layer]
        normed = encoder.layer_norm1(states)
        queries, keys = encoder.self_attn.q_proj(normed), encoder.self_attn.k_proj(normed)
        close(view.attention, vision.attentions[layer][:, :, 0, 1:])
        close(view.received, vision.attentions[layer].mean(dim=2)[:, :, 1:])
        close(view.keys.transpose(1, 2).flatten(2), keys[:, 1:])
        close(view.output, vision.hidden_states[layer + 1][:, 1:] if layer < 2 else encoder(states, None)[:, 1:])
        joint = (queries[:, :1] @ keys.mT * 32**-0.5).softmax(-1)[:, 0, 1:]
        close(view.joint_attention, joint)
        by_head = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in (queries, keys))
        first, second = by_head
        close(view.logits, (first[:, :, :1] @ second.mT * 16**-0.5)[:, :, 0, 1:])


def test_encoder_layers_of_a_tower_without_cls() -> None:
    inputs = tiny.prompt([1, 1])
    _, vision, _ = reference(inputs, siglip=True)
    pruner = Witness(needs=frozenset({Signal.ENCODER_LAYERS}))
    view = witness(tiny.tiny_llava(siglip=True), inputs, pruner)["context"].encoder_layer(1)
    close(view.attention, vision.attentions[2].mean(dim=2))
    close(view.received, vision.attentions[2].mean(dim=2))
    assert view.joint_attention.shape == (2, 36)
    with pytest.raises(ValueError, match="no CLS token"):
        _ = view.logits


def test_an_encoder_layer_that_is_not_there_is_refused() -> None:
    class Deep(Witness):
        encoder_layers: ClassVar[tuple[int, ...]] = (3,)

    with pytest.raises(ValueError, match=r"encoder layers \(3,\).*layers 0 to 2"):
        vtprune.wrap(tiny.tiny_llava(), Deep(needs=frozenset({Signal.ENCODER_LAYERS})), 9)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_rows_of_decoder_attention(attention: str, padding: str) -> None:
    inputs = tiny.prompt([1, 1, 1], padding=padding)
    output, _, _ = reference(inputs)
    needs = frozenset({Signal.DECODER_ATTENTION, Signal.TEXT_EMBEDDINGS})
    context = witness(tiny.tiny_llava(attention), inputs, Witness(needs=needs))["context"]
    text, own = context.attention_from(context.text_slots), context.attention_from(context.slots)
    summed = context.strongest_attention_from(context.text_slots, context.text_follows.unsqueeze(1))
    close(summed[:, 0], text.amax(1).masked_fill(~context.text_follows.unsqueeze(-1), 0).sum(1))
    for row in range(3):
        is_image = inputs["input_ids"][row] == tiny.IMAGE
        real = inputs["attention_mask"][row].bool()
        visual = is_image.nonzero().flatten()
        assert torch.equal(context.slots[row], visual)
        follows = context.text_slots[row][context.text_follows[row]]
        behind = torch.arange(len(real)) > visual.max()
        assert torch.equal(follows, (real & ~is_image & behind).nonzero().flatten())
        expected = output.attentions[1][row]
        close(text[row][:, context.text_follows[row]], expected[:, follows][:, :, visual])
        close(own[row], expected[:, visual][:, :, visual])
        assert torch.equal(context.text_slots[row][context.text_present[row]], (real & ~is_image).nonzero().flatten())
        assert torch.equal(context.columns(context.text_slots)[row], context.text_slots[row])


def test_states_of_the_running_sequence() -> None:
    inputs = tiny.prompt([1, 2], padding="left")
    output, _, model = reference(inputs)
    needs = frozenset({Signal.TEXT_EMBEDDINGS, Signal.DECODER_STATES})
    seen = witness(tiny.tiny_llava(), inputs, Witness(needs=needs))
    context = seen["context"]
    rows = torch.tensor([0, 1, 1])
    states = output.hidden_states[2][rows]
    index = context.text_slots.unsqueeze(-1)
    # Padding is not compared: what stands there depends on the attention implementation.
    real = context.text_follows
    close(context.hidden_at(context.text_slots)[real], states.take_along_dim(index, 1)[real])
    close(context.final_norm(context.hidden), model.model.language_model.norm(context.hidden))
    close(context.keys_at(context.slots), context.keys)
    close(context.queries_at(context.slots), context.queries)
    entered = output.hidden_states[0][rows].take_along_dim(context.slots.unsqueeze(-1), 1)
    close(context.inputs, entered)
    assert context.scaling == pytest.approx(16**-0.5)


def unrotated(model: Any, layer: int, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of a decoder layer without rotary, keys repeated for every head."""
    block = model.model.language_model.layers[layer]
    normed = block.input_layernorm(states)
    queries = block.self_attn.q_proj(normed).unflatten(-1, (4, 16)).transpose(1, 2)
    keys = block.self_attn.k_proj(normed).unflatten(-1, (2, 16)).transpose(1, 2)
    return queries, keys.repeat_interleave(2, dim=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_without_rotary(attention: str) -> None:
    inputs = tiny.prompt([1, 1], padding="left")
    output, _, model = reference(inputs)
    needs = frozenset({Signal.UNROTATED_STATES, Signal.NEXT_UNROTATED_STATES})
    wanted = ("unrotated_last_token_attention", "next_unrotated_queries", "next_unrotated_keys")
    seen = witness(tiny.tiny_llava(attention), inputs, Witness(needs=needs, wanted=wanted))
    real = inputs["attention_mask"].bool()
    queries, keys = unrotated(model, 1, output.hidden_states[1])
    logits = (queries[:, :, -1:] @ keys.mT * 16**-0.5).masked_fill(~real[:, None, None], -torch.inf)
    ahead, ahead_keys = unrotated(model, 2, output.hidden_states[2])
    for row in range(2):
        visual = (inputs["input_ids"][row] == tiny.IMAGE).nonzero().flatten()
        close(seen["unrotated_last_token_attention"][row], logits.softmax(-1)[row, :, 0, visual])
        close(seen["next_unrotated_queries"][row], ahead[row][:, visual])
        close(seen["next_unrotated_keys"][row], ahead_keys[row, ::2][:, visual])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["keep", "pack"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_next_layer_is_seen_before_it_runs(attention: str, positions: str, padding: str) -> None:
    """What layer 3 is about to do, seen at a stage before it, is what it did, seen at a stage behind it."""
    model: Any = tiny.tiny_llava(attention)
    inputs = tiny.prompt([1, 1, 1], padding=padding)
    ahead = Witness((1, 3), ("next_last_token_attention", "next_keys"), frozenset({Signal.NEXT_STATES}))
    behind = Witness(
        (1, 4), ("last_token_attention", "keys"), frozenset({Signal.DECODER_ATTENTION, Signal.DECODER_STATES})
    )
    Witness.seen.clear()
    found = []
    for pruner in (ahead, behind):
        with vtprune.pruning(model, pruner, 1, positions=positions), torch.no_grad():  # type: ignore[arg-type]
            model(**inputs)
        found.append(dict(Witness.seen))
    close(found[0]["next_last_token_attention"], found[1]["last_token_attention"])
    close(found[0]["next_keys"], found[1]["keys"])


@torch.no_grad()
def test_the_next_layer_is_seen_in_a_later_turn() -> None:
    model: Any = tiny.tiny_llava()
    first, second = tiny.prompt([1, 1], seed=1), tiny.prompt([1, 1], seed=2)
    ahead = Witness((1, 3), ("next_last_token_attention", "next_keys"), frozenset({Signal.NEXT_STATES}))
    behind = Witness(
        (1, 4), ("last_token_attention", "keys"), frozenset({Signal.DECODER_ATTENTION, Signal.DECODER_STATES})
    )
    found = []
    for pruner in (ahead, behind):
        # The first turn is pruned before layer 1 alone, so that both see the same cache.
        with vtprune.pruning(model, Witness((1,)), 1):
            cache = model(**first, use_cache=True)[CACHE]
        length = first["input_ids"].shape[1]
        mask = torch.ones(2, length + second["input_ids"].shape[1], dtype=torch.long)
        with vtprune.pruning(model, pruner, 1):
            model(**{**second, "attention_mask": mask}, **{CACHE: cache})
        found.append(dict(Witness.seen))
    close(found[0]["next_last_token_attention"], found[1]["last_token_attention"])
    close(found[0]["next_keys"], found[1]["keys"])


def test_looking_ahead_writes_nothing_to_the_cache() -> None:
    model: Any = tiny.tiny_llava()
    inputs = tiny.prompt([1, 1])
    pruner = Witness((3,), ("next_keys",), frozenset({Signal.NEXT_STATES}))
    with vtprune.pruning(model, pruner, 18), torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
    length = inputs["input_ids"].shape[1]
    assert [cache.get_seq_length(layer) for layer in range(6)] == [length] * 3 + [length - 18] * 3


@torch.no_grad()
def test_clip_text_is_that_of_the_question() -> None:
    inputs = tiny.prompt([1, 2], padding="left")
    wanted = ("clip_text", "clip_text_mask", "clip_text_truncated", "clip_text_last")
    needs = frozenset({Signal.CLIP_TEXT, Signal.ENCODER_FEATURES})
    seen = witness(tiny.tiny_llava(), inputs, Witness((0,), wanted, needs))
    texts = []
    for row in range(2):
        real = inputs["attention_mask"][row].bool() & (inputs["input_ids"][row] != tiny.IMAGE)
        texts.append(" ".join(f"w{number}" for number in inputs["input_ids"][row][real][1:].tolist()))
    expected = tiny.text_tower().encode(texts)
    rows = [0, 1, 1]
    close(seen["clip_text"], expected.pieces[rows])
    assert torch.equal(seen["clip_text_mask"], expected.mask[rows])
    close(seen["clip_text_truncated"], expected.truncated[rows])
    close(seen["clip_text_last"], expected.last[rows])
    features = seen["context"].encoder_features
    close(seen["context"].clip_project(features), tiny.text_tower().project(features))


@torch.no_grad()
def test_methods_that_read_the_question_need_ids_a_tokenizer_and_a_tower() -> None:
    model: Any = tiny.tiny_llava()
    inputs = tiny.prompt([1, 1])
    pruner = Witness((0,), ("clip_text",), frozenset({Signal.CLIP_TEXT}))
    with pytest.raises(ValueError, match="text_tower="):
        vtprune.wrap(model, pruner, 9, processor=tiny.tokenizer())
    with pytest.raises(ValueError, match="processor="):
        vtprune.wrap(model, pruner, 9, text_tower=tiny.text_tower())
    with pytest.raises(ValueError, match="CLS"):
        vtprune.wrap(tiny.tiny_llava(siglip=True), pruner, 9, **tiny.question_side(pruner))
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    with vtprune.pruning(model, pruner, 9, **tiny.question_side(pruner)), pytest.raises(ValueError, match="input_ids"):
        model(**inputs, inputs_embeds=embeddings)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_smaller_pictures(family: str) -> None:
    model: Any = tiny.tiny_llava_next() if family == "llava_next" else tiny.tiny_llava()
    inputs = tiny.anyres_prompt([(40, 90), (48, 48)], model) if family == "llava_next" else tiny.prompt([1, 1])
    pruner = Witness((0,), (), frozenset({Signal.PIXELS}))
    Witness.seen.clear()
    with vtprune.pruning(model, pruner, 1):
        model(**inputs)
        context = Witness.seen["context"]
        # At full size it is the picture itself; of several views the first.
        whole = context.encode_smaller(6, 6)
        assert context.encode_smaller(2, 3).shape == (context.batch, 6, 64)
    thumbnail = context.hidden[:, :36]
    torch.testing.assert_close(whole, thumbnail, atol=1e-4, rtol=1e-4)
