"""Features of several depths: what a classifier's last features are blind to, its first ones see.

Mean and standard deviation over space of every channel of the stem and of each stage, standardised on real
images. Shapes: B images (B, C, H, W) float32 in [-1, 1]; D = 2 x (channels of all depths); K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stepdrop_rl.weights import content_hash

_VARIANCE_FLOOR = 1e-8  # keeps the gradient of the standard deviation finite on a constant channel
_BATCH = 2048  # images that features are taken of at once


def _moments(x: Tensor) -> Tensor:
    """Mean and standard deviation over space of every channel: (B, C, H, W) -> (B, 2C)."""
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    return torch.cat((mean, (variance + _VARIANCE_FLOOR).sqrt()), dim=1)


class DepthFeatures(nn.Module):
    """A classifier as a :class:`~stepdrop_rl.metrics.base.FeatureExtractor`.

    Args:
        name: What its distances are called by: ``fd_<name>``.
        widths: Channels of each depth.
    """

    feature_mean: Tensor  # (D,) of the raw features of real images
    feature_deviation: Tensor  # (D,)

    def __init__(self, name: str, widths: Sequence[int]) -> None:
        super().__init__()
        self.name = name
        self.num_features = 2 * sum(widths)
        self.register_buffer("feature_mean", torch.zeros(self.num_features))
        self.register_buffer("feature_deviation", torch.ones(self.num_features))

    @abstractmethod
    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations (B, C_i, H_i, W_i) of every depth, the deepest last."""

    @abstractmethod
    def classify(self, pooled: Tensor) -> Tensor:
        """Unnormalised log-probabilities (B, K) of the deepest map's means over space."""

    @property
    def content_hash(self) -> str:
        """Names these very weights, for caches."""
        return content_hash(self.state_dict())

    @property
    def device(self) -> torch.device:
        """Where it takes images."""
        return self.feature_mean.device

    def _features(self, maps: list[Tensor]) -> Tensor:
        raw = torch.cat([_moments(depth) for depth in maps], dim=1)
        return (raw - self.feature_mean) / self.feature_deviation

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> features (B, D). Differentiable."""
        return self._features(self.maps(x))

    def logits(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> unnormalised log-probabilities (B, K)."""
        return self.classify(self.maps(x)[-1].mean(dim=(2, 3)))

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, from one pass."""
        maps = self.maps(x)
        return self._features(maps), self.classify(maps[-1].mean(dim=(2, 3)))

    @torch.no_grad()
    def standardise(self, images: Tensor) -> None:
        """Set mean and deviation of every feature from real images (N, C, H, W) in [-1, 1].

        A feature that hardly varies is divided by a tenth of the median deviation instead: its own would
        blow rounding errors up.
        """
        self.feature_mean.zero_()
        self.feature_deviation.fill_(1.0)
        raw = torch.cat([self(batch) for batch in images.split(_BATCH)])
        deviation = raw.std(dim=0)
        self.feature_mean.copy_(raw.mean(dim=0))
        self.feature_deviation.copy_(deviation.clamp(min=0.1 * float(deviation.median())))
