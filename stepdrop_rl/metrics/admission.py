"""Whether a judge sees what a person sees: its distances on real images, spoilt step by step.

Two halves of the real images must be near; distance must grow with noise, blur, contrast, JPEG and missing
classes, and a collapse to one class must keep precision and lose recall. Shapes: N images (N, C, H, W).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import decode_jpeg, encode_jpeg

from envs.errors import UserError
from stepdrop_rl.data import ImageData, to_float, to_uint8
from stepdrop_rl.metrics.base import FeatureExtractor, Reference, distance_name, measure
from stepdrop_rl.metrics.distances import statistics
from stepdrop_rl.metrics.reference import gather

HALVES = "the other half"
ONE_CLASS = "one class"


def noise(x: Tensor, sd: float) -> Tensor:
    """Normal noise of deviation ``sd`` grey levels of 255."""
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * sd / 127.5


def blur(x: Tensor, share: float) -> Tensor:
    """A mean over 3 x 3 pixels, mixed in by ``share``."""
    kernel = torch.ones(x.shape[1], 1, 3, 3) / 9
    smooth = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
    return (1 - share) * x + share * smooth


def contrast(x: Tensor, factor: float) -> Tensor:
    """Distances to each image's mean times ``factor``."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + factor * (x - mean)


def jpeg(x: Tensor, quality: float) -> Tensor:
    """Through a JPEG file and back."""
    files = encode_jpeg(list(to_uint8(x)), quality=int(quality))
    return to_float(torch.stack(decode_jpeg(files)))


# Family → what it does, and its strengths from mild to strong.
SPOILERS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "noise, sd": (noise, (5, 10, 20)),
    "blur": (blur, (0.25, 0.5, 1.0)),
    "contrast ×": (contrast, (1.2, 1.5, 2.0)),
    "JPEG quality": (jpeg, (75, 40, 15)),
}
CLASSES = (0.8, 0.5, 0.3)  # share of the classes that are left


@dataclass(frozen=True)
class Finding:
    """What a judge said of one set: the family of its fault, how much of it, and every metric."""

    family: str
    strength: float
    values: dict[str, float]

    @property
    def name(self) -> str:
        """For tables."""
        return self.family if self.family in (HALVES, ONE_CLASS) else f"{self.family} {self.strength:g}"


def examine(extractor: FeatureExtractor, data: ImageData, num_images: int) -> list[Finding]:
    """Spoil ``num_images`` of ``data`` in every way and judge them against as many others.

    Raises:
        UserError: There are too few images.
    """
    if len(data) < 2 * num_images:
        raise UserError(f"two halves of {num_images} images cannot be had from {len(data)}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    real, rest = data.images[order[:num_images]], order[num_images:]
    pool, labels = data.images[rest], data.labels[rest]
    features, _ = gather(real, extractor)
    reference = Reference(extractor.name, features, statistics(features))
    x = to_float(pool[:num_images])

    def judge(family: str, strength: float, images: Tensor) -> Finding:
        return Finding(family, strength, measure(*gather(images, extractor), reference))

    found = [judge(HALVES, 0, x)]
    for family, (spoil, strengths) in SPOILERS.items():
        found += [judge(family, strength, spoil(x, strength)) for strength in strengths]
    for share in CLASSES:
        left = labels < max(1, round(share * data.num_classes))
        found.append(judge("classes left, share", share, pool[left][:num_images]))
    found.append(judge(ONE_CLASS, 0, pool[labels == 1][:num_images]))
    return found


def objections(extractor: FeatureExtractor, found: list[Finding]) -> list[str]:
    """What speaks against the judge; empty: it is admitted."""
    distance = distance_name(extractor.name)
    halves, *spoilt, collapse = found
    against = []
    if abs(halves.values["kid"]) > 0.1 * max(f.values["kid"] for f in spoilt):
        against.append(f"two halves of the real images are far apart: KID {halves.values['kid']:.4f}")
    families: dict[str, list[Finding]] = {}
    for finding in spoilt:
        families.setdefault(finding.family, [halves]).append(finding)
    for family, series in families.items():
        for metric in (distance, "kid"):
            values = [finding.values[metric] for finding in series]
            if any(b <= a for a, b in itertools.pairwise(values)):
                against.append(
                    f"{metric} does not grow with {family}: {', '.join(f'{v:.4g}' for v in values)}"
                )
    if collapse.values["recall"] > halves.values["recall"] - 0.2:
        against.append(f"a single class keeps its recall: {collapse.values['recall']:.2f}")
    if collapse.values["precision"] < halves.values["precision"] - 0.2:
        against.append(f"a single class loses its precision: {collapse.values['precision']:.2f}")
    return against
