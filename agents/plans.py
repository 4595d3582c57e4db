"""Times of evaluations that fork: what all samples of a row share up to a look, and the ways to go on.

A row is a plan: a number of evaluations at times that are the same for all who follow it, up to its fork,
when ``left`` of them are to come. What the last one before the fork shows decides which branches a sample
may still take, what the next one shows which of these. A budget of K evaluations deals rows by chance,
``weights``; where there is one row for each K, as in a :class:`agents.tree.Tree`, nothing is left to chance.

Shapes: C budgets; R rows; A options of a look; B branches; L evaluations of the longest plan; N points of a
grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLOSEST = 1e-3  # share of the whole that a gap is at least: no jump so short that rates along it are noise
_APART = 1e-6  # of the whole: points nearer than that are one


class Plans(nn.Module, ABC):
    """Rows of plans and their branches.

    Args:
        counts: K of the budgets, rising.
        sizes: Evaluations of each row's plan.
        weights: (C, R) chances of rows at each budget.
        more: By how many evaluations each branch departs from the plan; the first that does not is the plan.
        left: Evaluations that a plan leaves after the fork.
        looks: How many follow one another, each with as many options; branches are in their order.
    """

    def __init__(
        self,
        counts: Sequence[int],
        sizes: Sequence[int],
        weights: Tensor,
        more: Sequence[int],
        left: int,
        looks: int = 1,
    ) -> None:
        super().__init__()
        self.looks, self.options = looks, round(len(more) ** (1 / looks))
        self.counts, self.sizes, self.more, self.left = list(counts), list(sizes), list(more), left
        self.home = self.more.index(0)
        self.weights = weights

    @property
    def first(self) -> list[int]:
        """By how many evaluations each option of the first look departs from the plan, (A,)."""
        return self.more[:: len(self.more) // self.options]

    def fork(self, row: int) -> int:
        """After how many evaluations samples of the row are told apart."""
        return self.sizes[row] - self.left

    @abstractmethod
    def lams(self, row: int, *, stretched: bool = True) -> list[Tensor]:
        """λ of every branch's evaluations, 0 at the first; float64, differentiable where it is learned.

        ``stretched``: those of the plan's cost, too.
        """

    def orders(self, row: int) -> list[list[int | None]] | None:
        """Those of the jumps to every branch's evaluations; None: the solver's own everywhere."""
        return None

    @torch.no_grad()
    def on_one_grid(self) -> tuple[Tensor, Tensor]:
        """All plans on one grid from λ = 0 to 1: its points, (N,), and each plan's on it, (R, B, L).

        N where a plan has ended. Jumps of different orders never lead to the same point.
        """
        order_of: dict[int, int | None] = {0: None, round(1 / _APART): None}
        plans = [self._steps(row, order_of) for row in range(len(self.sizes))]
        points = torch.tensor(sorted(order_of))
        longest = max(len(way) for branches in plans for way in branches)
        table = torch.full((len(plans), len(self.more), longest), len(points))
        for row, branches in enumerate(plans):
            for b, way in enumerate(branches):
                table[row, b, : len(way)] = torch.searchsorted(points, torch.tensor(way))
        return points.double() * _APART, table

    def _steps(self, row: int, order_of: dict[int, int | None]) -> list[list[int]]:
        """A row's branches in steps of a grid; ``order_of`` holds the orders of jumps to those in use."""
        lams = self.lams(row)
        told = self.orders(row) or [[None] * len(lam) for lam in lams]
        found = []
        for lam, orders in zip(lams, told, strict=True):
            way = [0]
            for at, order in zip((lam[1:] / _APART).round().long().tolist(), orders[1:], strict=True):
                while order_of.setdefault(at, order) != order:
                    at -= 1
                way.append(at)
            found.append(way)
        return found

    def orders_on(self, table: Tensor, points: int, own: int) -> Tensor | None:
        """Those of the jumps to ``points`` of one grid, (N,), the solver's being ``own``; None: own all."""
        told = [self.orders(row) for row in range(len(table))]
        if not any(told):
            return None
        found = torch.full((points,), own)
        for row, branches in enumerate(table):
            for way, orders in zip(branches, told[row] or [], strict=False):
                for point, order in zip(way[1:].tolist(), orders[1:], strict=False):
                    found[point] = min(order or own, own)
        return found


def shares(gaps: Tensor) -> Tensor:
    """Shares of the whole, none of them next to nothing."""
    gaps = gaps.double()
    found = gaps / gaps.sum()
    return found * (1 - CLOSEST * len(gaps)) + CLOSEST
