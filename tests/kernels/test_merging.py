"""Sums and means of groups by a kernel equal those of a plain product."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from awkward import tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.kernels import without_kernels
from vtprune.kernels.merging import add_group_means, group_sums
from vtprune.ops import absorb as absorb_module
from vtprune.ops import merge as merge_module
from vtprune.ops.absorb import absorb
from vtprune.ops.merge import group_means, merge_into_targets

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations take their kernels on the CPU too, where the interpreter runs them."""
    modules: tuple[ModuleType, ...] = (merge_module, absorb_module)
    for module in modules:
        monkeypatch.setattr(module, "use_kernels", lambda tensor: True)


def plain(states: torch.Tensor, source: torch.Tensor, groups: int, weights: torch.Tensor) -> torch.Tensor:
    member = (source.unsqueeze(-1) == torch.arange(groups, device=source.device)).double() * weights.unsqueeze(-1)
    return member.mT @ states.double()


@pytest.mark.parametrize(("tokens", "groups", "dim"), [(1, 1, 1), (63, 9, 37), (64, 64, 16), (150, 3, 300)])
@TYPES
def test_equals_a_product(tokens: int, groups: int, dim: int, dtype: torch.dtype) -> None:
    states = tokens_of("strided", 2, tokens, dim).to(dtype).to(DEVICE)
    source = torch.randint(0, groups + 1, (2, tokens), device=DEVICE)
    weights = torch.rand(2, tokens, device=DEVICE)
    found, sizes = group_sums(states, source, groups, weights=weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found, plain(states, source, groups, weights.double()).to(dtype))
    expected = plain(torch.ones_like(states[:, :, :1]), source, groups, weights.double())
    torch.testing.assert_close(sizes, expected[..., 0].float())
    turned, _ = group_sums(states, source, groups, transposed=True)
    torch.testing.assert_close(turned.mT, plain(states, source, groups, torch.ones_like(weights).double()).to(dtype))


@TYPES
def test_own_rows_come_whole(dtype: torch.dtype) -> None:
    states = torch.randn(2, 70, 20).to(dtype).to(DEVICE)
    source = torch.randint(1, 6, (2, 70), device=DEVICE)
    own = states[:, ::14]
    found = add_group_means(states, source, own)
    assert torch.equal(found[:, 0], own[:, 0])  # no token went there
    sums = plain(states, source, 5, torch.ones(2, 70, device=DEVICE).double())
    sizes = (source.unsqueeze(-1) == torch.arange(5, device=DEVICE)).sum(1).clamp_min(1)
    torch.testing.assert_close(found, (own.double() + sums / sizes.unsqueeze(-1)).to(dtype))


def test_a_broken_token_does_not_spread() -> None:
    states = torch.randn(2, 20, 8, device=DEVICE)
    states[1, 3], states[1, 4] = torch.inf, torch.nan
    source = torch.randint(0, 6, (2, 20), device=DEVICE)
    source[1, 3] = source[1, 4] = 5
    found, _ = group_sums(states, source, 6)
    assert bool((~found.isfinite().all(-1)).sum() == 1)


def test_batch_mates_do_not_matter() -> None:
    states, source = torch.randn(3, 130, 40, device=DEVICE).bfloat16(), torch.randint(0, 9, (3, 130), device=DEVICE)
    together, _ = group_sums(states, source, 9)
    assert torch.equal(group_sums(states[2:], source[2:], 9)[0][0], together[2])


@settings(max_examples=8)
@given(st.integers(1, 70), st.integers(1, 20), st.integers(1, 9))
def test_whole_numbers_are_exact(tokens: int, groups: int, dim: int) -> None:
    states = torch.randint(-8, 9, (1, tokens, dim)).to(DEVICE)
    source = torch.randint(0, groups, (1, tokens)).to(DEVICE)
    found, _ = group_sums(states.float(), source, groups)
    assert torch.equal(found.double(), plain(states, source, groups, torch.ones(1, tokens, device=DEVICE).double()))


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "targets"), [(2, 1), (37, 9), (64, 63)])
def test_operations_agree(tokens: int, targets: int, dtype: torch.dtype) -> None:
    features, metric = torch.randn(2, tokens, 16).to(dtype).to(DEVICE), torch.randn(2, tokens, 8).to(DEVICE)
    kept = torch.stack([torch.randperm(tokens)[:targets] for _ in range(2)]).to(DEVICE)
    dropped = torch.ones(2, tokens, device=DEVICE).scatter(1, kept, 0).sort(descending=True).indices
    dropped = dropped[:, : tokens - targets]
    # Whole-numbered cosines: float32 and float64 agree on who is nearest.
    wide = torch.randint(0, 2, (2, tokens, 8)).to(dtype).to(DEVICE)
    found = [*merge_into_targets(features, metric, targets), *absorb(wide, kept, dropped)]
    found.append(group_means(features, kept.new_zeros(2, tokens), 1)[0])
    with pytest.MonkeyPatch.context() as patch:
        for module in (merge_module, absorb_module):
            patch.setattr(module, "use_kernels", lambda tensor: False)
        expected = [*merge_into_targets(features, metric, targets), *absorb(wide, kept, dropped)]
        expected.append(group_means(features, kept.new_zeros(2, tokens), 1)[0])
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("forced")
def test_gradients_pass_by_the_kernel() -> None:
    states = torch.randn(1, 4, 2, device=DEVICE).requires_grad_()
    means, _ = group_means(states, torch.tensor([[0, 0, 1, 1]], device=DEVICE), 2)
    means.sum().backward()
    assert states.grad is not None
    assert states.grad.unique().tolist() == [0.5]


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "targets"), [(576, 64), (2880, 320), (16000, 1000)])
def test_on_a_device(tokens: int, targets: int) -> None:
    features = torch.randn(2, tokens, 4096 if tokens < 9000 else 64, device="cuda").bfloat16()
    metric = torch.randn(2, tokens, 64, device="cuda")
    found, chosen, assigned = merge_into_targets(features, metric, targets)
    with without_kernels():
        expected = merge_into_targets(features, metric, targets)
    torch.testing.assert_close(found, expected[0])
    assert torch.equal(chosen, expected[1])
    assert torch.equal(assigned, expected[2])
