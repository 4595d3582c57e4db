"""Plans that are learned: one for each number of evaluations, with branches that get fewer or more of them.

With u = k/K from the start (0) to the end (1) and half log-SNR λ likewise, the gap of λ that follows the k-th
of K evaluations is

    ∝ exp(c((k + ½)/K) + d),

c being a curve that all numbers of evaluations share and d a number of each gap's own. Branches of K − w, …,
K + w evaluations divide what lies beyond the fork in the same way. Behind the last evaluation a gap is left
out. Other branches cost what the plan costs and differ in where they go on: the gap that follows the look is
``e^s`` times the plan's, and the rest of its gaps share what that leaves.

Shapes: B = 2w + 1 branches, fewest evaluations first, and one for each stretch s; branch w is the plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.plans import Plans, shares

KNOTS = 9  # of the curve, even in u


class Tree(Plans):
    """Where evaluations lie, for ``least`` to ``most`` of them; even in λ until something is learned.

    Args:
        least: The smallest K.
        most: The greatest.
        left: Evaluations that K leaves after the fork, as many as ``width`` at least.
        width: w, by how many a branch may depart from K.
        stretches: s of the branches that go on sooner (below 0) or later than the plan.
    """

    def __init__(self, least: int, most: int, left: int, width: int, stretches: Sequence[float] = ()) -> None:
        counts = list(range(least, most + 1))
        more = [*range(-width, width + 1), *(0 for _ in stretches)]
        super().__init__(counts, counts, torch.eye(len(counts)).double(), more, left)
        self.width, self.stretches = width, tuple(stretches)
        self.curve = nn.Parameter(torch.zeros(KNOTS))
        self.prefix = nn.Parameter(torch.zeros(len(counts), max(most - left, 1)))
        self.branch = nn.Parameter(torch.zeros(len(counts), 2 * width + 1, left + width + 1))

    def _gaps(self, u: Tensor, own: Tensor) -> Tensor:
        """exp(c(u) + d)."""
        at = u * (KNOTS - 1)
        low = at.floor().long().clamp(0, KNOTS - 2)
        share = at - low
        return torch.exp((1 - share) * self.curve[low] + share * self.curve[low + 1] + own)

    def lams(self, row: int, *, stretched: bool = True) -> list[Tensor]:
        """λ of every branch's evaluations."""
        count, j = self.counts[row], self.fork(row)
        u = (torch.arange(count) + 0.5) / count
        own = torch.cat((self.prefix[row, : j - 1], self.branch[row, self.width, : self.left + 1]))
        before = shares(self._gaps(u, own))[: j - 1]
        start = torch.cat((before.new_zeros(1), before.cumsum(0)))
        ways = []
        for b, more in enumerate(self.more[: 2 * self.width + 1]):
            size = self.left + more + 1
            u = (j - 1 + (count - j + 1) * (torch.arange(size) + 0.5) / size) / count
            ways.append(self._gaps(u, self.branch[row, b, :size]))
        plan = ways[self.width]
        if stretched:
            ways += [torch.cat((plan[:1] * math.exp(s), plan[1:])) for s in self.stretches]
        gaps = [shares(way) * (1 - start[-1]) for way in ways]
        return [torch.cat((start, start[-1] + gap.cumsum(0)[:-1])) for gap in gaps]
