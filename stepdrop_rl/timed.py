"""Differentiable trajectories whose evaluation times are real numbers, each row's own.

An evaluation at s jumps there from the anchor and becomes the anchor, as in
:class:`stepdrop_rl.process.DiffusionProcess`, whose results equal times bring; but jump, network and what
they tell keep their gradients in s. Fresh noise is taken as it fell: only its weight has a slope.

Costs a network call an evaluation, and as many again and a backward pass for gradients.
Shapes: R rows; images (R, C, H, W); times (R,) float64.
"""

from __future__ import annotations

from copy import copy

from torch import Tensor

from stepdrop_rl.differentiable import DifferentiableRows
from stepdrop_rl.solvers.base import at_most


class TimedRows(DifferentiableRows):
    """An :class:`envs.protocols.TimedTrajectories`."""

    def advance(self, s: Tensor, order: int | None = None) -> None:
        """Jump to ``s``, (R,), each row below its last time, and evaluate there.

        ``order``: evaluations that the jump looks back on at most; None: the solver's history.
        """
        self._x = self._jump(self._x, self._known, at_most(self._count, order), s)
        self._known = self._evaluated(self._x, s, self._known)
        self._count = self._count + 1

    def branch(self) -> TimedRows:
        """Others that begin where these are: nothing is written in place, so they share what is known."""
        return copy(self)
