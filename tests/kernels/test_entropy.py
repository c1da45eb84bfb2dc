"""Matrix entropies by kernels are those of the eigenvalues, within what their Gram matrices are rounded to."""

from __future__ import annotations

import pytest
import torch

from vtprune.kernels import without_kernels
from vtprune.kernels.entropy import MOST_HEADS, centred_gram, spectral_entropy
from vtprune.ops import entropy as entropy_module
from vtprune.ops.entropy import _centred_gram, matrix_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation takes its kernels on the CPU too, where the interpreter runs them."""
    monkeypatch.setattr(entropy_module, "use_kernels", lambda tensor: True)


def queries_of(batch: int, heads: int, tokens: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """States as a projection leaves them: token by token in memory; each token has a scale and a rank of its own."""
    mixture = torch.randn(batch, tokens, heads, 3) @ torch.randn(batch, tokens, 3, channels)
    noise = torch.rand(batch, tokens, 1, 1) * torch.randn(batch, tokens, heads, channels)
    states = (mixture + 3 * noise) * (torch.rand(batch, tokens, 1, 1) + 0.1)
    return states.to(dtype).to(DEVICE).transpose(1, 2)


def traces_of(states: torch.Tensor, group: int) -> torch.Tensor:
    return _centred_gram(states, group).diagonal(dim1=-2, dim2=-1).sum(-1)


def tolerance_of(states: torch.Tensor, group: int, normalize_trace: bool) -> torch.Tensor:
    """How far from the eigenvalues' an entropy may lie, `(batch, tokens)`."""
    trace = traces_of(states, group)
    # Half precision comes with float32 sums; the clamp at 1e-10 of the torch code is part of the second number.
    relative, absolute = (1e-8, 1e-7) if states.dtype == torch.float32 else (1e-5, 1e-7)
    return (
        relative * (torch.ones_like(trace) if normalize_trace else trace + torch.xlogy(trace, trace).abs()) + absolute
    )


def assert_same(states: torch.Tensor, found: torch.Tensor, group: int, normalize_trace: bool) -> None:
    """Equal values, and an equal order of all that lie farther apart than that."""
    with without_kernels():
        expected = matrix_entropy(states, group=group, normalize_trace=normalize_trace)
    tolerance = tolerance_of(states, group, normalize_trace)
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    assert bool(((found - expected).abs() <= tolerance).all())
    order = found.argsort(dim=-1, descending=True)
    ranked, slack = expected.gather(-1, order), tolerance.gather(-1, order)
    best_behind = ranked.flip(-1).cummax(dim=-1).values.flip(-1)
    assert bool((best_behind - ranked <= slack + tolerance.max()).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("normalize_trace", [False, True])
@pytest.mark.parametrize(("heads", "channels"), [(2, 12), (5, 40), (9, 6)])
def test_equals_the_eigenvalues(
    heads: int, channels: int, normalize_trace: bool, group: int, dtype: torch.dtype
) -> None:
    states = queries_of(2, heads, 2, channels, dtype)
    gram = centred_gram(states, group) if dtype != torch.float32 else _centred_gram(states, group)
    assert_same(states, spectral_entropy(gram, unit_trace=normalize_trace), group, normalize_trace)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("group", "channels"), [(1, 7), (3, 210), (4, 64)])
def test_gram_matrices(group: int, channels: int, dtype: torch.dtype) -> None:
    states = queries_of(2, 5, 3, channels, dtype)
    found, expected = centred_gram(states, group), _centred_gram(states, group)
    assert found.dtype == torch.float32
    assert float(((found - expected).abs().amax((-2, -1)) / traces_of(states, group)).max()) < 1e-6


@TYPES
@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("normalize_trace", [False, True])
def test_order_of_many_tokens(normalize_trace: bool, dtype: torch.dtype) -> None:
    states = queries_of(1, 3, 8, 8, dtype)
    assert_same(states, matrix_entropy(states, normalize_trace=normalize_trace), 1, normalize_trace)


