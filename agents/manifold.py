"""Whether features lie among real ones: the manifold whose share precision counts, with a soft edge.

Around every real image lies a ball that reaches its K-th neighbour among them; the realism of an image is
R(f) = max_r radius(r) / ‖f − r‖, 1 on the edge of the union of balls (Kynkäänniemi et al. 2019, section 5).
Its membership is sigmoid(log R / τ): precision is the mean of a step in its place, which tells a small move
nothing. Both are means over single images, so linear in the chances with which a mixture or a policy deals.

Shapes: M real images; R others; F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 3  # K, that of the metric
_EDGE = 0.05  # τ
_ROWS = 1024  # of a distance matrix at once
_LEAST = 1e-6  # distance: a copy of a real image is no more realistic than that


class Manifold:
    """That of ``real`` features (M, F)."""

    def __init__(self, real: Tensor) -> None:
        self.real = real
        neighbour = min(NEIGHBOURS + 1, len(real))  # the nearest is the image itself
        radii = [torch.cdist(rows, real).kthvalue(neighbour, dim=1).values for rows in real.split(_ROWS)]
        self._log_radius = torch.cat(radii).clamp(min=_LEAST).log()

    def log_realism(self, features: Tensor) -> Tensor:
        """log R of ``features`` (R, F), (R,): positive inside."""
        found = []
        for rows in features.split(_ROWS):
            apart = torch.cdist(rows, self.real).clamp(min=_LEAST)
            found.append((self._log_radius - apart.log()).max(dim=1).values)
        return torch.cat(found) if found else features.new_zeros(0)

    def membership(self, features: Tensor) -> Tensor:
        """Of ``features`` (R, F), (R,): near 1 inside, near 0 outside."""
        return torch.sigmoid(self.log_realism(features) / _EDGE)
