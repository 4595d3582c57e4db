"""A searched mixture: several fixed schedules and the chances with which images get them.

The moments of a mixture are mixtures of moments, so its Fréchet distance is a smooth function of the chances
w alone, once every component has been drawn from the same noise:

    μ(w) = Σ_k w_k·μ_k,   Σ(w) = Σ_k w_k·(Σ_k + μ_k μ_kᵀ) − μ(w) μ(w)ᵀ.

It is made small under Σ_k w_k·K_k ≤ K. Components with fewer and with more evaluations may so be mixed. The
moments pool every noise drawn by every component, which flatters a mixture (more images, less bias), so how
far it is believed is settled on images dealt as they will be, one schedule each.
Shapes: S components; M noises; F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.search import blackbox
from agents.search.base import Found, Ground, at_effort
from envs.rewards.frechet import distance, moments, root

CANDIDATES = 48  # schedules tried per number of evaluations
BEST = 8  # of them that may join
NUM_IMAGES = 2048
STEPS = 400
LEAST = 0.01  # chance of a component that is worth keeping
DEALS = 8  # averaged when a mixture is judged as it will be dealt
_ROUNDING = 1e-9  # of evaluations
_SHARES = tuple(k / 8 for k in range(9))


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
    means: Tensor, seconds: Tensor, real: tuple[Tensor, Tensor], evaluations: Tensor, nfe: float
) -> Tensor:
    """Chances (S,) of least distance whose mean of ``evaluations`` (S,) is at most ``nfe``."""
    whitened = (real[0], root(real[1], 0.5))
    logits = torch.zeros(len(means), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(STEPS):
        weights = _affordable(logits.softmax(0), evaluations, nfe)
        loss = mixture_distance(weights, means, seconds, whitened)
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
    schedules: list[list[float]] = []
    for count in sorted({max(nfe - 1, 2), nfe, nfe + 1}):
        explored = blackbox.explore(count, ground, seed, at_effort(CANDIDATES, effort))
        schedules += [times for _, times in explored.ranked[:BEST]]
    evaluations = torch.tensor([len(times) for times in schedules], dtype=torch.float64)
    drawn = [
        ground.features(ground.draw(torch.tensor(times, dtype=torch.float64), range(NUM_IMAGES))).cpu()
        for times in schedules
    ]
    features = torch.stack(drawn).double()  # (S, M, F)
    real = ground.real()
    means = features.mean(1)
    seconds = torch.stack([f.T @ f / len(f) for f in features])
    with torch.enable_grad():
        pooled = best_weights(means, seconds, real, evaluations, nfe)
    alone = [
        distance(moments(f), real) if len(times) <= nfe else float("inf")
        for f, times in zip(features, schedules, strict=True)
    ]
    single = torch.zeros_like(pooled)
    single[min(range(len(alone)), key=lambda k: alone[k])] = 1.0
    tried = []
    for share in _SHARES:
        weights = (1 - share) * single + share * pooled
        tried.append((dealt_distance(features, weights, real, seed), weights))
    value, weights = min(tried, key=lambda one: one[0])
    kept = [(float(w), times) for w, times in zip(weights, schedules, strict=True) if w > 0]
    likeliest = max(kept, key=lambda one: one[0])[1]
    return Found(likeliest, value, trace=(min(alone), value), components=tuple(kept))


def dealt_distance(features: Tensor, weights: Tensor, real: tuple[Tensor, Tensor], seed: int) -> float:
    """Mean distance of :data:`DEALS` sets in which every noise has the features of one component."""
    count = features.shape[1]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(DEALS):
        component = torch.multinomial(weights, count, replacement=True, generator=generator)
        found.append(distance(moments(features[component, torch.arange(count)]), real))
    return sum(found) / len(found)
