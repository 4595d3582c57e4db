"""iPNDM: Adams–Bashforth's weights on eps, then a DDIM step (Liu et al. 2022; Zhang & Chen 2023, app. H)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule, image_scale
from stepdrop_rl.solvers.base import Anchor

# Weights of eps, newest first, by the number of evaluations used.
WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class IPNDM:
    """x_s = (α_s/α_t)·x_t + (σ_s − α_s·σ_t/α_t)·Σ_j w_j·eps_j, w by Adams and Bashforth.

    The weights are those of even steps in σ/α, where the declared order holds; on other grids they are what
    the field uses all the same (PLMS).
    """

    stochastic = False
    needs_eps: ClassVar[bool] = True
    order: ClassVar[int | None] = 2
    history: ClassVar[int] = 2

    def jump(self, schedule: NoiseSchedule, anchor: Anchor, s: Tensor, noise: Tensor | None) -> Tensor:
        """One jump; ``noise`` is not used."""
        assert anchor.eps is not None
        x = anchor.x
        table = torch.zeros(self.history, self.history, dtype=torch.float64, device=x.device)
        for depth in range(self.history):
            table[depth, : depth + 1] = torch.tensor(WEIGHTS[depth], dtype=torch.float64)
        weights = table[(anchor.count - 1).clamp(0, self.history - 1)]  # (B, history)
        alpha_t, sigma_t = schedule.alpha_sigma(anchor.t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        step = sigma_s - alpha_s * sigma_t / alpha_t
        result = image_scale(alpha_s / alpha_t, x) * x
        for k in range(self.history):
            result = result + image_scale(step * weights[:, k], x) * anchor.eps[:, k]
        return result


class IPNDM3(IPNDM):
    """With three evaluations."""

    order: ClassVar[int | None] = 3
    history: ClassVar[int] = 3


class IPNDM4(IPNDM):
    """With four evaluations: the usual one, PLMS."""

    order: ClassVar[int | None] = 4
    history: ClassVar[int] = 4
