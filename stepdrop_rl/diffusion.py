"""Noise schedules, the forward process and the training loss.

Notation (DESIGN.md, after Ho et al. 2020, Song et al. 2021 and Lu et al. 2022):
    alpha_bar[t] = ᾱ;  alpha = √ᾱ;  sigma = √(1−ᾱ);  lam = log(alpha/sigma), half the log-SNR;
    x_t = alpha·x0 + sigma·eps.
Times are real numbers in [0, T−1]: integers index ᾱ, and lam is linear in t between them. ``CLEAN`` (any
negative time) stands for the clean image: alpha = 1, sigma = 0.

Shapes: B = samples; times, alpha, sigma, lam are (B,) float64; images (B, C, H, W) float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from envs.errors import UserError
from envs.registry import Registry

CLEAN = -1.0

_MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2


def linear_alpha_bar(num_steps: int) -> Tensor:
    """DDPM's schedule: beta from 1e-4 to 0.02, stretched so that any T ends at the same noise."""
    scale = 1000 / num_steps
    beta = torch.linspace(1e-4 * scale, 2e-2 * scale, num_steps, dtype=torch.float64)
    return torch.cumprod(1 - beta.clamp(max=_MAX_BETA), 0)


def cosine_alpha_bar(num_steps: int) -> Tensor:
    """Improved DDPM's schedule (Nichol & Dhariwal 2021, eq. 17), beta capped at 0.999."""

    def f(u: Tensor) -> Tensor:
        return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = torch.arange(num_steps, dtype=torch.float64)
    beta = (1 - f((steps + 1) / num_steps) / f(steps / num_steps)).clamp(max=_MAX_BETA)
    return torch.cumprod(1 - beta, 0)


SCHEDULES = Registry(
    "noise schedule",
    {"linear": "stepdrop_rl.diffusion:linear_alpha_bar", "cosine": "stepdrop_rl.diffusion:cosine_alpha_bar"},
)


class NoiseSchedule:
    """alpha, sigma and lam at any real time, exact at the integers.

    Args:
        name: Of one of :data:`SCHEDULES`, or of what ``alpha_bar`` is.
        num_train_timesteps: T.
        device: Where the tables lie.
        alpha_bar: (T,) float64, of a schedule that is none of :data:`SCHEDULES`.
    """

    def __init__(
        self,
        name: str,
        num_train_timesteps: int,
        device: torch.device | str = "cpu",
        *,
        alpha_bar: Tensor | None = None,
    ) -> None:
        if alpha_bar is None:
            make: Callable[[int], Tensor] = SCHEDULES.load(name)
            alpha_bar = make(num_train_timesteps)
        self.name = name
        self.num_train_timesteps = num_train_timesteps
        self.alpha_bar = alpha_bar.to(device)
        self._lam = 0.5 * (torch.log(self.alpha_bar) - torch.log1p(-self.alpha_bar))

    @property
    def device(self) -> torch.device:
        """Where the tables lie."""
        return self.alpha_bar.device

    def lam(self, t: Tensor) -> Tensor:
        """Half log-SNR at real times ``t`` (any shape), differentiable; +inf at the clean end."""
        t = t.double()
        low = t.detach().clamp(0, self.num_train_timesteps - 2).floor()
        k = low.long()
        lam = self._lam[k] + (t - low) * (self._lam[k + 1] - self._lam[k])
        return torch.where(t < 0, torch.full_like(lam, math.inf), lam)

    def time_of(self, lam: Tensor) -> Tensor:
        """Inverse of :meth:`lam`: the real time whose half log-SNR is ``lam`` (within the table's range)."""
        rising = self._lam.flip(0)
        k = torch.searchsorted(rising, lam.double().contiguous()).clamp(1, len(rising) - 1)
        part = (lam - rising[k - 1]) / (rising[k] - rising[k - 1])
        return (self.num_train_timesteps - 1) - (k - 1 + part)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at real times ``t``."""
        lam = self.lam(t)
        return torch.sqrt(torch.sigmoid(2 * lam)), torch.sqrt(torch.sigmoid(-2 * lam))

    def check_times(self, times: Tensor) -> None:
        """Raise :class:`UserError` unless ``times`` descend strictly within [0, T−1]."""
        last = self.num_train_timesteps - 1
        if not bool(torch.isfinite(times).all()) or len(times) == 0:
            raise UserError("a schedule needs at least one time, all of them finite")
        if times.min() < 0 or times.max() > last:
            raise UserError(f"schedule times must lie in [0, {last}]")
        if bool((times.diff() >= 0).any()):
            raise UserError("schedule times must descend")


def image_scale(coefficient: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) coefficients, computed in float64, to multiply images (B, C, H, W) in their own type."""
    return coefficient.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def q_sample(schedule: NoiseSchedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Forward process: x_t = alpha·x0 + sigma·eps."""
    alpha, sigma = schedule.alpha_sigma(t)
    return image_scale(alpha, x0) * x0 + image_scale(sigma, x0) * eps


def target(schedule: NoiseSchedule, prediction: str, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """What a network of this ``prediction`` type should say: eps, or v = alpha·eps − sigma·x0."""
    if prediction == "epsilon":
        return eps
    alpha, sigma = schedule.alpha_sigma(t)
    return image_scale(alpha, x0) * eps - image_scale(sigma, x0) * x0


def to_epsilon(schedule: NoiseSchedule, prediction: str, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Turn a network's output into eps; for v: eps = alpha·v + sigma·x_t (Salimans & Ho 2022)."""
    if prediction == "epsilon":
        return output
    alpha, sigma = schedule.alpha_sigma(t)
    return image_scale(alpha, x_t) * output + image_scale(sigma, x_t) * x_t
