"""Scores of belonging: how real, against how common among what is being generated.

A Fréchet distance is a number of a whole set and gives no sample its share; the witness of a kernel
two-sample test does (Gretton et al. 2012): w(f) = mean k(f, real) − mean k(f, generated), minus half the
first variation of MMD² up to a constant: a generated set that gets more of what has a high w is nearer.

Kernels differ in how far they see: a narrow Gaussian tells only close neighbours apart, the polynomial one
(of the KID) compares moments up to the third, wherever the sample lies.

A bounded kernel calls a far outlier w ≈ 0, *more* than a typical sample has: policies learned to throw
images away. The log-ratio forms make outliers pay; they are the default.

What is being generated is :mod:`envs.rewards.generated`'s subject.
Shapes: R candidates, N real, G generated; F features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from envs.rewards.base import Candidates, Ground
from envs.rewards.generated import GeneratedSet

_CS = (0.25, 1.0, 4.0)  # kernel widths around the median


class _AgainstGenerated(ABC):
    """A score that compares nearness to real images with nearness to generated ones."""

    needs_features: ClassVar[bool] = True
    widths: ClassVar[tuple[float, ...]] = _CS

    def __init__(self, ground: Ground, num_rows: int) -> None:
        self.ground = ground
        self.generated = GeneratedSet(ground, num_rows)
        pairs = torch.pdist(ground.real[:1024])
        self.median_squared = float(pairs.median()) ** 2

    def reset(self, seed: int) -> None:
        """Start again from the teacher's results."""
        self.generated.reset(seed)

    def state(self) -> dict[str, Tensor]:
        """The generated sets."""
        return self.generated.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.generated.load_state(tensors)

    def begin(self, rows: Tensor, images: Tensor, prices: Tensor) -> None:
        """Freeze what the rows see."""
        self.generated.begin(rows, prices)

    def end(self, candidates: Candidates) -> None:
        """Results join the set."""
        self.generated.end(candidates)

    def score(self, candidates: Candidates) -> Tensor:
        """(R,)."""
        f = candidates.features
        to_real = self.relation(f, self.ground.real)
        every = torch.ones_like(to_real, dtype=torch.bool)
        result = torch.empty(len(f), device=f.device)
        for positions, generated, visible in self.generated.views(candidates.rows, candidates.images):
            to_generated = self.relation(f[positions], generated)
            result[positions] = self.compare(to_real[positions], every[positions], to_generated, visible)
        return result

    def relation(self, a: Tensor, b: Tensor) -> Tensor:
        """(A, B) what features (A, F) and (B, F) are to each other: squared distances."""
        return squared_distance(a, b)

    @abstractmethod
    def compare(self, real: Tensor, is_real: Tensor, generated: Tensor, visible: Tensor) -> Tensor:
        """(r,) scores from the relation to real (r, N) and to the visible generated (r, G)."""

    def gain(self) -> float:
        """As if each kind filled the world: first evaluations among themselves, then full trajectories."""
        first = self.ground.features(self.ground.first)
        kinds = (self.ground.teacher_features[: len(first)], first)
        full, start = (float(self._stationary(f).mean()) for f in kinds)
        return full - start

    def _stationary(self, f: Tensor) -> Tensor:
        real = self.relation(f, self.ground.real)
        own = torch.eye(len(f), dtype=torch.bool, device=f.device)
        return self.compare(real, torch.ones_like(real, dtype=torch.bool), self.relation(f, f), ~own)

    def kernel(self, relation: Tensor) -> Tensor:
        """k = Σ_c exp(−c·d²/median²), elementwise."""
        scaled = relation / self.median_squared
        return sum((torch.exp(-c * scaled) for c in self.widths), torch.zeros_like(scaled))

    def kernel_mean(self, relation: Tensor, mask: Tensor) -> Tensor:
        """Mean over the mask of k, (r,)."""
        return (self.kernel(relation) * mask).sum(1) / mask.sum(1).clamp(min=1)


class Witness(_AgainstGenerated):
    """Mean kernel to real minus mean kernel to generated: bounded, blind to far outliers."""

    def compare(self, real: Tensor, is_real: Tensor, generated: Tensor, visible: Tensor) -> Tensor:
        """w(f)."""
        return self.kernel_mean(real, is_real) - self.kernel_mean(generated, visible)


