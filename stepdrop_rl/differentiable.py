"""What differentiable trajectories have in common: what is known of a row, a look at the network, a jump.

Nothing is written in place: all that is told is differentiable in whatever led there.
Shapes: R rows; K = history of the solver; images (R, C, H, W); times (R,) float64.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
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
class Known:
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

    def mixed(self, other: Known, gates: Tensor) -> Known:
        """``gates`` of this and the rest of ``other``."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Known(*(mix(gates, new, old) for new, old in pairs))


def mix(gates: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``gates`` (R,) of ``new`` and the rest of ``old``."""
    g = gates.to(new.dtype).reshape(-1, *[1] * (new.ndim - 1))
    return g * new + (1 - g) * old


def _rms(images: Tensor) -> Tensor:
    return images.flatten(1).square().mean(1).clamp(min=_TINY).sqrt()


def _pushed(new: Tensor, history: Tensor) -> Tensor:
    return torch.cat((new.unsqueeze(1), history[:, :-1]), 1)


class DifferentiableRows:
    """An :class:`envs.protocols.DifferentiableTrajectories` that has begun; a subclass goes on.

    Args:
        process: Whose model, solver, noise and clipping.
        images: (R,) ids.
        t: (R,) where they are evaluated first.
        recompute: Call the network a second time for gradients instead of keeping its activations.
        dtype: Of the images; float64 for measuring gradients.
    """

    def __init__(
        self,
        process: DiffusionProcess,
        images: Tensor,
        t: Tensor,
        *,
        recompute: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.process = process
        self.images = images
        self.recompute = recompute
        self._x = self._noise(Stream.INITIAL, None).to(dtype)
        self._count = torch.ones_like(images)
        past = self._x.new_zeros(len(images), process.solver.history, *self._x.shape[1:])
        zero = self._x.new_zeros(len(images))
        nothing = Known(
            x0=past,
            eps=past if process.solver.needs_eps else past[:, :0],
            times=t.unsqueeze(1).expand(-1, process.solver.history),
            nfe=zero.double(),
            lam=process.lam(t),
            eps_rms=zero,
            x0_change=zero,
            lam_change=zero,
            clipped=zero,
            features=self._x.new_zeros(len(images), process.num_features),
        )
        first = self._evaluated(self._x, t, nothing)
        # No change yet, whatever it is divided by; by 0 its rate would have no slope in what follows.
        self._known = replace(first, x0_change=zero, lam_change=zero + 1)

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

    def _evaluated(self, x: Tensor, t: Tensor, before: Known) -> Known:
        """What is known once ``x`` is evaluated at ``t``."""
        x0, eps, eps_rms, clipped, features = self._look(x, t)
        lam = self.process.lam(t)
        return Known(
            x0=_pushed(x0, before.x0),
            eps=_pushed(eps, before.eps) if self.process.solver.needs_eps else before.eps,
            times=_pushed(t, before.times),
            nfe=before.nfe + 1,
            lam=lam,
            eps_rms=eps_rms,
            x0_change=_rms(x0 - before.x0[:, 0]),
            lam_change=(lam - before.lam).to(x.dtype),
            clipped=clipped,
            features=features,
        )

    def _jump(self, x: Tensor, known: Known, count: Tensor, s: Tensor) -> Tensor:
        """The images at ``s``, one jump from ``x``, the last of ``count`` (R,) evaluations."""
        solver = self.process.solver
        anchor = Anchor(x, known.x0, known.times, count, known.eps if solver.needs_eps else None)
        noise = self._noise(Stream.JUMP, s.detach()).to(x.dtype) if solver.stochastic else None
        return solver.jump(self.process.schedule, anchor, s, noise)

    def _look(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """One network call: clean estimates, eps, their size, the clipped share and features."""
        process = self.process

        def call(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
            seen = estimate(process.denoiser, x, t, clip=process.clip, features=process.asked)
            features = x.new_zeros(len(x), 0)
            if seen.pooled is not None:
                features = process.projected(seen.pooled)
            return seen.x0, seen.eps, _rms(seen.predicted), seen.clipped, features

        if self.recompute and torch.is_grad_enabled() and (x.requires_grad or t.requires_grad):
            found: tuple[Tensor, ...] = checkpoint(call, x, t, use_reentrant=False)
            return found
        return call(x, t)
