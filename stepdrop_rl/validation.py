"""The validation judge: looks at a policy while it trains, with an extractor that its reward does not know.

Rewards get hacked: the score that trains may rise while images fall apart. So the policy that is kept is the
one that this judge prefers, over the whole curve of prices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from agents.policy import LearnedPolicy
from stepdrop_rl.engine import Engine
from stepdrop_rl.pricing import log_spaced, spending

NUM_PRICES = 7


@dataclass(frozen=True)
class Look:
    """What one look saw.

    Args:
        table: (price, mean NFE, distance) by rising price.
        score: Mean over the budgets of the log distance there; lower is better.
    """

    table: list[tuple[float, float, float]]
    score: float

    def metrics(self) -> dict[str, float]:
        """For the tracker."""
        named = {"validation/score": self.score}
        for k, (_, nfe, distance) in enumerate(self.table):
            named[f"validation/nfe_price{k}"] = nfe
            named[f"validation/distance_price{k}"] = distance
        return named


@dataclass(frozen=True)
class ValidationJudge:
    """Judges a policy at several prices and budgets.

    Args:
        engine: Draws validation noise.
        distance: Of images (M, C, H, W) from real ones, in the validation extractor's features.
        budgets: Mean evaluations per image at which the distance counts.
        num_images: Per price.
    """

    engine: Engine
    distance: Callable[[Tensor], float]
    budgets: Sequence[float]
    num_images: int

    def look(self, policy: LearnedPolicy) -> Look:
        """Draw images at prices all over the policy's range and judge them."""
        table = []
        for price in _prices(policy):
            samples = self.engine.sample(policy, self.num_images, price=price)
            table.append((price, spending(price, samples).mean, self.distance(samples.images)))
        if policy.info.target_nfe is not None:  # one price: how far it is from its budget counts either way
            ((_, nfe, distance),) = table
            return Look(table, math.log(max(distance, 1e-9)) + abs(nfe - policy.info.target_nfe))
        logs = [_log_distance_at(budget, table) for budget in self.budgets]
        return Look(table, sum(logs) / len(logs))


def _prices(policy: LearnedPolicy) -> list[float]:
    """Prices all over the policy's range; where it plans, those of whole numbers of evaluations.

    A mean between two of them is a mixture, and distances are convex in evaluations: a policy that tells
    samples apart would be held against one that cannot be asked for such a mean.
    """
    whole = policy.whole_prices
    if not whole:
        return log_spaced(policy.info.prices[0], policy.info.prices[1], NUM_PRICES)
    count = min(len(whole), NUM_PRICES)
    return [whole[round(k * (len(whole) - 1) / max(count - 1, 1))] for k in range(count)]


def _log_distance_at(budget: float, table: list[tuple[float, float, float]]) -> float:
    """Log distance at a budget, linear between the table's points; a budget out of reach pays for the gap."""
    points = sorted((nfe, math.log(max(distance, 1e-9))) for _, nfe, distance in table)
    if budget <= points[0][0]:
        return points[0][1] + (points[0][0] - budget)
    if budget >= points[-1][0]:
        return points[-1][1] + 0.1 * (budget - points[-1][0])
    for (n0, d0), (n1, d1) in pairwise(points):
        if n0 <= budget <= n1:
            return d0 + (d1 - d0) * (budget - n0) / max(n1 - n0, 1e-9)
    raise AssertionError("budgets lie between two points here")
