"""iPNDM: Adams–Bashforth's weights on eps, then a DDIM step (Liu et al. 2022; Zhang & Chen 2023, app. H)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.solvers.base import Solver, Weights

# Weights of eps, newest first, by the number of evaluations used.
WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class IPNDM(Solver):
    """x_s = (α_s/α_t)·x_t + (σ_s − α_s·σ_t/α_t)·Σ_j w_j·eps_j, w by Adams and Bashforth.

    The weights are those of even steps in σ/α, where the declared order holds; on other grids they are what
    the field uses all the same (PLMS).
    """

    needs_eps: ClassVar[bool] = True
    order: ClassVar[int | None] = 2
    history: ClassVar[int] = 2

    def weights(self, schedule: NoiseSchedule, times: Tensor, count: Tensor, s: Tensor) -> Weights:
        """Of x and of the last noise estimates."""
        table = torch.zeros(self.history, self.history, dtype=torch.float64)
        for depth in range(self.history):
            table[depth, : depth + 1] = torch.tensor(WEIGHTS[depth], dtype=torch.float64)
        shares = table.to(s.device)[(count - 1).clamp(0, self.history - 1)]  # (B, history)
        alpha_t, sigma_t = schedule.alpha_sigma(times[:, 0])
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        step = sigma_s - alpha_s * sigma_t / alpha_t
        return Weights(alpha_s / alpha_t, eps=step.unsqueeze(1) * shares)


class IPNDM3(IPNDM):
    """With three evaluations."""

    order: ClassVar[int | None] = 3
    history: ClassVar[int] = 3


class IPNDM4(IPNDM):
    """With four evaluations: the usual one, PLMS."""

    order: ClassVar[int | None] = 4
    history: ClassVar[int] = 4
