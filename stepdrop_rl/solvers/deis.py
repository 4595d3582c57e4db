"""DEIS: an exponential integrator that extrapolates eps (Zhang & Chen 2023, arXiv 2204.13902, eq. 15)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.solvers.base import Solver, Weights
from stepdrop_rl.solvers.exponential import decaying, lagrange_in_powers


class DEIS(Solver):
    """Extrapolates eps by a polynomial in lam through the last evaluations:

        x_s = (α_s/α_t)·x_t − α_s·e^{−lam_t}·Σ_j eps_j·∫₀ʰ e^{−u}·ℓ_j(u) du.

    (The tAB variant interpolates in t; lam makes the integrals exact, as in diffusers.) While a sample has
    fewer evaluations than ``order``, their number is its order.
    """

    needs_eps: ClassVar[bool] = True
    order: ClassVar[int | None] = 2
    history: ClassVar[int] = 2

    def weights(self, schedule: NoiseSchedule, times: Tensor, count: Tensor, s: Tensor) -> Weights:
        """Of x and of the last noise estimates."""
        lam = schedule.lam(times)
        h = schedule.lam(s) - lam[:, 0]
        alpha_t, _ = schedule.alpha_sigma(times[:, 0])
        alpha_s, _ = schedule.alpha_sigma(s)
        scale = -alpha_s * torch.exp(-lam[:, 0])
        integrals = [decaying(h, n) for n in range(self.history)]
        eps = [torch.zeros_like(h)] * self.history
        for depth in range(1, self.history + 1):
            here = (count == depth) if depth < self.history else (count >= depth)
            # Where another depth holds, nodes may coincide: any distinct ones will do.
            nodes = [torch.where(here, lam[:, k] - lam[:, 0], -float(k)) for k in range(depth)]
            for k, powers in enumerate(lagrange_in_powers(nodes)):
                weight = sum(c * integral for c, integral in zip(powers, integrals, strict=False))
                eps[k] = torch.where(here, scale * weight, eps[k])
        return Weights(alpha_s / alpha_t, eps=torch.stack(eps, 1))


class DEIS3(DEIS):
    """DEIS through the last three evaluations."""

    order: ClassVar[int | None] = 3
    history: ClassVar[int] = 3
