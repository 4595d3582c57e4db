"""How near to real images: what precision counts, and blind to what is common among the generated.

Alone it would praise the most typical image for every noise; beside a distance to the teacher, which holds
each noise to its own image, it asks for results on the manifold of the real ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.rewards.base import Candidates, Stateless
from envs.rewards.distribution import squared_distance


class Realism(Stateless):
    """Minus the log distance to the K-th nearest real image: a nearest-neighbour estimate of log p_real.

    Per dimension, up to a constant (Loftsgaarden & Quesenberry 1965).
    """

    K = 5

    def score(self, candidates: Candidates) -> Tensor:
        """(R,)."""
        return self._of(candidates.features)

    def gain(self) -> float:
        """Of full trajectories over first evaluations."""
        first = self._of(self.ground.features(self.ground.first))
        return float(self._of(self.ground.teacher_features[: len(first)]).mean() - first.mean())

    def _of(self, f: Tensor) -> Tensor:
        squared = squared_distance(f, self.ground.real)
        near = squared.kthvalue(min(self.K, squared.shape[1]), dim=1).values
        return -0.5 * torch.log(near + 1e-12)
