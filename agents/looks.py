"""What is kept of images that were drawn along all branches of a plan, to learn from again and again.

Shapes: M images; T looks at one; D entries of what is shown; B branches; F features of the reward, seen by V
networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Looks(NamedTuple):
    """Looks at one plan; the same place holds the same noise at every plan.

    Args:
        entries: (M, T, D) what images showed, at every look that they may get.
        results: (M, B, F) features of what each branch made of them, half precision.
        inside: (M, B, V) their membership of the real images' manifold.
    """

    entries: Tensor
    results: Tensor
    inside: Tensor

    def some(self, rows: slice | Tensor) -> Looks:
        """Those."""
        return Looks(*(part[rows] for part in self))


def joined(looks: Sequence[Looks]) -> Looks:
    """One after the other."""
    return Looks(*(torch.cat(parts) for parts in zip(*looks, strict=True)))


def no_looks(looks: int, entries: int, branches: int, features: int, views: int) -> Looks:
    """None yet, of ``looks`` T."""
    results = torch.zeros(0, branches, features, dtype=torch.float16)
    return Looks(torch.zeros(0, looks, entries), results, torch.zeros(0, branches, views))
