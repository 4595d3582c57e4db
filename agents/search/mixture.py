"""A searched mixture: several fixed schedules and the chances with which images get them.

The moments of a mixture are mixtures of moments, so its Fréchet distance is a smooth function of the chances
w alone, once every component has been drawn from the same noise:

    μ(w) = Σ_k w_k·μ_k,   Σ(w) = Σ_k w_k·(Σ_k + μ_k μ_kᵀ) − μ(w) μ(w)ᵀ.

It is made small under Σ_k w_k·K_k ≤ K, so components with fewer and with more evaluations may be mixed, and
under Σ_k w_k·p_k ≥ p. These are shares of images on the manifold of real ones (:mod:`agents.manifold`), p
that of the best single schedule: a distance of moments alone is made small by variety, too, at the cost of
precision. Components are the best that a black-box search tried and the schedule that ``energy`` finds; then,
in rounds, others near those that the best mixture uses.

The moments pool every noise drawn by every component, which flatters a mixture (more images, less bias), so
how far it is believed is settled on images dealt as they will be, one schedule each.
Shapes: S components; M noises; F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.manifold import Manifold
from agents.search import blackbox, energy
from agents.search.base import Found, Ground, at_effort
from envs.rewards.frechet import distance, moments, root

CANDIDATES = 24  # schedules tried per number of evaluations
BEST = 4  # of them that may join
NUM_IMAGES = 2048
NUM_REAL = 4096  # of the manifold
CHILDREN = 8  # drawn in each round, near what is used
WIDTHS = (0.4, 0.2, 0.1)  # of the rounds' steps in the logarithm of a gap
STEPS = 400
LEAST = 0.03  # chance of a component that is worth keeping
DEALS = 8  # averaged when a mixture is judged as it will be dealt
_ROUNDING = 1e-9  # of evaluations
_SHARES = tuple(k / 8 for k in range(9))
_WEIGHTS = 12  # of membership, halved, in the search for the one that is needed


class Components:
    """Schedules and what they draw.

    Args:
        ground: Draws them.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.real = ground.real()
        self.manifold = Manifold(ground.real_features(NUM_REAL).cpu())
        self.schedules: list[list[float]] = []
        self._features: list[Tensor] = []
        self._members: list[float] = []

    def add(self, times: list[float]) -> None:
        """Draw another one."""
        drawn = self.ground.draw(torch.tensor(times, dtype=torch.float64), range(NUM_IMAGES))
        features = self.ground.features(drawn).cpu()
        self.schedules.append(times)
        self._features.append(features.double())
        self._members.append(float(self.manifold.membership(features).mean()))

    @property
    def features(self) -> Tensor:
        """(S, M, F)."""
        return torch.stack(self._features)

    @property
    def members(self) -> Tensor:
        """(S,) mean membership in the manifold of real images."""
        return torch.tensor(self._members, dtype=torch.float64)

    @property
    def evaluations(self) -> Tensor:
        """(S,)."""
        return torch.tensor([len(times) for times in self.schedules], dtype=torch.float64)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means (S, F) and second moments E[f fᵀ] (S, F, F)."""
        features = self.features
        return features.mean(1), torch.stack([f.T @ f / len(f) for f in features])

    def best_single(self, nfe: float) -> int:
        """The one of least distance that ``nfe`` evaluations pay for."""
        alone = [
            distance(moments(f), self.real) if len(times) <= nfe else float("inf")
            for f, times in zip(self._features, self.schedules, strict=True)
        ]
        return min(range(len(alone)), key=lambda k: alone[k])

    def best_weights(self, nfe: float) -> Tensor:
        """Chances (S,) of least distance at ``nfe`` evaluations, as realistic as the best single schedule."""
        means, seconds = self.moments()
        floor = float(self.members[self.best_single(nfe)])
        with torch.enable_grad():

            def at(weight: float) -> Tensor:
                return best_weights(means, seconds, self.real, self.evaluations, nfe, weight * self.members)

            found = at(0.0)
            low, high = 0.0, 1.0
            while float(found @ self.members) < floor and high < 2.0**_WEIGHTS:
                low, high = high, 2 * high
                found = at(high)
            if low == 0:
                return found
            for _ in range(3):  # the least weight that does: roughly
                middle = (low + high) / 2
                tried = at(middle)
                if float(tried @ self.members) < floor:
                    low = middle
                else:
                    high, found = middle, tried
        return found


def mixture_distance(weights: Tensor, means: Tensor, seconds: Tensor, real: tuple[Tensor, Tensor]) -> Tensor:
    """Fréchet distance of a mixture, differentiable in its chances.

    Args:
        weights: (S,), they sum to 1.
        means: (S, F) of the components.
        seconds: (S, F, F), their second moments E[f fᵀ].
        real: Mean (F,) and the root of the covariance (F, F).
    """
    mean = weights @ means
    covariance = torch.einsum("s,sij->ij", weights, seconds) - torch.outer(mean, mean)
    cross = torch.linalg.eigvalsh(real[1] @ covariance @ real[1]).clamp(min=1e-12).sqrt().sum()
    return (mean - real[0]).square().sum() + covariance.trace() + real[1].square().sum() - 2 * cross


def best_weights(
    means: Tensor,
    seconds: Tensor,
    real: tuple[Tensor, Tensor],
    evaluations: Tensor,
    nfe: float,
    merits: Tensor | None = None,
) -> Tensor:
    """Chances (S,) of least distance whose mean of ``evaluations`` (S,) is at most ``nfe``.

    ``merits`` (S,): what a component's chance is worth besides, on the distance's own scale.
    """
    whitened = (real[0], root(real[1], 0.5))
    merits = torch.zeros_like(evaluations) if merits is None else merits
    logits = torch.zeros(len(means), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(STEPS):
        weights = _affordable(logits.softmax(0), evaluations, nfe)
        loss = mixture_distance(weights, means, seconds, whitened) - weights @ merits
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = _affordable(logits.detach().softmax(0), evaluations, nfe)
    kept = torch.where(weights < LEAST, 0.0, weights)
    if not bool((kept[evaluations <= nfe] > 0).any()):
        return weights
    return _affordable(kept / kept.sum(), evaluations, nfe)


def _affordable(weights: Tensor, evaluations: Tensor, nfe: float) -> Tensor:
    """Move chances from components that cost more than ``nfe`` to the others, until the mean is ``nfe``."""
    spent = weights @ evaluations
    if float(spent.detach()) <= nfe + _ROUNDING:
        return weights
    dear = evaluations > nfe
    cheap = torch.where(dear, 0.0, weights)
    cheap = cheap / cheap.sum().clamp(min=1e-12)
    costly = torch.where(dear, weights, 0.0)
    costly = costly / costly.sum()
    low, high = cheap @ evaluations, costly @ evaluations
    share = (nfe - low) / (high - low)
    return share * costly + (1 - share) * cheap


@torch.no_grad()
def search(nfe: int, ground: Ground, seed: int, effort: float = 1.0) -> Found:
    """Return a mixture of schedules of ``nfe`` − 1 to ``nfe`` + 1 evaluations that spends ``nfe`` at most."""
    if nfe == 1:
        return blackbox.search(1, ground, seed)
    pool = Components(ground)
    for count in sorted({max(nfe - 1, 2), nfe, nfe + 1}):
        explored = blackbox.explore(count, ground, seed, at_effort(CANDIDATES, effort))
        for _, times in explored.ranked[:BEST]:
            pool.add(times)
    with torch.enable_grad():
        pool.add(energy.search(nfe, ground, seed).times)
    generator = torch.Generator().manual_seed(seed)
    weights = pool.best_weights(nfe)
    for width in WIDTHS:
        used = torch.multinomial(weights, at_effort(CHILDREN, effort), replacement=True, generator=generator)
        for parent in used.tolist():
            child = blackbox.near(pool.schedules[parent], ground, width, generator)
            if child is not None:
                pool.add(child)
        weights = pool.best_weights(nfe)
    single = torch.zeros_like(weights)
    single[pool.best_single(nfe)] = 1.0
    features = pool.features
    tried = []
    for share in _SHARES:
        mixed = (1 - share) * single + share * weights
        tried.append((dealt_distance(features, mixed, pool.real, seed), mixed))
    value, weights = min(tried, key=lambda one: one[0])
    kept = [(float(w), times) for w, times in zip(weights, pool.schedules, strict=True) if w > 0]
    likeliest = max(kept, key=lambda one: one[0])[1]
    return Found(likeliest, value, trace=(tried[0][0], value), components=tuple(kept))


def dealt_distance(features: Tensor, weights: Tensor, real: tuple[Tensor, Tensor], seed: int) -> float:
    """Mean distance of :data:`DEALS` sets in which every noise has the features of one component."""
    count = features.shape[1]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(DEALS):
        component = torch.multinomial(weights, count, replacement=True, generator=generator)
        found.append(distance(moments(features[component, torch.arange(count)]), real))
    return sum(found) / len(found)
