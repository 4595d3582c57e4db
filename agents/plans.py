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

from envs.errors import UserError

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

        N where a plan has ended.
        """
        plans = [self.lams(row) for row in range(len(self.sizes))]
        steps = torch.cat([torch.tensor([0.0, 1.0]).double(), *(lam for found in plans for lam in found)])
        points = (steps / _APART).round().long().unique()
        longest = max(len(lam) for found in plans for lam in found)
        table = torch.full((len(plans), len(self.more), longest), len(points))
        for row, branches in enumerate(plans):
            for b, lam in enumerate(branches):
                table[row, b, : len(lam)] = torch.searchsorted(points, (lam / _APART).round().long())
        return points.double() * _APART, table

    def orders_on(self, table: Tensor, points: int, own: int) -> Tensor | None:
        """Those of the jumps to ``points`` of one grid, (N,), the solver's own being ``own``; None: own all.

        Raises:
            UserError: Two plans come to the same point by jumps of different orders.
        """
        told = [self.orders(row) for row in range(len(table))]
        if not any(told):
            return None
        found = torch.zeros(points, dtype=torch.int64)
        found[0] = own  # no jump leads there
        for row, branches in enumerate(table):
            own_alone: list[list[int | None]] = [[None] * self.sizes[row]] * len(branches)
            for way, orders in zip(branches, told[row] or own_alone, strict=True):
                for point, order in zip(way[1:].tolist(), orders[1:], strict=False):
                    if found[point] not in (0, order or own):
                        raise UserError("two plans come to the same time by jumps of different orders")
                    found[point] = order or own
        return found.clamp(min=1)


def shares(gaps: Tensor) -> Tensor:
    """Shares of the whole, none of them next to nothing."""
    gaps = gaps.double()
    found = gaps / gaps.sum()
    return found * (1 - CLOSEST * len(gaps)) + CLOSEST
