"""Differentiable trajectories: every point of the grid is evaluated, and a gate says how much that counts.

What decides the result is where a sample was evaluated last when it comes to a point u. So the images at all
points ahead are kept, and an evaluation at s with gate g mixes what follows if it is made with what follows
if it is not:

    X(u) ← g·jump(anchor at s → u) + (1 − g)·X(u)        for all u after s,
    D ← g·x0_hat(x_s, s) + (1 − g)·D,                    and so the rest of what is known of a sample.

- Gates of 0 and 1: skip and evaluate, bit for bit. For a fixed pair of outcomes X is linear in g, so the
  derivative at a whole gate is the very difference that the decision makes to what follows it directly.
- Gates between, order 1 without noise (DDIM): jumps with the same D compose, so this is one jump from point
  to point with D as above; it is done in the general way here.
- Solvers that look back on several evaluations have no half evaluation to look back on (whose time would it
  have?). For them gates are whole, and only their gradient is a relaxed one's: straight through (Bengio et
  al. 2013). The time, too, at which a sample was last evaluated then changes along g.

Costs a network call per point, and as many jumps as pairs of points.
Shapes: R rows; N points; K = history of the solver; images (R, C, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from envs.philox import Stream, normal
from envs.protocols import Evidence
from stepdrop_rl.estimates import estimate
from stepdrop_rl.solvers.base import Anchor

if TYPE_CHECKING:
    from stepdrop_rl.process import DiffusionProcess

_TINY = 1e-20  # a root's slope at 0 is infinite


@dataclass(frozen=True)
class _Known:
    """What is known of each row, newest first where there is a history; ``eps`` may be empty."""

    x0: Tensor
    eps: Tensor
    times: Tensor
    nfe: Tensor
    lam: Tensor
    eps_rms: Tensor
    x0_change: Tensor
    lam_change: Tensor
    clipped: Tensor
    features: Tensor

    def mixed(self, other: _Known, gates: Tensor) -> _Known:
        """``gates`` of this and the rest of ``other``."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return _Known(*(_mix(gates, new, old) for new, old in pairs))


def _mix(gates: Tensor, new: Tensor, old: Tensor) -> Tensor:
    g = gates.to(new.dtype).reshape(-1, *[1] * (new.ndim - 1))
    return g * new + (1 - g) * old


def _rms(images: Tensor) -> Tensor:
    return images.flatten(1).square().mean(1).clamp(min=_TINY).sqrt()


class GatedRows:
    """An :class:`envs.protocols.GatedTrajectories`.

    Args:
        process: Whose model, solver, noise and clipping.
        images: (R,) ids.
        times: (N,) the grid, descending.
        recompute: Call the network a second time for gradients instead of keeping its activations.
        dtype: Of the images; float64 for measuring gradients.
    """

    def __init__(
        self,
        process: DiffusionProcess,
        images: Tensor,
        times: Tensor,
        *,
        recompute: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.process = process
        self.images = images
        self.times = times.double()
        self.recompute = recompute
        self._lam = process.lam(self.times)
        self._point = 0
        self._count = torch.zeros_like(images)
        self._ahead: list[Tensor] = []
        x = self._noise(Stream.INITIAL, None).to(dtype)
        depth = process.solver.history
        past = x.new_zeros(len(x), depth, *x.shape[1:])
        zero = x.new_zeros(len(x))
        none = _Known(
            x0=past,
            eps=past if self._needs_eps else past[:, :0],
            times=self.times[:1].expand(len(x), depth),
            nfe=zero.double(),
            lam=self._lam[:1].expand(len(x)),
            eps_rms=zero,
            x0_change=zero,
            # No change yet, whatever it is divided by; by 0 its rate would have no slope in the next gate.
            lam_change=zero + 1,
            clipped=zero,
            features=x.new_zeros(len(x), process.num_features),
        )
        self._known, self._ahead = self._evaluated(x, none)
        self._count += 1

    @property
    def _needs_eps(self) -> bool:
        return self.process.solver.needs_eps

    @property
    def lam_anchor(self) -> Tensor:
        """Half log-SNR of the rows' last evaluations, (R,)."""
        return self._known.lam

    @property
    def nfe(self) -> Tensor:
        """Evaluations so far, (R,)."""
        return self._known.nfe

    def x0(self) -> Tensor:
        """The rows' current clean estimates."""
        return self._known.x0[:, 0]

    def evidence(self) -> Evidence:
        """What the last evaluations showed."""
        k = self._known
        return Evidence(k.eps_rms, k.x0_change, k.lam_change, k.clipped, k.features)

    def advance(self, gates: Tensor) -> None:
        """Go on to the next point and evaluate there with the weights ``gates``, (R,)."""
        self._point += 1
        known, ahead = self._evaluated(self._ahead[0], self._known)
        self._ahead = [_mix(gates, new, old) for new, old in zip(ahead, self._ahead[1:], strict=True)]
        self._known = known.mixed(self._known, gates)
        self._count = self._count + (gates.detach() > 0.5).to(self._count.dtype)

    def _noise(self, stream: Stream, time: Tensor | None) -> Tensor:
        process = self.process
        return normal(
            process.denoiser.shape,
            seed=process.seed,
            role=process.role,
            stream=stream,
            image=self.images,
            time=time,
        )

    def _evaluated(self, x: Tensor, before: _Known) -> tuple[_Known, list[Tensor]]:
        """What is known once ``x`` is evaluated at this point, and the images at the points ahead."""
        t = self.times[self._point].expand(len(x))
        x0, eps, eps_rms, clipped, features = self._look(x, t)
        first = self._point == 0
        known = _Known(
            x0=torch.cat((x0.unsqueeze(1), before.x0[:, :-1]), 1),
            eps=torch.cat((eps.unsqueeze(1), before.eps[:, :-1]), 1) if self._needs_eps else before.eps,
            times=torch.cat((t.unsqueeze(1), before.times[:, :-1]), 1),
            nfe=before.nfe + 1,
            lam=self._lam[self._point].expand(len(x)),
            eps_rms=eps_rms,
            x0_change=before.x0_change if first else _rms(x0 - before.x0[:, 0]),
            lam_change=before.lam_change if first else (self._lam[self._point] - before.lam).to(x.dtype),
            clipped=clipped,
            features=features,
        )
        anchor = Anchor(x, known.x0, known.times, self._count + 1, known.eps if self._needs_eps else None)
        solver, schedule = self.process.solver, self.process.schedule
        ahead = []
        for s in self.times[self._point + 1 :]:
            to = s.expand(len(x))
            noise = self._noise(Stream.JUMP, to).to(x.dtype) if solver.stochastic else None
            ahead.append(solver.jump(schedule, anchor, to, noise))
        return known, ahead

    def _look(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """One network call: clean estimates, eps, their size, the clipped share and features."""
        process = self.process

        def call(x: Tensor) -> tuple[Tensor, ...]:
            seen = estimate(process.denoiser, x, t, clip=process.clip, features=process.asked)
            features = x.new_zeros(len(x), 0)
            if seen.pooled is not None:
                features = process.projected(seen.pooled)
            return seen.x0, seen.eps, _rms(seen.predicted), seen.clipped, features

        if self.recompute and torch.is_grad_enabled() and x.requires_grad:
            found: tuple[Tensor, ...] = checkpoint(call, x, use_reentrant=False)
            return found
        return call(x)
