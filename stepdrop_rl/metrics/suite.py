"""The registered metrics: names for the numbers of :mod:`~stepdrop_rl.metrics.distances` and of
:mod:`~stepdrop_rl.metrics.pairs`.
"""

from __future__ import annotations

from torch import Tensor

from stepdrop_rl.metrics import distances
from stepdrop_rl.metrics.base import Reference, distance_name
from stepdrop_rl.metrics.pairs import MANIFOLD_NEIGHBOURS, cloud, compare


def frechet(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``fd_<extractor>`` (``fid`` with Inception): squared Fréchet distance; lower is better."""
    return {distance_name(reference.extractor): distances.frechet_distance(features, reference.statistics)}


def pairs(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``kid``: lower is better, about 0 (or just below) for real images. ``precision``, ``recall``: higher is
    better. ``density``, ``coverage``: higher is better, real images have about 1 and 0.97.
    """
    least = min(len(features), len(reference.features))
    distances.require(least, MANIFOLD_NEIGHBOURS + 1, "density and coverage")
    return compare(cloud(features), reference.cloud)._asdict()


def inception_score(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``is_mean``: Inception score in this extractor's classes; higher is better."""
    return {"is_mean": distances.inception_score(logits).mean}


def vendi(features: Tensor, logits: Tensor, reference: Reference) -> dict[str, float]:
    """``vendi``: effective number of different images; higher is more varied."""
    return {"vendi": distances.vendi(features)}
