"""Two of our own networks for rewards: what pleases one alone is not what is real.

A learner that may choose much at few evaluations finds what a single network's features have in common with
those of real images, and other networks see half of that (docs/looking.md). The second network has other
strides, filters and widths, and every one is a view of its own: learners may mind the worse of the two.

Shapes: B images (B, C, H, W) in [-1, 1]; F = features of the first + of the second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stepdrop_rl.metrics.extractor import Extractor

NAME = "both"


class Both:
    """A :class:`~stepdrop_rl.metrics.base.RewardExtractor`.

    Args:
        own: The reward's network.
        second: The other one.
    """

    name = NAME

    def __init__(self, own: Extractor, second: Extractor) -> None:
        self.own, self.second = own, second

    @property
    def content_hash(self) -> str:
        """Names these very weights."""
        return f"{self.own.content_hash}-{self.second.content_hash}"

    @property
    def views(self) -> tuple[int, ...]:
        """How many features are of each network."""
        return (*self.own.views, *self.second.views)

    @property
    def device(self) -> torch.device:
        """Where it takes images."""
        return self.own.device

    def to(self, device: torch.device | str) -> Both:
        """Move it."""
        self.own.to(device)
        self.second.to(device)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """(B, F) of images (B, C, H, W) in [-1, 1]. Differentiable."""
        return torch.cat((self.own(x), self.second(x)), 1)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) features, and the first network's logits."""
        own, logits = self.own.features_and_logits(x)
        return torch.cat((own, self.second(x)), 1), logits

    def maps(self, x: Tensor) -> list[Tensor]:
        """The first network's activations."""
        return self.own.maps(x)
