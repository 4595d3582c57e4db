"""The Markovian skipped step: DDPM's posterior for any jump (arXiv 2508.15233; Ho et al. 2020, eq. 7)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.solvers.base import Solver, Weights


class DDPM(Solver):
    """Draws from q(x_s | x_t, x0_hat). With a = ᾱ_t/ᾱ_s:

    mean = [√a·(1−ᾱ_s)·x_t + √ᾱ_s·(1−a)·x0_hat]/(1−ᾱ_t),  variance = (1−a)·(1−ᾱ_s)/(1−ᾱ_t).
    """

    order: ClassVar[int | None] = None
    history: ClassVar[int] = 1
    stochastic = True

    def weights(self, schedule: NoiseSchedule, times: Tensor, count: Tensor, s: Tensor) -> Weights:
        """Of x, of x0_hat and of noise."""
        alpha_t, sigma_t = schedule.alpha_sigma(times[:, 0])
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        root_a = alpha_t / alpha_s
        rest = -torch.expm1(2 * torch.log(root_a))  # 1 − a, without cancellation for short jumps
        return Weights(
            root_a * sigma_s**2 / sigma_t**2,
            (alpha_s * rest / sigma_t**2).unsqueeze(1),
            noise=torch.sqrt(rest) * self._spread(sigma_s / sigma_t),
        )

    def _spread(self, ratio: Tensor) -> Tensor:
        """Deviation of the noise over √(1 − a), from σ_s/σ_t."""
        return ratio


class DDPMLarge(DDPM):
    """The same mean with the larger variance 1 − a, right for data that are noise themselves (Ho et al.)."""

    def _spread(self, ratio: Tensor) -> Tensor:
        return torch.ones_like(ratio)
