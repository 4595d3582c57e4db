"""What one look at a sample decides: which of several branches it takes, at a given mean cost.

A network says what each branch is worth to the sample, (R, B); an evaluation's price m is taken off for each
that the branch makes. Whoever wants a mean of K moves m until the samples' branches average to it: Everett's
multiplier, so a sample gets more than others exactly where more is worth more.

Shapes: R samples; D entries of what is shown; B branches; C numbers of evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.actor import make_network

_UNHEARD_OF = 5.0  # deviations: nothing is told to be farther from what is usual
_LEAST_DEVIATION = 1e-4  # what differs by less between samples is not blown up further
_HALVINGS = 40
_HIGHEST = 100.0  # |m|
_SAFE = 1e-6  # above the price at which somebody changes branch: rounding changes nobody's
OFFSETS = torch.arange(-5, 6, dtype=torch.float64) / 10
"""By how much a budget may differ from the number K that is planned: for these, prices are kept."""


class Gate(nn.Module):
    """Says which branch suits what a sample shows.

    Args:
        counts: C.
        entries: D.
        more: By how many evaluations each branch departs from K; the first that does not is the plan.
    """

    def __init__(self, counts: int, entries: int, more: Sequence[int]) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.prices: Tensor
        self.more: Tensor
        self.actor = make_network(entries + 1, len(more), 0.01)
        last = self.actor[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():  # nobody leaves the plan before something was learned
            last.bias[list(more).index(0)] = 1.0
        self.register_buffer("mean", torch.zeros(counts, entries))
        self.register_buffer("deviation", torch.ones(counts, entries))
        self.register_buffer("prices", torch.zeros(counts, len(OFFSETS), dtype=torch.float64))
        self.register_buffer("more", torch.tensor(more).double(), persistent=False)

    def usual(self, row: int, entries: Tensor) -> None:
        """Remember what samples show, (R, D), at the fork of the ``row``-th number of evaluations."""
        deviation, self.mean[row] = torch.std_mean(entries, 0, correction=0)
        self.deviation[row] = deviation.clamp(min=_LEAST_DEVIATION)

    def forward(self, row: Tensor, entries: Tensor) -> Tensor:
        """What each branch is worth, (R, B), to samples that show ``entries`` (R, D) at the fork.

        ``row`` (R,): which number of evaluations is planned, from 0.
        """
        told = ((entries - self.mean[row]) / self.deviation[row]).clamp(-_UNHEARD_OF, _UNHEARD_OF)
        where = (row / max(len(self.mean) - 1, 1)).to(told.dtype).unsqueeze(1)
        found: Tensor = self.actor(torch.cat((told, where), 1))
        return found

    def chances(self, worth: Tensor, price: float) -> Tensor:
        """(R, B) with which branches are taken while learning, at m = ``price``."""
        return torch.softmax(worth.double() - price * self.more, 1)

    def climb(self, worth: Tensor, gain: Tensor) -> Tensor:
        """What to climb so that Σ π·gain of (R, B) grows while samples spend K on average, as they do.

        The price that keeps the mean moves with whatever is learned: the slope is that of gains less the
        shadow price μ = E Cov_π(gain, K_b) / E Var_π(K_b) of evaluations (the implicit function theorem).
        """
        chances = self.chances(worth, self.price(worth.detach(), 0.0, chance=True))
        with torch.no_grad():
            off = self.more - (chances @ self.more).unsqueeze(1)
            spread = (chances * off**2).sum(1).mean()
            shadow = (chances * off * gain).sum(1).mean() / spread.clamp(min=1e-9)
        return (chances * (gain - shadow * self.more)).sum(1).mean()

    def branches(self, worth: Tensor, price: Tensor) -> Tensor:
        """The branches of most worth, (R,), at prices m (R,) or ()."""
        return (worth.double() - price.reshape(-1, 1) * self.more).argmax(1)

    @torch.no_grad()
    def price(self, worth: Tensor, extra: float, *, chance: bool) -> float:
        """The m at which samples of this worth (R, B) take ``extra`` evaluations over K on average, at most.

        ``chance``: they draw from :meth:`chances`; else they take the best branch.
        """

        def spent(price: float) -> float:
            if chance:
                return float((self.chances(worth, price) @ self.more).mean())
            return float(self.more[self.branches(worth, torch.tensor(price))].mean())

        low, high = -_HIGHEST, _HIGHEST
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if spent(middle) > extra else (low, middle)
        return high + _SAFE

    @torch.no_grad()
    def settle(self, row: int, entries: Tensor) -> None:
        """Find the prices of all :data:`OFFSETS` for what samples show, (R, D), at the fork of ``row``."""
        rows = torch.full((len(entries),), row, device=entries.device)
        worth = self(rows, entries)
        found = [self.price(worth, offset, chance=False) for offset in OFFSETS.tolist()]
        self.prices[row] = torch.tensor(found, dtype=torch.float64)

    def price_of(self, row: Tensor, offset: Tensor) -> Tensor:
        """m, (R,), of budgets K + ``offset``: linear between the prices that were found."""
        at = (offset.clamp(-0.5, 0.5) + 0.5) * (len(OFFSETS) - 1)
        low = at.floor().long().clamp(0, len(OFFSETS) - 2)
        share = at - low
        return (1 - share) * self.prices[row, low] + share * self.prices[row, low + 1]


__all__ = ["OFFSETS", "Gate"]
