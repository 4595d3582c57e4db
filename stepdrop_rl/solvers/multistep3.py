"""The multistep solver of order 3 in data prediction: DPM-Solver++(3M) with its whole curvature term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from envs.reference import Parser, number
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.solvers.base import Solver, Weights
from stepdrop_rl.solvers.exponential import growing
from stepdrop_rl.solvers.multistep import Multistep


class Multistep3(Solver):
    """Extrapolates x0_hat quadratically in lam through the last three evaluations, and integrates exactly:

        x_s = (σ_s/σ_t)·x_t + α_s·(N_0·D + N_1·D′ + N_2·D″/2),

    with the divided differences of D = x0_hat at the anchor. With two evaluations it is the order-2 solver,
    with one DDIM. ``curvature`` ½ is what diffusers' and the authors' own 3M computes: they take the second
    divided difference, D″/2, for D″, and so have order 2.
    """

    order: ClassVar[int | None] = 3
    history: ClassVar[int] = 3
    stochastic = False
    settings: ClassVar[Mapping[str, Parser]] = {"curvature": number}

    def __init__(self, curvature: float = 1.0) -> None:
        self.curvature = curvature

    def weights(self, schedule: NoiseSchedule, times: Tensor, count: Tensor, s: Tensor) -> Weights:
        """Of x and of the last three clean estimates."""
        full = count >= 3
        lam_t, lam_1, lam_2 = (schedule.lam(times[:, k]) for k in range(3))
        h = schedule.lam(s) - lam_t
        h_1 = torch.where(full, lam_t - lam_1, 1.0)
        h_2 = torch.where(full, lam_1 - lam_2, 1.0)
        # Divided differences as weights of D_0, D_1, D_2.
        zero = torch.zeros_like(h)
        unit = torch.stack((torch.ones_like(h), zero, zero), 1)
        first = torch.stack((1 / h_1, -1 / h_1, zero), 1)
        before = torch.stack((zero, 1 / h_2, -1 / h_2), 1)
        second = (first - before) / (h_1 + h_2).unsqueeze(1)
        slope = first + h_1.unsqueeze(1) * second
        alpha_s, _ = schedule.alpha_sigma(s)
        n = [(growing(h, k) * alpha_s).unsqueeze(1) for k in range(3)]
        third = n[0] * unit + n[1] * slope + self.curvature * n[2] * second
        lower = Multistep().weights(schedule, times, count, s)
        assert lower.data is not None
        data = torch.where(full.unsqueeze(1), third, torch.cat((lower.data, zero.unsqueeze(1)), 1))
        return Weights(lower.x, data)
