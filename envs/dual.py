"""A price that moves until the evaluations spent meet a target.

Maximise E[Φ(end)] over policies that spend E[NFE] = K: the Lagrangian is E[Φ(end)] − λ·(E[NFE] − K), so the
price of an evaluation is its multiplier. While the policy climbs the return at the current price, the price
ascends the dual, in its logarithm (a price is positive, and what matters is by which factor it moves), after
every batch of episodes; NFE is their mean:

    miss = NFE/K − 1,   I ← I + η·miss,   log λ = I + κ·miss.

Plain dual ascent is κ = 0; the part in proportion damps it (Stooke, Achiam & Abbeel 2020, PID Lagrangian):
policies follow a price after some ten batches only. η = 0.2: a batch that overspends by a quarter raises the
price by 5 % for good, and by 28 % for now.

Every episode draws its own price around λ, log-uniformly: so policies see what a little more or less of it
asks for, and their spending does not leap from one number to the next all at once. Where one number of
evaluations serves all samples best over a still wider range of prices, no price spends a fraction: λ then
passes through that range while the policy spends the nearest number. And a policy that has grown sure of its
actions tries no others, whatever their price: start near the target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.observation import HIGHEST_PRICE, LOWEST_PRICE

DAMPING = 1.0  # κ
SPREAD = 2.0  # an episode's price lies within this factor of λ


def _within(log_price: float) -> float:
    """No farther than policies can see."""
    return min(max(log_price, math.log(LOWEST_PRICE)), math.log(HIGHEST_PRICE))


class MovingPrice:
    """The price of a :class:`envs.mdp.StepDropCore` that is held to a mean NFE.

    Args:
        target_nfe: K, evaluations per image to spend on average.
        start: λ of the first episodes.
        step: η.
        batch: Episodes between two steps.
    """

    def __init__(self, target_nfe: float, *, start: float, step: float, batch: int) -> None:
        self.target_nfe = target_nfe
        self.start = start
        self.step = step
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        """Go back to the first price."""
        self._integral = _within(math.log(max(self.start, LOWEST_PRICE)))
        self._spent, self._count = 0, 0
        self.steps = 0
        self.nfe = math.nan

    @property
    def price(self) -> float:
        """λ; ``nfe`` is what the last batch spent, ``steps`` how often the price moved."""
        miss = self.nfe / self.target_nfe - 1 if self.steps else 0.0
        return math.exp(_within(self._integral + DAMPING * miss))

    @property
    def prices(self) -> tuple[float, float]:
        """Smallest and largest price that an episode may have now."""
        return self.price / SPREAD, self.price * SPREAD

    def record(self, nfe: Tensor) -> None:
        """Episodes ended that took these evaluations, (R,); a batch of them moves the price."""
        self._spent += int(nfe.sum())
        self._count += len(nfe)
        if self._count < self.batch:
            return
        self.nfe = self._spent / self._count
        self._spent, self._count = 0, 0
        self.steps += 1
        self._integral = _within(self._integral + self.step * (self.nfe / self.target_nfe - 1))

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        numbers = (self._integral, self.nfe, self._spent, self._count, self.steps)
        return {"moving_price": torch.tensor(numbers, dtype=torch.float64)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self._integral, self.nfe, spent, count, steps = tensors["moving_price"].tolist()
        self._spent, self._count, self.steps = int(spent), int(count), int(steps)
