"""Stochastic skipping by timestep: the probability of skipping follows a curve over the grid.

The curves are those of the StepDrop proposal; u runs from 0 (noise) to 1 (image). Their height is settled by
the budget: p_skip(u) = min(1, c·curve(u)), with c such that the mean evaluations are the budget. Where a
curve is 0 the point is protected; budgets that do not pay for the protected points thin them evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from agents.base import Agent, Budget
from agents.bisection import bisect

_LOWEST, _HIGHEST = 1e-9, 1e6  # of c: nothing is skipped, whatever is not protected is
_HALVINGS = 80


class SkipCurve:
    """Evaluates a grid point u with probability ``rate(u)``, looking at nothing else.

    Args:
        name: How tables call it.
        rates: (N,) probabilities of evaluating the points of the decision grid.
    """

    observes = True  # of the observation only its first entry: where on the grid

    def __init__(self, name: str, rates: Tensor) -> None:
        self.name = name
        self.rates = rates.double()
        self.times: Tensor | None = None
        self.orders: Tensor | None = None  # of the jumps to its points, where it takes another agent's

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,)."""
        point = (observation[:, 0] * (len(self.rates) - 1)).round().long()
        return self.rates.to(observation.device)[point].to(observation.dtype)


def linear(u: Tensor) -> Tensor:
    """4u(1 − u): a parabola, so called in the proposal."""
    return 4 * u * (1 - u)


def cosine2(u: Tensor) -> Tensor:
    """sin²(πu)."""
    return torch.sin(math.pi * u) ** 2


def quadratic(u: Tensor) -> Tensor:
    """16u²(1 − u)²."""
    return 16 * u**2 * (1 - u) ** 2


def early(u: Tensor) -> Tensor:
    """1 − u: skips while there is noise."""
    return 1 - u


def late(u: Tensor) -> Tensor:
    """Skips near the image: u."""
    return u


def critical_preserve(u: Tensor) -> Tensor:
    """1 outside [0.3, 0.7], which is protected."""
    return ((u < 0.3) | (u > 0.7)).to(u.dtype)


def aggressive_middle(u: Tensor) -> Tensor:
    """1 inside [0.3, 0.7], a third outside."""
    return torch.where((u >= 0.3) & (u <= 0.7), 1.0, 1 / 3).to(u.dtype)


def fitted(name: str, curve: Callable[[Tensor], Tensor], budget: Budget) -> SkipCurve:
    """The curve at the height that spends the budget; both ends of the grid are protected."""
    u = torch.linspace(0, 1, budget.num_decisions, dtype=torch.float64)
    shape = curve(u)
    shape[[0, -1]] = 0.0
    wanted = budget.nfe

    def rates(height: float) -> Tensor:
        return 1 - (height * shape).clamp(max=1)

    ends = math.log(_LOWEST), math.log(_HIGHEST)
    found = rates(
        math.exp(bisect(lambda log: float(rates(math.exp(log)).sum()) > wanted, *ends, _HALVINGS)[1])
    )
    others = float(found[1:].sum())
    if others > wanted - 1 and others > 0:
        found[1:] *= max(wanted - 1, 0.0) / others
    return SkipCurve(name, found)


def _factory(name: str, curve: Callable[[Tensor], Tensor]) -> Callable[[Budget], Agent]:
    def make(budget: Budget) -> Agent:
        return fitted(name, curve, budget)

    make.__doc__ = f"Skip with probability ∝ {(curve.__doc__ or '').rstrip('.')}; the ends are protected."
    return make


skip_linear = _factory("skip_linear", linear)
skip_cosine2 = _factory("skip_cosine2", cosine2)
skip_quadratic = _factory("skip_quadratic", quadratic)
skip_early = _factory("skip_early", early)
skip_late = _factory("skip_late", late)
skip_critical = _factory("skip_critical", critical_preserve)
skip_middle = _factory("skip_middle", aggressive_middle)
