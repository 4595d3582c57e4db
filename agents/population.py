"""How far a set of images is from real ones that is drawn along branches with given chances, and the slope.

With d(i, b) the mean distance of image i's result on branch b from real images, and π(i, b) its chance, the
energy distance (Székely and Rizzo 2013) of what is drawn is, but for a constant of the real images,

    E(π) = 2·mean_i Σ_b π(i, b)·d(i, b) − mean_{i≠j} Σ_b Σ_c π(i, b)·π(j, c)·‖f(i, b) − f(j, c)‖.

A score that stays as it is while chances move (a witness of what *was* drawn) would send everyone the same
way, past the best. Here the second term moves with them. Pairs of different images alone: batches estimate
it without bias.

Shapes: R images; B branches; F features.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Population:
    """Results of R images on B branches.

    Args:
        results: (R, B, F) features.
        to_real: (R, B) mean distance of each from real images.
    """

    def __init__(self, results: Tensor, to_real: Tensor) -> None:
        size, ways = to_real.shape
        flat = results.reshape(size * ways, -1)
        apart = torch.cdist(flat, flat).reshape(size, ways, size, ways)
        same = torch.arange(size)
        apart[same, :, same] = 0
        self._apart = apart.reshape(size * ways, size * ways).double() / max(size - 1, 1)
        self._to_real = to_real.double()

    def _from_others(self, chances: Tensor) -> Tensor:
        """(R, B): mean distance from what the other images draw."""
        return (self._apart @ chances.double().flatten()).reshape(chances.shape)

    def energy(self, chances: Tensor) -> float:
        """E(π) of ``chances`` (R, B)."""
        each = 2 * self._to_real - self._from_others(chances)
        return float((chances * each).sum(1).mean())

    def witness(self, chances: Tensor) -> Tensor:
        """(R, B): by how much each result is nearer to real images than to what is drawn: −R/2·∂E/∂π."""
        return self._from_others(chances) - self._to_real
