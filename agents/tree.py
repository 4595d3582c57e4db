"""Times of evaluations that fork: the same for all samples up to a look, then one of several ways to go on.

Of K evaluations, all samples share the first j = K − ``left``. What the j-th one shows decides whether a
sample gets K − w, …, K or K + w of them: a branch each, which spaces what is left anew. With u = k/K from the
start (0) to the end (1) and half log-SNR λ likewise, the gap of λ that follows the k-th evaluation is

    ∝ exp(c((k + ½)/K) + d),

c being a curve that all numbers of evaluations share and d a number of each gap's own. Branches divide what
lies beyond the fork in the same way. Behind the last evaluation a gap is left out.

Shapes: B = 2w + 1 branches, fewest evaluations first.
"""

from __future__ import annotations

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
    """

    def __init__(self, least: int, most: int, left: int, width: int) -> None:
        super().__init__()
        self.least, self.most, self.left, self.width = least, most, left, width
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

    def forward(self, count: int) -> list[Tensor]:
        """λ of every branch's evaluations, 0 at the first; float64, differentiable."""
        j, row = self.fork(count), count - self.least
        u = (torch.arange(count) + 0.5) / count
        own = torch.cat((self.prefix[row, : j - 1], self.branch[row, self.width, : self.left + 1]))
        before = _shares(self._gaps(u, own))[: j - 1]
        start = torch.cat((before.new_zeros(1), before.cumsum(0)))
        found = []
        for b in range(2 * self.width + 1):
            more = self.left + b - self.width
            u = (j - 1 + (count - j + 1) * (torch.arange(more + 1) + 0.5) / (more + 1)) / count
            gaps = _shares(self._gaps(u, self.branch[row, b, : more + 1])) * (1 - start[-1])
            found.append(torch.cat((start, start[-1] + gaps.cumsum(0)[:-1])))
        return found

    @torch.no_grad()
    def on_one_grid(self) -> tuple[Tensor, Tensor]:
        """All plans on one grid from λ = 0 to 1: its points, (N,), and each plan's on it, (C, B, L).

        C are the numbers of evaluations, L those of the longest plan; N where a plan has ended.
        """
        plans = [self(count) for count in range(self.least, self.most + 1)]
        steps = torch.cat([torch.tensor([0.0, 1.0]).double(), *(lam for found in plans for lam in found)])
        points = (steps / _APART).round().long().unique()
        table = torch.full((len(plans), 2 * self.width + 1, self.most + self.width), len(points))
        for row, branches in enumerate(plans):
            for b, lam in enumerate(branches):
                table[row, b, : len(lam)] = torch.searchsorted(points, (lam / _APART).round().long())
        return points.double() * _APART, table


def _shares(gaps: Tensor) -> Tensor:
    """Shares of the whole, none of them next to nothing."""
    gaps = gaps.double()
    shares = gaps / gaps.sum()
    return shares * (1 - _CLOSEST * len(gaps)) + _CLOSEST
