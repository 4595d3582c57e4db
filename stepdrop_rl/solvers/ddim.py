"""DDIM with any η (Song et al. 2021, eq. 12 and 16)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from envs.errors import UserError
from envs.reference import Parser, number
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.solvers.base import Solver, Weights, data_weights
from stepdrop_rl.solvers.reference import ramp


class DDIM(Solver):
    """x_s = α_s·x0_hat + √(σ_s² − d²)·eps + d·z, with d = η·(σ_s/σ_t)·√(1 − ᾱ_t/ᾱ_s).

    η = 0 is the deterministic sampler, of order 1; η = 1 the Markovian skipped-step posterior.

    η may change on the way: linearly in time, or in one step at lam = 0.

    Args:
        eta: η; or two, of jumps that start at the noise schedule's first time T − 1 and at its last, 0.
        early: η of jumps that start where there is more noise than signal (lam < 0), if another.
    """

    order: ClassVar[int | None] = 1
    history: ClassVar[int] = 1
    settings: ClassVar[Mapping[str, Parser]] = {"eta": ramp, "early": number}

    def __init__(self, eta: float | tuple[float, float] = 0.0, early: float | None = None) -> None:
        self.first, self.last = eta if isinstance(eta, tuple) else (eta, eta)
        self.early = early
        values = [self.first, self.last, *([] if early is None else [early])]
        for value in values:
            if not 0 <= value <= 1:
                raise UserError(f"DDIM's eta must lie in [0, 1], not {value:g}")
        self.stochastic = max(values) > 0

    def eta(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """η of jumps that start at times ``t`` (B,)."""
        share = t.double() / (schedule.num_train_timesteps - 1)
        eta = self.last + (self.first - self.last) * share
        return eta if self.early is None else eta.masked_fill(schedule.lam(t) < 0, self.early)

    def weights(self, schedule: NoiseSchedule, times: Tensor, count: Tensor, s: Tensor) -> Weights:
        """Of x, of x0_hat, and of noise where η > 0."""
        t = times[:, 0]
        if not self.stochastic:
            of_x, of_data = data_weights(schedule, t, s)
            return Weights(of_x, of_data.unsqueeze(1))
        alpha_t, sigma_t = schedule.alpha_sigma(t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        d = (
            self.eta(schedule, t)
            * (sigma_s / sigma_t)
            * torch.sqrt(-torch.expm1(2 * torch.log(alpha_t / alpha_s)))
        )
        eps_share = torch.sqrt(sigma_s**2 - d**2) / sigma_t  # of eps = (x_t − α_t·x0_hat)/σ_t
        return Weights(eps_share, (alpha_s - eps_share * alpha_t).unsqueeze(1), noise=d)


class MarkovEarly(DDIM):
    """Markovian steps while there is more noise than signal, then deterministic ones: a hybrid of ours."""

    order: ClassVar[int | None] = None
    settings: ClassVar[Mapping[str, Parser]] = {}

    def __init__(self) -> None:
        super().__init__(eta=0.0, early=1.0)


class MarkovLate(DDIM):
    """Deterministic steps first, Markovian ones after lam = 0: the reverse of :class:`MarkovEarly`."""

    order: ClassVar[int | None] = None
    settings: ClassVar[Mapping[str, Parser]] = {}

    def __init__(self) -> None:
        super().__init__(eta=1.0, early=0.0)
