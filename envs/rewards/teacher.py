"""Distance to the teacher: the same noise run through the full trajectory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from envs.rewards.base import Candidates, Stateless


class TeacherDistance(Stateless, ABC):
    """Minus a distance to the teacher's result."""

    @abstractmethod
    def score(self, candidates: Candidates) -> Tensor:
        """(R,)."""

    def gain(self) -> float:
        """The teacher's own distance is 0."""
        first = self.ground.first
        images = torch.arange(len(first), device=first.device)
        return -float(self.score(Candidates(self.ground, images, images, first)).mean())


class PixelDistance(TeacherDistance):
    """Minus the root mean square pixel distance to the teacher's result."""

    needs_features: ClassVar[bool] = False

    def score(self, candidates: Candidates) -> Tensor:
        """(R,), 0 at best; pixels in [−1, 1]."""
        wanted = self.ground.teacher[candidates.images]
        return -(candidates.x0 - wanted).flatten(1).square().mean(1).sqrt()


class FeatureDistance(TeacherDistance):
    """Minus the feature distance to the teacher's result, in units of the mean distance of real images."""

    def score(self, candidates: Candidates) -> Tensor:
        """(R,), 0 at best."""
        wanted = self.ground.teacher_features[candidates.images]
        return -(candidates.features - wanted).norm(dim=1) / self.ground.real_distance
