"""Times of evaluations that fork: the same for all samples up to a look, then one of several ways to go on.

Of K evaluations, all samples share the first j = K − ``left``. What the j-th one shows decides whether a
sample gets K − w, …, K or K + w of them: a branch each, which spaces what is left anew. With u = k/K from the
start (0) to the end (1) and half log-SNR λ likewise, the gap of λ that follows the k-th evaluation is

    ∝ exp(c((k + ½)/K) + d),

c being a curve that all numbers of evaluations share and d a number of each gap's own. Branches divide what
lies beyond the fork in the same way. Behind the last evaluation a gap is left out.

Other branches cost what the plan of K costs and differ in where they go on: the gap that follows the look is
``e^s`` times the plan's, and the rest of its gaps share what that leaves.

Shapes: B = 2w + 1 branches, fewest evaluations first, and one for each stretch s; branch w is the plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

KNOTS = 9  # of the curve, even in u
_CLOSEST = 1e-3  # share of the whole that a gap is at least: no jump so short that rates along it are noise
_APART = 1e-6  # of the whole: points nearer than that are one


class Tree(nn.Module):
    """Where evaluations lie, for ``least`` to ``most`` of them; even in λ until something is learned.

    Args:
        least: The smallest K.
        most: The greatest.
        left: Evaluations that K leaves after the fork, as many as ``width`` at least.
        width: w, by how many a branch may depart from K.
        stretches: s of the branches that go on sooner (below 0) or later than the plan.
    """

    def __init__(self, least: int, most: int, left: int, width: int, stretches: Sequence[float] = ()) -> None:
        super().__init__()
        self.least, self.most, self.left, self.width = least, most, left, width
        self.stretches = tuple(stretches)
        self.more = [*range(-width, width + 1), *(0 for _ in self.stretches)]
        self.curve = nn.Parameter(torch.zeros(KNOTS))
        size = most - least + 1
        self.prefix = nn.Parameter(torch.zeros(size, max(most - left, 1)))
        self.branch = nn.Parameter(torch.zeros(size, 2 * width + 1, left + width + 1))

    def fork(self, count: int) -> int:
        """j: after how many of ``count`` evaluations samples are told apart."""
        return count - self.left

    def _gaps(self, u: Tensor, own: Tensor) -> Tensor:
        """exp(c(u) + d)."""
        at = u * (KNOTS - 1)
        low = at.floor().long().clamp(0, KNOTS - 2)
        share = at - low
        return torch.exp((1 - share) * self.curve[low] + share * self.curve[low + 1] + own)

    def forward(self, count: int, *, stretched: bool = True) -> list[Tensor]:
        """λ of every branch's evaluations, 0 at the first; float64, differentiable.

        ``stretched``: those of the plan's cost, too.
        """
        j, row = self.fork(count), count - self.least
        u = (torch.arange(count) + 0.5) / count
        own = torch.cat((self.prefix[row, : j - 1], self.branch[row, self.width, : self.left + 1]))
        before = _shares(self._gaps(u, own))[: j - 1]
        start = torch.cat((before.new_zeros(1), before.cumsum(0)))
        ways = []
        for b, more in enumerate(self.more[: 2 * self.width + 1]):
            size = self.left + more + 1
            u = (j - 1 + (count - j + 1) * (torch.arange(size) + 0.5) / size) / count
            ways.append(self._gaps(u, self.branch[row, b, :size]))
        plan = ways[self.width]
        if stretched:
            ways += [torch.cat((plan[:1] * math.exp(s), plan[1:])) for s in self.stretches]
        gaps = [_shares(way) * (1 - start[-1]) for way in ways]
        return [torch.cat((start, start[-1] + gap.cumsum(0)[:-1])) for gap in gaps]

    @torch.no_grad()
    def on_one_grid(self) -> tuple[Tensor, Tensor]:
        """All plans on one grid from λ = 0 to 1: its points, (N,), and each plan's on it, (C, B, L).

        C are the numbers of evaluations, L those of the longest plan; N where a plan has ended.
        """
        plans = [self(count) for count in range(self.least, self.most + 1)]
        steps = torch.cat([torch.tensor([0.0, 1.0]).double(), *(lam for found in plans for lam in found)])
        points = (steps / _APART).round().long().unique()
        table = torch.full((len(plans), len(self.more), self.most + self.width), len(points))
        for row, branches in enumerate(plans):
            for b, lam in enumerate(branches):
                table[row, b, : len(lam)] = torch.searchsorted(points, (lam / _APART).round().long())
        return points.double() * _APART, table


def _shares(gaps: Tensor) -> Tensor:
    """Shares of the whole, none of them next to nothing."""
    gaps = gaps.double()
    shares = gaps / gaps.sum()
    return shares * (1 - _CLOSEST * len(gaps)) + _CLOSEST
