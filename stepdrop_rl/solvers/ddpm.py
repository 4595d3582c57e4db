"""The Markovian skipped step: DDPM's posterior for any jump (arXiv 2508.15233; Ho et al. 2020, eq. 7)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule, image_scale
from stepdrop_rl.solvers.base import Anchor


class DDPM:
    """Draws from q(x_s | x_t, x0_hat). With a = ᾱ_t/ᾱ_s:

    mean = [√a·(1−ᾱ_s)·x_t + √ᾱ_s·(1−a)·x0_hat]/(1−ᾱ_t),  variance = (1−a)·(1−ᾱ_s)/(1−ᾱ_t).
    """

    order: ClassVar[int | None] = None
    history: ClassVar[int] = 1
    stochastic = True

    def jump(self, schedule: NoiseSchedule, anchor: Anchor, s: Tensor, noise: Tensor | None) -> Tensor:
        """One jump; needs ``noise``."""
        assert noise is not None
        x, x0 = anchor.x, anchor.x0[:, 0]
        alpha_t, sigma_t = schedule.alpha_sigma(anchor.t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        root_a = alpha_t / alpha_s
        rest = -torch.expm1(2 * torch.log(root_a))  # 1 − a, without cancellation for short jumps
        of_x = root_a * sigma_s**2 / sigma_t**2
        of_x0 = alpha_s * rest / sigma_t**2
        deviation = torch.sqrt(rest) * self._spread(sigma_s / sigma_t)
        return image_scale(of_x, x) * x + image_scale(of_x0, x) * x0 + image_scale(deviation, x) * noise

    def _spread(self, ratio: Tensor) -> Tensor:
        """Deviation of the noise over √(1 − a), from σ_s/σ_t."""
        return ratio


class DDPMLarge(DDPM):
    """The same mean with the larger variance 1 − a, right for data that are noise themselves (Ho et al.)."""

    def _spread(self, ratio: Tensor) -> Tensor:
        return torch.ones_like(ratio)
