"""Sums and means of groups of tokens, each group gathered by programs of its own in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TOKENS = 64
_CHANNELS = 128


@triton.jit  # type: ignore[untyped-decorator]
def _group_kernel(  # type: ignore[no-untyped-def]
    states,
    source,
    weights,
    own,
    result,
    sizes,
    tokens,
    dim,
    groups,
    states_batch,
    states_token,
    states_channel,
    own_batch,
    own_group,
    own_channel,
    result_batch,
    result_group,
    result_channel,
    WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr,
    OWN: tl.constexpr,
    WIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    group = tl.program_id(0)
    picture = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < dim
    place = states + picture * states_batch + channel[None, :].to(tl.int64) * states_channel
    total = tl.zeros((CHANNELS,), dtype=WIDE)
    size = tl.zeros((TOKENS,), dtype=WIDE)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        went = tl.load(source + picture * tokens + token, mask=token < tokens, other=-1)
        member = went == group
        # Most chunks hold no member of most groups.
        if tl.max(member.to(tl.int32), axis=0) > 0:
            if WEIGHTED:
                weight = tl.load(weights + picture * tokens + token, mask=member, other=0.0).to(WIDE)
            else:
                weight = member.to(WIDE)
            # What is no member is not even read: its infinities stay where they are.
            values = tl.load(
                place + token[:, None].to(tl.int64) * states_token, mask=member[:, None] & inside[None, :], other=0.0
            )
            total += tl.sum(values.to(WIDE) * weight[:, None], axis=0)
            size += weight
    whole = tl.sum(size, axis=0)
    if MEAN:
        total = total / whole
    if OWN:
        total = total / tl.where(whole == 0, 1.0, whole)
        mine = own + picture * own_batch + group.to(tl.int64) * own_group + channel.to(tl.int64) * own_channel
        total += tl.load(mine, mask=inside, other=0.0).to(WIDE)
    target = result + picture * result_batch + group.to(tl.int64) * result_group
    tl.store(target + channel.to(tl.int64) * result_channel, total, mask=inside)
    tl.store(sizes + picture * groups + group, whole, mask=tl.program_id(1) == 0)


def group_sums(
    states: torch.Tensor,
    source: torch.Tensor,
    groups: int,
    *,
    weights: torch.Tensor | None = None,
    mean: bool = False,
    transposed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sums, or means, of the tokens of each group, and the sum of each group's weights.

    Half precision is added up in float32, anything else in float64.

    Args:
        states: `(batch, tokens, dim)`, of any strides.
        source: The group of each token, `(batch, tokens)`; tokens of no group have a number outside `0 .. groups - 1`.
        groups: How many groups there are.
        weights: `(batch, tokens)`, or `None` for ones.
        mean: Divide by the sum of the weights.
        transposed: Return the sums as `(batch, dim, groups)`.

    Returns:
        `(batch, groups, dim)` in the dtype of `states`, and `(batch, groups)` float32, with float64 weights float64.
    """
    batch, _, dim = states.shape
    result = states.new_empty((batch, dim, groups) if transposed else (batch, groups, dim))
    return result, _launch(states, source, weights, None, result.mT if transposed else result, mean)


def add_group_means(states: torch.Tensor, source: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Adds to the rows of `own` `(batch, groups, dim)` the means of the groups; those without tokens stay as they are.

    Args:
        states: `(batch, tokens, dim)`.
        source: The group of each token, `(batch, tokens)`; see `group_sums`.
        own: Of any strides.
    """
    result = torch.empty(own.shape, dtype=states.dtype, device=states.device)
    _launch(states, source, None, own, result, False)
    return result


def _launch(
    states: torch.Tensor,
    source: torch.Tensor,
    weights: torch.Tensor | None,
    own: torch.Tensor | None,
    result: torch.Tensor,
    mean: bool,
) -> torch.Tensor:
    """Fills `result` `(batch, groups, dim)` and returns the sums of the weights, `(batch, groups)`."""
    batch, groups, dim = result.shape
    size_type = torch.float64 if weights is not None and weights.dtype == torch.float64 else torch.float32
    sizes = torch.empty((batch, groups), dtype=size_type, device=states.device)
    if result.numel() == 0:
        return sizes.zero_()
    channels = min(_CHANNELS, max(16, triton.next_power_of_2(dim)))
    with torch.cuda.device_of(states):
        _group_kernel[(groups, triton.cdiv(dim, channels), batch)](
            states,
            source.contiguous(),
            sizes if weights is None else weights.contiguous(),
            states if own is None else own,
            result,
            sizes,
            states.shape[1],
            dim,
            groups,
            *states.stride(),
            *(states if own is None else own).stride(),
            *result.stride(),
            WEIGHTED=weights is not None,
            MEAN=mean,
            OWN=own is not None,
            WIDE=tl.float32 if states.element_size() == 2 else tl.float64,
            TOKENS=_TOKENS,
            CHANNELS=channels,
            num_warps=4,
        )
    return sizes
