"""A policy that plans its next evaluation from what the last one showed: a real time, not a yes or no.

What it plans is told by :mod:`agents.planning`; on a grid the nearest point is evaluated.
Shapes: R samples; D observation entries; N points of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.actor import layers_of, under
from agents.planning import Shown, Tariff, Timing, shown
from agents.policy import LearnedPolicy, PolicyInfo
from envs.observation import ENTRIES, Projection

_POSITION = [entry.name for entry in ENTRIES].index("position")


@dataclass(frozen=True)
class Plan:
    """Where each sample's next evaluation is to lie: ``lam`` (R,), and how many are ``left``, (R,)."""

    lam: Tensor
    left: Tensor


class Stepper(LearnedPolicy):
    """An :class:`agents.base.Agent` that evaluates the grid's points nearest to the times it plans.

    It spends K evaluations (or all N points, where they are fewer): a planned one that comes before the next
    point is made there, one that would leave too few points for the rest is made as late as it can.

    Args:
        info: What it was trained for; ``evaluations`` are its fewest and most.
        timing: Says where.
        lam: (N,) half log-SNR at its times, 0 at the first and 1 at the last.
        projection: As of a :class:`LearnedPolicy`.
    """

    def __init__(
        self,
        info: PolicyInfo,
        timing: Timing,
        lam: Tensor,
        projection: Projection | None = None,
    ) -> None:
        super().__init__(info, layers_of(timing.actor), projection)
        self.timing = timing.requires_grad_(False)
        least, most = info.evaluations
        self.tariff = Tariff(least, most, (info.prices[0], info.prices[1]))
        self.whole_prices = self.tariff.whole_prices() if least < most else []
        self.lam = lam.detach().double().cpu()
        # From here on the next point is farther than this one.
        self._edges = torch.cat(((self.lam[:-1] + self.lam[1:]) / 2, self.lam[-1:]))

    def _follow(self, device: torch.device) -> None:
        super()._follow(device)
        if self.lam.device != device:
            self.lam, self._edges = self.lam.to(device), self._edges.to(device)
            self.timing.to(device)

    @torch.no_grad()
    def plan(self, observation: Tensor) -> Plan:
        """Where the samples' next evaluations are to lie."""
        self._follow(observation.device)
        seen = shown(observation, len(self.lam))
        count = self.tariff.count(seen.log_price)
        return Plan(self.timing(seen, count), count - seen.spent)

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,): 1 or 0."""
        here = (observation[:, _POSITION] * (len(self.lam) - 1)).round().long()
        return (here >= self._points(self.plan(observation))).to(observation.dtype)

    def following(self, observation: Tensor, coins: Tensor) -> Tensor:
        """The points that samples evaluate next, (R,); N where they are done.

        The first point that is as near to the plan as the next one, or the last that leaves enough points;
        nothing is left to the ``coins``.
        """
        return self._points(self.plan(observation))

    def _points(self, planned: Plan) -> Tensor:
        nearest = torch.searchsorted(self._edges, planned.lam.double().contiguous())
        found = torch.minimum(nearest, len(self.lam) - planned.left)
        return torch.where(planned.left > 0, found, len(self.lam))

    @torch.no_grad()
    def habit(self, count: int) -> Tensor:
        """What it plans for a sample that always shows what is usual, (count,) points."""
        device = self.lam.device
        found, row = [0], count - self.tariff.least
        for spent in range(1, count):
            usual = self.timing.usual.mean[row, spent].unsqueeze(0)
            gone = torch.tensor([spent], device=device)
            seen = Shown(self.lam[found[-1:]].float(), gone, torch.zeros_like(usual[:, 0]), usual)
            lam = self.timing(seen, torch.full_like(gone, count))
            found.append(max(int(self._points(Plan(lam, count - gone))), found[-1] + 1))
        return torch.tensor(found)

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, as they are stored, and its grid."""
        named = {name: value for name, value in super().tensors().items() if not name.startswith("layers.")}
        named |= {f"timing.{name}": value for name, value in self.timing.state_dict().items()}
        return named | {"lam": self.lam}


def build_stepper(info: PolicyInfo, tensors: Mapping[str, Tensor], projection: Projection | None) -> Stepper:
    """Make one from :meth:`Stepper.tensors`; KeyError or ValueError where they do not fit."""
    least, most = info.evaluations
    entries = len(ENTRIES) + info.num_features
    if not 1 <= least <= most or tensors["lam"].shape != (len(info.times),):
        raise ValueError("its range of evaluations or its grid")
    timing = Timing(least, most, entries)
    try:
        timing.load_state_dict(under(dict(tensors), "timing."))
    except RuntimeError:
        raise ValueError("its network") from None
    return Stepper(info, timing, tensors["lam"], projection)
