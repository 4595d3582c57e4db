"""What an agent sees: a small vector per sample, one row of :data:`ENTRIES` per number.

A change of meaning, order or scale is a new :data:`VERSION`: policies record the one they were trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.protocols import Evidence, ReverseProcess

VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One number of the observation, clipped to its range."""

    name: str
    low: float
    high: float
    meaning: str


ENTRIES = (
    Entry("position", 0.0, 1.0, "index on the decision grid / (N − 1)"),
    Entry("lam", 0.0, 1.0, "half log-SNR here, 0 at the grid's start and 1 at its end"),
    Entry("lam_since_anchor", 0.0, 1.0, "half log-SNR gained since the last evaluation, in the same unit"),
    Entry("evaluations", 0.0, 1.0, "network evaluations so far / N"),
    Entry("log_price", -3.0, 1.0, "log10 of the price of an evaluation, / 2"),
    Entry("eps_rms", 0.0, 4.0, "root mean square of the last predicted noise"),
    Entry("x0_change", 0.0, 2.0, "RMS change of x0_hat between the last two evaluations (pixels in [−1, 1])"),
    Entry("x0_rate", 0.0, 4.0, "that change per unit of half log-SNR"),
    Entry("disagreement", 0.0, 2.0, "RMS distance of the order-1 and order-2 jumps from the anchor to here"),
    Entry("clipped", 0.0, 1.0, "share of x0_hat's pixels outside [−1, 1] before clipping"),
)

FEATURE_LIMIT = 10.0  # features are scaled to deviation 1; their entries are clipped here
LOWEST_PRICE = 1e-6  # keeps the logarithm finite where an evaluation is free
HIGHEST_PRICE = 100.0  # where log_price ends


class Projection(NamedTuple):
    """What is shown of the network's pooled features f (F₀,): (f − mean)·matrix, F numbers of deviation 1.

    Args:
        matrix: (F₀, F).
        mean: (F₀,).
        features: Names of the features, in the order in which they are joined.
    """

    matrix: Tensor
    mean: Tensor
    features: tuple[str, ...] = ("middle",)


def observation_space(num_features: int) -> spaces.Box:
    """The Box of one sample's observation, with ``num_features`` features of the network at its end."""
    low = [entry.low for entry in ENTRIES] + [-FEATURE_LIMIT] * num_features
    high = [entry.high for entry in ENTRIES] + [FEATURE_LIMIT] * num_features
    return spaces.Box(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))


@dataclass(frozen=True)
class Grid:
    """The decision times and what the observation needs of them, all (N,) float64, once per grid.

    Args:
        times: Descending from the model's t_start to its t_end.
        lam: Half log-SNR there.
        alpha: √ᾱ there.
    """

    times: Tensor
    lam: Tensor
    alpha: Tensor

    @classmethod
    def of(cls, times: Tensor, process: ReverseProcess) -> Grid:
        """That of ``times`` (N,), float64, of a process."""
        return cls(times, process.lam(times), torch.exp(process.log_alpha(times)))

    def __len__(self) -> int:
        return len(self.times)


def log_price(price: Tensor) -> Tensor:
    """What is shown of prices."""
    return torch.log(price.clamp(LOWEST_PRICE, HIGHEST_PRICE)) / (2 * math.log(10))


def observe(
    grid: Grid, index: Tensor, anchor: Tensor, nfe: Tensor, price: Tensor, evidence: Evidence
) -> Tensor:
    """Return (R, D) float32 observations of samples at points ``index``, last evaluated at ``anchor``."""
    return observe_from(grid, index, grid.lam[anchor], nfe, price, evidence)


def observe_from(
    grid: Grid, index: Tensor, lam_anchor: Tensor, nfe: Tensor, price: Tensor, evidence: Evidence
) -> Tensor:
    """:func:`observe`, given the half log-SNR of the last evaluations; differentiable.

    The order-1 and order-2 jumps differ by α_s·(1 − e^{−h})·h/(2·h_prev)·(x0_hat − previous), so their
    distance needs no image: it follows from x0_change.
    """
    span = grid.lam[-1] - grid.lam[0]
    lam = grid.lam[index]
    h = lam - lam_anchor
    gap = evidence.lam_change.double().clamp(min=1e-6)
    change = evidence.x0_change.double()
    share = grid.alpha[index] * -torch.expm1(-h) * h / (2 * gap)
    columns = (
        index.double() / max(len(grid) - 1, 1),
        (lam - grid.lam[0]) / span,
        h / span,
        nfe.double() / len(grid),
        log_price(price),
        evidence.eps_rms.double(),
        change,
        change / gap,
        share * change,
        evidence.clipped.double(),
    )
    table = torch.stack([c.double() for c in columns], dim=1).float()
    low = table.new_tensor([entry.low for entry in ENTRIES])
    high = table.new_tensor([entry.high for entry in ENTRIES])
    features = evidence.features.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
    return torch.cat((table.clamp(low, high), features), dim=1)
