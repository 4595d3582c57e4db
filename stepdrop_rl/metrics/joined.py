"""What rewards may see of real images: our own network's features, and some of a network's of large ones.

Networks that learned from small images agree with one another about where schedules should end and how they
should be spaced, and a network that knows large ones contradicts them all: a reward that sees small images
alone is led astray by what they share (docs/looking.md). So here are our reward's features f, and the first
principal components g of EfficientNet-Lite2's on real images, scaled to the same total variance: distances
weigh both alike. Lite2 is a bigger sister of Lite0, the judge, and sees as many pixels; at fewer it orders
schedules as neither of them does. So a judge that is no relation should have a say as well: our own.

Shapes: B images (B, C, H, W) in [-1, 1]; F = features of ours + components.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from envs.errors import UserError
from stepdrop_rl.caches import cache_folder
from stepdrop_rl.metrics.efficientnet import EfficientNetLite
from stepdrop_rl.metrics.extractor import Extractor
from stepdrop_rl.weights import content_hash, load_tensors, save_tensors

NAME = "joined"
COMPONENTS = 128
_BATCH = 256


class Joined:
    """A :class:`~stepdrop_rl.metrics.base.RewardExtractor`; it wants :meth:`fit` before it looks.

    Args:
        own: Our reward's network.

    Raises:
        UserError: Lite2 is not installed.
    """

    name = NAME

    def __init__(self, own: Extractor) -> None:
        self.own = own
        self.large = EfficientNetLite(2)
        self.mean = torch.zeros(0)  # (1280,) of Lite2's features
        self.components = torch.zeros(0, 0)  # (1280, K), scaled

    @property
    def content_hash(self) -> str:
        """Names these very weights."""
        fitted = content_hash({"mean": self.mean, "components": self.components})
        return f"{self.own.content_hash}-{self.large.content_hash}-{fitted}"

    @property
    def views(self) -> tuple[int, ...]:
        """How many features are of our own network, and how many of Lite2."""
        return (*self.own.views, self.components.shape[1])

    @property
    def device(self) -> torch.device:
        """Where it takes images."""
        return self.own.device

    def to(self, device: torch.device | str) -> Joined:
        """Move it."""
        self.own.to(device)
        self.large.to(device)
        self.mean, self.components = self.mean.to(device), self.components.to(device)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """(B, F) of images (B, C, H, W) in [-1, 1]. Differentiable."""
        return torch.cat((self.own(x), self._components_of(x)), 1)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) features, and our own network's logits."""
        own, logits = self.own.features_and_logits(x)
        return torch.cat((own, self._components_of(x)), 1), logits

    def maps(self, x: Tensor) -> list[Tensor]:
        """Our own network's activations."""
        return self.own.maps(x)

    def _components_of(self, x: Tensor) -> Tensor:
        return (self.large.features(x) - self.mean) @ self.components

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Find the components, on real images (N, C, H, W) in [-1, 1]; kept for later processes."""
        seen = content_hash({"images": images})
        parts = (self.own.content_hash, self.large.content_hash, str(COMPONENTS), seen)
        kept = cache_folder("extractors") / f"{NAME}-{'-'.join(parts)}.safetensors"
        try:
            found = load_tensors(kept)
        except UserError:  # missing or damaged: it is only a cache
            own = torch.cat([self.own(part) for part in images.to(self.device).split(_BATCH)])
            large = torch.cat([self.large.features(part) for part in images.to(self.device).split(_BATCH)])
            found = principal(large, float(own.double().var(0).sum()))
            with suppress(UserError):  # nowhere to write: found again next time
                save_tensors(kept, found)
        self.mean, self.components = found["mean"].to(self.device), found["components"].to(self.device)


def principal(features: Tensor, variance: float, count: int = COMPONENTS) -> dict[str, Tensor]:
    """Mean (F,) and first ``count`` components (F, count) of features (N, F), of that total ``variance``."""
    features = features.double().cpu()
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    scale = (variance / values.sum()).sqrt()
    return {"mean": features.mean(0).float(), "components": (scale * vectors).float()}
