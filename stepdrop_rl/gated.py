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

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stepdrop_rl.differentiable import DifferentiableRows, Known, mix

if TYPE_CHECKING:
    from stepdrop_rl.process import DiffusionProcess


class GatedRows(DifferentiableRows):
    """An :class:`envs.protocols.GatedTrajectories`.

    Args:
        process: As of :class:`DifferentiableRows`, like ``recompute`` and ``dtype``.
        images: (R,) ids.
        times: (N,) the grid, descending.
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
        self.times = times.double()
        super().__init__(
            process, images, self.times[:1].expand(len(images)), recompute=recompute, dtype=dtype
        )
        self._point = 0
        self._ahead = self._jumps(self._known, self._count)

    def advance(self, gates: Tensor) -> None:
        """Go on to the next point and evaluate there with the weights ``gates``, (R,)."""
        self._point += 1
        self._x = self._ahead[0]
        t = self.times[self._point].expand(len(self._x))
        known = self._evaluated(self._x, t, self._known)
        ahead = self._jumps(known, self._count + 1)
        self._ahead = [mix(gates, new, old) for new, old in zip(ahead, self._ahead[1:], strict=True)]
        self._known = known.mixed(self._known, gates)
        self._count = self._count + (gates.detach() > 0.5).to(self._count.dtype)

    def _jumps(self, known: Known, count: Tensor) -> list[Tensor]:
        """The images at the points ahead, if this point is evaluated."""
        ahead = self.times[self._point + 1 :]
        return [self._jump(self._x, known, count, s.expand(len(self._x))) for s in ahead]
