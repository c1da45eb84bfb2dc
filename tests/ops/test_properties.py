"""What holds for every input of the operations, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from awkward import assert_unchanged_by_autocast
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.ops.checks import check_integer, check_keep, check_positive, check_share
from vtprune.ops.entropy import matrix_entropy
from vtprune.ops.gather import split_by, take
from vtprune.ops.hashing import mix, random_keys
from vtprune.ops.max_min import max_min
from vtprune.ops.merge import merge_into_targets
from vtprune.ops.pool import block_pool, cell_pool, scale_kernel
from vtprune.ops.residual import drop_redundant
from vtprune.ops.share import largest_remainder
from vtprune.ops.similarity import quantile, text_relevance
from vtprune.ops.spread import grid_cells, spread_picks
from vtprune.ops.topk import stable_topk

few = settings(max_examples=40)


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int, int]:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return height, width, draw(st.integers(1, height * width))


@st.composite
def pictures(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Tokens of +1, 0 and -1, with many duplicates and ties, and how many to keep."""
    tokens = draw(st.integers(1, 20))
    values = draw(st.lists(st.integers(-1, 1), min_size=tokens * 3, max_size=tokens * 3))
    return torch.tensor(values).view(1, tokens, 3).float(), draw(st.integers(1, tokens))


@few
@given(grids())
def test_cells_partition_the_grid(grid: tuple[int, int, int]) -> None:
    height, width, count = grid
    covered = torch.zeros(height, width, dtype=torch.int64)
    cells = torch.stack(list(grid_cells(height, width, count)), dim=1)
    for top, bottom, left, right in cells.tolist():
        covered[top:bottom, left:right] += 1
        assert bottom > top
        assert right > left
    assert bool((covered == 1).all())
    picks = spread_picks(height, width, count).tolist()
    assert len(set(picks)) == count
    assert picks == sorted(picks)


@few
@given(grids())
def test_pooling_constants_gives_constants(grid: tuple[int, int, int]) -> None:
    height, width, count = grid
    pooled, _ = cell_pool(torch.full((2, height * width, 3), 0.7), height, width, count)
    assert pooled.shape == (2, count, 3)
    torch.testing.assert_close(pooled, torch.full_like(pooled, 0.7))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 8, 12, 24])
def test_exact_count_pooling_equals_block_pooling_on_squares(side: int) -> None:
    states = torch.randn(2, 576, 3)
    pooled, centres = cell_pool(states, 24, 24, side * side)
    blocks, middles = block_pool(states, 24, 24, 24 // side)
    torch.testing.assert_close(pooled, blocks)
    assert centres.tolist() == middles.tolist()


@few
@given(pictures())
def test_selections_are_distinct_and_nested(picture: tuple[torch.Tensor, int]) -> None:
    tokens, keep = picture
    count = tokens.shape[1]
    for select in (max_min, lambda states, number: stable_topk(states[:, :, 0], number)):
        whole, part = select(tokens, count)[0].tolist(), select(tokens, keep)[0].tolist()
        assert sorted(whole) == list(range(count))
        assert part == whole[:keep]
    left = drop_redundant(tokens, keep)[0].tolist()
    assert len(set(left)) == keep


@few
@given(pictures())
def test_max_min_survives_what_is_no_number(picture: tuple[torch.Tensor, int]) -> None:
    tokens, keep = picture
    tokens[0, 0] = float("nan")
    assert len(set(max_min(tokens, keep)[0].tolist())) == keep


@few
@given(pictures())
def test_merging_loses_no_token(picture: tuple[torch.Tensor, int]) -> None:
    tokens, targets = picture
    _, chosen, assigned = merge_into_targets(tokens, tokens, targets)
    assert len(set(chosen.tolist())) == targets
    assert assigned.shape == (1, tokens.shape[1] - targets)
    assert assigned.numel() == 0 or 0 <= int(assigned.min()) <= int(assigned.max()) < targets


@few
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.data())
def test_shares_add_up(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes)))
    shares = largest_remainder(sizes, total)
    assert sum(shares) == total
    for size, share in zip(sizes, shares, strict=True):
        assert 0 <= share <= size
        assert abs(share * sum(sizes) - total * size) < max(1, sum(sizes))


