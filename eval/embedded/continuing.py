"""Further training of a finished model on old and new tasks together: ``train --continue-from``.

First the tower with its CLIP text tower, by the losses of the stage "tower": smaller objects and letters need finer
features, and the two towers must move together. Then the tower is frozen, as in the first training, and projector and
decoder learn from single pictures and pairs in every step. All is measured in seconds from the start of the program, so
that a loan of the device is not overdrawn; the folders are written whatever ends the training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.eval.embedded.build import load_models, save_clip, save_llava
from vtprune.eval.embedded.feed import NO_KIND, Batch, Feed, Form, Pool
from vtprune.eval.embedded.mixture import ALL_KINDS, PAIRS, SINGLES
from vtprune.eval.embedded.train import (
    TOKENS,
    Heads,
    Recipe,
    Visual,
    answer_logits,
    answer_targets,
    in_turn,
    pooling,
    right,
    to_pixels,
    tower_loss,
    tower_states,
    training_mix,
)

Step = Callable[[], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Course:
    """Hyper-parameters of a further training."""

    seconds: float = 420.0
    """From the start of the program to the end of training; writing and scoring the model come after."""
    tower_share: float = 0.3
    """Of the seconds, for the tower; 0 leaves both towers as they are."""
    seed: int = 1
    tower_batch: int = 512
    singles: int = 128
    pairs: int = 56
    pool: int = 150_000
    pair_pool: int = 50_000
    tower_rate: float = 4e-4
    decoder_rate: float = 6e-4
    head_rate: float = 2e-3
    warmup: int = 150
    head_start: int = 100
    """Steps of the new read-outs before the tower follows them."""
    weight_decay: float = 0.05
    pair_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")
        if not 0 <= self.tower_share < 1:
            raise ValueError(f"tower_share must be in [0, 1), got {self.tower_share}; the rest is the decoder's")


class _Source:
    """A feed with its pool."""

    def __init__(self, form: Form, workers: int, seed: str, capacity: int, device: torch.device) -> None:
        self._feed = Feed(workers, seed, form)
        self._form, self._capacity, self._device = form, capacity, device
        self._pool: Pool | None = None

    def refill(self, least: int) -> None:
        """Takes what has been drawn; waits until there are ``least`` examples."""
        if self._pool is None:  # not before every feed has forked
            self._pool = Pool(self._capacity, self._device, self._form)
        for _ in range(8):
            chunk = self._feed.take(self._device, wait=len(self._pool) < least)
            if chunk is None:
                return
            self._pool.add(chunk)

    def sample(self, size: int) -> Batch:
        """Random examples of the pool."""
        while self._pool is None or len(self._pool) < size:
            self.refill(size)
        return self._pool.sample(size)

    @property
    def drawn(self) -> int:
        """Examples received so far."""
        return 0 if self._pool is None else self._pool.drawn

    def close(self) -> None:
        """Ends the processes."""
        self._feed.close()


class Continuation:
    """A further training; ``run`` ends with the seconds or Ctrl-C."""

    def __init__(
        self, course: Course, folder: Path, output: Path, workers: int, device: torch.device, start: float, fast: bool
    ) -> None:
        """
        Args:
            course: Hyper-parameters.
            folder: Of the model that goes on; ``clip`` lies beside it.
            output: Gets ``model`` and ``clip``.
            workers: Drawing processes, at least 2.
            device: Of the training.
            start: When the program started, by ``time.monotonic``.
            fast: Compile.
        """
        self.course, self.output, self.device, self.start, self.fast = course, output, device, start, fast
        self.llava, self.clip = load_models(folder, folder.parent / "clip")
        # The processes fork here, before the first use of CUDA.
        of_pairs = max(1, round(0.3 * workers))
        seed = f"continue/{course.seed}"
        self.singles = _Source(SINGLES, max(1, workers - of_pairs), f"{seed}/singles", course.pool, device)
        self.pairs = _Source(PAIRS, of_pairs, f"{seed}/pairs", course.pair_pool, device)
        torch.manual_seed(course.seed)
        torch.set_float32_matmul_precision("high")
        self.heads = Heads(self.clip.vision_model.config.hidden_size)
        for module in (self.llava, self.clip, self.heads):
            module.to(device)
        # Two lengths of prompts and several batch sizes, each a graph of its own: none is worth a dynamic one.
        self._states: Any = torch.compile(tower_states, dynamic=False) if fast else tower_states
        decoder = self.llava.model.language_model
        self._decoder: Any = torch.compile(decoder, dynamic=False) if fast else decoder
        self._table = pooling(device)
        self._recipe = Recipe(fine_batch=min(Recipe.fine_batch, course.tower_batch))

    def run(self) -> None:
        """Trains, then writes both folders."""
        course = self.course
        try:
            if course.tower_share > 0:
                self._train("tower", self._tower_step, self._tower_groups(), course.seconds * course.tower_share)
            self._train("decoder", self._decoder_step, self._decoder_groups(), course.seconds)
        except KeyboardInterrupt:
            print("stopped by Ctrl-C", flush=True)
        finally:
            self.singles.close()
            self.pairs.close()
            self.save()

    def save(self) -> None:
        """Writes both folders in the format of the shipped ones."""
        save_clip(self.clip, self.output / "clip")
        save_llava(self.llava, self.output / "model")
        print(f"{self._elapsed():6.1f} s wrote {self.output}", flush=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self.start

    def _tower_groups(self) -> list[dict[str, Any]]:
        late = {"rate": self.course.tower_rate, "delay": self.course.head_start}
        return _groups(self.clip, self.course.weight_decay, **late) + _groups(
            self.heads, self.course.weight_decay, rate=self.course.head_rate, delay=0
        )

    def _decoder_groups(self) -> list[dict[str, Any]]:
        self.clip.requires_grad_(False)  # the tower is LLaVA's too
        return _groups(self.llava, self.course.weight_decay, rate=self.course.decoder_rate, delay=0)

    def _train(self, stage: str, step: Step, groups: list[dict[str, Any]], end: float) -> None:
        """Steps until ``end``, a time in seconds from the start; the rate falls from the first steps, compiled, on."""
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=self.device.type == "cuda")
        parameters = [parameter for group in groups for parameter in group["params"]]
        number, begin, done = 0, self._elapsed(), 0.0
        while done < 1:
            for group in optimizer.param_groups:
                warm = min(1.0, max(0, number + 1 - group["delay"]) / self.course.warmup)
                group["lr"] = group["rate"] * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
            self.singles.refill(0)
            self.pairs.refill(0)
            loss, figures = step()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if stage == "tower":
                with torch.no_grad():
                    self.clip.logit_scale.clamp_(max=math.log(100.0))
            number += 1
            if number > 5 and number % 10:
                continue
            loss.item()  # waits for the device, so that the clock is true
            if number == 5:
                begin = self._elapsed()
            done = 1.0 if begin >= end else (self._elapsed() - begin) / (end - begin)
            if number in (1, 5) or number % 100 == 0 or done >= 1:
                shown = " ".join(f"{name} {value.item():.3f}" for name, value in figures.items())
                print(
                    f"{self._elapsed():6.1f} s {stage} step {number} drawn {self.singles.drawn} + {self.pairs.drawn} "
                    f"loss {loss.item():.3f} {shown}",
                    flush=True,
                )

    def _tower_step(self) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.singles.sample(self.course.tower_batch)
        with self._autocast():
            return tower_loss(self._recipe, self.clip, self.heads, self._states, batch)

    def _decoder_step(self) -> tuple[Tensor, dict[str, Tensor]]:
        singles, pairs = self.singles.sample(self.course.singles), self.pairs.sample(self.course.pairs)
        with self._autocast():
            with torch.no_grad():
                pictures = torch.cat([singles.pictures, pairs.pictures.flatten(0, 1)])
                _, selected, _ = self._states(self.llava.model.vision_tower, to_pixels(pictures))
            features = self.llava.model.multi_modal_projector(selected[:, 1:])
            alone = training_mix(self._recipe, features[: len(singles)], self._table)
            double = in_turn(training_mix(self._recipe, features[len(singles) :], self._table, 2), 2)
            single_loss, single_hits = self._answers(alone, singles)
            pair_loss, pair_hits = self._answers(double, pairs)
        return single_loss + self.course.pair_weight * pair_loss, single_hits | pair_hits

    def _answers(self, visual: Visual, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and of each task the share of questions on whole pictures that are answered right."""
        logits = answer_logits(self.llava, self._decoder, visual, batch.questions)
        target = answer_targets(batch)
        loss = F.cross_entropy(logits.float().flatten(0, 2), target.flatten(), ignore_index=-100)
        with torch.no_grad():
            asked = (batch.kinds != NO_KIND) & visual.valid.all(1)[:, None]
            good = right(logits, target) & asked
            hits = {}
            for task in dict.fromkeys(kind.split("/")[0] for kind in ALL_KINDS):
                numbers = [n for n, kind in enumerate(ALL_KINDS) if kind.startswith(f"{task}/")]
                of_task = (batch.kinds >= numbers[0]) & (batch.kinds <= numbers[-1])
                hits[task] = (good & of_task).sum() / (asked & of_task).sum().clamp_min(1)
        is_pair = visual.valid.shape[1] > TOKENS
        return loss, {task: hit for task, hit in hits.items() if (task == "compare") == is_pair}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


def _groups(module: nn.Module, weight_decay: float, **extra: float) -> list[dict[str, Any]]:
    """Trainable parameters for AdamW; no weight decay on vectors and scalars."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay, **extra},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, **extra},
    ]
