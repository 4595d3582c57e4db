"""Planning evaluations: as many as the price pays for, each where the last one's look suggests.

With K evaluations to spend, n of them spent and r = K − n left, the next one lies at

    λ′ = λ + (1 − λ)·sigmoid(logit(1/(r + 1)) + z),

λ being the half log-SNR of the last evaluation, 0 at the grid's start and 1 at its end. With z = 0 every
time, times are even in half log-SNR, and as much is left out at the end as lies between two of them. z is a
habit, one number for every (K, n), which alone would make fixed schedules, and what an actor adds to it: it
is told how far the sample is from what is usual there.

Shapes: R samples; D observation entries; N points of the grid; C numbers of evaluations, M the greatest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.actor import make_network
from envs.observation import ENTRIES, LOWEST_PRICE, log_price

_AT = {entry.name: i for i, entry in enumerate(ENTRIES)}
_FARTHEST = 6.0  # |z| stays below: no jump so short that rates of change along it are noise
_FORGETTING = 0.02  # weight of the newest batch among what is usual, once there were many
_LEAST_DEVIATION = 0.01  # what differs by less between samples is not blown up further
_UNHEARD_OF = 5.0  # deviations: nothing is told to be farther from what is usual


@dataclass(frozen=True)
class Tariff:
    """How many evaluations a price pays for: linear in its logarithm.

    Args:
        least: K at the highest price.
        most: K at the lowest.
        prices: The lowest and the highest.
        margin: By how much the dearest price pays for less than ``least``, and the cheapest for more.
    """

    least: int
    most: int
    prices: tuple[float, float]
    margin: float = 0.0

    def share(self, count: Tensor) -> Tensor:
        """Where among the numbers of evaluations these are: 0 at the least, 1 at the most."""
        span = self.most - self.least + 2 * self.margin
        return (count - self.least + self.margin) / (span or 1.0)

    def price(self, count: float) -> float:
        """The price in the middle of those that pay for ``count`` evaluations."""
        low, high = (math.log(max(price, LOWEST_PRICE)) for price in self.prices)
        return math.exp(high + float(self.share(torch.tensor(count))) * (low - high))

    def whole_prices(self) -> list[float]:
        """The prices in the middle of those that pay for whole numbers of evaluations, rising."""
        return [self.price(count) for count in range(self.most, self.least - 1, -1)]

    def budget(self, seen: Tensor) -> Tensor:
        """Mean evaluations that prices pay for, as the observation shows them, (R,) float64."""
        low, high = log_price(torch.tensor(self.prices, dtype=torch.float64)).tolist()
        dear = ((seen.double() - low) / max(high - low, 1e-9)).clamp(0, 1)
        return self.most + self.margin - dear * (self.most - self.least + 2 * self.margin)

    def count(self, seen: Tensor) -> Tensor:
        """K for what the observation shows of prices, (R,) int64."""
        return self.budget(seen).round().long().clamp(self.least, self.most)


@dataclass(frozen=True)
class Shown:
    """What there is to plan with, the same at all points up to the next evaluation.

    Args:
        lam: (R,) half log-SNR of the last evaluation.
        spent: (R,) evaluations so far, int64.
        log_price: (R,) what is seen of the price of an evaluation.
        entries: (R, D) what the last evaluation showed and where it was; all other entries are 0.
    """

    lam: Tensor
    spent: Tensor
    log_price: Tensor
    entries: Tensor


def shown(observation: Tensor, num_points: int) -> Shown:
    """Read observations (R, D) on a grid of N points."""
    lam = (observation[:, _AT["lam"]] - observation[:, _AT["lam_since_anchor"]]).clamp(0, 1)
    spent = (observation[:, _AT["evaluations"]] * num_points).round().long()
    other = ("position", "lam_since_anchor", "disagreement", "evaluations", "log_price")
    known = dict.fromkeys(other, torch.zeros_like(lam)) | {"lam": lam}
    own = [known.get(name, observation[:, i]) for name, i in _AT.items()]
    entries = torch.cat((torch.stack(own, 1), observation[:, len(ENTRIES) :]), 1)
    return Shown(lam, spent, observation[:, _AT["log_price"]], entries)


class Usual(nn.Module):
    """Means and deviations of what samples show, in a table of situations.

    Args:
        size: Rows and columns of the table.
        entries: D.
    """

    def __init__(self, size: tuple[int, int], entries: int) -> None:
        super().__init__()
        self.met: Tensor
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("met", torch.zeros(size))
        self.register_buffer("mean", torch.zeros(*size, entries))
        self.register_buffer("variance", torch.ones(*size, entries))

    def meet(self, row: Tensor, column: Tensor, entries: Tensor) -> None:
        """Remember what samples showed, (R, D), in these situations, (R,)."""
        for at in torch.stack((row, column), 1).unique(dim=0).tolist():
            here = (row == at[0]) & (column == at[1])
            cell = (at[0], at[1])
            weight = max(1 / (float(self.met[cell]) + 1), _FORGETTING)
            variance, mean = torch.var_mean(entries[here].detach(), 0, correction=0)
            off = mean - self.mean[cell]
            spread = variance if weight == 1 else self.variance[cell] + weight * off**2
            self.mean[cell] += weight * off
            self.variance[cell] = (1 - weight) * spread + weight * variance
            self.met[cell] += 1

    def forward(self, row: Tensor, column: Tensor, entries: Tensor) -> Tensor:
        """How far, in deviations, samples are from what is usual, (R, D)."""
        deviation = self.variance[row, column].sqrt().clamp(min=_LEAST_DEVIATION)
        return ((entries - self.mean[row, column]) / deviation).clamp(-_UNHEARD_OF, _UNHEARD_OF)


class Timing(nn.Module):
    """Says where the next of K evaluations lies.

    Args:
        least: The smallest K.
        most: M, the greatest.
        entries: D.
    """

    def __init__(self, least: int, most: int, entries: int) -> None:
        super().__init__()
        self.least, self.most = least, most
        size = (most - least + 1, most + 1)
        self.habit = nn.Parameter(torch.zeros(size))
        self.usual = Usual(size, entries)
        self.actor = make_network(entries, 1, 0.01)

    def meet(self, seen: Shown, count: Tensor) -> None:
        """Remember what samples show that are to have ``count`` (R,) evaluations."""
        self.usual.meet(count - self.least, seen.spent, seen.entries)

    def forward(self, seen: Shown, count: Tensor) -> Tensor:
        """λ′, (R,), of samples that are to have ``count`` (R,) evaluations."""
        row, left = count - self.least, count - seen.spent
        told = self.usual(row, seen.spent, seen.entries)
        where = torch.zeros_like(told)
        where[:, _AT["evaluations"]] = seen.spent / count
        where[:, _AT["log_price"]] = row / max(self.most - self.least, 1)
        z = self.habit[row, seen.spent] + self.actor(told + where).squeeze(1)
        z = _FARTHEST * torch.tanh(z / _FARTHEST)
        share = torch.sigmoid(z - torch.log(left.clamp(min=1)))  # logit(1/(r + 1)) = −log r
        return seen.lam + (1 - seen.lam) * share
