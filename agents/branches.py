"""Plans on a sampler: when their branches' evaluations are, and what images become along them.

Shapes: R images; B branches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.drawing import Drawn, draw
from agents.planning import Tariff
from agents.plans import Plans
from envs.observation import Grid
from envs.protocols import DifferentiableProcess


@dataclass(frozen=True)
class Branches:
    """Where plans tell λ as shares of the whole, a sampler needs times.

    Args:
        plans: Their budgets, and λ of their branches.
        grid: From whose first time to whose last they reach.
        process: What draws, and turns λ into times.
        tariff: What an evaluation costs, by how many the plan has: looks tell it.
        recompute: As of the process.
    """

    plans: Plans
    grid: Grid
    process: DifferentiableProcess
    tariff: Tariff
    recompute: bool

    def times_at(self, lam: Tensor) -> Tensor:
        """Times of λ as shares of the whole; differentiable."""
        first, last = self.grid.lam[0], self.grid.lam[-1]
        return self.process.time_of(first + (last - first) * lam.to(self.grid.lam))

    def times(self, plan: int, *, stretched: bool = True) -> list[Tensor]:
        """Times of every branch's evaluations; differentiable."""
        lams = self.plans.lams(plan, stretched=stretched)
        return [torch.cat((self.grid.times[:1], self.times_at(lam[1:]))) for lam in lams]

    def prices(self, images: Tensor, plan: int) -> Tensor:
        """What pays for the plan's evaluations, (R,)."""
        return torch.full_like(images, self.tariff.price(self.plans.sizes[plan]), dtype=torch.float64)

    def draw(self, images: Tensor, plan: int, *, stretched: bool = True) -> Drawn:
        """Draw ``images`` (R,) along every branch of a plan, or those of other cost alone."""
        return draw(
            self.process,
            self.grid,
            images,
            self.times(plan, stretched=stretched),
            self.plans.fork(plan),
            self.prices(images, plan),
            orders=self.plans.orders(plan) if stretched else None,
            looks=self.plans.looks if stretched else 1,
            recompute=self.recompute,
        )

    def on_one_grid(self) -> tuple[list[float], Tensor, Tensor]:
        """All plans on one grid: its times, (N,), λ there and each plan's points, as of the plans."""
        lam, table = self.plans.on_one_grid()
        inner = self.times_at(lam)[1:-1].tolist()
        return [float(self.grid.times[0]), *inner, float(self.grid.times[-1])], lam, table
