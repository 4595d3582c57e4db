"""Planning evaluations: how many in all, and where the next one lies, from what the last one showed.

After n evaluations, the last of them at λ (half log-SNR, 0 at the grid's start and 1 at its end), a sample is
to have the K ≥ n evaluations that are worth the most,

    K = argmax_K W_K − price·K,

W_K being what its end is expected to be worth if it stops after K; n may be that K. With r = K − n left, the
next one lies at

    λ′ = λ + (1 − λ)·sigmoid(logit(1/(r + 1)) + z).

With z = 0 every time, times are even in half log-SNR, and as much is left out at the end as lies between
two of them. z is a habit, one number for every (K, n), which alone would make fixed schedules, and what an
actor adds to it; W is a table, too, and what a network adds. Both are told how far the sample is from what is
usual.

K is chosen anew after every evaluation: a rollout policy (Bertsekas and Tsitsiklis 1996, section 6.1), at
least as good as the plans that W knows of. Shapes: R samples; D observation entries; N points of the grid;
C numbers of evaluations, M the greatest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.actor import make_network
from envs.observation import ENTRIES

_AT = {entry.name: i for i, entry in enumerate(ENTRIES)}
_FARTHEST = 6.0  # |z| stays below: no jump so short that rates of change along it are noise
_FORGETTING = 0.02  # weight of the newest batch among what is usual, once there were many
_LEAST_DEVIATION = 0.01  # what differs by less between samples is not blown up further
_UNHEARD_OF = 5.0  # deviations: nothing is told to be farther from what is usual


@dataclass(frozen=True)
class Shown:
    """What there is to plan with, the same at all points up to the next evaluation.

    Args:
        lam: (R,) half log-SNR of the last evaluation.
        spent: (R,) evaluations so far, int64.
        price: (R,) of an evaluation.
        entries: (R, D) what the last evaluation showed and where it was; all other entries are 0.
    """

    lam: Tensor
    spent: Tensor
    price: Tensor
    entries: Tensor


def shown(observation: Tensor, num_points: int) -> Shown:
    """Read observations (R, D) on a grid of N points."""
    lam = (observation[:, _AT["lam"]] - observation[:, _AT["lam_since_anchor"]]).clamp(0, 1)
    spent = (observation[:, _AT["evaluations"]] * num_points).round().long()
    other = ("position", "lam_since_anchor", "disagreement", "evaluations", "log_price")
    known = dict.fromkeys(other, torch.zeros_like(lam)) | {"lam": lam}
    own = [known.get(name, observation[:, i]) for name, i in _AT.items()]
    entries = torch.cat((torch.stack(own, 1), observation[:, len(ENTRIES) :]), 1)
    return Shown(lam, spent, 10 ** (2 * observation[:, _AT["log_price"]].double()), entries)


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

    def near(self, seen: Shown) -> Tensor:
        """Which K samples may change their plan to, (R, C): those of a usual place at most one off theirs.

        After n evaluations plans are told apart by where the last one was; after the first they are not.
        """
        usual = self.usual.mean[:, seen.spent, _AT["lam"]].T
        off = (usual - seen.lam.unsqueeze(1)).abs()
        counts = torch.arange(self.least, self.most + 1, device=off.device)
        off = off.masked_fill(counts < seen.spent.unsqueeze(1), torch.inf)
        plan = off.argmin(1, keepdim=True)
        return ((counts - self.least - plan).abs() <= 1) | (seen.spent.unsqueeze(1) <= 1)

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


class Worth(nn.Module):
    """Says what samples' ends will be worth if they stop after K evaluations, for every K.

    Args: as of a :class:`Timing`.
    """

    def __init__(self, least: int, most: int, entries: int) -> None:
        super().__init__()
        self.least, self.most = least, most
        self.table = nn.Parameter(torch.zeros(most + 1, most - least + 1))
        self.usual = Usual((1, most + 1), entries)
        self.network = make_network(entries, most - least + 1, 0.01)

    def meet(self, seen: Shown) -> None:
        """Remember what samples show."""
        self.usual.meet(torch.zeros_like(seen.spent), seen.spent, seen.entries)

    def forward(self, spent: Tensor, entries: Tensor) -> Tensor:
        """W, (R, C), of samples with ``spent`` (R,) evaluations that showed (R, D)."""
        told = self.usual(torch.zeros_like(spent), spent, entries)
        where = torch.zeros_like(told)
        where[:, _AT["evaluations"]] = spent / self.most
        return self.table[spent] + self.network(told + where)

    @torch.no_grad()
    def count(self, seen: Shown, allowed: Tensor) -> Tensor:
        """K of each sample, (R,) int64: the best, after price, of those ``allowed`` (R, C) and not past."""
        counts = torch.arange(self.least, self.most + 1, device=seen.spent.device)
        net = self(seen.spent, seen.entries).double() - seen.price.unsqueeze(1) * counts
        out = (counts < seen.spent.unsqueeze(1)) | ~allowed
        return counts[net.masked_fill(out, -torch.inf).argmax(1)]
