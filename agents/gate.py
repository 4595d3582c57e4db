"""What one look at a sample decides: which of several branches it takes, at a given mean cost.

A network says what each branch is worth to the sample, (R, B); an evaluation's price m is taken off for each
that the branch makes. Whoever wants a mean of K moves m until the samples' branches average to it: Everett's
multiplier, so a sample gets more than others exactly where more is worth more.

Shapes: R samples; D entries of what is shown; B branches; P plans; G networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.actor import layers_of, make_network
from agents.bisection import bisect

_UNHEARD_OF = 5.0  # deviations: nothing is told to be farther from what is usual
_LEAST_DEVIATION = 1e-4  # what differs by less between samples is not blown up further
_HALVINGS = 40
_AT_HOME = 0.8  # the chance of the plan before anything was learned, however many options there are
_BARRIER = 0.01  # τ, in what gains are measured in
_HIGHEST = 100.0  # |m|
_SAFE = 1e-6  # above the price at which somebody changes branch: rounding changes nobody's


class Gate(nn.Module):
    """Says which branch suits what a sample shows.

    Args:
        plans: P.
        entries: D.
        more: By how many evaluations each branch departs from K; the first that does not is the plan.
        networks: G, of which each serves P/G plans in a row.
    """

    def __init__(self, plans: int, entries: int, more: Sequence[int], networks: int = 1) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.prices: Tensor
        self.more: Tensor
        self.begun: Tensor
        self.served = plans // networks
        self.actors = nn.ModuleList(
            make_network(entries + self.served, len(more), 0.01) for _ in range(networks)
        )
        others = max(len(more) - 1, 1)
        begun = torch.full((len(more),), (1 - _AT_HOME) / others)
        begun[list(more).index(0)] = _AT_HOME
        self.register_buffer("begun", begun, persistent=False)
        with torch.no_grad():  # few leave the plan before something was learned
            for actor in self.layered:
                layers_of(actor)[-1][1].copy_(self.begun.log())
        self.register_buffer("mean", torch.zeros(plans, entries))
        self.register_buffer("deviation", torch.ones(plans, entries))
        self.register_buffer("prices", torch.zeros(plans, dtype=torch.float64))
        self.register_buffer("more", torch.tensor(more).double(), persistent=False)

    @property
    def layered(self) -> list[nn.Sequential]:
        """Its networks."""
        return [actor for actor in self.actors if isinstance(actor, nn.Sequential)]

    def usual(self, row: int, entries: Tensor) -> None:
        """Remember what samples show, (R, D), at the fork of the ``row``-th plan."""
        self.deviation[row], self.mean[row] = torch.std_mean(entries, 0, correction=0)

    def forward(self, row: Tensor, entries: Tensor) -> Tensor:
        """What each branch of plan ``row`` (R,) is worth, (R, B), to samples that show ``entries`` (R, D)."""
        seen = told(entries, self.mean[row], self.deviation[row])
        which = nn.functional.one_hot(row % self.served, self.served).to(seen.dtype)
        seen = torch.cat((seen, which), 1)
        network = row // self.served
        found = seen.new_empty(len(row), len(self.more))
        for one in network.unique().tolist():
            mine = network == one
            found[mine] = self.actors[one](seen[mine])
        return found

    def chances(self, worth: Tensor, price: float) -> Tensor:
        """(R, B) with which branches are taken while learning, at m = ``price``."""
        return torch.softmax(worth.double() - price * self.more, 1)

    def climb(self, worth: Tensor, gain: Tensor) -> Tensor:
        """What to climb, (R,), so that Σ π·gain of (R, B) grows while samples spend K on average."""
        chances = self.chances(worth, self.price(worth.detach(), chance=True))
        return worth_climbing(chances, gain, self.more) + self.barrier(worth)

    def barrier(self, worth: Tensor) -> Tensor:
        """What keeps some chance for each of the options of this worth (…, A): (…).

        Where all take the same option the slope of gains vanishes, and chances could not follow when gains
        change. That of the log barrier τ Σ u log π does not (Agarwal, Kakade, Lee and Mahajan 2021; theirs
        has the same u for all). With the u that learning began with, options that bring the same keep it.
        """
        found: Tensor = _BARRIER * torch.log_softmax(worth.double(), -1) @ self.begun.double()
        return found

    def branches(self, worth: Tensor, price: Tensor) -> Tensor:
        """The branches of most worth, (R,), at prices m (R,) or ()."""
        return (worth.double() - price.reshape(-1, 1) * self.more).argmax(1)

    @torch.no_grad()
    def price(self, worth: Tensor, *, chance: bool, slack: float = 0.0) -> float:
        """The m at which samples of this worth (R, B) make the plan's evaluations on average, at most.

        ``chance``: they draw from :meth:`chances`; else they take the best branch. ``slack``: evaluations
        that they are to stay below the plan's.
        """
        if not bool(self.more.any()):
            return 0.0  # all branches cost the same

        def spent(price: float) -> float:
            if chance:
                return float((self.chances(worth, price) @ self.more).mean())
            return float(self.more[self.branches(worth, torch.tensor(price))].mean())

        return bisect(lambda m: spent(m) > -slack, -_HIGHEST, _HIGHEST, _HALVINGS)[1] + _SAFE

    @torch.no_grad()
    def settle(self, row: int, entries: Tensor, slack: float = 0.0) -> None:
        """Find the price of the ``row``-th plan for what samples show, (R, D), at its fork."""
        rows = torch.full((len(entries),), row, device=entries.device)
        self.prices[row] = self.price(self(rows, entries), chance=False, slack=slack)


def told(entries: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """What samples show, (R, D), in deviations from what is usual."""
    return ((entries - mean) / deviation.clamp(min=_LEAST_DEVIATION)).clamp(-_UNHEARD_OF, _UNHEARD_OF)


def worth_climbing(chances: Tensor, gain: Tensor, cost: Tensor, *, at_most: bool = False) -> Tensor:
    """Σ π·(gain − μ·cost), (R,), of options taken with ``chances`` π that bring ``gain``, both (R, B).

    A price of evaluations that keeps their mean moves with whatever is learned: the slope is that of gains
    less the shadow price μ = E Cov_π(gain, cost) / E Var_π(cost) (the implicit function theorem). Where the
    mean is a bound, ``at_most``, nothing is lost by spending less: μ ≥ 0.
    """
    with torch.no_grad():
        off = cost - (chances @ cost).unsqueeze(1)
        spread = (chances * off**2).sum(1).mean()
        shadow = (chances * off * gain).sum(1).mean() / spread.clamp(min=1e-9)
        shadow = shadow.clamp(min=0.0) if at_most else shadow
    return (chances * (gain - shadow * cost)).sum(1)
