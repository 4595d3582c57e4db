"""A policy that looks once: all samples share a plan up to a fork, what they show there decides how it ends.

The plans are :class:`agents.tree.Tree`'s, the decision :class:`agents.gate.Gate`'s. Its grid holds the times
of all plans, so each is evaluated exactly where it was learned, and where a sample was evaluated last tells
which plan it follows: the policy needs no memory.

Shapes: R samples; N points of the grid; C numbers of evaluations; B branches; L evaluations of the longest
plan.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from agents.actor import layers_of, under
from agents.gate import Gate
from agents.planning import Tariff, shown
from agents.policy import LearnedPolicy, PolicyInfo
from envs.observation import ENTRIES, Projection

_POSITION = [entry.name for entry in ENTRIES].index("position")
MARGIN = 0.5  # evaluations: budgets between two numbers belong to the nearer one


class Fork(LearnedPolicy):
    """An :class:`agents.base.Agent` that spends K evaluations on average, and gives them to whom they help.

    Args:
        info: What it was trained for; ``times`` are all plans', ``evaluations`` the fewest and the most K.
        gate: Decides at the fork.
        plans: (C, B, L) points of the grid that each plan evaluates, in order; N where it has ended.
        lam: (N,) half log-SNR at its times, 0 at the first and 1 at the last.
        left: Evaluations that K leaves after the fork.
        projection: As of a :class:`LearnedPolicy`.
    """

    def __init__(
        self,
        info: PolicyInfo,
        gate: Gate,
        plans: Tensor,
        lam: Tensor,
        left: int,
        projection: Projection | None = None,
    ) -> None:
        super().__init__(info, layers_of(gate.actor), projection)
        self.gate = gate.requires_grad_(False)
        self.left = left
        least, most = info.evaluations
        self.tariff = Tariff(least, most, (info.prices[0], info.prices[1]), MARGIN)
        self.whole_prices = self.tariff.whole_prices()
        self.plans = plans.long().cpu()
        self.lam = lam.detach().double().cpu()

    def _follow(self, device: torch.device) -> None:
        super()._follow(device)
        if self.lam.device != device:
            self.lam, self.plans = self.lam.to(device), self.plans.to(device)
            self.gate.to(device)

    @torch.no_grad()
    def following(self, observation: Tensor) -> Tensor:
        """The points that samples evaluate next, (R,); N where they are done."""
        self._follow(observation.device)
        seen = shown(observation, len(self.lam))
        budget = self.tariff.budget(seen.log_price)
        count = self.tariff.count(seen.log_price)
        row = count - self.tariff.least
        anchor = (self.lam - seen.lam.double().unsqueeze(1)).abs().argmin(1)
        last = (seen.spent - 1).clamp(0, self.plans.shape[2] - 1)
        plans = self.plans[row]  # (R, B, L)
        branch = (
            (
                plans.gather(2, last.reshape(-1, 1, 1).expand(-1, plans.shape[1], 1)).squeeze(2)
                - anchor.unsqueeze(1)
            )
            .abs()
            .argmin(1)
        )
        forks = seen.spent == count - self.left
        if bool(forks.any()):
            worth = self.gate(row[forks], seen.entries[forks])
            price = self.gate.price_of(row[forks], (budget - count)[forks])
            branch[forks] = self.gate.branches(worth, price)
        following = seen.spent.clamp(max=self.plans.shape[2] - 1)
        found = plans[torch.arange(len(plans), device=plans.device), branch, following]
        return torch.where(seen.spent >= self.plans.shape[2], len(self.lam), found)

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,): 1 or 0."""
        here = (observation[:, _POSITION] * (len(self.lam) - 1)).round().long()
        return (here >= self.following(observation)).to(observation.dtype)

    def habit(self, count: int) -> Tensor:
        """The plan that is left to none but by a look, (count,) times."""
        home = self.gate.more.tolist().index(0)
        assert self.times is not None
        return self.times[self.plans[count - self.tariff.least, home, :count].cpu()]

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, as they are stored, its plans and its grid."""
        named = {name: value for name, value in super().tensors().items() if not name.startswith("layers.")}
        named |= {f"gate.{name}": value for name, value in self.gate.state_dict().items()}
        return named | {"plans": self.plans, "lam": self.lam, "left": torch.tensor(self.left)}


def build_fork(info: PolicyInfo, tensors: Mapping[str, Tensor], projection: Projection | None) -> Fork:
    """Make one from :meth:`Fork.tensors`; KeyError or ValueError where they do not fit."""
    least, most = info.evaluations
    plans, left = tensors["plans"], int(tensors["left"])
    counts, points = most - least + 1, len(info.times)
    if not 1 <= least <= most or not 0 <= left < least or tensors["lam"].shape != (points,):
        raise ValueError("its range of evaluations or its grid")
    if plans.ndim != 3 or len(plans) != counts or not _descend(plans, points):
        raise ValueError("its plans")
    more = (plans < points).sum(2) - torch.arange(least, most + 1).unsqueeze(1)
    if not bool((more == more[0]).all() and (more == 0).any()):
        raise ValueError("its plans")
    gate = Gate(counts, len(ENTRIES) + info.num_features, more[0].tolist())
    try:
        gate.load_state_dict(under(dict(tensors), "gate."))
    except RuntimeError:
        raise ValueError("its network") from None
    return Fork(info, gate, plans, tensors["lam"], left, projection)


def _descend(plans: Tensor, points: int) -> bool:
    """Whether plans begin at the grid's first point and go on to later ones, until they end."""
    later = (plans.diff(dim=2) > 0) | (plans[..., 1:] == points)
    return bool((plans[..., 0] == 0).all() and later.all() and (plans >= 0).all() and (plans <= points).all())
