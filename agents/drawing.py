"""Drawing images along all branches of a plan at once: what they share is drawn once.

Shapes: R images; B branches; T looks; D observation entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from agents.planning import shown
from envs.observation import Grid, observe_from
from envs.protocols import DifferentiableProcess, TimedTrajectories

Jump = tuple[Tensor, int | None]
"""A time, of no dimension, and on how many evaluations the jump there looks back at most."""


class Drawn(NamedTuple):
    """What the branches brought: what the first evaluation and each look showed, (R, D) and (R, T, D), and x0
    (R, C, H, W) of each branch.
    """

    begun: Tensor
    entries: Tensor
    results: list[Tensor]


def draw(
    process: DifferentiableProcess,
    grid: Grid,
    images: Tensor,
    ways: Sequence[Tensor],
    fork: int,
    prices: Tensor,
    *,
    orders: Sequence[Sequence[int | None]] | None = None,
    looks: int = 1,
    recompute: bool,
) -> Drawn:
    """Draw images along branches; differentiable in their times.

    Args:
        process: What draws.
        grid: Of the decisions, in whose terms a look is told.
        images: (R,) ids.
        ways: B times of evaluations, the first ``fork`` of them the same, and one more of those that part at
            the second look, and so on.
        fork: After how many evaluations branches part.
        prices: (R,) of an evaluation, as a look tells them.
        orders: B lists of those of the jumps to the times; None: the solver's own.
        looks: How many follow one another, with as many options each.
        recompute: As of the process.
    """
    trunk = process.timed(images, ways[0][:1].expand(len(images)), recompute=recompute)
    begun = _look(grid, trunk, prices)
    jumps = [_jumps(way, None if orders is None else orders[b]) for b, way in enumerate(ways)]
    _follow(trunk, jumps[0][1:fork])
    options = round(len(ways) ** (1 / looks))
    parted, entries = [(trunk, jumps)], []
    for at in range(fork, fork + looks):
        entries += [_look(grid, one, prices) for one, _ in parted]
        ahead = [(one, part) for one, group in parted for part in _parts(group, options)]
        parted = [(one.branch(), part) for one, part in ahead]
        for one, part in parted:
            _follow(one, part[0][at : at + 1])
    for one, (way,) in parted:
        _follow(one, way[fork + looks :])
    return Drawn(begun, torch.stack(entries, 1), [one.x0() for one, _ in parted])


def _jumps(times: Tensor, orders: Sequence[int | None] | None) -> list[Jump]:
    """Those to ``times`` (K,)."""
    return list(zip(times.unbind(), orders or [None] * len(times), strict=True))


def _parts(ways: Sequence[list[Jump]], count: int) -> list[list[list[Jump]]]:
    """``ways`` in so many parts of equal size."""
    size = len(ways) // count
    return [list(ways[k * size : (k + 1) * size]) for k in range(count)]


@torch.no_grad()
def _look(grid: Grid, trajectories: TimedTrajectories, prices: Tensor) -> Tensor:
    """(R, D) of what is shown: at any point, for it stays the same up to the next evaluation."""
    index = torch.full_like(trajectories.nfe, len(grid) - 1, dtype=torch.int64)
    evidence = trajectories.evidence()
    seen = observe_from(grid, index, trajectories.lam_anchor, trajectories.nfe, prices, evidence)
    return shown(seen.cpu(), len(grid)).entries


def _follow(trajectory: TimedTrajectories, jumps: Sequence[Jump]) -> None:
    """Evaluate all rows where ``jumps`` lead."""
    for t, order in jumps:
        trajectory.advance(t.expand(trajectory.nfe.shape), order)
