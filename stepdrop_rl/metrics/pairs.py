"""Metrics of pairs of images: KID, precision and recall, density and coverage.

All of them ask for the same products x·y of features: the kernel is a function of x·y, and |x - y|² =
|x|² + |y|² - 2 x·y tells who lies in whose neighbourhood. So one pass over all pairs gives all five, and what
pairs of real images say is found once for a reference: beside 2,048 generated images, 4,096 real ones make
more than half of all pairs. In float64, in which a difference of squares loses nothing that matters.

Shapes: f (N, D) generated features, g (M, D) real features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from stepdrop_rl.metrics.distances import require, wide

NEIGHBOURS = 3  # k of precision and recall
MANIFOLD_NEIGHBOURS = 5  # k of density and coverage
KID_FULL_LIMIT = 4096  # larger sets: a mean over subsets, as others report it
KID_SUBSET = 1000
KID_SUBSETS = 100
_ROWS = 256  # of a matrix of products at once: a hundred MB beside 50,000 images


class Cloud(NamedTuple):
    """A set of features, and what its own pairs say.

    Args:
        features: (N, D) float64, on the CPU.
        lengths: Their squared lengths, (N,).
        kernel: Mean of KID's kernel over all pairs of different rows; NaN of a single row, and of so many
            that KID takes subsets.
        nearest: Squared distances (N, K) to the K nearest rows, itself the first; K is 6, or N if less.
    """

    features: Tensor
    lengths: Tensor
    kernel: float
    nearest: Tensor

    def radii(self, neighbour: int) -> Tensor:
        """(N,) squared distances to the neighbour of this rank, from 1 to 5, or to the last there is."""
        return self.nearest[:, min(neighbour, self.nearest.shape[1] - 1)]


class PrecisionRecall(NamedTuple):
    """Shares of generated images near real ones, and of real images near generated ones."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How many real neighbourhoods a generated image lies in, and the share of them that are reached."""

    density: float
    coverage: float


class Pairs(NamedTuple):
    """What pairs of a generated and a real image say: see :func:`kid` and the other two."""

    kid: float
    precision: float
    recall: float
    density: float
    coverage: float


def cloud(features: Tensor) -> Cloud:
    """What pairs of features (N, D) say."""
    f = wide(features)
    lengths = f.square().sum(1)
    num, width = f.shape
    whole = num <= KID_FULL_LIMIT
    total, nearest = 0.0, []
    for products, apart in _products(f, lengths, f, lengths):
        if whole:
            total += float(_kernel(products, width).sum())
        nearest.append(apart.topk(min(MANIFOLD_NEIGHBOURS + 1, num), largest=False).values)
    itself = float(_kernel(lengths, width).sum())
    kernel = (total - itself) / (num * (num - 1)) if whole and num > 1 else float("nan")
    return Cloud(f, lengths, kernel, torch.cat(nearest))


def compare(f: Cloud, g: Cloud, seed: int = 0) -> Pairs:
    """All of them, from one pass.

    Raises:
        UserError: A set has less than two.
    """
    num, others = len(f.features), len(g.features)
    require(min(num, others), 2, "KID")
    small, large = g.radii(NEIGHBOURS), g.radii(MANIFOLD_NEIGHBOURS)
    whole = max(num, others) <= KID_FULL_LIMIT
    kernel, precise, balls = 0.0, 0, 0
    recalled, covered = (torch.zeros(others, dtype=torch.bool) for _ in range(2))
    own = f.radii(NEIGHBOURS).split(_ROWS)
    seen = _products(f.features, f.lengths, g.features, g.lengths)
    for (products, apart), radii in zip(seen, own, strict=True):
        if whole:
            kernel += float(_kernel(products, f.features.shape[1]).sum())
        precise += int((apart <= small).any(1).sum())
        recalled |= (apart <= radii.unsqueeze(1)).any(0)
        inside = apart < large
        balls += int(inside.sum())
        covered |= inside.any(0)
    return Pairs(
        kid=f.kernel + g.kernel - 2 * kernel / (num * others) if whole else _kid_of_subsets(f, g, seed),
        precision=precise / num,
        recall=int(recalled.sum()) / others,
        density=balls / (num * MANIFOLD_NEIGHBOURS),
        coverage=int(covered.sum()) / others,
    )


def kid(f: Tensor | Cloud, g: Tensor | Cloud, seed: int = 0) -> float:
    """Kernel distance: unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3 (Binkowski et al., 2018); may be < 0.

    Sets of up to 4,096 images each are compared whole (``seed`` has no effect): less noise than
    torch-fidelity's mean over random subsets of the same estimator, which larger sets get.
    """
    return compare(_known(f), _known(g), seed).kid


def precision_recall(f: Tensor | Cloud, g: Tensor | Cloud) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., 2019), k = 3 neighbours.

    Precision: share of f inside the ball of some g, whose radius reaches g's third neighbour in g; recall:
    the same with the sets exchanged. Recall needs as many generated images as real ones to be meaningful.
    """
    f, g = _known(f), _known(g)
    require(min(len(f.features), len(g.features)), NEIGHBOURS + 1, "precision and recall")
    found = compare(f, g)
    return PrecisionRecall(found.precision, found.recall)


def density_coverage(f: Tensor | Cloud, g: Tensor | Cloud) -> DensityCoverage:
    """Density and coverage (Naeem et al., 2020, eqs. 6 and 7): precision and recall that outliers spoil less.

    With B_j the ball around the real g_j that reaches its fifth neighbour in g: density is the mean number
    of balls that an f lies in, over 5; coverage the share of balls that hold an f.
    """
    f, g = _known(f), _known(g)
    require(min(len(f.features), len(g.features)), MANIFOLD_NEIGHBOURS + 1, "density and coverage")
    found = compare(f, g)
    return DensityCoverage(found.density, found.coverage)


def _known(features: Tensor | Cloud) -> Cloud:
    return cloud(features) if isinstance(features, Tensor) else features


def _kernel(products: Tensor, width: int) -> Tensor:
    """(x·y / D + 1)³."""
    base = products / width + 1
    return base.square().mul_(base)


def _kid_of_subsets(f: Cloud, g: Cloud, seed: int) -> float:
    size = min(KID_SUBSET, len(f.features), len(g.features))
    options = {"kid_subsets": KID_SUBSETS, "kid_subset_size": size, "rng_seed": seed, "verbose": False}
    return float(kid_features_to_metric(f.features, g.features, **options)[KEY_METRIC_KID_MEAN])


def _products(f: Tensor, lengths: Tensor, g: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Products and squared distances (R, M) of some rows of f after others with all of g."""
    for rows, length in zip(f.split(_ROWS), lengths.split(_ROWS), strict=True):
        products = rows @ g.T
        apart = (others - 2 * products).add_(length.unsqueeze(1)).clamp_(min=0)
        yield products, apart
