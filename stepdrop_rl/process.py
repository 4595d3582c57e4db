"""The reverse process of a batch: denoiser + solver + every sample's anchor.

Skipping changes nothing here: a sample keeps its anchor until it is evaluated again, and is carried there by
one jump. Shapes: R = rows asked for; rows (R,) int64; times (R,) float64; images (R, C, H, W) float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.observation import Projection
from envs.philox import Role, Stream, normal
from envs.protocols import Evidence
from stepdrop_rl.diffusion import CLEAN
from stepdrop_rl.estimates import Clip, clip_of, estimate, rms
from stepdrop_rl.gated import GatedRows
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.solvers.base import Anchor, Solver, at_most
from stepdrop_rl.timed import TimedRows


class DiffusionProcess:
    """A :class:`envs.protocols.ReverseProcess`, and a differentiable one, over a denoiser.

    Args:
        denoiser: Says what noise is in an image.
        solver: The jump.
        num_rows: Samples held at once.
        seed: Of all noise.
        role: Whose noise (see :mod:`envs.philox`).
        clip: How x0_hat is kept within [−1, 1] (:func:`stepdrop_rl.estimates.in_range`; True: static, False:
            none); eps then follows from the clipped x0_hat.
        projection: Turns the network's pooled features into numbers for the observation; None: no features.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        *,
        num_rows: int,
        seed: int,
        role: Role,
        clip: Clip | bool = "static",
        projection: Projection | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.solver = solver
        self.num_rows = num_rows
        self.seed = seed
        self.role = role
        self.clip = clip_of(clip)
        device = self.schedule.device
        self.asked = () if projection is None else projection.features
        self._affine = None if projection is None else tuple(part.to(device) for part in projection[:2])
        self.num_features = 0 if projection is None else projection.matrix.shape[1]
        self.history = solver.history
        self.relaxes = solver.history == 1  # none that looks back on half an evaluation
        depth = max(2, solver.history)  # the evidence looks back on two evaluations
        self._x = torch.zeros(num_rows, *denoiser.shape, device=device)
        self._x0 = torch.zeros(num_rows, depth, *denoiser.shape, device=device)
        self._eps = torch.zeros(num_rows, depth, *denoiser.shape, device=device) if solver.needs_eps else None
        self._times = torch.zeros(num_rows, depth, dtype=torch.float64, device=device)
        self._count = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._image = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._eps_rms = torch.zeros(num_rows, device=device)
        self._clipped = torch.zeros(num_rows, device=device)
        self._features = torch.zeros(num_rows, self.num_features, device=device)

    @property
    def device(self) -> torch.device:
        """Where the samples lie."""
        return self._x.device

    def projected(self, pooled: Tensor) -> Tensor:
        """What the observation shows of pooled features (R, F₀): (R, F)."""
        assert self._affine is not None
        matrix, mean = self._affine
        return (pooled - mean) @ matrix

    def lam(self, t: Tensor) -> Tensor:
        """Half log-SNR at real times."""
        return self.schedule.lam(t)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log √ᾱ at real times."""
        return torch.log(self.schedule.alpha_sigma(t)[0])

    def time_of(self, lam: Tensor) -> Tensor:
        """The times whose half log-SNR is ``lam``."""
        return self.schedule.time_of(lam)

    def start(self, rows: Tensor, images: Tensor, t: Tensor) -> None:
        """Put x at time ``t`` into the rows: noise of deviation 1, a function of (seed, role, image)."""
        self._x[rows] = normal(
            self.denoiser.shape, seed=self.seed, role=self.role, stream=Stream.INITIAL, image=images
        )
        self._image[rows] = images
        self._times[rows] = t.double().unsqueeze(-1).expand(-1, self._times.shape[1])
        self._count[rows] = 0
        self._x0[rows] = 0.0
        if self._eps is not None:
            self._eps[rows] = 0.0

    def jump(self, rows: Tensor, s: Tensor) -> Tensor:
        """Images at times ``s`` (CLEAN: the current clean estimate), one jump from the anchors."""
        clean = s < 0
        if self._surely_all(clean):
            return self._x0[rows, 0]
        x_s = self._carried(rows, torch.where(clean, self._times[rows, 0], s.double()))
        return torch.where(clean.reshape(-1, 1, 1, 1), self._x0[rows, 0], x_s)

    def _carried(self, rows: Tensor, target: Tensor, orders: Tensor | None = None) -> Tensor:
        """Images at real times, one jump from the anchors."""
        anchor = Anchor(
            self._x[rows],
            self._x0[rows],
            self._times[rows],
            at_most(self._count[rows], orders),
            None if self._eps is None else self._eps[rows],
        )
        noise = None
        if self.solver.stochastic:
            noise = normal(
                self.denoiser.shape,
                seed=self.seed,
                role=self.role,
                stream=Stream.JUMP,
                image=self._image[rows],
                time=target,
            )
        return self.solver.jump(self.schedule, anchor, target, noise)

    def _surely_all(self, flags: Tensor) -> bool:
        """Whether all flags are up; where asking makes a GPU wait, nobody asks and all the work is done."""
        return not flags.is_cuda and bool(flags.all())

    @torch.no_grad()
    def evaluate(self, rows: Tensor, t: Tensor, orders: Tensor | None = None) -> None:
        """Carry the rows to ``t``, call the network on just them, and remember what it said.

        ``orders`` (R,): evaluations that the jump there looks back on at most; None: the solver's history.
        """
        fresh = self._count[rows] == 0  # a first evaluation happens where the sample starts
        x = self._x[rows]
        if not self._surely_all(fresh):
            x = torch.where(fresh.reshape(-1, 1, 1, 1), x, self._carried(rows, t.double(), orders))
        seen = estimate(self.denoiser, x, t, clip=self.clip, features=self.asked)
        self._clipped[rows] = seen.clipped
        self._eps_rms[rows] = rms(seen.predicted)
        if seen.pooled is not None:
            self._features[rows] = self.projected(seen.pooled)
        if self._eps is not None:
            self._eps[rows] = torch.cat((seen.eps.unsqueeze(1), self._eps[rows, :-1]), 1)
        self._x[rows] = x
        self._x0[rows] = torch.cat((seen.x0.unsqueeze(1), self._x0[rows, :-1]), 1)
        self._times[rows] = torch.cat((t.double().unsqueeze(1), self._times[rows, :-1]), 1)
        self._count[rows] += 1

    def x0(self, rows: Tensor) -> Tensor:
        """The rows' current clean estimates: also the jump to the clean image, which has order 1."""
        return self._x0[rows, 0]

    def evidence(self, rows: Tensor) -> Evidence:
        """What the last evaluations showed of these rows."""
        several = self._count[rows] >= 2
        x0 = self._x0[rows]
        lam = self.schedule.lam(self._times[rows, :2])
        zero = torch.zeros(len(rows), device=self.device)
        return Evidence(
            eps_rms=self._eps_rms[rows],
            x0_change=torch.where(several, rms(x0[:, 0] - x0[:, 1]), zero),
            lam_change=torch.where(several, (lam[:, 0] - lam[:, 1]).float(), zero),
            clipped=self._clipped[rows],
            features=self._features[rows],
        )

    def gated(self, images: Tensor, times: Tensor, *, recompute: bool = True) -> GatedRows:
        """Differentiable trajectories of images (ids, (R,)) down ``times`` (N,), beside the rows."""
        return GatedRows(self, images, times, recompute=recompute)

    def timed(self, images: Tensor, t: Tensor, *, recompute: bool = True) -> TimedRows:
        """Differentiable trajectories of images (ids, (R,)) at times of their own, from ``t`` (R,)."""
        return TimedRows(self, images, t, recompute=recompute)


__all__ = ["CLEAN", "DiffusionProcess"]
