"""Models whose positions have a time, a row and a column: tokens that are left keep theirs.

vLLM asks for the positions of a prompt before its pictures are encoded. Those of the text follow from the pictures'
grids alone, so they are right from the start. Placeholders get the position where their picture begins; the row and
the column of each kept token ride behind its embedding, and are added when the prompt is embedded. In whatever pieces a
prompt is processed, and whatever part of it is cached, each token thus has the position it had unpruned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from vtprune.adapters.vllm.model import PrunedModel
from vtprune.adapters.vllm.options import KEY
from vtprune.adapters.vllm.selection import Left
from vtprune.layout import ImageLayout

_BASE = 128
"""Rows and columns ride in two channels each, in which every number type of vLLM is exact."""
CHANNELS = 4


class GridPositionsModel(PrunedModel):
    """Mixed into models with M-RoPE."""

    positions: ClassVar[str] = "keep"
    _places: torch.Tensor | None = None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        _check(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    @property
    def embedding_width(self) -> int:
        """What vLLM's own model keeps of each image token."""
        return self.width

    def finished(self, left: Left, features: torch.Tensor, layout: ImageLayout) -> torch.Tensor:
        """The states, what the tower adds to deeper layers at the same tokens, and their places."""
        deeper = features[left.origin, self.width : self.embedding_width]
        places = layout.places.to(left.origin.device)[left.origin, 1:]
        channels = torch.stack([places // _BASE, places % _BASE], dim=2).flatten(1)
        return torch.cat([left.states, deeper, channels.to(left.states.dtype)], dim=1)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        """Positions of the unpruned prompt, of which pruned pictures keep as many as they have placeholders."""
        tokens: list[int] = []
        whole: list[Any] = []
        columns: list[int] = []
        end = shift = 0
        starts = []
        for feature in sorted(mm_features, key=lambda found: found.mm_position.offset):
            place = feature.mm_position
            kept = place.length
            columns += range(end + shift, place.offset + shift + kept)
            tokens += input_tokens[end : place.offset + kept]
            end = place.offset + kept
            first = place.offset + shift
            if feature.modality == "image" and KEY in feature.data:
                full = self._grid_tokens(feature.data)
                tokens += [input_tokens[end - 1]] * (full - kept)
                shift += full - kept
                starts.append((place.offset, kept))
                place = replace(place, offset=first, length=full)
            else:
                place = replace(place, offset=first)
            whole.append(replace(feature, mm_position=place))
        columns += range(end + shift, len(input_tokens) + shift)
        tokens += input_tokens[end:]
        model: Any = super()
        positions, delta = model.get_mrope_input_positions(tokens, whole)
        left = positions[:, columns]
        for first, kept in starts:
            left[:, first : first + kept] = left[:, first : first + 1]
        return left, delta + shift

    def embed_input_ids(
        self, input_ids: torch.Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Any = None
    ) -> torch.Tensor:
        """Takes the places off the image tokens, for the pass that follows."""
        self._places = None
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            width = self.embedding_width
            places = torch.cat([self._read(rows[:, width:]) for rows in multimodal_embeddings])
            where = is_multimodal.to(places.device)
            self._places = places.new_zeros(3, len(where))
            self._places[1:, where] = places.T
            multimodal_embeddings = [rows[:, :width] for rows in multimodal_embeddings]
        model: Any = super()
        embedded: torch.Tensor = model.embed_input_ids(
            input_ids, multimodal_embeddings=multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded

    def forward(self, input_ids: Any, positions: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Moves image tokens to their places first."""
        places, self._places = self._places, None
        if places is not None:
            if positions.shape[1] < places.shape[1]:
                raise RuntimeError(f"{places.shape[1]} tokens were embedded, {positions.shape[1]} are run")
            # In place: graphs of the decoder read the positions where vLLM has written them.
            positions[:, : places.shape[1]] += places.to(positions.dtype)
        return super().forward(input_ids, positions, *args, **kwargs)

    def _grid_tokens(self, data: Any) -> int:
        merge = int(self.config.vision_config.spatial_merge_size)
        return int(data["image_grid_thw"].data.prod()) // merge**2

    @staticmethod
    def _read(channels: torch.Tensor) -> torch.Tensor:
        """Rows and columns from their channels, `(tokens, 2)`; zero where none ride along, as with videos."""
        if not channels.shape[1]:
            return torch.zeros(len(channels), 2, dtype=torch.long, device=channels.device)
        numbers = channels.long()
        return numbers[:, 0::2] * _BASE + numbers[:, 1::2]


def _check(vllm_config: Any) -> None:
    """Refuses what would not see the positions.

    Raises:
        ValueError: Pipeline parallelism, speculative decoding, or prompts that run inside one graph.
    """
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError(
            "with pipeline parallelism later stages would not learn the positions of the tokens that are left; use "
            "--tensor-parallel-size"
        )
    if vllm_config.speculative_config is not None:
        raise ValueError("a drafter would not learn the positions of the tokens that are left; leave it out")
    mode = vllm_config.compilation_config.cudagraph_mode
    if mode is not None and mode.mixed_mode().name == "FULL":
        raise ValueError(
            f"cudagraph_mode {mode.name} replays prompts from one graph, in which positions are not moved; use "
            "FULL_AND_PIECEWISE or PIECEWISE"
        )
