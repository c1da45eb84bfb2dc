"""Thinning by a kernel keeps what the rounds keep; on a device the operation does so at every size."""

from __future__ import annotations

import pytest
import torch
from awkward import tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from vtprune.kernels import thinning, without_kernels
from vtprune.kernels.thinning import thin
from vtprune.ops.residual import _with_kernels, drop_redundant

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def by_kernels(features: torch.Tensor, keep: int, per_round: int = 8) -> torch.Tensor:
    """Through the kernels, which the interpreter runs where there is no device."""
    return _with_kernels(features.to(DEVICE), keep, per_round).cpu()


def by_loop(cosine: torch.Tensor, keep: int, per_round: int) -> list[int]:
    """The rounds on the cosines of one picture, member by member."""
    row = cosine.tolist()
    order = list(range(len(row)))
    while len(order) > keep:
        even, odd = order[0::2], order[1::2]
        closest = {one: max(row[one][other] for other in odd) for one in even}
        falling = sorted(even, key=lambda one: -closest[one])
        order = falling[min(per_round, len(order) - keep, len(even)) :] + odd
    return order


@pytest.mark.parametrize(
    ("members", "keep", "per_round"), [(2, 1, 8), (5, 3, 8), (63, 7, 8), (130, 31, 3), (70, 60, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_loop(members: int, keep: int, per_round: int, dtype: torch.dtype) -> None:
    states = normalize(tokens_of("plain", 2, members, 16).double(), dim=-1)
    # Equal in both precisions, and full of ties.
    cosine = (states @ states.mT * 16).round() / 16
    found = thin(cosine.to(dtype).to(DEVICE), keep, per_round).tolist()
    assert found == [by_loop(picture, keep, per_round) for picture in cosine]


@pytest.mark.parametrize("kind", ["signs", "with_zeros", "constant", "duplicates", "strided"])
def test_equals_the_operation(kind: str) -> None:
    features = tokens_of(kind, 2, 63, 16)
    assert torch.equal(by_kernels(features, 9), drop_redundant(features, 9))
    if kind in ("constant", "with_zeros", "signs"):
        # Sums of few signs are exact in half precision too.
        scaled = tokens_of("constant", 1, 63, 16).bfloat16()
        assert torch.equal(by_kernels(scaled, 9), drop_redundant(scaled, 9))


@settings(max_examples=10)
@given(st.integers(2, 40), st.integers(1, 9), st.data())
def test_any_list(members: int, per_round: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, members - 1))
    levels = data.draw(st.lists(st.integers(-3, 3), min_size=members**2, max_size=members**2))
    cosine = torch.tensor(levels, dtype=torch.float32).view(members, members) / 4
    cosine = torch.maximum(cosine, cosine.mT)
    assert thin(cosine[None].to(DEVICE), keep, per_round)[0].tolist() == by_loop(cosine, keep, per_round)


def test_batch_mates_do_not_matter() -> None:
    features = torch.randn(3, 50, 24).bfloat16()
    together = by_kernels(features, 10)
    for picture in range(3):
        assert torch.equal(by_kernels(features[picture : picture + 1], 10)[0], together[picture])


def test_what_is_not_a_number_goes_first() -> None:
    features = torch.randn(1, 40, 24).bfloat16()
    features[0, 4] = torch.nan
    found = by_kernels(features, 31)
    assert 4 not in found[0].tolist()
    assert torch.equal(found, drop_redundant(features, 31))


def test_pictures_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(5, 30, 24).bfloat16()
    together = by_kernels(features, 10)
    monkeypatch.setattr("vtprune.kernels.gram.pictures_at_once", lambda count, item=4: 2)
    assert torch.equal(by_kernels(features, 10), together)


@pytest.mark.gpu
@pytest.mark.parametrize(("members", "keep", "batch"), [(544, 32, 8), (1100, 200, 3), (2720, 160, 8), (9000, 8000, 1)])
def test_several_programs_agree_with_one(members: int, keep: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    states = normalize(torch.randn(batch, members, 64, device="cuda"), dim=-1)
    cosine = states @ states.mT
    cosine = torch.maximum(cosine, cosine.mT)
    found = thin(cosine, keep, 8)
    monkeypatch.setattr(thinning, "_ALONE", 1 << 20 if members > 1024 else 0)
    assert torch.equal(thin(cosine, keep, 8), found)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("members", "keep"), [(544, 32), (2720, 160), (16000, 15000)])
def test_on_a_device(members: int, keep: int, dtype: torch.dtype) -> None:
    # So far apart that no cosine hangs on the last place of float32.
    features = torch.randint(-1, 2, (2, members, 24), device="cuda").to(dtype)
    if members == 16000:
        features = features[:1]
    found = drop_redundant(features, keep)
    if dtype == torch.float32:
        with without_kernels():
            assert torch.equal(found, drop_redundant(features, keep))
    assert all(len(set(row)) == keep for row in found.tolist())
