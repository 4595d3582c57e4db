"""What metrics are made of: a feature extractor, the reference of real images, and the registry of metrics.

A metric is a function ``(features (N, D), logits (N, K), reference) -> {name: number}``; a new one is a
module and a line in :data:`METRICS`, and every block, record and run has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from envs.registry import Registry
from stepdrop_rl.metrics.distances import Statistics
from stepdrop_rl.metrics.pairs import Cloud, cloud


class FeatureExtractor(Protocol):
    """A network that turns images (B, C, H, W) in [-1, 1] into features (B, D) and logits (B, K)."""

    @property
    def name(self) -> str:
        """What its Fréchet distance is called by: ``fd_<name>``."""

    @property
    def content_hash(self) -> str:
        """Names these very weights."""

    @property
    def device(self) -> torch.device:
        """Where it takes images."""

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move it."""

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, from one pass."""

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations (B, C_i, H_i, W_i) of several depths: where things are, not only that they are."""


class RewardExtractor(FeatureExtractor, Protocol):
    """One that rewards and searches look through."""

    @property
    def views(self) -> tuple[int, ...]:
        """How many of the D features are of each network that looks."""

    def __call__(self, x: Tensor) -> Tensor:
        """Features alone, (B, D); differentiable."""


INCEPTION = "inception"


def distance_name(extractor: str) -> str:
    """What the Fréchet distance in an extractor's features is called: FID with the Inception network only."""
    return "fid" if extractor == INCEPTION else f"fd_{extractor}"


@dataclass(frozen=True)
class Reference:
    """Real images as an extractor sees them.

    Args:
        extractor: Name of the extractor.
        features: (M, D) float32, on the CPU.
        statistics: Mean and covariance, of these or of more images.
        counted: How many images the statistics are of (None: M).
    """

    extractor: str
    features: Tensor
    statistics: Statistics
    counted: int | None = None

    @property
    def num_images(self) -> int:
        """How many images the statistics are of."""
        return len(self.features) if self.counted is None else self.counted

    @cached_property
    def cloud(self) -> Cloud:
        """What pairs of its features say, found once."""
        return cloud(self.features)


EXTRACTORS = Registry(
    "extractor",
    {
        "efficientnet_lite0": "stepdrop_rl.metrics.efficientnet:load_lite0",
        "efficientnet_lite2": "stepdrop_rl.metrics.efficientnet:load_lite2",
        INCEPTION: "stepdrop_rl.metrics.inception:load",
    },
)
"""Networks of others that judge any data set; our own are found by role, name or folder."""

Metric = Callable[[Tensor, Tensor, Reference], dict[str, float]]

METRICS = Registry(
    "metric",
    {
        "frechet": "stepdrop_rl.metrics.suite:frechet",
        "inception_score": "stepdrop_rl.metrics.suite:inception_score",
        "pairs": "stepdrop_rl.metrics.suite:pairs",
        "vendi": "stepdrop_rl.metrics.suite:vendi",
    },
)


def measure(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """Every registered metric of generated features (N, D) and logits (N, K)."""
    values: dict[str, float] = {}
    for name in METRICS:
        metric: Metric = METRICS.load(name)
        values |= metric(features, logits, reference)
    return values
