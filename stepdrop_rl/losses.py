"""What a diffusion network is trained to make small.

A loss is a function ``(batch, config) -> scalar``; a new one is a function and a line in :data:`LOSSES`.
Shapes: B = batch; images (B, C, H, W); times, weights (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.registry import Registry
from stepdrop_rl.config import TrainDiffusionConfig
from stepdrop_rl.diffusion import NoiseSchedule, image_scale, target, to_epsilon


@dataclass(frozen=True)
class Batch:
    """What a loss may look at.

    Args:
        schedule: Noise schedule.
        prediction: epsilon or v_prediction.
        x0: Clean images.
        t: Their times.
        eps: The noise added.
        x_t: The noised images.
        output: What the network said of them.
    """

    schedule: NoiseSchedule
    prediction: str
    x0: Tensor
    t: Tensor
    eps: Tensor
    x_t: Tensor
    output: Tensor


Loss = Callable[[Batch, TrainDiffusionConfig], Tensor]

LOSSES = Registry(
    "loss",
    {
        "ddpm": "stepdrop_rl.losses:ddpm",
        "s2dm": "stepdrop_rl.losses:s2dm",
        "s2dm_weight": "stepdrop_rl.losses:s2dm_weight",
    },
)


def _squared_error(output: Tensor, wanted: Tensor) -> Tensor:
    """(B,) means over the images."""
    return F.mse_loss(output.float(), wanted.float(), reduction="none").flatten(1).mean(1)


def _weighted_mean(weight: Tensor, error: Tensor) -> Tensor:
    return (weight.to(error.dtype) * error).mean()


def min_snr_weight(schedule: NoiseSchedule, prediction: str, t: Tensor, gamma: float) -> Tensor:
    """Per-sample weight, (B,): 1 where ``gamma`` is 0, else min-SNR-γ (Hang et al. 2023).

    That is min(SNR, γ)/SNR for eps, min(SNR, γ)/(SNR + 1) for v.
    """
    if gamma <= 0:
        return torch.ones_like(t, dtype=torch.float64)
    snr = torch.exp(2 * schedule.lam(t))
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def ddpm(batch: Batch, config: TrainDiffusionConfig) -> Tensor:
    """Weighted squared error of the network's own target (Ho et al. 2020, eq. 14)."""
    wanted = target(batch.schedule, batch.prediction, batch.x0, batch.t, batch.eps)
    weight = min_snr_weight(batch.schedule, batch.prediction, batch.t, config.min_snr_gamma)
    return _weighted_mean(weight, _squared_error(batch.output, wanted))


def skip_factor(schedule: NoiseSchedule, t: Tensor, skip: int) -> Tensor:
    """c = √((1 − α)/α), (B,), of the skipped step t → t − skip, α = ᾱ_t/ᾱ_{t−skip}; clean where t < skip."""
    log_t, log_s = (torch.log(schedule.alpha_sigma(at)[0]) * 2 for at in (t, (t - skip).clamp(min=0)))
    log_s = torch.where(t < skip, torch.zeros_like(log_s), log_s)
    return torch.sqrt(torch.expm1(log_s - log_t))


def s2dm(batch: Batch, config: TrainDiffusionConfig) -> Tensor:
    """τ·‖ε − ε_θ‖² + (1 − τ)·‖ε − c·ε_θ‖², the skip-step loss of S²-DM, eqs. 12 and 13.

    c is :func:`skip_factor`. Expanded, it is w·‖b·ε − ε_θ‖² + const (:func:`s2dm_weight_and_scale`): a
    re-weighting and a slight scaling of the target, for which there are controls.
    """
    eps_hat = to_epsilon(batch.schedule, batch.prediction, batch.output.float(), batch.x_t, batch.t)
    c = skip_factor(batch.schedule, batch.t, config.loss.skip)
    plain = _squared_error(eps_hat, batch.eps)
    skipped = _squared_error(image_scale(c, eps_hat) * eps_hat, batch.eps)
    return (config.loss.tau * plain + (1 - config.loss.tau) * skipped).mean()


def s2dm_weight_and_scale(schedule: NoiseSchedule, t: Tensor, skip: int, tau: float) -> tuple[Tensor, Tensor]:
    """w = τ + (1 − τ)c² and b = (τ + (1 − τ)c)/w, both (B,)."""
    c = skip_factor(schedule, t, skip)
    w = tau + (1 - tau) * c.square()
    return w, (tau + (1 - tau) * c) / w


def s2dm_weight(batch: Batch, config: TrainDiffusionConfig) -> Tensor:
    """The control w·‖ε − ε_θ‖²: S²-DM's weights with the plain target."""
    eps_hat = to_epsilon(batch.schedule, batch.prediction, batch.output.float(), batch.x_t, batch.t)
    w, _ = s2dm_weight_and_scale(batch.schedule, batch.t, config.loss.skip, config.loss.tau)
    return _weighted_mean(w, _squared_error(eps_hat, batch.eps))
