"""Ways to end schedules that are given: a searched mixture's, say, whose members keep their chances.

Of a schedule's gaps in λ beyond the fork, with the one behind its last evaluation, a branch makes the first
``e^s`` times as long, the last, or both, each by its own s; together they fill what the schedule leaves.
All cost what the schedule costs.

Shapes: R schedules; K evaluations of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from agents.fixed import FixedSchedule, whole
from agents.planned import Mixture, Oracle, read_plan
from agents.plans import CLOSEST, Plans
from envs.errors import UserError

_SAME_TIME = 0.5  # by how much a first time may differ from the grid's
_LEAST_CHANCE = 0.02  # of a mixture's member: one that is dealt less often is left out


class Endings(Plans):
    """Given schedules and their branches; nothing is learned of their times.

    Args:
        counts: K of the budgets, rising.
        schedules: R lists of λ, 0 at the first and at most 1 at the last, as many as a fork needs.
        weights: (C, R) chances of schedules at each budget.
        left: Evaluations that a schedule leaves after the fork.
        stretches: s of the branches, for the first gap and for the last; 0 is among them without saying.
    """

    def __init__(
        self,
        counts: Sequence[int],
        schedules: Sequence[Tensor],
        weights: Tensor,
        left: int,
        stretches: Sequence[float],
    ) -> None:
        super().__init__(
            counts, [len(lam) for lam in schedules], weights, [0] * (1 + len(stretches)) ** 2, left
        )
        self.schedules = [lam.double() for lam in schedules]
        self.stretches = tuple(stretches)

    def lams(self, row: int, *, stretched: bool = True) -> list[Tensor]:
        """λ of every branch's evaluations, the schedule's own first."""
        lam, fork = self.schedules[row], self.fork(row)
        found = [lam]
        gaps = torch.cat((lam[fork - 1 :], lam.new_ones(1))).diff().clamp(min=CLOSEST)
        ways = list(product((0.0, *self.stretches), repeat=2))[1:] if stretched else []
        for first, last in ways:
            way = gaps.clone()
            way[0] *= math.exp(first)
            way[-1] *= math.exp(last)
            way = way / way.sum() * (1 - lam[fork - 1])
            found.append(torch.cat((lam[:fork], lam[fork - 1] + way.cumsum(0)[:-1])))
        return found


def _members(file: str) -> tuple[int, list[list[float]], Tensor]:
    """A file's budget, its schedules that are dealt often enough, and their chances, (R,)."""
    plan = read_plan(Path(file))
    if isinstance(plan, Oracle):
        raise UserError(f"{file} holds schedules of training noises, none for others")
    if isinstance(plan, FixedSchedule):
        assert plan.times is not None
        return whole(plan.nfe), [plan.times.tolist()], torch.ones(1).double()
    assert isinstance(plan, Mixture)
    kept = plan.weights >= _LEAST_CHANCE
    chances = plan.weights[kept]
    schedules = [times for times, keep in zip(plan.schedules, kept.tolist(), strict=True) if keep]
    return whole(plan.nfe), schedules, chances / chances.sum()


def read_endings(
    files: Sequence[str],
    start: float,
    lam_of: Callable[[Tensor], Tensor],
    left: int,
    stretches: Sequence[float],
) -> Endings:
    """Endings of the schedules and mixtures in ``files``, one for each budget.

    Args:
        files: As ``search`` wrote them.
        start: The time at which the policy's grid begins, and all of them with it.
        lam_of: From times (K,) to λ, 0 where the policy's grid begins and 1 where it ends.
        left: Evaluations that a schedule leaves after the fork.
        stretches: As of :class:`Endings`.

    Raises:
        UserError: A file is missing or damaged, holds another one's budget, a schedule that begins elsewhere
            or one that cannot fork.
    """
    given: dict[int, tuple[list[list[float]], Tensor]] = {}
    for file in files:
        count, schedules, chances = _members(file)
        if count in given:
            raise UserError(f"{file}: another file has the plan of {count} evaluations")
        if min(len(times) for times in schedules) <= left:
            raise UserError(f"{file} has a schedule of {left} evaluations or fewer, which cannot fork")
        if any(abs(times[0] - start) > _SAME_TIME for times in schedules):
            raise UserError(f"{file} begins elsewhere than at {start:g}, where the policy's grid begins")
        given[count] = schedules, chances
    counts = sorted(given)
    lams = [lam_of(torch.tensor(times).double()) for count in counts for times in given[count][0]]
    weights = torch.block_diag(*(given[count][1].unsqueeze(0) for count in counts))
    return Endings(counts, lams, weights, left, stretches)
