"""Train the embedded model: ``python -m vtprune.eval.embedded.train`` on one GPU, about 15 minutes on an H200.

Stage "tower": the CLIP model. Contrastive captions on CLS (of the last layer and of layer -2, whose patches LLaVA
reads), the objects present in the picture from CLS, and from each patch of layer -2 what it shows. The heads for the
last two are thrown away. Stage "decoder": the tower is frozen; projector and decoder learn to answer. Every question
sees the picture and itself alone, though a dozen share one pass: a block mask keeps them apart, and each continues
with the position after the picture. A fifth of the examples keeps a random part of the visual tokens, another fifth
gets the nested grid averages of M3 (https://arxiv.org/abs/2405.17430).

A call works for ``--minutes``, then evaluates, exports both models and leaves a checkpoint; the next call goes on.
Ctrl-C does the same at once. The lengths of the stages are in seconds, so a slower device trains less.

``--continue-from FOLDER --output FOLDER --seconds 420`` trains a finished model further, on the tasks with levels too
(see ``continuing``), writes it, and prints its accuracy on all held-out questions as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.eval.embedded.build import MEAN, STD, build_models, save_clip, save_llava
from vtprune.eval.embedded.feed import CHUNK, NO_KIND, QUESTION_LENGTH, Batch, Feed, Pool, concatenate
from vtprune.eval.embedded.scenes import CHARACTERS, COLORS, GRID, KINDS, SHAPES
from vtprune.eval.embedded.vocabulary import ID, PAD, PREFIX, encode

TOKENS = GRID * GRID
SCALES = (24, 12, 6, 3, 1)
"""Sides of M3's nested grids; the first is the full picture."""

_PREFIX = tuple(encode(PREFIX))
_COUNTS = (len(SHAPES) + 1, len(COLORS) + 1, len(CHARACTERS) + 1)  # classes of a patch, 0 for none


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters."""

    seed: int = 0
    tower_seconds: float = 240.0
    decoder_seconds: float = 560.0
    tower_batch: int = 512
    decoder_batch: int = 192
    held_out: int = 1024
    pool: int = 200_000
    learning_rate: float = 1e-3
    warmup: int = 300
    weight_decay: float = 0.05
    dropped: float = 0.2
    """Share of the examples that keep a random part of the visual tokens."""
    pooled: float = 0.2
    """Share of the examples that get a nested grid average."""
    fine_batch: int = 128
    """Examples of the contrast between captions and single patches."""
    attention_weight: float = 0.0
    """Weight of a loss that pulls CLS attention of layer -2 to objects and text; 0 leaves it to emerge."""


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values on the device, copied once: a copy waits for all work on the device."""
    return torch.tensor(values, device=device)


class Heads(nn.Module):
    """Linear read-outs that teach the tower and are thrown away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, sum(_COUNTS) + 4 * GRID)
        self.present = nn.Linear(width, _COUNTS[0] * _COUNTS[1] + _COUNTS[2])


def to_pixels(pictures: Tensor) -> Tensor:
    """CLIP's normalisation: (batch, height, width, 3) bytes to (batch, 3, height, width)."""
    mean = _constant(MEAN, pictures.device).view(1, 3, 1, 1)
    std = _constant(STD, pictures.device).view(1, 3, 1, 1)
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


