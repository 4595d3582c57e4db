"""The registered metrics: names for the numbers of :mod:`~stepdrop_rl.metrics.distances`."""

from __future__ import annotations

from torch import Tensor

from stepdrop_rl.metrics import distances
from stepdrop_rl.metrics.base import Reference, distance_name


def frechet(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``fd_<extractor>`` (``fid`` with Inception): squared Fréchet distance; lower is better."""
    return {distance_name(reference.extractor): distances.frechet_distance(features, reference.statistics)}


def kid(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``kid``: unbiased kernel distance; lower is better, about 0 (or just below) for real images."""
    return {"kid": distances.kid(features, reference.features)}


def inception_score(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``is_mean``: Inception score in this extractor's classes; higher is better."""
    return {"is_mean": distances.inception_score(logits).mean}


def precision_recall(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``precision``, ``recall``; higher is better."""
    return distances.precision_recall(features, reference.features)._asdict()


def density_coverage(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``density``, ``coverage``; higher is better, real images have about 1 and 0.97."""
    return distances.density_coverage(features, reference.features)._asdict()


def vendi(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``vendi``: effective number of different images; higher is more varied."""
    return {"vendi": distances.vendi(features)}
