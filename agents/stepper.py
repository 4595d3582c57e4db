"""A policy that plans its next evaluation from what the last one showed: a real time, not a yes or no.

With K evaluations to spend, n of them spent and r = K − n left, the next one lies at

    λ′ = λ + (1 − λ)·sigmoid(logit(1/(r + 1)) + z),

λ being the half log-SNR of the last evaluation, 0 at the grid's start and 1 at its end, and z what a network
says of the sample. With z = 0 every time, times are even in half log-SNR, and as much is left out at the end
as lies between two of them. The time is a smooth function of z, by which :mod:`agents.pathwise` learns it; on
a grid the nearest point is evaluated.

Shapes: R samples; D observation entries; N points of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.policy import LearnedPolicy, PolicyInfo
from envs.observation import ENTRIES, LOWEST_PRICE, Projection, log_price

_AT = {entry.name: i for i, entry in enumerate(ENTRIES)}
_FARTHEST = 6.0  # |z| stays below: no jump so short that rates of change along it are noise


@dataclass(frozen=True)
class Tariff:
    """How many evaluations a price pays for: linear in its logarithm.

    Args:
        least: K at the highest price.
        most: K at the lowest.
        prices: The lowest and the highest.
    """

    least: int
    most: int
    prices: tuple[float, float]

    def share(self, count: Tensor) -> Tensor:
        """Where among the numbers of evaluations these are: 0 at the least, 1 at the most."""
        return (count - self.least) / max(self.most - self.least, 1)

    def price(self, count: int) -> float:
        """The price in the middle of those that pay for ``count`` evaluations."""
        low, high = (math.log(max(price, LOWEST_PRICE)) for price in self.prices)
        return math.exp(high + float(self.share(torch.tensor(count))) * (low - high))

    def count(self, seen: Tensor) -> Tensor:
        """K for what the observation shows of prices, (R,)."""
        low, high = log_price(torch.tensor(self.prices, dtype=torch.float64)).tolist()
        dear = (seen.double() - low) / max(high - low, 1e-9)
        return (self.most - dear.clamp(0, 1) * (self.most - self.least)).round()


@dataclass(frozen=True)
class Plan:
    """Where each sample's next evaluation is to lie: ``lam`` (R,), and how many are ``left``, (R,)."""

    lam: Tensor
    left: Tensor


def plan(network: Callable[[Tensor], Tensor], tariff: Tariff, num_points: int, observation: Tensor) -> Plan:
    """The next evaluations, by a network from (R, D) to z, (R, 1).

    It is shown what the last evaluation showed and where that was, so up to the next one its answer stays the
    same: entries that change meanwhile are 0. Evaluations are shown as a share of K, and K of its range.
    """
    anchor = (observation[:, _AT["lam"]] - observation[:, _AT["lam_since_anchor"]]).clamp(0, 1)
    spent = (observation[:, _AT["evaluations"]] * num_points).round()
    count = tariff.count(observation[:, _AT["log_price"]]).to(spent)
    shown = dict.fromkeys(("position", "lam_since_anchor", "disagreement"), torch.zeros_like(anchor))
    shown |= {"lam": anchor, "evaluations": spent / count, "log_price": tariff.share(count)}
    own = [shown.get(name, observation[:, i]) for name, i in _AT.items()]
    seen = torch.cat((torch.stack(own, 1), observation[:, len(ENTRIES) :]), 1)
    left = count - spent
    z = _FARTHEST * torch.tanh(network(seen).squeeze(1) / _FARTHEST)
    share = torch.sigmoid(z - torch.log(left.clamp(min=1)))  # logit(1/(r + 1)) = −log r
    return Plan(anchor + (1 - anchor) * share, left)


class Stepper(LearnedPolicy):
    """An :class:`agents.base.Agent` that evaluates the grid's points nearest to the times it plans.

    It spends K evaluations (or all N points, where they are fewer): a planned one that comes before the next
    point is made there, one that would leave too few points for the rest is made as late as it can.

    Args:
        info: What it was trained for; ``evaluations`` are its fewest and most.
        layers: As of a :class:`LearnedPolicy`; the last gives one number, z.
        lam: (N,) half log-SNR at its times, 0 at the first and 1 at the last.
        projection: As of a :class:`LearnedPolicy`.
    """

    def __init__(
        self,
        info: PolicyInfo,
        layers: Sequence[tuple[Tensor, Tensor]],
        lam: Tensor,
        projection: Projection | None = None,
    ) -> None:
        super().__init__(info, layers, projection)
        least, most = info.evaluations
        self.tariff = Tariff(least, most, (info.prices[0], info.prices[1]))
        self.lam = lam.detach().double().cpu()

    def _follow(self, device: torch.device) -> None:
        super()._follow(device)
        if self.lam.device != device:
            self.lam = self.lam.to(device)

    def plan(self, observation: Tensor) -> Plan:
        """Where the samples' next evaluations are to lie."""
        return plan(self.logits, self.tariff, len(self.lam), observation)

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,): 1 or 0."""
        self._follow(observation.device)
        planned, last = self.plan(observation), len(self.lam) - 1
        here = (observation[:, _AT["position"]] * last).round().long()
        # The first point that is as near as the next one.
        edge = (self.lam[here] + self.lam[(here + 1).clamp(max=last)]) / 2
        due = (edge >= planned.lam) | (here + planned.left > last)
        return (due & (planned.left > 0)).to(observation.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, as they are stored, and its grid."""
        return super().tensors() | {"lam": self.lam}
