"""Honest errors: a metric's mean and standard error over disjoint blocks of noise, differences paired.

Fréchet distances are biased in the number of images and have no honest bootstrap, so an error comes from
blocks of equal size that share no image. Two policies that ran on the same noise are compared block by block:
what the noise did to both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit
from torch import Tensor

from envs.errors import UserError
from stepdrop_rl.metrics.base import Reference, measure

DEFAULT_BLOCKS = 5  # fewer make the t interval useless: with 2 it is 12.7 standard errors wide
CONFIDENCE = 0.95


class BlockMean(NamedTuple):
    """A metric over blocks: its mean, the mean's standard error, and each block's value."""

    mean: float
    standard_error: float
    values: tuple[float, ...]

    @property
    def half_width(self) -> float:
        """Half of the 95 % t-interval of the mean."""
        return t_quantile(len(self.values) - 1) * self.standard_error


class Difference(NamedTuple):
    """A paired difference: its mean, the mean's standard error and half of its 95 % t-interval."""

    mean: float
    standard_error: float
    half_width: float


def t_quantile(degrees: float, confidence: float = CONFIDENCE) -> float:
    """Student's t that a symmetric interval of this confidence reaches to."""
    return float(stdtrit(degrees, 0.5 + confidence / 2))


def block_mean(values: Sequence[float]) -> BlockMean:
    """Mean and standard error of at least two independent values."""
    n = len(values)
    if n < 2:
        raise UserError(f"a standard error needs at least 2 blocks, not {n}")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return BlockMean(mean, math.sqrt(variance / n), tuple(values))


def over_blocks(
    features: Tensor, logits: Tensor, reference: Reference, blocks: int = DEFAULT_BLOCKS
) -> dict[str, BlockMean]:
    """Every metric over consecutive blocks of generated features (N, D) and logits (N, K).

    Args:
        features: N must be a multiple of ``blocks``.
        logits: Of the same images.
        reference: The real images, whole in every block.
        blocks: Number of blocks, at least 2, better 5 or more.
    """
    if blocks < 2 or len(features) % blocks:
        raise UserError(
            f"{len(features)} images cannot be cut into {blocks} blocks (2 or more, of equal size)"
        )
    size = len(features) // blocks
    measured = [
        measure(*part, reference) for part in zip(features.split(size), logits.split(size), strict=True)
    ]
    return {name: block_mean([values[name] for values in measured]) for name in measured[0]}


def paired_difference(blocks_a: Sequence[float], blocks_b: Sequence[float]) -> Difference:
    """``a - b``, block by block: the two must have run on the same noise."""
    if len(blocks_a) != len(blocks_b):
        raise UserError(f"blocks do not pair: {len(blocks_a)} and {len(blocks_b)}")
    differences = block_mean([a - b for a, b in zip(blocks_a, blocks_b, strict=True)])
    return Difference(differences.mean, differences.standard_error, differences.half_width)
