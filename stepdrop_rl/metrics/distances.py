"""How far generated features lie from real ones: pure functions on features gathered before.

Thin, typed and quiet faces of torch-fidelity's pure functions (the numbers are its), with its traps taken
out: everything runs in float64 on the CPU, extreme logits give no NaN, small sets give a KID.

Shapes: f (N, D) generated features, g (M, D) real features, logits (N, K).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from envs.errors import UserError

NEIGHBOURS = 3  # k of precision and recall
KID_FULL_LIMIT = 4096  # larger sets: a mean over subsets, in which the kernel matrices fit
KID_SUBSET = 1000
KID_SUBSETS = 100
MANIFOLD_NEIGHBOURS = 5  # k of density and coverage
_ROWS = 2048  # of a distance matrix at once
IS_SPLIT = 500  # images per split of the Inception score, at least
IS_SPLITS = 10  # splits, at most
_LOGIT_RANGE = 600.0  # exp(-600) is a normal float64; beyond 745 it is 0 and 0 x log 0 a NaN

Statistics = dict[str, NDArray[np.float64]]
"""``mu`` (D,) and ``sigma`` (D, D) of a set of features."""


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


class DensityCoverage(NamedTuple):
    """How many real neighbourhoods a generated image lies in, and the share of them that are reached."""

    density: float
    coverage: float


class PrecisionRecall(NamedTuple):
    """Shares of generated images near real ones, and of real images near generated ones."""

    precision: float
    recall: float


def _wide(features: Tensor) -> Tensor:
    return features.detach().cpu().double()


def _require(num: int, least: int, what: str) -> None:
    if num < least:
        raise UserError(f"{what} needs at least {least} images, not {num}")


def statistics(features: Tensor) -> Statistics:
    """Mean and covariance of features (N, D), N >= 2."""
    _require(len(features), 2, "a Frechet distance")
    return dict(fid_features_to_statistics(_wide(features)))


def frechet_distance(features: Tensor | Statistics, reference: Statistics) -> float:
    """Squared Frechet distance of two normal distributions (Heusel et al., 2017, eq. 6).

    Symmetric; at least 0: with features of low rank, rounding may take equal sets a hair below.
    Biased upwards in N, so compare only at equal N.
    """
    own = statistics(features) if isinstance(features, Tensor) else features
    return max(0.0, float(fid_statistics_to_metric(own, reference, verbose=False)[KEY_METRIC_FID]))


def _mean_kernel(f: Tensor, g: Tensor) -> Tensor:
    """Mean of the cubic kernel over all pairs of rows."""
    return (f @ g.T / f.shape[1] + 1).pow(3).mean()


def _mean_kernel_within(f: Tensor) -> Tensor:
    """Mean of the cubic kernel over all pairs of different rows."""
    n = len(f)
    diagonal = (f.square().sum(dim=1) / f.shape[1] + 1).pow(3).mean()
    return (_mean_kernel(f, f) * n - diagonal) / (n - 1)


def kid(f: Tensor, g: Tensor, seed: int = 0) -> float:
    """Kernel distance: unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3 (Binkowski et al., 2018); may be < 0.

    Sets of up to 4,096 images each are compared whole (``seed`` has no effect): less noise than
    torch-fidelity's mean over random subsets of the same estimator, which larger sets get.
    """
    f, g = _wide(f), _wide(g)
    _require(min(len(f), len(g)), 2, "KID")
    if max(len(f), len(g)) <= KID_FULL_LIMIT:
        return float(_mean_kernel_within(f) + _mean_kernel_within(g) - 2 * _mean_kernel(f, g))
    size = min(KID_SUBSET, len(f), len(g))
    options = {"kid_subsets": KID_SUBSETS, "kid_subset_size": size, "rng_seed": seed, "verbose": False}
    return float(kid_features_to_metric(f, g, **options)[KEY_METRIC_KID_MEAN])


def inception_score(logits: Tensor, splits: int | None = None) -> InceptionScore:
    """Exp of the mean divergence of a class distribution from their mean (Salimans et al., 2016).

    Between 1 and K. The usual ten splits need thousands of images (a small split scores too low), so there
    are at most ten, of 500 images or more; with a single one ``std`` is 0.
    """
    _require(len(logits), 1, "an Inception score")
    logits = _wide(logits)
    logits = (logits - logits.amax(dim=1, keepdim=True)).clamp(min=-_LOGIT_RANGE)
    splits = splits or max(1, min(IS_SPLITS, len(logits) // IS_SPLIT))
    result = isc_features_to_metric(logits, splits=splits)
    return InceptionScore(result[KEY_METRIC_ISC_MEAN], result[KEY_METRIC_ISC_STD])


def precision_recall(f: Tensor, g: Tensor) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., 2019), k = 3 neighbours.

    Precision: share of f inside the ball of some g, whose radius reaches g's third neighbour in g; recall:
    the same with the sets exchanged. Recall needs as many generated images as real ones to be meaningful.
    """
    _require(min(len(f), len(g)), NEIGHBOURS + 1, "precision and recall")
    options = {"prc_neighborhood": NEIGHBOURS, "save_cpu_ram": True, "verbose": False}
    result = prc_features_to_metric(_wide(f), _wide(g), **options)
    return PrecisionRecall(result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL])


def density_coverage(f: Tensor, g: Tensor, k: int = MANIFOLD_NEIGHBOURS) -> DensityCoverage:
    """Density and coverage (Naeem et al., 2020, eqs. 6 and 7): precision and recall that outliers spoil less.

    With B_j the ball around the real g_j that reaches its k-th neighbour in g: density is the mean number of
    balls that an f lies in, over k; coverage the share of balls that hold an f.
    """
    _require(min(len(f), len(g)), k + 1, "density and coverage")
    f, g = _wide(f), _wide(g)
    balls = torch.zeros(len(f), dtype=torch.float64)
    covered = []
    for rows in g.split(_ROWS):
        radius = torch.cdist(rows, g).kthvalue(k + 1, dim=1).values  # the nearest is the point itself
        inside = torch.cdist(rows, f) < radius.unsqueeze(1)
        balls += inside.double().sum(0)
        covered.append(inside.any(1))
    return DensityCoverage(float(balls.mean()) / k, float(torch.cat(covered).double().mean()))


def vendi(f: Tensor) -> float:
    """Vendi score (Friedman & Dieng, 2023): exp of the entropy of the eigenvalues of K/n, K the cosines.

    Between 1 (all alike) and n (all orthogonal). K/n shares its non-zero eigenvalues with the D x D matrix.
    """
    _require(len(f), 1, "a Vendi score")
    unit = torch.nn.functional.normalize(_wide(f), dim=1)
    gram = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T
    weights = torch.linalg.eigvalsh(gram / len(unit)).clamp(min=0)
    return float(torch.exp(-torch.special.xlogy(weights, weights).sum()))
