"""Noise schedules as diffusers' scheduler configurations tell them.

Shapes: T training timesteps; β and ᾱ (T,) float64.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

from envs.errors import UserError
from envs.registry import unknown_name
from stepdrop_rl.diffusion import cosine_alpha_bar

BETA_START, BETA_END = 1e-4, 2e-2  # Ho et al. 2020, and every default of diffusers
_MAX_BETA = 0.999  # as in our own schedules: ours for few timesteps are stretched beyond 1
_COSINE = ("squaredcos_cap_v2", "cosine")  # diffusers' name and ours
BETA_SCHEDULES = ("linear", "scaled_linear", *_COSINE)


def stretched(num_train_timesteps: int) -> dict[str, float]:
    """β of our own linear schedule, which ends at the same noise for any T."""
    scale = 1000 / num_train_timesteps
    return {"beta_start": BETA_START * scale, "beta_end": BETA_END * scale}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration with every value told that its own class leaves to a default.

    diffusers drops what was left at a default and lets the next class fill in its own, which may differ.

    Raises:
        UserError: It is a scheduler without a β schedule, or with one of zero terminal SNR.
    """
    told = {key: value for key, value in config.items() if key != "_use_default_values"}
    kind = getattr(diffusers, str(told.get("_class_name")), None)
    if kind is not None:
        defaults = inspect.signature(kind.__init__).parameters.items()
        told = {k: p.default for k, p in defaults if p.default is not inspect.Parameter.empty} | told
    if told.get("beta_schedule") is None and told.get("trained_betas") is None:
        name = told.get("_class_name", "this configuration")
        raise UserError(f"{name} tells neither beta_schedule nor trained_betas: it is no DDPM-like scheduler")
    if told.get("rescale_betas_zero_snr"):
        raise UserError("rescale_betas_zero_snr is not supported: there is no noise estimate at zero SNR")
    if told.get("_class_name") == "StepDropScheduler" and "beta_start" not in told:
        # Saved before this class told β: its linear schedule was ours.
        told |= stretched(int(told.get("num_train_timesteps", 1000)))
    return told


def alpha_bar_of(
    beta_schedule: str,
    num_train_timesteps: int,
    *,
    beta_start: float = BETA_START,
    beta_end: float = BETA_END,
    trained_betas: Any = None,
) -> Tensor:
    """ᾱ of diffusers' settings of these names; :class:`UserError` where they make no noise schedule."""
    if trained_betas is not None:
        beta = torch.as_tensor(trained_betas, dtype=torch.float64)
        if beta.shape != (num_train_timesteps,):
            raise UserError(f"trained_betas must be num_train_timesteps = {num_train_timesteps} numbers")
    elif beta_schedule in _COSINE:
        return cosine_alpha_bar(num_train_timesteps)
    elif beta_schedule == "linear":
        beta = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
        beta = beta.clamp(max=_MAX_BETA)
    elif beta_schedule == "scaled_linear":
        ends = max(beta_start, 0.0) ** 0.5, max(beta_end, 0.0) ** 0.5  # 0 is refused below
        beta = torch.linspace(*ends, num_train_timesteps, dtype=torch.float64).square()
    else:
        raise unknown_name("beta_schedule", str(beta_schedule), BETA_SCHEDULES)
    if not bool(((beta > 0) & (beta < 1)).all()):
        raise UserError("every beta of a noise schedule must lie between 0 and 1")
    return torch.cumprod(1 - beta, 0)