@pytest.mark.parametrize(
    "spectrum",
    [[1.0], [0.5, 0.5], [1.0, 0.0, 0.0], [0.7, 0.3 - 1e-9, 1e-9, 1e-14, 0.0, 0.0], [300.0, 20.0, 1e-3], [1e-20, 3e-20]],
    ids=str,
)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("unit_trace", [False, True])
def test_known_eigenvalues(spectrum: list[float], turned: bool, unit_trace: bool) -> None:
    count = len(spectrum)
    values = torch.tensor(spectrum, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(count, count, dtype=torch.float64)).Q if turned else torch.eye(count).double()
    gram = (axes * values) @ axes.T
    found = spectral_entropy(gram.to(DEVICE)[None], unit_trace=unit_trace)
    trace = values.sum()
    shares = values / trace if unit_trace else values
    expected = -torch.xlogy(shares, shares).sum() / torch.tensor(max(count, 2)).double().log()
    torch.testing.assert_close(
        found.cpu(),
        expected[None],
        rtol=0,
        atol=1e-9 * float(1 if unit_trace else trace + torch.xlogy(trace, trace).abs()),
    )


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("normalize_trace", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
@TYPES
def test_equal_heads_have_no_entropy(dtype: torch.dtype, heads: int, normalize_trace: bool) -> None:
    states = torch.randn(1, 1, 2, 20).expand(1, heads, 2, 20).to(dtype).to(DEVICE)
    assert not matrix_entropy(states, normalize_trace=normalize_trace).any()


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("normalize_trace", [False, True])
@TYPES
def test_layout_and_batch_mates_do_not_matter(dtype: torch.dtype, normalize_trace: bool) -> None:
    states = queries_of(2, 4, 2, 40, dtype)
    together = matrix_entropy(states, group=2, normalize_trace=normalize_trace)
    alone = matrix_entropy(states[1:2, :, 1:].contiguous(), group=2, normalize_trace=normalize_trace)
    assert torch.equal(together[1:2, 1:], alone)


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("normalize_trace", [False, True])
def test_what_is_no_number_stays_so(normalize_trace: bool) -> None:
    states = queries_of(1, 3, 3, 8, torch.bfloat16)
    states[0, 1, 1, 4] = torch.nan
    entropy = matrix_entropy(states, normalize_trace=normalize_trace)
    assert entropy.isnan().tolist() == [[False, True, False]]


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("shape", [(0, 3, 4, 8), (2, 3, 0, 8)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    assert matrix_entropy(torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE)).shape == (shape[0], shape[2])


@pytest.mark.usefixtures("forced")
def test_more_heads_than_a_program_holds() -> None:
    states = queries_of(1, MOST_HEADS + 1, 2, 8, torch.float32)
    assert_same(states, matrix_entropy(states), 1, False)


@pytest.mark.gpu
@TYPES
@pytest.mark.parametrize("normalize_trace", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "channels", "group"),
    [
        (8, 32, 576, 128, 1),
        (1, 32, 2880, 128, 1),
        (2, 32, 300, 256, 2),
        (2, 1, 63, 64, 1),
        (2, 14, 63, 64, 1),
        (1, 64, 200, 128, 1),
        (1, MOST_HEADS, 64, 48, 1),
    ],
)
def test_on_a_device(
    batch: int, heads: int, tokens: int, channels: int, group: int, normalize_trace: bool, dtype: torch.dtype
) -> None:
    states = queries_of(batch, heads, tokens, channels, dtype)
    found = matrix_entropy(states, group=group, normalize_trace=normalize_trace)
    assert_same(states, found, group, normalize_trace)
    alone = matrix_entropy(states[-1:, :, -10:].contiguous(), group=group, normalize_trace=normalize_trace)
    assert torch.equal(found[-1:, -10:], alone)
