"""Intervals of means over noise blocks and training seeds.

What the policy of seed s gets on block b is μ + S_s + B_b + E_sb: three independent sources of chance, two of
them crossed, a value a cell. Over m seeds and n blocks the mean's variance is σ_S²/m + σ_B²/n + σ_E²/mn. The
spread of seeds' means holds the first and the last part, that of blocks' means the last two, and what is left
in the cells the last, which is not to be counted twice. Degrees of freedom by Satterthwaite (1946).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from stepdrop_rl.metrics.blocks import block_mean, t_quantile

Cells = Sequence[Sequence[float]]  # per seed, per block


class Estimate(NamedTuple):
    """A mean and half of its 95 % interval."""

    mean: float
    half_width: float


class _Part(NamedTuple):
    """Of the mean's variance."""

    variance: float
    degrees: int


def interval(cells: Cells) -> Estimate:
    """Of one contender, or of differences that are paired by block and by seed."""
    return _estimate(_mean_of_seeds(cells), cells)


def interval_between(ours: Cells, theirs: Cells) -> Estimate:
    """Of ``ours`` minus ``theirs``, paired by block; their seeds have nothing to do with each other."""
    pairs = zip(_mean_of_seeds(ours), _mean_of_seeds(theirs), strict=True)
    return _estimate([one - other for one, other in pairs], ours, theirs)


def _mean_of_seeds(cells: Cells) -> list[float]:
    """Per block."""
    return [sum(column) / len(column) for column in zip(*cells, strict=True)]


def _estimate(blocks: Sequence[float], *learned: Cells) -> Estimate:
    over_blocks = block_mean(blocks)
    wholes = [_Part(over_blocks.standard_error**2, len(blocks) - 1)]
    twice = []  # counted
    for cells in learned:
        if len(cells) > 1:
            over_seeds, rest = _of_seeds(cells)
            wholes.append(over_seeds)
            twice.append(rest)
    variance = sum(part.variance for part in wholes) - sum(part.variance for part in twice)
    widest = max(wholes, key=lambda part: part.variance)
    if variance <= widest.variance:  # the other source is lost in the rest
        return Estimate(over_blocks.mean, t_quantile(widest.degrees) * math.sqrt(widest.variance))
    # Satterthwaite: each mean square's own square counts, whether it is added or taken away.
    degrees = variance**2 / sum(part.variance**2 / part.degrees for part in (*wholes, *twice))
    return Estimate(over_blocks.mean, t_quantile(degrees) * math.sqrt(variance))


def _of_seeds(cells: Cells) -> tuple[_Part, _Part]:
    """The spread of seeds' means, and what is left in the cells without seeds' and blocks' means."""
    seeds = block_mean([sum(row) / len(row) for row in cells])
    columns = _mean_of_seeds(cells)
    m, n = len(cells), len(columns)
    degrees = (m - 1) * (n - 1)
    left = math.fsum(
        (value - row - column + seeds.mean) ** 2
        for row, values in zip(seeds.values, cells, strict=True)
        for column, value in zip(columns, values, strict=True)
    )
    return _Part(seeds.standard_error**2, m - 1), _Part(left / degrees / (m * n), degrees)
