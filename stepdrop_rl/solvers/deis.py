"""DEIS: an exponential integrator that extrapolates eps (Zhang & Chen 2023, arXiv 2204.13902, eq. 15)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule, image_scale
from stepdrop_rl.solvers.base import Anchor
from stepdrop_rl.solvers.exponential import decaying, lagrange_in_powers


class DEIS:
    """Extrapolates eps by a polynomial in lam through the last evaluations:

        x_s = (α_s/α_t)·x_t − α_s·e^{−lam_t}·Σ_j eps_j·∫₀ʰ e^{−u}·ℓ_j(u) du.

    (The tAB variant interpolates in t; lam makes the integrals exact, as in diffusers.) While a sample has
    fewer evaluations than ``order``, their number is its order.
    """

    stochastic = False
    needs_eps: ClassVar[bool] = True
    order: ClassVar[int | None] = 2
    history: ClassVar[int] = 2

    def jump(self, schedule: NoiseSchedule, anchor: Anchor, s: Tensor, noise: Tensor | None) -> Tensor:
        """One jump; ``noise`` is not used."""
        assert anchor.eps is not None
        x = anchor.x
        lam = [schedule.lam(anchor.times[:, k]) for k in range(self.history)]
        h = schedule.lam(s) - lam[0]
        alpha_t, _ = schedule.alpha_sigma(anchor.t)
        alpha_s, _ = schedule.alpha_sigma(s)
        scale = -alpha_s * torch.exp(-lam[0])
        result = image_scale(alpha_s / alpha_t, x) * x
        for depth in range(1, self.history + 1):
            here = (anchor.count == depth) if depth < self.history else (anchor.count >= depth)
            # Where another depth holds, nodes may coincide: any distinct ones will do.
            nodes = [torch.where(here, lam[k] - lam[0], -float(k)) for k in range(depth)]
            for k, powers in enumerate(lagrange_in_powers(nodes)):
                weight = torch.stack([c * decaying(h, n) for n, c in enumerate(powers)]).sum(0)
                weight = torch.where(here, scale * weight, 0.0)
                result = result + image_scale(weight, x) * anchor.eps[:, k]
        return result


class DEIS3(DEIS):
    """DEIS through the last three evaluations."""

    order: ClassVar[int | None] = 3
    history: ClassVar[int] = 3
