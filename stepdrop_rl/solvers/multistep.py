"""The multistep solver of order 2: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule, image_scale
from stepdrop_rl.solvers.base import Anchor, data_jump


class Multistep:
    """Extrapolates x0_hat linearly in lam through the last two evaluations.

    D = x0 + h/(2·h_prev)·(x0 − x0_prev), h_prev = lam_t − lam_prev; with one evaluation only, D = x0.
    """

    order: ClassVar[int | None] = 2
    history: ClassVar[int] = 2
    stochastic = False

    def jump(self, schedule: NoiseSchedule, anchor: Anchor, s: Tensor, noise: Tensor | None) -> Tensor:
        """One jump; ``noise`` is not used."""
        x0, previous = anchor.x0[:, 0], anchor.x0[:, 1]
        lam_t = schedule.lam(anchor.t)
        h = schedule.lam(s) - lam_t
        h_prev = lam_t - schedule.lam(anchor.times[:, 1])
        first = anchor.count < 2
        slope = torch.where(first, torch.zeros_like(h), h / (2 * torch.where(first, 1.0, h_prev)))
        return data_jump(schedule, anchor.x, anchor.t, s, x0 + image_scale(slope, x0) * (x0 - previous))