def tower_states(tower: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states -3, -2 and -1 of the vision tower, each (batch, 1 + tokens, width)."""
    before = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-2]:
        before = layer(before, None)
    selected = tower.encoder.layers[-2](before, None)
    return before, selected, tower.encoder.layers[-1](selected, None)


def cls_attention(tower: Any, before: Tensor) -> Tensor:
    """CLS attention of layer -2 averaged over its heads: (batch, tokens)."""
    layer = tower.encoder.layers[-2]
    attention = layer.self_attn
    states = layer.layer_norm1(before)
    query = attention.q_proj(states[:, 0]).unflatten(-1, (attention.num_heads, -1))
    key = attention.k_proj(states).unflatten(-1, (attention.num_heads, -1))
    weights: Tensor = (torch.einsum("bhd,bnhd->bhn", query, key).float() * attention.scale).softmax(-1).mean(1)
    return weights[:, 1:]


def _patch_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies of what the patches show; ``labels`` is (batch, channels, tokens)."""
    *kinds, row, column, center_row, center_column = logits.float().split([*_COUNTS, *[GRID] * 4], -1)
    total = logits.new_zeros((), dtype=torch.float32)
    for channel, scores in enumerate(kinds):
        weight = torch.ones(scores.shape[-1], device=scores.device)
        weight[0] = 0.15
        total = total + F.cross_entropy(scores.transpose(1, 2), labels[:, channel], weight=weight)
    place = torch.arange(TOKENS, device=logits.device).expand(len(logits), -1)
    for scores, target in ((row, place // GRID), (column, place % GRID)):
        total = total + 0.2 * F.cross_entropy(scores.transpose(1, 2), target)
    for scores, channel in ((center_row, 3), (center_column, 4)):
        total = total + 0.5 * F.cross_entropy(scores.transpose(1, 2), labels[:, channel] - 1, ignore_index=-1)
    return total


def _present(labels: Tensor) -> Tensor:
    """Which coloured shapes and characters the picture shows: (batch, classes) of 0 and 1."""
    batch = len(labels)
    pairs = torch.zeros(batch, _COUNTS[0] * _COUNTS[1], device=labels.device)
    pairs.scatter_(1, labels[:, 0] * _COUNTS[1] + labels[:, 1], 1.0)
    characters = torch.zeros(batch, _COUNTS[2], device=labels.device).scatter_(1, labels[:, 2], 1.0)
    return torch.cat([pairs, characters], 1)


def _contrast(logits: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE; ``same`` marks equal captions, which are no negatives of each other."""
    target = torch.arange(len(logits), device=logits.device)
    others = same & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(others, -1e4)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def tower_loss(
    recipe: Recipe, clip: Any, heads: Heads, states: Callable[..., Any], batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the stage "tower" and figures for the log."""
    labels = batch.labels.long().flatten(2)
    before, selected, last = states(clip.vision_model, to_pixels(batch.pictures))
    logits = heads.patch(selected[:, 1:])
    patch = _patch_loss(logits, labels)

    captions = batch.captions.long()
    flat = captions.flatten(0, 1)
    text = clip.text_model(input_ids=flat, attention_mask=(flat != ID[PAD]).long()).pooler_output
    text = F.normalize(clip.text_projection(text).float(), dim=-1).unflatten(0, (-1, 2))
    scale = clip.logit_scale.exp().clamp(max=100.0)
    present = _present(labels)
    contrast = fine = presence = patch.new_zeros(())
    few = recipe.fine_batch
    for hidden in (selected, last):
        hidden = clip.vision_model.post_layernorm(hidden)
        presence = presence + 5 * F.binary_cross_entropy_with_logits(heads.present(hidden[:, 0]).float(), present)
        image = F.normalize(clip.visual_projection(hidden[:, 0]).float(), dim=-1)
        for place in range(2):
            same = (captions[:, None, place] == captions[None, :, place]).all(-1)
            contrast = contrast + _contrast(scale * image @ text[:, place].T, same) / 4
        patches = F.normalize(clip.visual_projection(hidden[:few, 1:]).float(), dim=-1)
        best = torch.einsum("bpd,cd->bcp", patches.bfloat16(), text[:few, 1].bfloat16()).amax(-1).float()
        fine = fine + _contrast(scale * best, same[:few, :few]) / 2
    loss = patch + 0.5 * contrast + presence + 0.2 * fine

    attention = cls_attention(clip.vision_model, before)
    shown = (labels[:, :3] > 0).any(1)
    if recipe.attention_weight > 0:
        loss = loss - recipe.attention_weight * (attention * shown).sum(1).clamp_min(1e-6).log().mean()
    with torch.no_grad():
        kept = torch.zeros_like(shown).scatter_(1, attention.topk(64).indices, True)
        found = [
            ((scores.argmax(-1) == labels[:, c]) & (labels[:, c] > 0)).sum() / (labels[:, c] > 0).sum()
            for c, scores in enumerate(logits[..., : sum(_COUNTS)].split(_COUNTS, -1))
        ]
        figures = {
            "patch": patch,
            "clip": contrast,
            "present": presence,
            "fine": fine,
            "shape": found[0],
            "color": found[1],
            "character": found[2],
            "cls64": (kept & shown).sum() / shown.sum(),
        }
    return loss, figures


class Visual(NamedTuple):
    """What the decoder gets of the picture; places that are not ``valid`` are masked, which equals removing them."""

    features: Tensor  # (batch, tokens, width)
    valid: Tensor  # (batch, tokens)
    positions: Tensor  # (batch, tokens), 0 for the first visual token
    end: Tensor  # (batch,): position of the first token of a question


def whole(features: Tensor) -> Visual:
    """All tokens."""
    (size, tokens), device = features.shape[:2], features.device
    places = torch.arange(tokens, device=device).expand(size, -1)
    return Visual(features, places >= 0, places, torch.full((size,), tokens, device=device))


def kept(features: Tensor, valid: Tensor, packed: Tensor) -> Visual:
    """Some tokens, with their positions or (where ``packed``, (batch,)) renumbered."""
    full = whole(features)
    renumbered = (valid.cumsum(1) - 1).clamp_min(0)
    positions = torch.where(packed[:, None], renumbered, full.positions)
    return Visual(features, valid, positions, torch.where(packed, valid.sum(1), full.end))


def pooling(device: torch.device) -> Tensor:
    """Matrices that average the grid to each of ``SCALES``: (scales, tokens, tokens), unused rows zero."""
    table = torch.zeros(len(SCALES), TOKENS, TOKENS, device=device)
    place = torch.arange(TOKENS, device=device)
    for i, side in enumerate(SCALES):
        block = GRID // side
        table[i, place // GRID // block * side + place % GRID // block, place] = 1 / block**2
    return table


def pooled(features: Tensor, scale: Tensor, table: Tensor) -> Visual:
    """Grid averages, contiguous; ``scale`` (batch,) indexes ``SCALES``."""
    sides = _constant(SCALES, features.device)[scale]
    full = whole(features)
    averaged = torch.bmm(table[scale].to(features.dtype), features)
    return Visual(averaged, full.positions < sides[:, None] ** 2, full.positions, sides**2)


def training_mix(recipe: Recipe, features: Tensor, table: Tensor, pictures: int = 1) -> Visual:
    """Full, dropped and pooled examples side by side in one batch; the ``pictures`` of a prompt are treated alike."""
    size, device = len(features), features.device

    def draw() -> Tensor:
        return torch.rand(size // pictures, device=device).repeat_interleave(pictures)

    mode = draw()
    dropped = mode < recipe.dropped
    shrunk = (mode >= recipe.dropped) & (mode < recipe.dropped + recipe.pooled)
    scales = torch.multinomial(_constant((0.0, 0.4, 0.3, 0.2, 0.1), device), size // pictures, replacement=True)
    pool = pooled(features, torch.where(shrunk, scales.repeat_interleave(pictures), 0), table)
    low = torch.where(draw() < 0.25, 64, 128)
    high = torch.where(low == 64, 128, 400)
    budget = low + (draw() * (high - low + 1)).long()
    budget = torch.where(dropped, budget, TOKENS)
    rank = torch.rand(size, TOKENS, device=device).argsort(1).argsort(1)
    drop = kept(pool.features, rank < budget[:, None], dropped & (draw() < 0.5))
    return Visual(
        pool.features,
        torch.where(dropped[:, None], drop.valid, pool.valid),
        torch.where(dropped[:, None], drop.positions, pool.positions),
        torch.where(dropped, drop.end, pool.end),
    )


def in_turn(visual: Visual, pictures: int) -> Visual:
    """The tokens of each ``pictures`` neighbours one after the other, as in a prompt with several pictures."""
    features, valid, positions, end = (part.unflatten(0, (-1, pictures)) for part in visual)
    starts = F.pad(end.cumsum(1)[:, :-1], (1, 0))
    positions = positions + starts[:, :, None]
    return Visual(features.flatten(1, 2), valid.flatten(1, 2), positions.flatten(1, 2), end.sum(1))


def _structure(context: int, questions: int, length: int, device: torch.device) -> Tensor:
    """Who may see whom, all places valid: causal, and no question sees another; square."""
    place = torch.arange(context + questions * length, device=device)
    segment = torch.where(place < context, -1, (place - context) // length)
    return (place[:, None] >= place) & ((segment[:, None] == segment) | (segment == -1))


def answer_logits(llava: Any, decoder: Callable[..., Any], visual: Visual, questions: Tensor) -> Tensor:
    """Next-token logits of every question asked alone: (batch, questions, places, vocabulary)."""
    (size, count, length), device = questions.shape, questions.device
    context = len(_PREFIX) + visual.features.shape[1]
    embed = llava.get_input_embeddings()
    prefix = embed(_constant(_PREFIX, device)).expand(size, -1, -1)
    asked = embed(questions.flatten(1).long())
    inputs = torch.cat([prefix, visual.features.to(asked.dtype), asked], 1)
    before = torch.arange(len(_PREFIX), device=device).expand(size, -1)
    after = visual.end[:, None] + torch.arange(length, device=device).repeat(count)
    positions = torch.cat([before, visual.positions + len(_PREFIX), after + len(_PREFIX)], 1)
    valid = F.pad(visual.valid, (len(_PREFIX), count * length), value=True)
    # Always an explicit mask: without one, transformers takes gaps in the positions for borders of packed sequences.
    mask = (_structure(context, count, length, device) & valid[:, None, :])[:, None]
    hidden = decoder(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False)
    states: Tensor = hidden.last_hidden_state[:, context:].unflatten(1, (count, length))
    logits: Tensor = llava.lm_head(states)
    return logits


def answer_targets(batch: Batch) -> Tensor:
    """Target of each place of each question, -100 outside the answers: (batch, questions, places)."""
    ids = batch.questions.long()
    place = torch.arange(ids.shape[-1], device=ids.device)
    target = ids.masked_fill((place < batch.starts.long()[..., None]) | (ids == ID[PAD]), -100)
    return F.pad(target[..., 1:], (0, 1), value=-100)


def right(logits: Tensor, target: Tensor) -> Tensor:
    """Whether greedy decoding gives exactly the answer: (batch, questions)."""
    return ((logits.argmax(-1) == target) | (target == -100)).all(-1)


def max_min(features: Tensor, count: int) -> Tensor:
    """Greedy max-min choice by cosine distance: mask (batch, tokens)."""
    unit = F.normalize(features.float(), dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)
    rows = torch.arange(len(unit), device=unit.device)
    chosen = torch.zeros(distance.shape[:2], dtype=torch.bool, device=unit.device)
    nearest = distance.diagonal_scatter(torch.full_like(distance[:, 0], 9.0), dim1=1, dim2=2).amin(2)
    for step in range(count):
        pick = nearest.masked_fill(chosen, -1.0).argmax(1)
        chosen[rows, pick] = True
        nearest = distance[rows, pick] if step == 0 else torch.minimum(nearest, distance[rows, pick])
    return chosen


def _top(scores: Tensor, count: int) -> Tensor:
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(count).indices, True)


def _variants(features: Tensor, attention: Tensor, table: Tensor) -> Iterator[tuple[str, Visual]]:
    gapped = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    yield "full", whole(features)
    yield "zeroed", whole(torch.zeros_like(features))
    for count in (192, 128, 64, 32):
        yield f"random {count}", kept(features, _top(torch.rand_like(attention), count), gapped)
    for count in (192, 128, 64, 32):
        yield f"cls {count}", kept(features, _top(attention, count), gapped)
    for count in (192, 64):
        yield f"max-min {count}", kept(features, max_min(features, count), gapped)
    yield "cls 64 packed", kept(features, _top(attention, 64), ~gapped)
    for i, side in enumerate(SCALES[1:], 1):
        yield f"pool {side * side}", pooled(features, torch.full((len(features),), i, device=features.device), table)


@torch.no_grad()
def evaluate(llava: Any, held_out: Batch, size: int) -> str:
    """Accuracy per kind under several reductions, each question asked alone, as a table."""
    tower = llava.model.vision_tower
    device = held_out.pictures.device
    table = pooling(device)
    hits: dict[str, Tensor] = {}
    counts = torch.zeros(len(KINDS), device=device)
    covered = torch.zeros(3, device=device)
    for start in range(0, len(held_out), size):
        batch = held_out[slice(start, start + size)]
        with _autocast(device):
            before, selected, _ = tower_states(tower, to_pixels(batch.pictures))
            features = llava.model.multi_modal_projector(selected[:, 1:])
            attention = cls_attention(tower, before)
        target = answer_targets(batch)
        of_kind = torch.stack([batch.kinds == kind for kind in range(len(KINDS))])
        counts += of_kind.sum((1, 2))
        shown = (batch.labels[:, :3] > 0).any(1).flatten(1)
        for i, mask in enumerate((_top(attention, 64), max_min(features, 64))):
            covered[i] += (mask & shown).sum()
        covered[2] += shown.sum()
        for name, visual in _variants(features, attention, table):
            with _autocast(device):
                logits = answer_logits(llava, llava.model.language_model, visual, batch.questions)
            good = right(logits, target)
            hits[name] = hits.get(name, 0) + (of_kind & good).sum((1, 2))
    lines = [f"{'':14}" + "".join(f"{kind:>8}" for kind in KINDS) + f"{'mean':>8}"]
    rows = {"majority": _majority(held_out)} | {
        name: (hit / counts.clamp_min(1)).tolist() for name, hit in hits.items()
    }
    for name, values in rows.items():
        cells = "".join(f"{100 * value:8.1f}" for value in [*values, sum(values) / len(values)])
        lines.append(f"{name:14}{cells}")
    share = (100 * covered / covered[2]).tolist()
    lines.append(
        f"object and text patches kept at 64: cls {share[0]:.1f} %, max-min {share[1]:.1f} %, "
        f"random {100 * 64 / TOKENS:.1f} % ({covered[2].item() / len(held_out):.1f} such patches a picture); "
        f"{len(held_out)} pictures, {int(counts.sum())} questions"
    )
    return "\n".join(lines)


def _majority(batch: Batch) -> list[float]:
    """Share of the most frequent answer of each kind."""
    target = answer_targets(batch).clamp_min(0)
    powers = 256 ** torch.arange(5, device=target.device)
    shifted = target.sort(-1, descending=True).values[..., :5]  # an answer is at most four tokens
    first = target.gather(2, (batch.starts.long()[..., None] - 1).clamp(0, QUESTION_LENGTH - 1)).squeeze(-1)
    code = (shifted * powers).sum(-1) * 256 + first
    shares = []
    for kind in range(len(KINDS)):
        codes = code[batch.kinds == kind]
        most = codes.unique(return_counts=True)[1].max().item() if len(codes) else 0
        shares.append(most / max(1, len(codes)))
    return shares


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Trainer:
    """State of a training run; ``run`` goes on until the stages or the minutes are over."""

    def __init__(self, recipe: Recipe, arguments: argparse.Namespace) -> None:
        self.recipe = recipe
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.checkpoint = Path(arguments.state_dir) / "checkpoint.pt"
        self.output = Path(arguments.output)
        self.compile = bool(arguments.compile)
        self.device = torch.device(arguments.device)
        self.stage, self.seconds, self.step, self.call, self.seen = "tower", 0.0, 0, 0, 0

        torch.manual_seed(recipe.seed)
        self.llava, self.clip = build_models()
        self.heads = Heads(self.clip.vision_model.config.hidden_size)
        saved: dict[str, Any] | None = None
        if self.checkpoint.is_file():
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.stage, self.seconds, self.step = saved["stage"], saved["seconds"], saved["step"]
            self.call, self.seen = saved["call"] + 1, saved["seen"]
            self.llava.load_state_dict(saved["llava"])
            self.clip.load_state_dict(saved["clip"])
            self.heads.load_state_dict(saved["heads"])
        elif arguments.init_from is not None:
            self._load_folders(Path(arguments.init_from))
            self.stage, self.call = "decoder", 1000
        # Worker processes fork here, before the first use of CUDA.
        self.feed = Feed(arguments.workers, f"train/{recipe.seed}/{self.call}")
        torch.manual_seed(recipe.seed + 1 + self.call)
        torch.set_float32_matmul_precision("high")
        for module in (self.llava, self.clip, self.heads):
            module.to(self.device)
        self.optimizer = self._new_optimizer()
        if saved is not None and saved["optimizer"] is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
        self.pool = Pool(recipe.pool, self.device)
        self.held_out = self._collect(recipe.held_out)

    def _load_folders(self, folder: Path) -> None:
        from transformers import CLIPModel, LlavaForConditionalGeneration

        for model, kind, name in ((self.clip, CLIPModel, "clip"), (self.llava, LlavaForConditionalGeneration, "model")):
            model.load_state_dict(kind.from_pretrained(folder / name, dtype=torch.float32).state_dict())

    def _collect(self, size: int) -> Batch:
        """Pictures for the evaluation, taken off the stream; training never sees them."""
        chunks = [self.feed.take(self.device, wait=True) for _ in range(-(-size // CHUNK))]
        return concatenate([chunk for chunk in chunks if chunk is not None])[slice(size)]

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW on what the stage trains; no weight decay on vectors and scalars."""
        for parameter in self.llava.parameters():
            parameter.requires_grad_(self.stage == "decoder")
        for parameter in self.clip.parameters():
            parameter.requires_grad_(self.stage == "tower")
        modules = (self.clip, self.heads) if self.stage == "tower" else (self.llava,)
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.recipe.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=self.device.type == "cuda")

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "stage": self.stage,
            "seconds": self.seconds,
            "step": self.step,
            "call": self.call,
            "seen": self.seen,
            "llava": self.llava.state_dict(),
            "clip": self.clip.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        new = self.checkpoint.with_suffix(".new")
        torch.save(state, new)
        os.replace(new, self.checkpoint)

    def run(self) -> None:
        """Train until the stages are over, the minutes are over or Ctrl-C."""
        try:
            for stage, limit in (("tower", self.recipe.tower_seconds), ("decoder", self.recipe.decoder_seconds)):
                if self.stage == stage and self._run_stage(limit) and stage == "tower":
                    self.stage, self.seconds, self.step = "decoder", 0.0, 0
                    self.optimizer = self._new_optimizer()
                    self.save()
        except KeyboardInterrupt:
            print("stopped by Ctrl-C", flush=True)
        finally:
            self.feed.close()
        self.save()

    def finish(self) -> None:
        """Evaluate and export."""
        print(evaluate(self.llava, self.held_out, 128), flush=True)
        save_clip(self.clip, self.output / "clip")
        save_llava(self.llava, self.output / "model")
        print(f"exported to {self.output}", flush=True)

    def _run_stage(self, limit: float) -> bool:
        """Whether the stage was finished."""
        step = self._tower_step() if self.stage == "tower" else self._decoder_step()
        size = self.recipe.tower_batch if self.stage == "tower" else self.recipe.decoder_batch
        while len(self.pool) < min(4096, self.recipe.pool, 8 * size):
            self._refill(wait=True)
        mark, done, warm = time.monotonic(), 0, False
        while self.seconds < limit:
            rate = self._learning_rate(self.seconds / limit)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self._refill(wait=False)
            loss, figures = step(self.pool.sample(size))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            if self.stage == "tower":
                with torch.no_grad():
                    self.clip.logit_scale.clamp_(max=math.log(100.0))
            self.step += 1
            self.seen += size
            done += 1
            if warm and self.step % 20 and time.monotonic() < self.deadline:
                continue
            loss.item()  # waits for the device, so that the clock is true
            now = time.monotonic()
            if warm:
                self.seconds += now - mark
            mark, warm = now, warm or done >= 3  # the first steps compile; they do not count
            if self.step % (200 if self.stage == "decoder" else 100) == 0 or self.seconds >= limit:
                shown = " ".join(f"{name} {value.item():.3f}" for name, value in figures.items())
                print(
                    f"{self.stage} {self.seconds:6.1f} s step {self.step} drawn {self.pool.drawn} "
                    f"seen {self.seen} lr {rate:.1e} loss {loss.item():.3f} {shown}",
                    flush=True,
                )
            if now >= self.deadline:
                return False
        return True

    def _refill(self, *, wait: bool) -> None:
        for _ in range(8):
            chunk = self.feed.take(self.device, wait=wait)
            if chunk is None:
                return
            self.pool.add(chunk)

    def _learning_rate(self, done: float) -> float:
        warm = min(1.0, (self.step + 1) / self.recipe.warmup)
        return self.recipe.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def _maybe_compile(self, function: Any) -> Any:
        return torch.compile(function) if self.compile else function

    def _tower_step(self) -> Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]:
        states = self._maybe_compile(tower_states)

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            with _autocast(self.device):
                return tower_loss(self.recipe, self.clip, self.heads, states, batch)

        return step

    def _decoder_step(self) -> Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]:
        states = self._maybe_compile(tower_states)
        decoder = self._maybe_compile(self.llava.model.language_model)
        table = pooling(self.device)
        for parameter in self.llava.model.vision_tower.parameters():
            parameter.requires_grad_(False)

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            with _autocast(self.device):
                with torch.no_grad():
                    _, selected, _ = states(self.llava.model.vision_tower, to_pixels(batch.pictures))
                features = self.llava.model.multi_modal_projector(selected[:, 1:])
                visual = training_mix(self.recipe, features, table)
                logits = answer_logits(self.llava, decoder, visual, batch.questions)
            target = answer_targets(batch)
            loss = F.cross_entropy(logits.float().flatten(0, 2), target.flatten(), ignore_index=-100)
            figures: dict[str, Tensor] = {}
            if self.step % 200 == 199:
                with torch.no_grad():
                    good = right(logits, target) & (batch.kinds != NO_KIND)
                    intact = (visual.valid.sum(1) == TOKENS)[:, None]
                    for kind, name in enumerate(KINDS):
                        asked = (batch.kinds == kind) & intact
                        figures[name] = (good & asked).sum() / asked.sum().clamp_min(1)
            return loss, figures

        return step


def _continue(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Trains a finished model further and scores it."""
    from vtprune.eval.embedded.continuing import Continuation, Course

    start, output, source = time.monotonic(), Path(arguments.output), arguments.continue_from
    if output.resolve() == source.resolve().parent:
        parser.error(f"--output {output} holds the model of --continue-from; name another folder")
    if not (source / "config.json").is_file():
        parser.error(f"--continue-from {source} is no folder of a model; the shipped one is eval/embedded/model")
    given = {"seconds": arguments.seconds, "tower_share": arguments.tower_share, "seed": arguments.seed}
    small = {"tower_batch": 4, "singles": 2, "pairs": 1, "pool": 128, "pair_pool": 64} if arguments.smoke else {}
    try:
        course = Course(**{name: value for name, value in given.items() if value is not None}, **small)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    device = torch.device(arguments.device)
    Continuation(course, source, output, arguments.workers, device, start, arguments.compile).run()
    # A process of its own: the written model in the state in which a user loads it, and none of the training's memory.
    command = [sys.executable, "-m", "vtprune.eval.embedded.score", "--model", str(output / "model")]
    command += ["--device", str(device), *(["--limit", "2"] if arguments.smoke else [])]
    scores = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    text = json.dumps({"seconds": round(time.monotonic() - start, 1), "scores": scores})
    (output / "scores.json").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)


def main() -> None:
    """Command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="work of this call before evaluation and export")
    parser.add_argument("--state-dir", default=Path(".device-state"), help="folder of the checkpoint")
    parser.add_argument("--output", default=here, help="folder that gets model/ and clip/")
    parser.add_argument("--init-from", help="folder with model/ and clip/: train their decoder, with a new optimizer")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="drawing processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--tower-seconds", type=float, default=Recipe.tower_seconds)
    parser.add_argument("--decoder-seconds", type=float, default=Recipe.decoder_seconds)
    parser.add_argument("--attention-weight", type=float, default=Recipe.attention_weight)
    parser.add_argument("--smoke", action="store_true", help="tiny batches, to try the script on a CPU")
    further = parser.add_argument_group("further training of a finished model")
    further.add_argument("--continue-from", type=Path, help="folder of the model; its clip/ lies beside it")
    further.add_argument("--seconds", type=float, help="from the start to the end of training (default: 420)")
    further.add_argument("--tower-share", type=float, help="of the seconds, for the tower (default: 0.3)")
    further.add_argument("--seed", type=int, help="of pictures and questions (default: 1)")
    arguments = parser.parse_args()
    if arguments.continue_from is not None:
        _continue(parser, arguments)
        return
    recipe = Recipe(
        tower_seconds=arguments.tower_seconds,
        decoder_seconds=arguments.decoder_seconds,
        attention_weight=arguments.attention_weight,
    )
    if arguments.smoke:
        recipe = Recipe(
            tower_seconds=arguments.tower_seconds,
            decoder_seconds=arguments.decoder_seconds,
            attention_weight=arguments.attention_weight,
            tower_batch=4,
            decoder_batch=2,
            held_out=2,
            pool=128,
            fine_batch=2,
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    trainer = Trainer(recipe, arguments)
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (trainer.llava, trainer.clip)]
    print(
        f"stage {trainer.stage} from {trainer.seconds:.1f} s, call {trainer.call}, device {trainer.device}, "
        f"{sizes[0]:.2f} M parameters (CLIP {sizes[1]:.2f} M), ready in {time.monotonic() - start:.1f} s",
        flush=True,
    )
    trainer.run()
    print(f"trained until {time.monotonic() - start:.1f} s", flush=True)
    trainer.finish()
    print(f"done in {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
