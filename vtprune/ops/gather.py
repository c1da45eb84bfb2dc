"""Taking tokens by index."""

from __future__ import annotations

import torch


def as_float(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float32, or in float64 where it already is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def take(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The rows of `states` `(batch, tokens, dim)` named in `index` `(batch, kept)`: `(batch, kept, dim)`.

    Example:
        >>> take(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[2, 0]])).flatten().tolist()
        [3.0, 1.0]
    """
    batch, tokens, dim = states.shape
    if states.device.type != "cpu":
        return states.gather(1, index.unsqueeze(-1).expand(-1, -1, dim))
    # Gathering goes value by value there; this copies whole rows.
    first = tokens * torch.arange(batch).unsqueeze(1)
    return states.flatten(0, 1).index_select(0, (index + first).flatten()).view(*index.shape, dim)


def split_by(flags: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the tokens whose flag is set and of the others, both ascending.

    Knowing `count` beforehand keeps the sizes off the device.

    Args:
        flags: `(batch, tokens)` booleans.
        count: Flags set in every row.

    Returns:
        `(batch, count)` and `(batch, tokens - count)`.

    Example:
        >>> split_by(torch.tensor([[True, False, True]]), 2)
        (tensor([[0, 2]]), tensor([[1]]))
    """
    order = torch.sort(flags.to(torch.uint8), dim=-1, descending=True, stable=True).indices
    return order[:, :count], order[:, count:]
