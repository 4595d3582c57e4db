"""The Fréchet distance's own slope: what each sample adds to the distance of the set that it is one of.

FD(g) = |μ_g − μ_r|² + tr(Σ_g + Σ_r − 2(Σ_r^{½} Σ_g Σ_r^{½})^{½}) is a number of a whole set, but it has a
first variation. Mixing a sample f into g changes it, per unit of mixing, by

    2(μ_g − μ_r)·(f − μ_g) + (f − μ_g)ᵀ(1 − T)(f − μ_g) − tr((1 − T)Σ_g),
    T = Σ_r^{½}(Σ_r^{½} Σ_g Σ_r^{½})^{−½}Σ_r^{½}, the map that carries the shape of g to that of r,

(the potential of the transport from g to r, Peyré & Cuturi 2019, section 7). The score is minus that: a
policy gradient with it goes down the Fréchet distance itself. In the reward's features, never a judge's.

Shapes: R candidates; F features; G generated.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from envs.rewards.base import Candidates, Ground
from envs.rewards.generated import GeneratedSet

REFRESH = 256  # results of a price bin between two estimates of its statistics
_AT_ONCE = 4096  # candidates: what they need at a time stays in a core's cache
_FLOOR = 1e-6  # of eigenvalues, relative to the largest
_LEAST = 1e-12  # eigenvalue, where all are next to nothing: a set of images that are all the same


class Slope(NamedTuple):
    """The first variation at a set: its mean (F,), 2(μ_g − μ_r) (F,), 1 − T (F, F) and the constant."""

    mean: Tensor
    linear: Tensor
    quadratic: Tensor
    constant: Tensor

    def __call__(self, f: Tensor) -> Tensor:
        """(R,) change of the distance per unit of f (R, F) mixed in; in single precision or f's, if finer."""
        to = torch.promote_types(f.dtype, torch.float32)
        mean, linear, quadratic, constant = (part.to(f.device, to) for part in self)
        found = []
        for part in f.split(_AT_ONCE):
            off = part.to(to) - mean
            bent = (off @ quadratic).mul_(off).sum(1)
            found.append(torch.addmv(bent, off, linear) - constant)
        return torch.cat(found)


def root(matrix: Tensor, power: float) -> Tensor:
    """A power of a symmetric positive matrix; its smallest eigenvalues are held up."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=max(_FLOOR * float(values[-1]), _LEAST))
    return (vectors * values**power) @ vectors.T


Moments = tuple[Tensor, Tensor]
"""Mean (F,) and covariance (F, F), float64."""


def moments(f: Tensor) -> Moments:
    """Those of features (G, F)."""
    f = f.double()
    return f.mean(0), torch.cov(f.T)


def slope(generated: Moments, real: Moments) -> Slope:
    """The first variation of the Fréchet distance at ``generated``."""
    mean, covariance = generated
    half = root(real[1], 0.5)
    carry = half @ root(half @ covariance @ half, -0.5) @ half
    quadratic = torch.eye(len(mean), dtype=torch.float64, device=mean.device) - carry
    return Slope(mean, 2 * (mean - real[0]), quadratic, (quadratic * covariance).sum())


def distance(generated: Moments, real: Moments) -> float:
    """The Fréchet distance itself."""
    mean, covariance = generated
    half = root(real[1], 0.5)
    cross = torch.linalg.eigvalsh(half @ covariance @ half).clamp(min=0).sqrt().sum()
    spread = covariance.trace() + real[1].trace() - 2 * cross
    return float((mean - real[0]).square().sum() + spread)


class FrechetSlope:
    """Minus the first variation at the last results of the episode's price bin, as when it began."""

    needs_features: ClassVar[bool] = True

    def __init__(self, ground: Ground, num_rows: int) -> None:
        self.ground = ground
        self.generated = GeneratedSet(ground, num_rows)
        self.real = moments(ground.real)
        self._slopes: dict[int, Slope] = {}  # by version
        self._version = torch.zeros(num_rows, dtype=torch.int64, device=ground.teacher.device)
        self._latest: dict[int, tuple[int, int]] = {}  # price bin → its newest version, results it had seen
        self._next = 0

    def reset(self, seed: int) -> None:
        """Start again from the teacher's results."""
        self.generated.reset(seed)
        self._latest.clear()

    def state(self) -> dict[str, Tensor]:
        """The generated sets, and every price bin's newest slope: it is older than its set."""
        tensors = self.generated.state()
        for b, (version, added) in self._latest.items():
            tensors[f"slope.{b}.added"] = torch.tensor(added)
            found = self._slopes[version]._asdict()
            tensors |= {f"slope.{b}.{name}": value for name, value in found.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.generated.load_state(tensors)
        self._latest.clear()
        for b in range(self.generated.num_bins):
            if f"slope.{b}.added" in tensors:
                parts = (tensors[f"slope.{b}.{name}"].to(self._version.device) for name in Slope._fields)
                self._slopes[self._next] = Slope(*parts)
                self._latest[b] = (self._next, int(tensors[f"slope.{b}.added"]))
                self._next += 1

    def begin(self, rows: Tensor, images: Tensor, prices: Tensor) -> None:
        """Freeze what the rows see."""
        self.generated.begin(rows, prices)
        bins = self.generated.bins(rows)
        for b in bins.unique().tolist():
            added = self.generated.added(b)
            if b not in self._latest or added - self._latest[b][1] >= REFRESH:
                self._slopes[self._next] = slope(moments(self.generated.window(b)), self.real)
                self._latest[b] = (self._next, added)
                self._next += 1
            self._version[rows[bins == b]] = self._latest[b][0]
        used = {*self._version.unique().tolist(), *(version for version, _ in self._latest.values())}
        self._slopes = {version: found for version, found in self._slopes.items() if version in used}

    def score(self, candidates: Candidates) -> Tensor:
        """(R,)."""
        versions = self._version[candidates.rows]
        result = torch.empty(len(versions), device=versions.device)
        for version in versions.unique().tolist():
            here = versions == version
            result[here] = -self._slopes[version](candidates.features[here]).float()
        return result

    def end(self, candidates: Candidates) -> None:
        """Results join the set."""
        self.generated.end(candidates)

    def gain(self) -> float:
        """By how much first evaluations are farther from the real images than full trajectories."""
        first = self.ground.features(self.ground.first)
        full = self.ground.teacher_features[: len(first)]
        return distance(moments(first), self.real) - distance(moments(full), self.real)
