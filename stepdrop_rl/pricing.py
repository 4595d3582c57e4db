"""The price at which a policy spends a wanted number of evaluations, found on validation noise.

The same noise and the same coins are used at every price, so mean NFE falls almost surely as the price rises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from agents.policy import LearnedPolicy
from envs.errors import OutOfReachError
from stepdrop_rl.engine import Engine, Samples

NUM_IMAGES = 1024
_MOST_STEPS = 16
_NEAR = 0.99  # of the target: near enough
_DOUBT = 0.05  # of a table's numbers, which other noise made
HELD = 0.05  # a policy held to a target may exceed it by this share


@dataclass(frozen=True)
class Spending:
    """What a policy spends at a price: mean and deviation of NFE, standard error of the mean."""

    price: float
    mean: float
    deviation: float
    error: float

    @property
    def spent(self) -> float:
        """What it will hardly exceed on fresh noise: the mean and two standard errors."""
        return self.mean + 2 * self.error


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


def settled_price(
    policy: LearnedPolicy, engine: Engine, target_nfe: float, num_images: int = NUM_IMAGES
) -> float:
    """The price at which ``policy`` spends ``target_nfe``: one that plans knows it, and draws nothing.

    Of any other it is found (:func:`price_for`, whose errors it raises).
    """
    known = policy.price_at(target_nfe)
    return price_for(policy, engine, target_nfe, num_images).price if known is None else known


def price_for(
    policy: LearnedPolicy, engine: Engine, target_nfe: float, num_images: int = NUM_IMAGES
) -> Spending:
    """Return a price at which mean NFE plus two standard errors fits the target and comes within 1 % of it.

    The search starts from the policy's own table and goes on by false position in log price. ``engine``
    draws validation noise. :class:`OutOfReachError` for targets that no price of its training attains; the
    message tells the range. A policy that was held to a target has one price and that target alone.
    """

    def spend(log_price: float) -> Spending:
        price = math.exp(log_price)
        return spending(price, engine.sample(policy, num_images, price=price))

    if policy.info.target_nfe is not None:
        return _held(policy, target_nfe, spend(math.log(policy.info.prices[0])))
    low, high = (math.log(price) for price in policy.info.prices)
    table = [(math.log(price), nfe) for price, nfe in policy.info.price_table]
    most = min(((x, n) for x, n in table if n > target_nfe * (1 + _DOUBT)), key=_nfe, default=None)
    least = max(((x, n) for x, n in table if n < target_nfe * (1 - _DOUBT)), key=_nfe, default=None)
    if most is None or least is None or most[0] >= least[0]:  # beyond the table: measure the range itself
        ends = spend(low), spend(high)
        if ends[1].spent > target_nfe or ends[0].spent < _NEAR * target_nfe:
            raise OutOfReachError(
                f"target_nfe {target_nfe:g} is out of reach of this {policy.name} policy: "
                f"from {ends[1].spent:.2f} (price {math.exp(high):.3g}) "
                f"to {ends[0].spent:.2f} (price {math.exp(low):.3g})"
            )
        if ends[0].spent <= target_nfe:
            return ends[0]
        most, least, best = (low, ends[0].spent), (high, ends[1].spent), ends[1]
    else:
        best = None
    exceeded = False
    for step in range(_MOST_STEPS):
        if step == _MOST_STEPS // 2 and best is None:  # the table promised less than the policy spends
            best = spend(high)
            least = (high, best.spent)
            if best.spent > target_nfe:
                raise OutOfReachError(f"target_nfe {target_nfe:g} is out of reach: at least {best.spent:.2f}")
        elif step == _MOST_STEPS // 2 and not exceeded:  # or more
            most = (low, spend(low).spent)
        # False position, and not that alone: it creeps where the curve bends.
        share = (most[1] - target_nfe * (1 + _NEAR) / 2) / max(most[1] - least[1], 1e-9)
        share = 0.5 if step % 3 == 2 else min(max(share, 0.05), 0.95)
        x = most[0] + share * (least[0] - most[0])
        middle = spend(x)
        if middle.spent > target_nfe:
            most, exceeded = (x, middle.spent), True
        else:
            best, least = middle, (x, middle.spent)
            if middle.spent >= _NEAR * target_nfe:
                break
    assert best is not None, "the range's end was measured half-way at the latest"
    return best


def _held(policy: LearnedPolicy, target_nfe: float, found: Spending) -> Spending:
    """What a policy of one target spends, if that is the target asked for."""
    own = policy.info.target_nfe
    assert own is not None
    if abs(target_nfe - own) > 1e-6 * own:
        raise OutOfReachError(
            f"this {policy.name} policy was held to {own:g} evaluations per image, not {target_nfe:g}: train "
            f"another with --env.target_nfe {target_nfe:g}"
        )
    if found.mean > own * (1 + HELD):
        raise OutOfReachError(
            f"this {policy.name} policy was to be held to {own:g} evaluations per image and spends "
            f"{found.mean:.2f}: train it longer, or take it as it is with --price {found.price:.6g}"
        )
    return found


def _nfe(point: tuple[float, float]) -> float:
    return point[1]
