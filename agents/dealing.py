"""Which plan a sample begins, by chance: a mixture of plans that is learned, though nobody has looked yet.

At a budget of K evaluations plans are dealt with chances w, and what is drawn changes smoothly with them. A
plan of K_p evaluations is worth v_p, what one more of its samples would do for the set (the first variation
at w), and

    w_p ← w_p·exp(η·v_p − m·K_p), normalised,

with the least m ≥ 0 at which samples spend K on average, climbs it (exponentiated gradients: Kivinen and
Warmuth 1997) until all plans in use are worth the same, but for a price of evaluations.
Shapes: C budgets; P plans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 0.02  # chance of a plan that is worth keeping
_FLOOR = 1e-9  # chance: none is lost for good while it is learned
_ROUNDING = 1e-9  # of evaluations
_HIGHEST = 100.0  # m
_HALVINGS = 60


class Dealing:
    """Chances of plans at every budget, that spend it at most.

    Args:
        weights: (C, P) to begin with; a plan of chance 0 does not belong to the budget.
        sizes: K_p of each plan, (P,).
        counts: K of the budgets, (C,).
    """

    def __init__(self, weights: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> None:
        self.weights = weights.double().clone()
        self._sizes = torch.tensor(sizes, dtype=torch.float64)
        self._counts = list(counts)

    def members(self, budget: int) -> list[int]:
        """The plans that a budget may deal."""
        return [int(plan) for plan in self.weights[budget].nonzero().flatten()]

    def climb(self, budget: int, worth: Tensor, rate: float) -> None:
        """Deal plans of more ``worth`` v (members,) more often; ``rate`` is η."""
        members = self.members(budget)
        logits = self.weights[budget, members].log() + rate * worth.double()
        chances = affordable(logits, self._sizes[members], self._counts[budget]).clamp(min=_FLOOR)
        self.weights[budget, members] = chances / chances.sum()

    def kept(self) -> Tensor:
        """Chances (C, P) without plans that are hardly ever dealt."""
        found = torch.zeros_like(self.weights)
        for budget, count in enumerate(self._counts):
            members = self.members(budget)
            often = [plan for plan in members if self.weights[budget, plan] >= _LEAST]
            if min(self._sizes[often], default=count + 1) > count:  # the cheap ones are rare
                often = members
            found[budget, often] = affordable(self.weights[budget, often].log(), self._sizes[often], count)
        return found


def affordable(logits: Tensor, sizes: Tensor, nfe: float) -> Tensor:
    """softmax(logits − m·sizes), (P,), with the least m ≥ 0 at which samples spend ``nfe`` at most.

    One of ``sizes`` must be ``nfe`` or fewer, or the mean stays above it.
    """
    low, high = 0.0, _HIGHEST

    def at(m: float) -> Tensor:
        return torch.softmax(logits - m * sizes, 0)

    if float(at(low) @ sizes) <= nfe + _ROUNDING:
        return at(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle) @ sizes) > nfe else (low, middle)
    return at(high)
