"""Controls of a learned policy: what is left of it when one thing is taken away.

``mean_schedule`` keeps where it evaluates on average, ``habit`` what it plans where a look tells nothing,
``coins`` how often it evaluates each point, ``Dealt`` (in :mod:`agents.planned`) its whole schedules, and
``shuffled`` lets it look, but at another sample.
Shapes: R samples; D observation entries; N points of its grid; M images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agents.base import PlanningAgent
from agents.curves import SkipCurve
from agents.fixed import FixedSchedule
from agents.planned import Dealt
from agents.policy import LearnedPolicy
from envs.errors import OutOfReachError
from envs.observation import ENTRIES

_OWN = ("position", "lam", "lam_since_anchor", "evaluations", "log_price")
"""Entries that tell of a sample's schedule, not of the sample."""

SHOWN: dict[str, tuple[str, ...]] = {
    "noise": ("eps_rms",),
    "change": ("x0_change", "x0_rate", "disagreement"),
    "clipping": ("clipped",),
    "features": (),
}
"""What tells of the sample, in groups that say the same thing; features: the network's own."""


def mean_schedule(times: Tensor, evaluated: Tensor, orders: Tensor | None = None) -> FixedSchedule:
    """The policy's mean schedule: K times, where its expected evaluations so far pass 1, 2, …, K.

    Args:
        times: (N,) its grid.
        evaluated: (M, N) bool, what it evaluated; K is their mean, rounded up.
        orders: (N,) of its jumps to the points; the k-th jump gets the one that most k-th evaluations have.
    """
    rates = evaluated.double().mean(0)
    spent = rates.cumsum(0)
    count = max(1, math.ceil(float(spent[-1]) - 0.01))
    each = float(spent[-1]) / count
    # The k-th evaluation lies where the expected number passes the middle of (k − 1, k], its last at the end.
    marks = (torch.arange(count, dtype=torch.float64) + 0.5) * each
    inside = torch.searchsorted(spent, marks).clamp(max=len(times) - 1)
    before = torch.where(inside > 0, spent[inside - 1], 0.0)
    share = ((marks - before) / rates[inside].clamp(min=1e-9)).clamp(0, 1)
    # A point stands for the half steps around it.
    grid = times.double()
    step = torch.cat((grid[:1] - grid[1:2], grid[:-1] - grid[1:]))
    found = grid[inside] + step[inside] * (0.5 - share)
    found[0] = grid[0]
    for k in range(1, count):
        found[k] = torch.minimum(found[k], found[k - 1] - 1e-3)
    found = found.clamp(min=float(grid[-1]) - count * 1e-3)
    return FixedSchedule("mean schedule", found, orders=_usual(rates, marks, each, orders))


def _usual(rates: Tensor, marks: Tensor, each: float, orders: Tensor | None) -> Tensor | None:
    """(K,) the order that most of the evaluations have in the ``each`` around a mark."""
    if orders is None:
        return None
    spent = rates.cumsum(0)
    ends = torch.minimum(spent, marks.unsqueeze(1) + each / 2)
    begins = torch.maximum(spent - rates, marks.unsqueeze(1) - each / 2)
    kinds = orders.unique()
    of_kind = (orders == kinds.unsqueeze(1)).double()
    found: Tensor = kinds[((ends - begins).clamp(min=0) @ of_kind.T).argmax(1)]
    return found


def habit(policy: LearnedPolicy, count: int) -> FixedSchedule:
    """Where it evaluates samples that show nothing unusual, as a schedule for all.

    Raises:
        OutOfReachError: It has no such habit.
    """
    points = policy.habit(count)
    if points is None or policy.times is None:
        raise OutOfReachError(f"a {policy.name} policy plans nothing: it has no habit")
    orders = None if policy.orders is None else policy.orders[points]
    return FixedSchedule("habit", policy.times[points], orders=orders)


def coins(times: Tensor, evaluated: Tensor, orders: Tensor | None = None) -> SkipCurve:
    """Independent coin flips at the policy's own rate per point of its grid."""
    agent = SkipCurve("coin flips", evaluated.double().mean(0))
    agent.times, agent.orders = times.double(), orders
    return agent


def dealt(times: Tensor, evaluated: Tensor, orders: Tensor | None = None) -> Dealt:
    """The policy's whole schedules, each dealt to the next image."""
    return Dealt("dealt", times, evaluated, orders)


class Shuffled(LearnedPolicy):
    """The policy, seeing in place of each sample another one that stands where it stands.

    Samples of a batch that are at the same point, with as many evaluations and the same anchor, pass what
    they show to each other in a ring; one that stands alone sees itself. So, unlike all other agents',
    its decisions depend on what a sample is packed with.

    Args:
        policy: Whose sight is disturbed.
        group: One of :data:`SHOWN`: only that is another sample's (permutation importance, Breiman 2001);
            None: everything that tells of the sample.

    Raises:
        OutOfReachError: The policy is not shown such entries.
    """

    def __init__(self, policy: LearnedPolicy, group: str | None = None) -> None:
        super().__init__(policy.info, policy.layers, policy.projection)
        self.name = "shuffled" if group is None else f"shuffled {group}"
        size = len(ENTRIES) + policy.info.num_features
        own = [i for i, entry in enumerate(ENTRIES) if entry.name in _OWN]
        features = list(range(len(ENTRIES), size))
        if group is None:
            passed = [i for i in range(size) if i not in own]
        else:
            passed = [i for i, entry in enumerate(ENTRIES) if entry.name in SHOWN[group]]
            passed += features if group == "features" else []
        if not passed:
            raise OutOfReachError("the policy is not shown features of the network")
        self._policy, self.orders = policy, policy.orders
        self._own, self._passed = own, torch.tensor(passed)

    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,)."""
        return self._policy.probabilities(self._exchanged(observation))

    def _exchanged(self, observation: Tensor) -> Tensor:
        """What each sample sees in place of its own."""
        where = observation[:, self._own].unique(dim=0, return_inverse=True)[1]
        order = where.argsort(stable=True)
        group = where[order]
        last = torch.ones_like(group, dtype=torch.bool)
        last[:-1] = group[1:] != group[:-1]
        first = torch.ones_like(last)
        first[1:] = last[:-1]
        # The next of the ring: the row after, or the group's first after its last.
        following = torch.arange(1, len(order) + 1, device=order.device)
        following[last] = first.nonzero().squeeze(1)
        passed = self._passed.to(order.device)
        seen = observation.clone()
        seen[order.unsqueeze(1), passed] = observation[order[following].unsqueeze(1), passed]
        return seen


class ShuffledPlans(Shuffled):
    """The same of a policy that plans: each of its plans is made once, for another sample's look."""

    def following(self, observation: Tensor, coins: Tensor) -> Tensor:
        """The points of the grid that samples evaluate next, (R,); N where they are done."""
        assert isinstance(self._policy, PlanningAgent)
        return self._policy.following(self._exchanged(observation), coins)


def shuffled(policy: LearnedPolicy, group: str | None = None) -> Shuffled:
    """The policy, seeing another sample than the one it decides on."""
    return (ShuffledPlans if isinstance(policy, PlanningAgent) else Shuffled)(policy, group)
