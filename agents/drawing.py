"""Drawing images along all branches of a plan at once: what they share is drawn once.

Shapes: R images; B branches; D observation entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from agents.planning import shown
from envs.observation import Grid, observe_from
from envs.protocols import DifferentiableProcess, TimedTrajectories


class Drawn(NamedTuple):
    """What the branches brought: what was shown at the fork (R, D), and x0 (R, C, H, W) of each."""

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
    recompute: bool,
) -> Drawn:
    """Draw images along branches; differentiable in their times.

    Args:
        process: What draws.
        grid: Of the decisions, in whose terms a look is told.
        images: (R,) ids.
        ways: B times of evaluations, the first ``fork`` of them the same.
        fork: After how many evaluations branches part.
        prices: (R,) of an evaluation, as a look tells them.
        recompute: As of the process.
    """
    trunk = process.timed(images, ways[0][:1].expand(len(images)), recompute=recompute)
    _follow(trunk, ways[0][1:fork])
    with torch.no_grad():
        # At any point: what a look shows stays the same up to the next one.
        index = torch.full_like(images, len(grid) - 1)
        seen = observe_from(grid, index, trunk.lam_anchor, trunk.nfe, prices, trunk.evidence())
        entries = shown(seen.cpu(), len(grid)).entries
    results = []
    for way in ways:
        branch = trunk.branch()
        _follow(branch, way[fork:])
        results.append(branch.x0())
    return Drawn(entries, results)


def _follow(trajectory: TimedTrajectories, times: Tensor) -> None:
    """Evaluate all rows at ``times`` (K,)."""
    for t in times:
        trajectory.advance(t.expand(trajectory.nfe.shape))
