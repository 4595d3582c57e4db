"""DDIM with any η (Song et al. 2021, eq. 12 and 16)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from envs.errors import UserError
from stepdrop_rl.diffusion import NoiseSchedule, image_scale
from stepdrop_rl.solvers.base import Anchor, data_jump


class DDIM:
    """x_s = α_s·x0_hat + √(σ_s² − d²)·eps + d·z, with d = η·(σ_s/σ_t)·√(1 − ᾱ_t/ᾱ_s).

    η = 0 is the deterministic sampler, of order 1; η = 1 the Markovian skipped-step posterior.

    Args:
        eta: η.
        early: η of jumps that start where there is more noise than signal (lam < 0), if another.
    """

    order: ClassVar[int | None] = 1
    history: ClassVar[int] = 1

    def __init__(self, eta: float = 0.0, early: float | None = None) -> None:
        self.eta = eta
        self.early = eta if early is None else early
        for value in (self.eta, self.early):
            if not 0 <= value <= 1:
                raise UserError(f"DDIM's eta must lie in [0, 1], not {value}")
        self.stochastic = self.eta > 0 or self.early > 0

    def jump(self, schedule: NoiseSchedule, anchor: Anchor, s: Tensor, noise: Tensor | None) -> Tensor:
        """One jump; needs ``noise`` where η > 0."""
        x, t, x0 = anchor.x, anchor.t, anchor.x0[:, 0]
        if not self.stochastic:
            return data_jump(schedule, x, t, s, x0)
        assert noise is not None
        alpha_t, sigma_t = schedule.alpha_sigma(t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        early = schedule.lam(t) < 0
        eta = torch.full_like(sigma_s, self.eta).masked_fill(early, self.early)
        d = eta * (sigma_s / sigma_t) * torch.sqrt(-torch.expm1(2 * torch.log(alpha_t / alpha_s)))
        eps_share = torch.sqrt(sigma_s**2 - d**2) / sigma_t  # of eps = (x_t − α_t·x0_hat)/σ_t
        return (
            image_scale(alpha_s - eps_share * alpha_t, x) * x0
            + image_scale(eps_share, x) * x
            + image_scale(d, x) * noise
        )


class MarkovEarly(DDIM):
    """Markovian steps while there is more noise than signal, then deterministic ones: a hybrid of ours."""

    order: ClassVar[int | None] = None

    def __init__(self) -> None:
        super().__init__(eta=0.0, early=1.0)


class MarkovLate(DDIM):
    """Deterministic steps first, Markovian ones after lam = 0: the reverse of :class:`MarkovEarly`."""

    order: ClassVar[int | None] = None

    def __init__(self) -> None:
        super().__init__(eta=1.0, early=0.0)
