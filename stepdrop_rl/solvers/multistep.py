"""The multistep solver of order 2: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.solvers.base import Solver, Weights, data_weights


class Multistep(Solver):
    """Extrapolates x0_hat linearly in lam through the last two evaluations.

    D = x0 + h/(2·h_prev)·(x0 − x0_prev), h_prev = lam_t − lam_prev; with one evaluation only, D = x0.
    """

    order: ClassVar[int | None] = 2
    history: ClassVar[int] = 2

    def weights(self, schedule: NoiseSchedule, times: Tensor, count: Tensor, s: Tensor) -> Weights:
        """Of x and of the last two clean estimates."""
        lam_t = schedule.lam(times[:, 0])
        h = schedule.lam(s) - lam_t
        h_prev = lam_t - schedule.lam(times[:, 1])
        first = count < 2
        slope = torch.where(first, torch.zeros_like(h), h / (2 * torch.where(first, 1.0, h_prev)))
        of_x, of_data = data_weights(schedule, times[:, 0], s)
        return Weights(of_x, torch.stack((of_data * (1 + slope), -of_data * slope), 1))
