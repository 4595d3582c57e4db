"""A set of images that is drawn along branches with given chances: its moments, by which a gate learns.

With π(i, b) the chance that image i takes branch b, and f(i, b) what it becomes there, the set has

    μ(π) = mean_i Σ_b π(i, b)·f(i, b),   Σ(π) = mean_i Σ_b π(i, b)·f(i, b) f(i, b)ᵀ − μ(π) μ(π)ᵀ,

and so a Fréchet distance that is a smooth function of all chances. Its first variation at π
(:mod:`envs.rewards.frechet`) says what each result would change, and moves with π: a score that stays as it
is while chances move (a witness of what *was* drawn) would send everyone the same way, past the best.

Shapes: M images; B branches; F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.rewards.frechet import Moments


class Population:
    """Moments of images that are added part by part."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._first: Tensor | None = None
        self._second: Tensor | None = None

    def add(self, results: Tensor, chances: Tensor, weight: float = 1.0) -> None:
        """Images that make up a share ``weight`` of all: ``results`` (M, B, F), ``chances`` (M, B)."""
        flat = results.flatten(0, 1).float()
        each = chances.reshape(-1, 1).to(flat) * (weight / len(results))
        first, second = (each * flat).double().sum(0), ((each * flat).T @ flat).double()
        self._first = first if self._first is None else self._first + first
        self._second = second if self._second is None else self._second + second
        self._weight += weight

    def moments(self) -> Moments:
        """Mean (F,) and covariance (F, F), float64."""
        assert self._first is not None
        assert self._second is not None
        mean = self._first / self._weight
        return mean, self._second / self._weight - torch.outer(mean, mean)
