"""The multistep solver of order 3 in data prediction: DPM-Solver++(3M) with its whole curvature term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule, image_scale
from stepdrop_rl.solvers.base import Anchor
from stepdrop_rl.solvers.exponential import growing
from stepdrop_rl.solvers.multistep import Multistep
from stepdrop_rl.solvers.reference import Parser, number


class Multistep3:
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

    def jump(self, schedule: NoiseSchedule, anchor: Anchor, s: Tensor, noise: Tensor | None) -> Tensor:
        """One jump; ``noise`` is not used."""
        x = anchor.x
        full = anchor.count >= 3
        lam_t, lam_1, lam_2 = (schedule.lam(anchor.times[:, k]) for k in range(3))
        h = schedule.lam(s) - lam_t
        h_1 = torch.where(full, lam_t - lam_1, 1.0)
        h_2 = torch.where(full, lam_1 - lam_2, 1.0)
        d0, d1, d2 = (anchor.x0[:, k] for k in range(3))
        first = (d0 - d1) / image_scale(h_1, x)
        second = (first - (d1 - d2) / image_scale(h_2, x)) / image_scale(h_1 + h_2, x)
        slope = first + image_scale(h_1, x) * second
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        _, sigma_t = schedule.alpha_sigma(anchor.t)
        n = [growing(h, k) * alpha_s for k in range(3)]
        third = (
            image_scale(sigma_s / sigma_t, x) * x
            + image_scale(n[0], x) * d0
            + image_scale(n[1], x) * slope
            + image_scale(self.curvature * n[2], x) * second
        )
        lower = Multistep().jump(schedule, anchor, s, noise)
        return torch.where(full.reshape(-1, *[1] * (x.ndim - 1)), third, lower)