class NarrowWitness(Witness):
    """The witness of Gaussians of a quarter and half the usual width: tells near neighbours apart."""

    widths: ClassVar[tuple[float, ...]] = (4.0, 16.0)


class WideWitness(Witness):
    """The witness of Gaussians of twice and four times the usual width: sees where the mass lies."""

    widths: ClassVar[tuple[float, ...]] = (1 / 16, 1 / 4)


class LaplaceWitness(Witness):
    """The witness of k = exp(−d/median): peaked at the sample, with longer tails than a Gaussian."""

    def kernel(self, relation: Tensor) -> Tensor:
        """exp(−d/median), elementwise."""
        return torch.exp(-(relation / self.median_squared).sqrt())


class RationalWitness(Witness):
    """The witness of k = Σ_a (1 + d²/(2a·median²))^−a, whose tails fall as a power (Bińkowski et al. 2018).

    It slopes where Gaussians are flat, so outliers learn where to go; bounded all the same.
    """

    EXPONENTS = (0.2, 0.5, 1.0, 2.0, 5.0)

    def kernel(self, relation: Tensor) -> Tensor:
        """The rational quadratic kernels' sum, elementwise."""
        scaled = relation / self.median_squared
        return sum(((1 + scaled / (2 * a)) ** -a for a in self.EXPONENTS), torch.zeros_like(scaled))


class EnergyWitness(Witness):
    """The witness of k = −d/median, whose MMD² is the energy distance (Székely & Rizzo 2013, p. 1251).

    It slopes towards missing mass at any distance; far off it tends to a constant, as bounded kernels' do.
    """

    def kernel(self, relation: Tensor) -> Tensor:
        """−d/median, elementwise; a root's slope at 0 is infinite."""
        return -(relation / self.median_squared).clamp(min=1e-12).sqrt()


class PolynomialWitness(Witness):
    """The witness of the KID's kernel, k = (a·b/F + 1)³ (Bińkowski et al. 2018): the slope of the KID.

    In the reward's features, never a judge's. Unbounded: what is too much on one side pays the more, the
    farther it is, and what lies far on the side that is short is praised as much.
    """

    def relation(self, a: Tensor, b: Tensor) -> Tensor:
        """(A, B) a·b/F."""
        return a @ b.T / a.shape[1]

    def kernel(self, relation: Tensor) -> Tensor:
        """The cubic kernel, elementwise."""
        return (relation + 1) ** 3


class LogRatio(_AgainstGenerated):
    """Log mean kernel to real minus log mean kernel to generated: outliers pay."""

    def compare(self, real: Tensor, is_real: Tensor, generated: Tensor, visible: Tensor) -> Tensor:
        """log k̄(f, real) − log k̄(f, generated)."""
        tiny = 1e-12
        return torch.log(self.kernel_mean(real, is_real) + tiny) - torch.log(
            self.kernel_mean(generated, visible) + tiny
        )


class NeighbourRatio(_AgainstGenerated):
    """Log distance to the k-th generated neighbour minus log distance to the k-th real one.

    The nearest-neighbour estimate of log p_real/p_generated (Wang, Kulkarni & Verdú 2009), per dimension.
    """

    K = 5

    def compare(self, real: Tensor, is_real: Tensor, generated: Tensor, visible: Tensor) -> Tensor:
        """Half the log ratio of squared distances, up to a constant of the set sizes."""
        near_real = real.kthvalue(min(self.K, real.shape[1]), dim=1).values
        few = min(self.K, generated.shape[1])
        nearest = generated.masked_fill(~visible, math.inf).topk(few, dim=1, largest=False).values
        # Where fewer than K are to be seen the farthest of them stands in, and nothing is compared with none.
        count = visible.sum(1).clamp(max=few)
        near_generated = nearest.gather(1, (count - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        near_generated = torch.where(count > 0, near_generated, near_real)
        return 0.5 * (torch.log(near_generated + 1e-12) - torch.log(near_real + 1e-12))


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """(A, B) squared Euclidean distances of features (A, F) and (B, F)."""
    cross = a @ b.T
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * cross).clamp(min=0)
