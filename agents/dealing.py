"""Which plan a sample begins: by chance, and by what its first evaluation shows, which all plans share.

All plans begin at the same time, so a sample has been evaluated once before they part, and a look at it then
costs nothing. One that shows o at a budget of K evaluations gets plan p with the chance

    π(p | o) ∝ w_p·exp(z_p(o) − m·K_p),

w given and z a network's (of K alone, where nothing is to be seen), which climbs what plans are worth to
samples: what one more of these would do for the set (the first variation at π). K_p are the plan's
evaluations, m ≥ 0 the least price of one at which samples spend K on average, anew from w and z: a price
that was taken off w step by step, or a w that climbs the mean worth of what each plan brings, is fought by z,
for whom a plan suits is not who has it.

Shapes: R samples; D observation entries; C budgets; P plans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.actor import make_network
from agents.bisection import bisect
from agents.gate import told, worth_climbing

_LEAST = 0.02  # chance of a plan that is worth keeping
_ROUNDING = 1e-9  # of evaluations
_SLACK = 0.001  # of a budget, kept back: other samples than these may spend a little more
_HIGHEST = 1e3  # m
_HALVINGS = 50


class Dealing(nn.Module):
    """Chances of plans at every budget, that spend it at most.

    Args:
        weights: w (C, P); a plan of chance 0 does not belong to the budget.
        sizes: K_p of each plan, (P,).
        counts: K of the budgets, (C,).
        entries: D.
    """

    def __init__(self, weights: Tensor, sizes: Sequence[int], counts: Sequence[int], entries: int) -> None:
        super().__init__()
        self.weights: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        self.prices: Tensor
        self.sizes: Tensor
        self.counts = list(counts)
        self.actor = make_network(entries + len(self.counts), len(sizes), 0.0)  # it tells nobody apart yet
        self.register_buffer("weights", weights.double().clone())
        self.register_buffer("mean", torch.zeros(entries))
        self.register_buffer("deviation", torch.ones(entries))
        self.register_buffer("prices", torch.zeros(len(self.counts), dtype=torch.float64), persistent=False)
        self.register_buffer("sizes", torch.tensor(list(sizes), dtype=torch.float64), persistent=False)

    def members(self, budget: int) -> list[int]:
        """The plans that a budget may deal."""
        return [int(plan) for plan in self.weights[budget].nonzero().flatten()]

    def usual(self, entries: Tensor) -> None:
        """Remember what first evaluations show, (R, D)."""
        deviation, self.mean = torch.std_mean(entries, 0, correction=0)
        self.deviation = deviation

    def logits(self, budget: int, entries: Tensor) -> Tensor:
        """log w + z, (R, P), of samples that show ``entries`` (R, D); float64."""
        which = torch.zeros(len(entries), len(self.counts), device=entries.device)
        which[:, budget] = 1.0
        seen = told(entries, self.mean, self.deviation)
        z: Tensor = self.actor(torch.cat((seen, which), 1))
        return self.weights[budget].log() + z.double()

    def chances(self, budget: int, entries: Tensor) -> Tensor:
        """π (R, P), for samples that show ``entries`` (R, D) after their first evaluation."""
        return torch.softmax(self.logits(budget, entries) - self.prices[budget] * self.sizes, 1)

    def climb(self, budget: int, entries: Tensor, worth: Tensor) -> Tensor:
        """What to climb so that the mean of Σ π·worth of (R, P) grows within the budget."""
        cost = self.sizes if self.prices[budget] > 0 else torch.zeros_like(self.sizes)
        return worth_climbing(self.chances(budget, entries), worth, cost, at_most=True).mean()

    @torch.no_grad()
    def afford(self, budget: int, entries: Tensor) -> None:
        """Find the price at which samples that show ``entries`` (R, D) keep the budget."""
        target = max((1 - _SLACK) * self.counts[budget], float(self.sizes[self.members(budget)].min()))
        self.prices[budget] = price_of(self.logits(budget, entries), self.sizes, target)

    @torch.no_grad()
    def settle(self, budget: int, entries: Tensor) -> None:
        """Leave out what samples that show ``entries`` (R, D) are rarely dealt; w pays for it all."""
        self.afford(budget, entries)
        often = self.chances(budget, entries).mean(0) >= _LEAST
        if bool((often & (self.sizes <= self.counts[budget])).any()):  # or the cheap ones are rare
            self.weights[budget] = torch.where(often, self.weights[budget], 0.0)
            self.afford(budget, entries)
        self.weights[budget] = torch.softmax(self.weights[budget].log() - self.prices[budget] * self.sizes, 0)
        self.prices[budget] = 0.0


def price_of(logits: Tensor, sizes: Tensor, nfe: float) -> float:
    """The least m ≥ 0 at which samples dealt by softmax(logits − m·sizes), (R, P), spend ``nfe`` at most.

    One of ``sizes`` (P,) that may be dealt must be ``nfe`` or fewer, or the mean stays above it.
    """

    def spent(m: float) -> float:
        return float((torch.softmax(logits - m * sizes, 1) @ sizes).mean())

    if spent(0.0) <= nfe + _ROUNDING:
        return 0.0
    return bisect(lambda m: spent(m) > nfe, 0.0, _HIGHEST, _HALVINGS)[1]