@few
@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_split_by(flags: list[bool]) -> None:
    here, others = split_by(torch.tensor([flags]), sum(flags))
    assert here[0].tolist() == [place for place, flag in enumerate(flags) if flag]
    assert others[0].tolist() == [place for place, flag in enumerate(flags) if not flag]


@few
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30), st.floats(0, 1))
def test_quantile_is_that_of_torch(values: list[float], share: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(quantile(tensor, share)[0], tensor.quantile(share))


def test_mixing_never_collides_and_spreads_bits() -> None:
    mixed = mix(torch.arange(4096))
    assert len(set(mixed.tolist())) == 4096
    ones = sum(int(value).bit_count() for value in (mixed & (2**63 - 1)).tolist()) / (63 * 4096)
    assert abs(ones - 0.5) < 0.01


def test_random_picks_are_uniform_and_independent_of_batch_mates() -> None:
    images, tokens = torch.arange(2000), torch.arange(8).expand(2000, -1)
    keys = random_keys(images, tokens, seed=3)
    counts = stable_topk(keys, 2).flatten().bincount(minlength=8)
    assert int((counts - 500).abs().max()) < 100  # five standard deviations
    assert torch.equal(random_keys(images[7:8], tokens[:1], seed=3)[0], keys[7])
    assert not torch.equal(random_keys(images, tokens, seed=4), keys)


def test_autocast_does_not_lower_the_precision() -> None:
    states, heads, words = torch.randn(2, 63, 32), torch.randn(2, 3, 63, 8), torch.randn(2, 4, 32)
    mask = torch.ones(2, 4, dtype=torch.bool)

    def everything() -> list[torch.Tensor]:
        return [
            max_min(states, 20),
            drop_redundant(states, 20),
            matrix_entropy(heads),
            text_relevance(states, words, mask),
            *merge_into_targets(states, states, 5),
            cell_pool(states, 7, 9, 10)[0],
        ]

    assert_unchanged_by_autocast(everything)


def test_take() -> None:
    states, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(take(states, index), torch.stack([states[0, [4, 0]], states[1, [1, 1]]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_min(torch.ones(1, 4, 2), 5), "from 1 to 4 .*got 5"),
        (lambda: max_min(torch.ones(1, 4, 2), 0), "from 1 to 4 .*got 0"),
        (lambda: stable_topk(torch.ones(1, 4), 5), "from 0 to 4 .*got 5"),
        (lambda: drop_redundant(torch.ones(1, 4, 2), -1), "from 0 to 4 .*got -1"),
        (lambda: merge_into_targets(torch.ones(1, 4, 2), torch.ones(1, 4, 2), 5), "from 0 to 4 .*got 5"),
        (lambda: grid_cells(2, 2, 5), "from 1 to 4 .*got 5"),
        (lambda: cell_pool(torch.ones(1, 5, 2), 2, 2, 1), "2 x 2 grid has 4 tokens, got 5"),
        (lambda: block_pool(torch.ones(1, 6, 2), 2, 3, 3), "from 1 to 2 on a 2 x 3 grid, got 3"),
        (lambda: scale_kernel(4, 5), "from 1 to 4 .*got 5"),
        (lambda: largest_remainder([1, 2], 4), "from 0 to 3 .*got 4"),
        (lambda: matrix_entropy(torch.ones(1, 2, 3, 5), group=2), "divide the 5 channels of a head, got 2"),
        (
            lambda: text_relevance(torch.ones(1, 2, 3), torch.ones(1, 2, 4), torch.ones(1, 2).bool()),
            "3 wide but words 4",
        ),
        (lambda: check_keep(3, 2), "from 1 to 2 .*got 3"),
        (lambda: check_integer("m", "x", 9, low=1, high=8), "m: x must be from 1 to 8, got 9"),
        (lambda: check_integer("m", "x", 0, low=1), "m: x must be at least 1, got 0"),
        (lambda: check_share("m", "x", 1.5), r"m: x must be in \[0, 1\], got 1.5"),
        (lambda: check_share("m", "x", float("nan")), r"m: x must be in \[0, 1\], got nan"),
        (lambda: check_positive("m", "x", 0.0), "m: x must be above 0 and finite, got 0.0"),
        (lambda: check_positive("m", "x", float("inf")), "m: x must be above 0 and finite, got inf"),
    ],
)
def test_refusals_name_the_value_and_the_range(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
