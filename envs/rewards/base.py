"""What a quality score is made of: terms over candidates, added with weights, on one scale.

Shapes: R = candidates; M = images of the bank; N = real images; F = features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from envs.errors import UserError
from envs.rewards import REWARDS


@dataclass(frozen=True)
class Ground:
    """What scores stand on.

    Args:
        features: Maps images (R, C, H, W) to features (R, F). Never the judge's network.
        real: Features of real images, (N, F).
        teacher: Full-trajectory results of the bank's noises, (M, C, H, W); image i is row i.
        teacher_features: Their features, (M, F).
        first: Clean estimates after the first evaluation, of the bank's first K ≤ M noises, (K, C, H, W).
        prices: Smallest and largest price that episodes see.
        price_bins: Ranges of log price whose results are told apart.
        views: How many of the features are of each network that looks; empty: all are of one.
    """

    features: Callable[[Tensor], Tensor]
    real: Tensor
    teacher: Tensor
    teacher_features: Tensor
    first: Tensor
    prices: tuple[float, float]
    price_bins: int = 6
    views: tuple[int, ...] = ()

    @cached_property
    def real_distance(self) -> float:
        """Mean distance of two real images: the unit of feature distances."""
        return float(torch.pdist(self.real).mean())


@dataclass(frozen=True)
class Candidates:
    """Images to be scored; their features are computed once, whatever the number of terms.

    ``lam`` is the half log-SNR (R,) float64 at which they were estimated, where that is known.
    """

    ground: Ground
    rows: Tensor
    images: Tensor
    x0: Tensor
    lam: Tensor | None = None

    @cached_property
    def features(self) -> Tensor:
        """(R, F)."""
        # Gradients only where they are asked for: for images that carry one.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.x0.requires_grad):
            return self.ground.features(self.x0)


class Term(Protocol):
    """One score. ``begin`` and ``end`` frame episodes as in :class:`envs.protocols.QualityScore`.

    ``needs_features`` tells whether it looks at features and real images.
    """

    needs_features: ClassVar[bool]

    def __init__(self, ground: Ground, num_rows: int) -> None: ...

    def reset(self, seed: int) -> None:
        """Forget what earlier episodes taught."""

    def state(self) -> dict[str, Tensor]:
        """What earlier episodes taught."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""

    def begin(self, rows: Tensor, images: Tensor, prices: Tensor) -> None:
        """Episodes begin in these rows."""

    def score(self, candidates: Candidates) -> Tensor:
        """(R,) scores, higher is better."""

    def end(self, candidates: Candidates) -> None:
        """These are results."""

    def gain(self) -> float:
        """Mean score of full trajectories minus that of first evaluations, on the bank."""


class Stateless:
    """The half of a :class:`Term` that keeps nothing between episodes."""

    needs_features: ClassVar[bool] = True

    def __init__(self, ground: Ground, num_rows: int) -> None:
        del num_rows
        self.ground = ground

    def reset(self, seed: int) -> None:
        """Nothing to forget."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Nothing."""

    def begin(self, rows: Tensor, images: Tensor, prices: Tensor) -> None:
        """Nothing to frame."""

    def end(self, candidates: Candidates) -> None:
        """Nothing to learn."""


class WeightedQuality:
    """Φ = scale·Σ weight·term, scaled so that full trajectory minus first evaluation averages 1.

    A :class:`envs.protocols.QualityScore`. Prices then mean the same for every model and every mixture.
    """

    def __init__(self, weights: Mapping[str, float], ground: Ground, num_rows: int) -> None:
        self.ground = ground
        self.weights = dict(weights)
        make: dict[str, Any] = {name: REWARDS.load(name) for name in weights}
        self.terms: dict[str, Term] = {name: make[name](ground, num_rows) for name in weights}
        gain = sum(self.weights[name] * term.gain() for name, term in self.terms.items())
        if gain <= 0:
            raise UserError(
                f"reward {self.weights} values the full trajectory no more than the first evaluation "
                f"({gain:.3g}): give it positive weights"
            )
        self.scale = 1.0 / gain
        self._images = torch.zeros(num_rows, dtype=torch.int64, device=ground.teacher.device)

    @property
    def real(self) -> Tensor:
        """Features of real images, (N, F); none where no term looks at them."""
        return self.ground.real

    @property
    def views(self) -> tuple[int, ...]:
        """How many of the F features are of each network that looks."""
        return self.ground.views or (self.real.shape[1],)

    def features(self, images: Tensor) -> Tensor:
        """What terms see of images (R, C, H, W): (R, F)."""
        return self.ground.features(images)

    def _candidates(self, rows: Tensor, x0: Tensor, lam: Tensor | None = None) -> Candidates:
        return Candidates(self.ground, rows, self._images[rows], x0, lam)

    def reset(self, seed: int) -> None:
        """Forget what earlier episodes taught."""
        for term in self.terms.values():
            term.reset(seed)

    def state(self) -> dict[str, Tensor]:
        """What earlier episodes taught every term."""
        named = {name: term.state() for name, term in self.terms.items()}
        return {f"{name}.{key}": value for name, state in named.items() for key, value in state.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        for name, term in self.terms.items():
            own = f"{name}."
            term.load_state({k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)})

    def begin(self, rows: Tensor, images: Tensor, prices: Tensor) -> None:
        """Episodes begin in these rows."""
        self._images[rows] = images
        for term in self.terms.values():
            term.begin(rows, images, prices)

    def score(self, rows: Tensor, x0: Tensor, lam: Tensor | None = None) -> Tensor:
        """Φ, (R,)."""
        candidates = self._candidates(rows, x0, lam)
        total = torch.zeros(len(rows), device=x0.device)
        for name, term in self.terms.items():
            total += self.weights[name] * term.score(candidates)
        return self.scale * total

    def end(self, rows: Tensor, x0: Tensor) -> None:
        """These rows' episodes end."""
        candidates = self._candidates(rows, x0)
        for term in self.terms.values():
            term.end(candidates)
