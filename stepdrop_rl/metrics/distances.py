"""How far generated features lie from real ones: pure functions on features gathered before.

Thin, typed and quiet faces of torch-fidelity's pure functions (Fréchet distance and Inception score are its
numbers), with its traps taken out: everything runs in float64 on the CPU, extreme logits give no NaN.

Shapes: f (N, D) generated features, logits (N, K).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from envs.errors import UserError

IS_SPLIT = 500  # images per split of the Inception score, at least
IS_SPLITS = 10  # splits, at most
_LOGIT_RANGE = 600.0  # exp(-600) is a normal float64; beyond 745 it is 0 and 0 x log 0 a NaN

Statistics = dict[str, NDArray[np.float64]]
"""``mu`` (D,) and ``sigma`` (D, D) of a set of features."""


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


def wide(features: Tensor) -> Tensor:
    """In float64, on the CPU."""
    return features.detach().cpu().double()


def require(num: int, least: int, what: str) -> None:
    """A :class:`UserError` where there are less than ``least`` images."""
    if num < least:
        raise UserError(f"{what} needs at least {least} images, not {num}")


def statistics(features: Tensor) -> Statistics:
    """Mean and covariance of features (N, D), N >= 2."""
    require(len(features), 2, "a Frechet distance")
    return dict(fid_features_to_statistics(wide(features)))


def frechet_distance(features: Tensor | Statistics, reference: Statistics) -> float:
    """Squared Frechet distance of two normal distributions (Heusel et al., 2017, eq. 6).

    Symmetric; at least 0: with features of low rank, rounding may take equal sets a hair below.
    Biased upwards in N, so compare only at equal N.
    """
    own = statistics(features) if isinstance(features, Tensor) else features
    return max(0.0, float(fid_statistics_to_metric(own, reference, verbose=False)[KEY_METRIC_FID]))


def inception_score(logits: Tensor, splits: int | None = None) -> InceptionScore:
    """Exp of the mean divergence of a class distribution from their mean (Salimans et al., 2016).

    Between 1 and K. The usual ten splits need thousands of images (a small split scores too low), so there
    are at most ten, of 500 images or more; with a single one ``std`` is 0.
    """
    require(len(logits), 1, "an Inception score")
    logits = wide(logits)
    logits = (logits - logits.amax(dim=1, keepdim=True)).clamp(min=-_LOGIT_RANGE)
    splits = splits or max(1, min(IS_SPLITS, len(logits) // IS_SPLIT))
    result = isc_features_to_metric(logits, splits=splits)
    return InceptionScore(result[KEY_METRIC_ISC_MEAN], result[KEY_METRIC_ISC_STD])


def vendi(f: Tensor) -> float:
    """Vendi score (Friedman & Dieng, 2023): exp of the entropy of the eigenvalues of K/n, K the cosines.

    Between 1 (all alike) and n (all orthogonal). K/n shares its non-zero eigenvalues with the D x D matrix.
    """
    require(len(f), 1, "a Vendi score")
    unit = torch.nn.functional.normalize(wide(f), dim=1)
    gram = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T
    weights = torch.linalg.eigvalsh(gram / len(unit)).clamp(min=0)
    return float(torch.exp(-torch.special.xlogy(weights, weights).sum()))
