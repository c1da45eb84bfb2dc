"""Matrix entropy of each token's states across attention heads."""

from __future__ import annotations

import math

import torch

from vtprune.kernels import use_kernels

# Trapezoidal quadrature over u = ln t. The step leaves an error of exp(-2 pi^2 / step) = 2e-11, cutting off the left
# end exp(start) = 7e-13 for each eigenvalue, and the right end exp(-stop) = 4e-11; all relative to the trace.
_START, _STOP, _STEP = -28.0, 24.0, 0.8
_ELEMENTS_PER_PASS = 1 << 25


@torch.no_grad()
def matrix_entropy(states: torch.Tensor, *, group: int = 1, normalize_trace: bool = False) -> torch.Tensor:
    """Entropy `-sum(lambda ln lambda) / ln(heads)` of the covariance of each token's heads x channels matrix.

    EntropyPrune (arXiv 2602.17196): the matrix is centred over heads, and the eigenvalues come from its small
    `heads x heads` Gram matrix, which has the non-zero spectrum of the covariance. All in float64.

    Differs from the paper's code: with a single head, where it divides by `ln 1`, the entropy is 0; centring is in
    float64 too; on CUDA the sum over eigenvalues is taken from resolvents, to about 1e-9 of the trace, because an
    eigenvalue solver makes the host wait; there the code's clamp at 1e-10 is left out, which is below 1e-7. The kernel
    sums up the products of half-precision states in float32, to about 1e-6 of the trace.

    Args:
        states: `(batch, heads, tokens, channels)`.
        group: Neighbouring channels averaged into one.
        normalize_trace: Divide the Gram matrix by its trace, as a density matrix is. The paper's code does not, so
            that its ranking depends on the scale of the states.

    Returns:
        `(batch, tokens)` float64.

    Raises:
        ValueError: `group` does not divide the channels.

    Example:
        >>> states = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).view(1, 2, 1, 2)
        >>> matrix_entropy(states, normalize_trace=True).abs().item() < 1e-6
        True
    """
    heads, channels = states.shape[1], states.shape[3]
    if group < 1 or channels % group:
        raise ValueError(f"group must divide the {channels} channels of a head, got {group}")
    if use_kernels(states):
        from vtprune.kernels import entropy as kernels

        if heads <= kernels.MOST_HEADS:
            half = states.dtype in (torch.bfloat16, torch.float16)
            gram = kernels.centred_gram(states, group) if half else _centred_gram(states, group)
            return kernels.spectral_entropy(gram, unit_trace=normalize_trace)
    gram = _centred_gram(states, group)
    if normalize_trace:
        gram = gram / _trace(gram).clamp_min(torch.finfo(gram.dtype).tiny)[..., None, None]
    total = _sum_from_resolvents(gram) if gram.is_cuda else _sum_from_eigenvalues(gram)
    return -total / math.log(max(heads, 2))


def _centred_gram(states: torch.Tensor, group: int) -> torch.Tensor:
    """Gram matrices over heads of each token's centred matrix, over the heads, `(batch, tokens, heads, heads)`."""
    rows = states.double().unflatten(-1, (-1, group)).mean(-1).transpose(1, 2)
    rows = rows - rows.mean(dim=2, keepdim=True)
    gram: torch.Tensor = rows @ rows.mT / states.shape[1]
    return gram


def _trace(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def _sum_from_eigenvalues(gram: torch.Tensor) -> torch.Tensor:
    """Sum of `x ln x` over the eigenvalues of `(..., n, n)` matrices, clamped at 1e-10 as in the paper's code."""
    eigenvalues: torch.Tensor = torch.linalg.eigvalsh(gram).clamp_min(1e-10)
    return torch.xlogy(eigenvalues, eigenvalues).sum(-1)


def _sum_from_resolvents(gram: torch.Tensor) -> torch.Tensor:
    """The same sum without eigenvalues, by quadrature of `x ln x = integral of x (x - 1) / ((1 + t)(x + t)) dt`.

    With `t = exp(u)` the integrand decays like `exp(-|u|)` at both ends for every `x` in [0, 1], to which the trace
    scales the eigenvalues; its trace over all of them needs one inverse of `gram + t` a node.
    """
    scale = _trace(gram).clamp_min(1e-10)
    scaled = gram / scale[..., None, None]
    numerator = scaled @ scaled - scaled
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    nodes = torch.arange(_START, _STOP, _STEP, dtype=gram.dtype, device=gram.device).exp()
    total = torch.zeros_like(scale)
    for chunk in nodes.split(max(1, _ELEMENTS_PER_PASS // max(1, gram.numel()))):
        node = chunk.view(-1, *[1] * gram.dim())
        resolvent = torch.linalg.inv_ex(scaled + node * identity, check_errors=False).inverse
        weight = _STEP * node[..., 0, 0] / (1 + node[..., 0, 0])
        total = total + (weight * (resolvent * numerator).sum((-2, -1))).sum(0)
    return scale * total + scale * scale.log() * _trace(scaled)
