"""Ways to end schedules that are given: a searched mixture's, say, whose members begin with their chances.

A look may make the gap in λ that follows it ``e^s`` times as long; the rest of the gaps, with the one behind
the last evaluation, share what that leaves as they did. The next look does the same with the next gap. All
branches cost what the schedule costs. Where the last evaluation's time is to stay, the gaps before it alone
are moved: how sharp images end is what judges disagree about first. Or a look may choose on how many
evaluations the jump that follows it looks back, the order of a multistep solver: where estimates bend, a
sample is carried farther or less far by the same evaluations. Schedules may tell the orders of their jumps.

Shapes: R schedules; K evaluations of one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from agents.fixed import FixedSchedule, whole
from agents.planned import Mixture, Oracle, read_plan
from agents.plans import CLOSEST, Plans
from envs.errors import UserError
from envs.observation import Grid
from envs.protocols import ReverseProcess

_SAME_TIME = 0.5  # by how much a first time may differ from the grid's
_APART = 4e-6  # of the whole: evaluations of two schedules or orders that come nearer are told apart no more
_BEYOND = 0.5  # of the last evaluation's time: how late it may be moved, where the grid ends before
_LEAST_CHANCE = 0.02  # of a mixture's member: one that is dealt less often is left out


class Endings(Plans):
    """Given schedules and their branches; nothing is learned of their times.

    Args:
        counts: K of the budgets, rising.
        schedules: R lists of λ, 0 at the first and at most 1 at the last, as many as a fork needs.
        weights: (C, R) chances of schedules at each budget.
        left: Evaluations that a schedule leaves after the fork.
        stretches: s of the options of a look; the first one, 0, goes without saying.
        looks: How many follow one another, ``left`` at most; fewer, where the end stays.
        keep_end: The last evaluation's time stays.
        orders: What the options that follow the stretches make the jump's order; the solver's own, where
            that is the schedule's already.
        told: Of each schedule the orders of the jumps to its evaluations, (K,); None: the solver's own.
    """

    def __init__(
        self,
        counts: Sequence[int],
        schedules: Sequence[Tensor],
        weights: Tensor,
        left: int,
        stretches: Sequence[float],
        looks: int = 1,
        keep_end: bool = False,
        orders: Sequence[int] = (),
        told: Sequence[Tensor | None] = (),
    ) -> None:
        branches = (1 + len(stretches) + len(orders)) ** looks
        super().__init__(counts, [len(lam) for lam in schedules], weights, [0] * branches, left, looks)
        # Next to a schedule's evaluations lie the same ones after jumps of other orders.
        apart = _APART * (1 + len(orders)) ** max(looks - 1, 1)
        for row, lam in enumerate(_told_apart([lam.double() for lam in schedules], apart)):
            self.register_buffer(f"schedule{row}", lam)
        self.stretches, self.keep_end = tuple(stretches), keep_end
        self.other_orders = tuple(orders)
        self.register_buffer("branching", torch.tensor([left, looks, keep_end, *stretches]).double())
        if orders:
            self.register_buffer("jumps", torch.tensor(self.other_orders))
        self.told = list(told) or [None] * len(schedules)
        for row, own in enumerate(self.told):
            if own is not None:
                self.register_buffer(f"told{row}", own)  # kept with a run, as jumps are

    def require(self, stored: Mapping[str, Tensor]) -> None:
        """:class:`UserError` where a run had other schedules or branches, those ``stored``."""
        own = self.state_dict()
        if own.keys() != stored.keys() or not all(torch.equal(stored[name], own[name]) for name in own):
            raise UserError("plans hold other schedules or branches than that run had: train anew")

    def lams(self, row: int, *, stretched: bool = True) -> list[Tensor]:
        """λ of every branch's evaluations, the schedule's own first.

        One that a jump of another order leads to lies next to the schedule's, and so do those behind it, up
        to the last look: where a sample was evaluated last then tells all that was chosen. What looks choose
        adds up, so each one's steps are digits of their own, to the base of the orders there are.
        """
        ways = [self.get_buffer(f"schedule{row}")]
        last = self.fork(row) + self.looks - 1  # its choice is told by where it leads, and by nothing behind
        for look, at in enumerate(range(self.fork(row), last + 1) if stretched else ()):
            digit = _APART * (1 + len(self.other_orders)) ** look if at < last else _APART
            found = []
            for lam in ways:
                found += [_stretched(lam, at, s, self.keep_end) for s in (0.0, *self.stretches)]
                found += [
                    _moved(lam, range(at, max(at + 1, last)), digit * (k + 1))
                    for k in range(len(self.other_orders))
                ]
            ways = found
        return ways

    def orders(self, row: int) -> list[list[int | None]] | None:
        """Those of the jumps to every branch's evaluations."""
        told, fork = self.told[row], self.fork(row)
        if told is None and not self.other_orders:
            return None
        along: list[int | None] = [None] * self.sizes[row] if told is None else told.tolist()
        before, decided, after = along[:fork], along[fork : fork + self.looks], along[fork + self.looks :]
        options = [
            [*[own] * (1 + len(self.stretches)), *(None if k == own else k for k in self.other_orders)]
            for own in decided
        ]
        return [[*before, *chosen, *after] for chosen in itertools.product(*options)]


