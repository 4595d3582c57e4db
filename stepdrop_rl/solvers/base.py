"""What a solver is: one jump, from a sample's anchor at time t to any s < t, each sample at its own.

The data-prediction form (Lu et al. 2022, DPM-Solver++, eq. 8) carries the deterministic family:

    x_s = (σ_s/σ_t)·x_t − α_s·(e^{−h} − 1)·D,   h = lam_s − lam_t,

where D is x0_hat (order 1: DDIM) or its extrapolation through the sample's own history.
Shapes: B = samples; images (B, C, H, W) float32; times and coefficients (B,) float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule, image_scale


@dataclass(frozen=True)
class Anchor:
    """Where samples were last evaluated, and what was seen there.

    Args:
        x: Noisy images x_t, (B, C, H, W).
        t: Their times, (B,).
        x0: Clean estimates of the last evaluations, newest first, (B, K, C, H, W).
        times: Times of those evaluations, newest first, (B, K); times[:, 0] is t.
        count: How many of the K are filled, (B,).
        eps: Noise estimates of the last evaluations, like ``x0``; None for solvers that do not need them.
    """

    x: Tensor
    t: Tensor
    x0: Tensor
    times: Tensor
    count: Tensor
    eps: Tensor | None = None


class Solver(Protocol):
    """A jump rule.

    ``order`` is the global order that the tests measure, of the default without noise (None: none declared);
    ``history`` is K, how many evaluations it looks back on; ``stochastic`` tells whether it needs noise,
    an attribute ``needs_eps`` that is true that it extrapolates eps, not x0_hat.
    """

    order: ClassVar[int | None]
    history: ClassVar[int]
    stochastic: bool

    def jump(self, schedule: NoiseSchedule, anchor: Anchor, s: Tensor, noise: Tensor | None) -> Tensor:
        """Return x_s, (B, C, H, W), for ``0 <= s < t``; the jump to the clean image is never asked here."""


def data_jump(schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor, data: Tensor) -> Tensor:
    """x_s by the data-prediction form, exact where the denoiser's x0_hat stays ``data`` all the way."""
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    _, sigma_t = schedule.alpha_sigma(t)
    h = schedule.lam(s) - schedule.lam(t)
    return image_scale(sigma_s / sigma_t, x) * x - image_scale(alpha_s * torch.expm1(-h), x) * data
