"""What one network call says of noisy images: the clean estimate, kept in range, and what went into it.

Shapes: R images (R, C, H, W); times, and all that is one number per image, (R,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from envs.errors import UserError
from stepdrop_rl.diffusion import image_scale
from stepdrop_rl.models.denoiser import Denoiser

Clip = Literal["static", "dynamic", "none"]
CLIPS: tuple[Clip, ...] = ("static", "dynamic", "none")
QUANTILE = 0.995  # of |x0_hat| (Imagen, section 2.3 and appendix E: the 99.5th percentile)


def clip_of(clip: Clip | bool) -> Clip:
    """The name of a way to clip; True and False are static and none."""
    if isinstance(clip, bool):
        return "static" if clip else "none"
    if clip not in CLIPS:
        raise UserError(f"clip is static, dynamic or none, not '{clip}'")
    return clip


def quantile(values: Tensor, q: float) -> Tensor:
    """(R,) the q-th quantile of each row of (R, M), linear between neighbours.

    ``torch.quantile`` refuses more than 16 million numbers.
    """
    rising = values.sort(1).values
    place = q * (values.shape[1] - 1)
    low = int(place)
    high = min(low + 1, values.shape[1] - 1)
    return torch.lerp(rising[:, low], rising[:, high], place - low)


def in_range(x0: Tensor, clip: Clip) -> Tensor:
    """Clean estimates brought into [−1, 1], or not.

    static clips. dynamic (Saharia et al. 2022, Imagen, section 2.3) takes s = the 99.5 % quantile of
    |x0_hat|, and where s > 1 clips to [−s, s] and divides by s: pixels are pushed inwards, not saturated.
    """
    if clip == "none":
        return x0
    if clip == "static":
        return x0.clamp(-1.0, 1.0)
    s = quantile(x0.flatten(1).abs(), QUANTILE).clamp(min=1.0).reshape(-1, *[1] * (x0.ndim - 1))
    return torch.maximum(torch.minimum(x0, s), -s) / s


@dataclass(frozen=True)
class Estimate:
    """What a call brought.

    Args:
        x: The noisy images.
        alpha: Of their times, (R, 1, 1, 1).
        sigma: Likewise.
        x0: Clean estimates, in range.
        predicted: The noise that the network said.
        clipped: Share of x0_hat's pixels that left [−1, 1]; 0 where nothing is clipped.
        pooled: (R, F) the network's pooled features, those asked for side by side; None where none were.
    """

    x: Tensor
    alpha: Tensor
    sigma: Tensor
    x0: Tensor
    predicted: Tensor
    clipped: Tensor
    pooled: Tensor | None

    @property
    def eps(self) -> Tensor:
        """The noise that goes with the clean estimates: x = alpha·x0 + sigma·eps."""
        return (self.x - self.alpha * self.x0) / self.sigma


def estimate(
    denoiser: Denoiser, x: Tensor, t: Tensor, *, clip: Clip, features: tuple[str, ...] = ()
) -> Estimate:
    """Call the network on ``x`` at ``t``; differentiable in ``x``."""
    predicted, pooled = denoiser(x, t, features=features)
    alpha, sigma = (image_scale(value, x) for value in denoiser.schedule.alpha_sigma(t))
    raw = (x - sigma * predicted) / alpha
    if clip == "none":
        return Estimate(x, alpha, sigma, raw, predicted, raw.new_zeros(len(raw)), pooled)
    clipped = (raw.abs() > 1).flatten(1).to(raw.dtype).mean(1)
    return Estimate(x, alpha, sigma, in_range(raw, clip), predicted, clipped, pooled)


def rms(images: Tensor) -> Tensor:
    """Root mean square over all but the first dimension: (R,)."""
    return images.flatten(1).square().mean(1).sqrt()