def _moved(lam: Tensor, at: range, by: float) -> Tensor:
    """λ (K,), the evaluations ``at`` earlier by next to nothing."""
    return torch.cat((lam[: at.start], lam[at.start : at.stop] - by, lam[at.stop :]))


def _told_apart(schedules: Sequence[Tensor], apart: float) -> list[Tensor]:
    """λ (K,) of schedules that are at no time where another one is after as many evaluations, but the first.

    Where a sample was evaluated last then tells which schedule it is on.
    """
    kept: list[Tensor] = []
    for lam in schedules:
        for k in range(1, len(lam)):
            taken = sorted((float(other[k]) for other in kept if k < len(other)), reverse=True)
            for at in taken:
                if abs(float(lam[k]) - at) < apart:
                    lam = torch.cat((lam[:k], lam.new_tensor([at - apart]), lam[k + 1 :]))
        kept.append(lam)
    return kept


def _stretched(lam: Tensor, at: int, s: float, keep_end: bool) -> Tensor:
    """λ (K,) whose gap before evaluation ``at`` is e^s times as long, beside those that follow it."""
    if s == 0:
        return lam
    ends = lam if keep_end else torch.cat((lam, lam.new_ones(1)))
    gaps = ends[at - 1 :].diff().clamp(min=CLOSEST)
    gaps[0] *= math.exp(s)
    gaps = gaps / gaps.sum() * (ends[-1] - lam[at - 1])
    return torch.cat((lam[:at], lam[at - 1] + gaps.cumsum(0)[:-1], lam[len(ends) - 1 :]))


def _members(file: str) -> tuple[int, list[list[float]], Tensor, Tensor | None]:
    """A file's budget, its schedules that are dealt often enough, their chances, (R,), and orders, (K,)."""
    plan = read_plan(Path(file))
    if isinstance(plan, Oracle):
        raise UserError(f"{file} holds schedules of training noises, none for others")
    if isinstance(plan, FixedSchedule):
        assert plan.times is not None
        return whole(plan.nfe), [plan.times.tolist()], torch.ones(1).double(), plan.orders
    assert isinstance(plan, Mixture)
    kept = plan.weights >= _LEAST_CHANCE
    chances = plan.weights[kept]
    schedules = [times for times, keep in zip(plan.schedules, kept.tolist(), strict=True) if keep]
    return whole(plan.nfe), schedules, chances / chances.sum(), None


def grid_for(files: Sequence[str], grid: Grid, process: ReverseProcess) -> Grid:
    """``grid``; where schedules in ``files`` go on for longer, with an end that is beyond theirs."""
    end = _BEYOND * min(times[-1] for file in files for times in _members(file)[1])
    if end >= grid.times[-1]:
        return grid
    return Grid.of(torch.cat((grid.times[:-1], grid.times.new_tensor([end]))), process)


def read_endings(
    files: Sequence[str],
    grid: Grid,
    process: ReverseProcess,
    left: int,
    stretches: Sequence[float],
    looks: int,
    keep_end: bool = False,
    orders: Sequence[int] = (),
) -> Endings:
    """Endings of the schedules and mixtures in ``files``, one or more for each budget.

    Args:
        files: As ``search`` wrote them. Those of one budget have equal shares of it.
        grid: From λ = 0 to 1; all of them begin with it, and none goes on for longer.
        process: Tells the noise at their times.
        left: Evaluations that a schedule leaves after the fork.
        stretches: As of :class:`Endings`.
        looks: As of :class:`Endings`.
        keep_end: As of :class:`Endings`.
        orders: As of :class:`Endings`.

    Raises:
        UserError: A file is missing or damaged, or holds a schedule that begins elsewhere or cannot fork.
    """
    start = float(grid.times[0])

    def lam_of(times: list[float]) -> Tensor:
        lam = process.lam(grid.times.new_tensor(times))
        return ((lam - grid.lam[0]) / (grid.lam[-1] - grid.lam[0])).clamp(min=0).cpu()

    given: dict[int, list[tuple[list[list[float]], Tensor, Tensor | None]]] = {}
    for file in files:
        count, schedules, chances, told = _members(file)
        if min(len(times) for times in schedules) <= left:
            raise UserError(f"{file} has a schedule of {left} evaluations or fewer, which cannot fork")
        if any(abs(times[0] - start) > _SAME_TIME for times in schedules):
            raise UserError(f"{file} begins elsewhere than at {start:g}, where the policy's grid begins")
        given.setdefault(count, []).append((schedules, chances, told))
    counts = sorted(given)
    each = [(times, told) for count in counts for found, _, told in given[count] for times in found]
    lams, orders_told = [lam_of(times) for times, _ in each], [told for _, told in each]
    dealt = [torch.cat([chances / len(given[count]) for _, chances, _ in given[count]]) for count in counts]
    weights = torch.block_diag(*(chances.unsqueeze(0) for chances in dealt))
    return Endings(counts, lams, weights, left, stretches, looks, keep_end, orders, orders_told)
