"""Integrals of exponentials times powers, which exponential integrators are made of.

    M_k(h) = ∫₀ʰ e^{−u}·u^k du,        N_k(h) = ∫₀ʰ e^{−(h−u)}·u^k du.

Closed forms lose all digits for short jumps, where the series is exact. Shapes: everything (B,) float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SHORT = 0.3  # below it the series of 12 terms errs by less than 1e-16 of the leading one
_TERMS = 12


def decaying(h: Tensor, k: int) -> Tensor:
    """M_k(h) for h >= 0, k = 0 … 3."""
    short = h.clamp(max=_SHORT)
    series = torch.zeros_like(h)
    for j in reversed(range(_TERMS)):
        series = series + (-1) ** j * short**j / (math.factorial(j) * (k + 1 + j))
    series = short ** (k + 1) * series
    # M_k = k! (1 − e^{−h} Σ_{j<=k} h^j/j!)
    partial = torch.stack([h**j / math.factorial(j) for j in range(k + 1)]).sum(0)
    closed = math.factorial(k) * (1 - torch.exp(-h) * partial)
    return torch.where(h < _SHORT, series, closed)


def growing(h: Tensor, k: int) -> Tensor:
    """N_k(h) for h >= 0, k = 0 … 3: N_k = h^k − k·N_{k−1}, N_0 = M_0."""
    short = h.clamp(max=_SHORT)
    # N_k = k!·Σ_{j>k} (−1)^{j−k−1} h^j/j!
    series = torch.zeros_like(h)
    for j in reversed(range(k + 1, k + 1 + _TERMS)):
        series = series + (-1) ** (j - k - 1) * short**j * (math.factorial(k) / math.factorial(j))
    closed = -torch.expm1(-h)
    for i in range(1, k + 1):
        closed = h**i - i * closed
    return torch.where(h < _SHORT, series, closed)


def lagrange_in_powers(nodes: list[Tensor]) -> list[list[Tensor]]:
    """Coefficients of the Lagrange polynomials of ``nodes`` (each (B,)), by rising power of u.

    ``result[j][k]`` is the coefficient of u^k in ℓ_j, for up to three nodes.
    """
    one = torch.ones_like(nodes[0])
    found = []
    for j, own in enumerate(nodes):
        others = [node for i, node in enumerate(nodes) if i != j]
        powers = [one]
        for node in others:  # times (u − node)/(own − node)
            scale = 1 / (own - node)
            shifted = [torch.zeros_like(one), *powers]
            lowered = [*(node * p for p in powers), torch.zeros_like(one)]
            powers = [(a - b) * scale for a, b in zip(shifted, lowered, strict=True)]
        found.append(powers)
    return found
