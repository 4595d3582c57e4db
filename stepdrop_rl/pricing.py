"""The price at which a policy spends a wanted number of evaluations, found on validation noise.

The same noise and the same coins are used at every price, so mean NFE falls almost surely as the price rises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from agents.policy import LearnedPolicy
from envs.errors import UserError
from stepdrop_rl.engine import Engine, Samples

NUM_IMAGES = 1024
_BISECTIONS = 9


@dataclass(frozen=True)
class Spending:
    """What a policy spends at a price: mean and deviation of NFE, standard error of the mean."""

    price: float
    mean: float
    deviation: float
    error: float


def spending(price: float, samples: Samples) -> Spending:
    """Summarise NFE."""
    nfe = samples.nfe.double()
    deviation = float(nfe.std())
    return Spending(price, float(nfe.mean()), deviation, deviation / math.sqrt(len(nfe)))


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """Prices evenly spaced in the logarithm (one, where the range is a point)."""
    if low == high:
        return [low]
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64).tolist()


def price_for(
    policy: LearnedPolicy, engine: Engine, target_nfe: float, num_images: int = NUM_IMAGES
) -> Spending:
    """Return the smallest price at which the policy's mean NFE, plus two standard errors, fits the target.

    ``engine`` draws validation noise. :class:`UserError` for targets that no price of its training attains;
    the message tells the range.
    """
    low, high = policy.info.prices

    def spend(price: float) -> Spending:
        return spending(price, engine.sample(policy, num_images, price=price))

    def fits(s: Spending) -> bool:
        return s.mean + 2 * s.error <= target_nfe

    most, least = spend(low), spend(high)
    if not fits(least) or target_nfe > most.mean + 2 * most.error:
        raise UserError(
            f"target_nfe {target_nfe:g} is out of reach of this {policy.name} policy: "
            f"from {least.mean + 2 * least.error:.2f} (price {high:g}) "
            f"to {most.mean + 2 * most.error:.2f} (price {low:g})"
        )
    if fits(most):
        return most
    best = least
    for _ in range(_BISECTIONS):
        middle = spend(math.sqrt(low * high))
        if fits(middle):
            best, high = middle, middle.price
        else:
            low = middle.price
    return best
