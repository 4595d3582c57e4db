"""What learners by gradients through the sampler share: their process, what they need of it, and a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from agents.own import OwnLearner
from envs.errors import UserError
from envs.protocols import DifferentiableProcess


class ThroughSampler(OwnLearner):
    """An :class:`agents.own.OwnLearner` whose trajectories are differentiable.

    A subclass has ``algo``, its name, and ``lengthens``, the setting whose trajectories are too long where
    gradients blow up; its hyperparameters have ``batch_size`` and ``max_grad_norm``.
    """

    algo: ClassVar[str]
    lengthens: ClassVar[str] = "max_nfe"

    def _check(self) -> None:
        if int(self.hyperparameters["batch_size"]) < 1:
            raise UserError(f"batch_size must be positive, not {self.hyperparameters['batch_size']}")
        if not isinstance(self.core.walk.process, DifferentiableProcess):
            raise UserError(f"'{self.algo}' learns by gradients through the sampler: this process has none")

    @property
    def process(self) -> DifferentiableProcess:
        """What draws the trajectories."""
        process = self.core.walk.process
        assert isinstance(process, DifferentiableProcess)
        return process

    def _need_slope(self, quality: Tensor) -> None:
        """:class:`UserError` where Φ tells nothing of its slope."""
        if not quality.requires_grad:
            raise UserError(
                f"'{self.algo}' needs a differentiable reward: this one says nothing of its slope"
            )

    def _descend(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> float:
        """One step of the optimiser down the loss; its gradient's norm before clipping."""
        self.optimizer.zero_grad()
        loss.backward(inputs=list(parameters))
        norm = nn.utils.clip_grad_norm_(parameters, self.hyperparameters["max_grad_norm"])
        if not bool(torch.isfinite(norm)):
            raise UserError(f"gradients through the sampler are not finite: lower {self.lengthens}")
        self.optimizer.step()
        return float(norm)
