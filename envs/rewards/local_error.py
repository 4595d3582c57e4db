"""What the jumps between evaluations got wrong, estimated jump by jump.

A jump from lam_t to lam_s over h = lam_s − lam_t follows x0_hat as it was known at t: order 2 extrapolates it
from the last two evaluations. The evaluation at s shows what x0_hat became, and the jump that leads there
through the mean of both ends differs from the one that was made, in units of the clean image, by

    ½(1 − e^−h)·|D_s − D_t − (h/h_prev)·(D_t − D_prev)|      (D = x0_hat; without the last term at order 1),

the step-doubling estimate of the local truncation error of order 2 (Hairer, Nørsett & Wanner, II.4). The last
jump, to the clean image, leads to x0_hat itself; its error needs no estimate: the teacher's result is known.

Shapes: R candidates, images (R, C, H, W).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from envs.rewards.base import Candidates, Ground
from envs.rewards.teacher import PixelDistance


class LocalError(PixelDistance):
    """Minus the errors of the jumps made so far and of the one to the clean image, root mean square pixels.

    A function of the sample's evaluations, not of its last image alone: a long jump is paid for where it is
    made, not where it shows.
    """

    needs_features: ClassVar[bool] = False

    def __init__(self, ground: Ground, num_rows: int) -> None:
        super().__init__(ground, num_rows)
        like = ground.teacher
        self._x0 = torch.zeros(num_rows, 2, *like.shape[1:], device=like.device)  # newest first
        self._lam = torch.zeros(num_rows, 2, dtype=torch.float64, device=like.device)
        self._count = torch.zeros(num_rows, dtype=torch.int64, device=like.device)
        self._made = torch.zeros(num_rows, device=like.device)

    def begin(self, rows: Tensor, images: Tensor, prices: Tensor) -> None:
        """No jump made yet."""
        self._count[rows] = 0
        self._made[rows] = 0.0

    def score(self, candidates: Candidates) -> Tensor:
        """(R,), 0 at best."""
        if candidates.lam is not None:
            known = (self._count[candidates.rows] > 0) & (self._lam[candidates.rows, 0] == candidates.lam)
            self._record(candidates.rows[~known], candidates.x0[~known], candidates.lam[~known])
        return super().score(candidates) - self._made[candidates.rows]

    def _record(self, rows: Tensor, x0: Tensor, lam: Tensor) -> None:
        """Add the jumps that led to these evaluations."""
        count, before, at = self._count[rows], self._x0[rows], self._lam[rows]
        h = lam - at[:, 0]
        trend = torch.where(count >= 2, h / (at[:, 0] - at[:, 1]).clamp(min=1e-6), 0.0).to(x0)
        expected = before[:, 0] + trend.reshape(-1, 1, 1, 1) * (before[:, 0] - before[:, 1])
        error = -0.5 * torch.expm1(-h).to(x0) * (x0 - expected).flatten(1).square().mean(1).sqrt()
        self._made[rows] += torch.where(count >= 1, error, 0.0)
        self._x0[rows] = torch.stack((x0, before[:, 0]), 1)
        self._lam[rows] = torch.stack((lam, at[:, 0]), 1)
        self._count[rows] += 1

    def gain(self) -> float:
        """The teacher's own distance is 0, and its jumps are short."""
        first = self.ground.first
        images = torch.arange(len(first), device=first.device)
        return -float(PixelDistance.score(self, Candidates(self.ground, images, images, first)).mean())
