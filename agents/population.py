"""A set of images that is drawn along branches with given chances: its moments, by which a gate learns.

With π(i, b) the chance that image i takes branch b, and f(i, b) what it becomes there, the set has

    μ(π) = mean_i Σ_b π(i, b)·f(i, b),   Σ(π) = mean_i Σ_b π(i, b)·f(i, b) f(i, b)ᵀ − μ(π) μ(π)ᵀ,

and so a Fréchet distance that is a smooth function of all chances. Its first variation at π
(:mod:`envs.rewards.frechet`) says what each result would change, and moves with π: a score that stays as it
is while chances move (a witness of what *was* drawn) would send everyone the same way, past the best.

Where some images alone may be looked at, those of all images still tell most of it: with p̄ the mean chances
there, what π has more than p̄ is known of some, and p̄'s own moments of all (a control variate).

Shapes: M images; B branches; F features; P parts of a set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from envs.rewards.frechet import Moments

_AT_ONCE = 64  # images: what they need at a time stays in a core's cache


def drawn_moments(results: Tensor, chances: Tensor) -> Moments:
    """Mean (F,) and covariance (F, F), float64, of ``results`` (M, B, F) taken with ``chances`` (M, B)."""
    features = results.shape[-1]
    about = results[:1].float().mean((0, 1))  # near the mean: what is left has few digits to lose
    mean, square = torch.zeros(features).double(), torch.zeros(features, features).double()
    parts = results.split(_AT_ONCE), (chances / len(results)).split(_AT_ONCE)
    for part, taken in zip(*parts, strict=True):
        off = part.flatten(0, 1).float() - about
        weighted = taken.reshape(-1, 1).to(off) * off
        mean += weighted.sum(0)
        square += weighted.T @ off
    return mean + about, square - torch.outer(mean, mean)


def branch_moments(results: Tensor) -> list[Moments]:
    """Those of each branch of ``results`` (M, B, F), where all images take it."""
    about = results[:1].float().mean(0)
    means = torch.zeros(about.shape).double()
    squares = torch.zeros(*about.shape, about.shape[1]).double()
    for part in results.split(_AT_ONCE):
        off = (part.float() - about).transpose(0, 1)
        means += off.sum(1)
        squares += off.mT @ off
    means /= len(results)
    squares = squares / len(results) - means.unsqueeze(2) * means.unsqueeze(1)
    return list(zip(means + about, squares, strict=True))


def mixed_moments(parts: Sequence[Moments], weights: Tensor) -> Moments:
    """Those of a set that is made of these parts, in shares ``weights`` (P,) that may be taken away, too."""
    means = torch.stack([mean for mean, _ in parts])
    weights = weights.to(means)
    mean = weights @ means
    off = means - mean
    within = torch.einsum("p,pij->ij", weights, torch.stack([covariance for _, covariance in parts]))
    return mean, within + (weights.unsqueeze(1) * off).T @ off
