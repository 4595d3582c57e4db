"""Optimised time steps (Xue et al. 2024, arXiv 2402.17376): no network is asked.

The data prediction is interpolated in lam; its error at time i is taken to be σ_i^p/α_i, p = 1 for pixels,
and reaches the result with the sum of the Lagrange weights that land on node i. The bound
Σ_i (σ_i/α_i)·|w_i| is made small over the ordered lams between fixed ends. Shapes: K lams.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, minimize

from agents.search.base import Found, Ground

_LEAST_STEP = 1e-3  # between neighbours in lam
_SQUARED = 7  # evaluations up to which the first three weights are summed as squares


def weights(lams: NDArray[np.float64], end: float) -> NDArray[np.float64]:
    """What the result owes the data prediction at each lam, (K,), for jumps lam_0 → … → lam_{K−1} → end.

    Order 1 in the first and the last step, 2 next to them, 3 inside: w_j = Σ over steps of ∫ e^lam ℓ_j dlam.
    """
    count = len(lams)
    found = np.zeros(count)
    targets = np.append(lams[1:], end)
    for i, target in enumerate(targets):
        order = min(i + 1, count - i, 3)
        nodes = lams[i - order + 1 : i + 1]
        h = target - lams[i]
        moments = [np.exp(lams[i]) * m for m in _moments(h, order)]
        for j in range(order):
            others = np.delete(nodes, j) - lams[i]
            powers = np.array([1.0])
            for node in others:
                powers = (np.append(0.0, powers) - node * np.append(powers, 0.0)) / (
                    nodes[j] - lams[i] - node
                )
            found[i - order + 1 + j] += sum(c * m for c, m in zip(powers, moments, strict=True))
    return found


def _moments(h: float, count: int) -> list[float]:
    """∫₀ʰ e^u u^k du for k < count: H_0 = e^h − 1, H_k = e^h·h^k − k·H_{k−1}."""
    found = [math.expm1(h)]
    for k in range(1, count):
        found.append(math.exp(h) * h**k - k * found[-1])
    return found


def bound(lams: NDArray[np.float64], end: float) -> float:
    """Σ_i (σ_i/α_i)·|w_i|; for few evaluations the first three terms enter by the root of their squares."""
    terms = np.exp(-lams) * np.abs(weights(lams, end))
    if len(lams) <= _SQUARED:
        return float(np.sqrt(np.square(terms[:3]).sum()) + terms[3:].sum())
    return float(terms.sum())


def search(nfe: int, ground: Ground, seed: int) -> Found:
    """Return the schedule of ``nfe`` evaluations whose steps lead to the end of the model's grid.

    As many steps as evaluations: the last one starts before the end (where we go on to the clean image).
    """
    del seed
    ends = torch.tensor([ground.t_start, ground.t_end], dtype=torch.float64)
    first, last = ground.scale.lam(ends).tolist()
    even = np.linspace(first, last, nfe + 1)[:-1]

    def whole(inner: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate(([first], inner))

    def found(lams: NDArray[np.float64]) -> Found:
        return Found(ground.scale.time_of(torch.from_numpy(lams)).tolist(), bound(lams, last))

    if nfe == 1:
        return found(even)
    # lam_{i+1} − lam_i of first, inner …, last, as a matrix of the inner ones and a constant.
    differences = np.zeros((nfe, nfe - 1))
    constant = np.zeros(nfe)
    for i in range(nfe - 1):
        differences[i, i], differences[i + 1, i] = 1.0, -1.0
    constant[0], constant[-1] = -first, last
    ordered = LinearConstraint(differences, _LEAST_STEP - constant, np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quasi-Newton updates on a kinked function
        result = minimize(
            lambda inner: bound(whole(inner), last),
            even[1:],
            method="trust-constr",
            constraints=[ordered],
            options={"maxiter": 400},
        )
    return found(whole(result.x))
