"""A denoiser whose answers are exact: the data are a mixture of Gaussians.

For x0 ~ Σ_k w_k·N(μ_k, s²·I) and x_t = α·x0 + σ·eps, the posterior mean is closed:

    r_k ∝ w_k·N(x_t; α·μ_k, (α²s² + σ²)·I),
    E[x0 | x_t] = Σ_k r_k·(μ_k + α·s²/(α²s² + σ²)·(x_t − α·μ_k)),   eps = (x_t − α·E[x0 | x_t])/σ.

Works in the type of ``x`` (float64 for measuring orders). Shapes: K components; images (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule, image_scale


class GaussianMixture:
    """A :class:`stepdrop_rl.models.denoiser.Denoiser` of a known distribution.

    Args:
        schedule: Noise schedule.
        means: (K, C, H, W) μ.
        deviation: s, the same for all components.
        weights: (K,) w; equal where None.
    """

    feature_widths: ClassVar[Mapping[str, int]] = {}

    def __init__(
        self, schedule: NoiseSchedule, means: Tensor, deviation: float, weights: Tensor | None = None
    ) -> None:
        self.schedule = schedule
        self.means = means
        self.deviation = deviation
        self.weights = torch.full((len(means),), 1 / len(means)) if weights is None else weights
        channels, height, width = means.shape[1:]
        self.shape: tuple[int, int, int] = (channels, height, width)

    def x0(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t]."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        variance = alpha**2 * self.deviation**2 + sigma**2
        means = self.means.to(x)
        off = x.unsqueeze(1) - image_scale(alpha, x).unsqueeze(1) * means  # (B, K, C, H, W)
        squared = off.flatten(2).square().sum(2).double()
        logits = torch.log(self.weights.to(squared)) - squared / (2 * variance.unsqueeze(1))
        share = torch.softmax(logits, 1).to(x).reshape(*squared.shape, 1, 1, 1)
        shrink = image_scale(alpha * self.deviation**2 / variance, x).unsqueeze(1)
        return (share * (means + shrink * off)).sum(1)

    def __call__(
        self, x: Tensor, t: Tensor, *, features: Sequence[str] = (), told: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """eps; there are no features to show."""
        t = t if told is None else told
        alpha, sigma = self.schedule.alpha_sigma(t)
        return (x - image_scale(alpha, x) * self.x0(x, t)) / image_scale(sigma, x), None

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, C, H, W) samples of the data."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, *self.shape, generator=generator)
        return self.means[component] + self.deviation * noise
