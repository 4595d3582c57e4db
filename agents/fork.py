"""A policy that looks late: samples share a plan up to a fork, what they show there decides how it ends.

The plans are :class:`agents.plans.Plans`, the decisions an :class:`agents.cascade.Cascade`'s. A budget
deals plans (:class:`agents.dealing.Dealing`) once a sample was evaluated, by what it shows and a coin: those
of its number of evaluations, or of the two around it. The policy's grid holds the times of all plans, so each
is evaluated exactly where it was learned, and where a sample was evaluated last tells which plan and which
branches it may follow: the policy needs no memory.

Shapes: R samples; N points of the grid; C budgets; P plans; B branches; L evaluations of the longest plan.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from agents.actor import layers_of, under
from agents.cascade import Cascade, looks_of, networks_of
from agents.dealing import Dealing
from agents.planning import Shown, Tariff, shown
from agents.policy import LearnedPolicy, PolicyInfo
from envs.observation import ENTRIES, Projection

_POSITION = [entry.name for entry in ENTRIES].index("position")


class Fork(LearnedPolicy):
    """An :class:`agents.base.Agent` that spends K evaluations on average, and sees to whom they go.

    Args:
        info: What it was trained for; ``times`` are all plans', ``evaluations`` the fewest and the most K.
        dealing: Decides which plan a sample begins.
        cascade: Decides at the fork, and after it where there is more than one look.
        plans: (P, B, L) points of the grid that each plan evaluates, in order; N where it has ended.
        lam: (N,) half log-SNR at its times, 0 at the first and 1 at the last.
        left: Evaluations that a plan leaves after the fork.
        projection: As of a :class:`LearnedPolicy`.
        orders: (N,) of the jumps to its points; None: the solver's own.
    """

    may_go_on = True  # with schedules that it was given

    def __init__(
        self,
        info: PolicyInfo,
        dealing: Dealing,
        cascade: Cascade,
        plans: Tensor,
        lam: Tensor,
        left: int,
        projection: Projection | None = None,
        orders: Tensor | None = None,
    ) -> None:
        super().__init__(info, layers_of(cascade.first.layered[0]), projection)
        self.dealing = dealing.requires_grad_(False)
        self.cascade = cascade.requires_grad_(False)
        self.left = left
        self.orders = orders
        least, most = info.evaluations
        self.tariff = Tariff(least, most, (info.prices[0], info.prices[1]))
        self.counts = dealing.counts
        self.whole_prices = [self.tariff.price(count) for count in reversed(self.counts)]
        self.plans = plans.long().cpu()
        self.lam = lam.detach().double().cpu()
        branches = self.plans.shape[1]
        self.home = cascade.first.more.tolist().index(0) * (branches // cascade.options)
        self.sizes = (self.plans[:, self.home] < len(self.lam)).sum(1)

    def _follow(self, device: torch.device) -> None:
        super()._follow(device)
        if self.lam.device != device:
            for name in ("lam", "plans", "sizes"):
                setattr(self, name, getattr(self, name).to(device))
            self.dealing.to(device)
            self.cascade.to(device)

    def chances(self, seen: Shown) -> Tensor:
        """(R, P) of plans, by what samples show after their first evaluation: linear between two budgets.

        Of those that are past it, before they were looked at.
        """
        each = self.dealing.weights.expand(len(seen.spent), -1, -1).clone()  # (R, C, P)
        new = seen.spent <= 1
        if bool(new.any()):
            shows = seen.entries[new]
            each[new] = torch.stack([self.dealing.chances(c, shows) for c in range(len(self.counts))], 1)
        budget = self.tariff.budget(seen.log_price)
        counts = torch.tensor(self.counts, device=budget.device, dtype=budget.dtype)
        if len(counts) == 1:
            return each[:, 0]
        high = torch.searchsorted(counts, budget.contiguous()).clamp(1, len(counts) - 1)
        share = ((budget - counts[high - 1]) / (counts[high] - counts[high - 1])).clamp(0, 1)
        rows = torch.arange(len(high), device=high.device)
        return each[rows, high - 1].lerp(each[rows, high], share.unsqueeze(1))

    @torch.no_grad()
    def following(self, observation: Tensor, coins: Tensor) -> Tensor:
        """The points that samples evaluate next, (R,); N where they are done."""
        self._follow(observation.device)
        seen = shown(observation, len(self.lam))
        chances = self.chances(seen)
        cumulated = chances.cumsum(1)
        plan = torch.searchsorted(cumulated, coins.unsqueeze(1).contiguous(), right=True)
        plan = plan.clamp(max=len(self.plans) - 1)
        # Past its beginning a sample is on the plan that it was last evaluated for.
        astray = self._astray(seen)
        off = astray.min(2).values.masked_fill(chances == 0, len(self.lam) + 1)
        nearest, found = off.min(1, keepdim=True)
        plan = torch.where(off.gather(1, plan) > nearest, found, plan).squeeze(1)
        return self._after(seen, plan, astray)

    def _astray(self, seen: Shown) -> Tensor:
        """(R, P, B): by how many points of the grid samples are off each branch of each plan."""
        anchor = (self.lam - seen.lam.double().unsqueeze(1)).abs().argmin(1)
        last = (seen.spent - 1).clamp(0, self.plans.shape[2] - 1)
        return (self.plans[:, :, last].permute(2, 0, 1) - anchor.reshape(-1, 1, 1)).abs()

    def _after(self, seen: Shown, plan: Tensor, astray: Tensor) -> Tensor:
        """Where samples of plans (R,) go on, (R,)."""
        rows = torch.arange(len(plan), device=plan.device)
        longest = self.plans.shape[2]
        branch = astray[rows, plan].argmin(1)
        for look in range(self.cascade.looks):
            here = seen.spent == self.sizes[plan] - self.left + look
            if bool(here.any()):
                branch[here] = self.cascade.goes_on(look, plan[here], branch[here], seen.entries[here])
        found = self.plans[plan, branch, seen.spent.clamp(max=longest - 1)]
        return torch.where(seen.spent >= longest, len(self.lam), found)

    @torch.no_grad()
    def probabilities(self, observation: Tensor) -> Tensor:
        """P(evaluate), (R,): of the plans that a sample may be on, the share that stop here."""
        self._follow(observation.device)
        seen = shown(observation, len(self.lam))
        here = (observation[:, _POSITION] * (len(self.lam) - 1)).round().long()
        astray = self._astray(seen)
        plans = range(len(self.plans))
        following = torch.stack([self._after(seen, torch.full_like(here, p), astray) for p in plans], 1)
        chances = self.chances(seen)
        off = astray.min(2).values.masked_fill(chances == 0, len(self.lam) + 1)
        chances = chances * (off == off.min(1, keepdim=True).values)
        ahead = chances * (following > here.unsqueeze(1))
        stop = chances * (following == here.unsqueeze(1))
        both = (ahead + stop).sum(1)
        # Where all of them would have stopped before, it is time.
        return torch.where(both > 0, stop.sum(1) / both.clamp(min=1e-12), 1.0).to(observation.dtype)

    def price_at(self, nfe: float) -> float | None:
        """What its tariff says, within its range."""
        return self.tariff.price(nfe) if self.counts[0] <= nfe <= self.counts[-1] else None

    def habit(self, count: int) -> Tensor | None:
        """The plan of ``count`` evaluations, where there is one for all, (count,) points."""
        used = self.dealing.members(self.counts.index(count)) if count in self.counts else []
        if len(used) != 1:
            return None
        return self.plans[used[0], self.home, :count].cpu()

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, as they are stored, its plans and its grid."""
        named = {name: value for name, value in super().tensors().items() if not name.startswith("layers.")}
        named |= self.cascade.tensors()
        named |= {f"dealing.{name}": value for name, value in self.dealing.state_dict().items()}
        named |= {"plans": self.plans, "counts": torch.tensor(self.counts)}
        more = self.cascade.first.more.long()
        named |= {} if self.orders is None else {"orders": self.orders}
        return named | {"lam": self.lam, "left": torch.tensor(self.left), "more": more}


def build_fork(info: PolicyInfo, tensors: Mapping[str, Tensor], projection: Projection | None) -> Fork:
    """Make one from :meth:`Fork.tensors`; KeyError or ValueError where they do not fit."""
    plans, left = tensors["plans"], int(tensors["left"])
    counts, points = tensors["counts"].tolist(), len(info.times)
    if tensors["lam"].shape != (points,) or not counts or [counts[0], counts[-1]] != info.evaluations:
        raise ValueError("its range of evaluations or its grid")
    if plans.ndim != 3 or not _descend(plans, points) or counts != sorted(set(counts)):
        raise ValueError("its plans")
    sizes = (plans < points).sum(2)
    more, looks = tensors["more"].tolist(), looks_of(tensors)
    networks = networks_of(tensors)
    if len(plans) % networks:
        raise ValueError("its networks")
    cascade = Cascade(len(plans), len(ENTRIES) + info.num_features, more, looks, networks)
    if len(more) ** looks != plans.shape[1] or left < looks:
        raise ValueError("its branches")
    each = cascade.first.more.repeat_interleave(plans.shape[1] // len(more))
    home = each.tolist().index(0)
    if not bool((sizes - sizes[:, home : home + 1] == each).all() and (sizes[:, home] > left).all()):
        raise ValueError("its plans")
    dealing = _dealing(tensors, sizes[:, home].tolist(), counts, cascade.first.mean.shape[1])
    try:
        cascade.load(dict(tensors))
    except RuntimeError:
        raise ValueError("its network") from None
    orders = tensors.get("orders")
    whole = orders is None or not orders.is_floating_point()
    if orders is not None and not (whole and orders.shape == (points,) and bool((orders >= 1).all())):
        raise ValueError("its orders")
    return Fork(info, dealing, cascade, plans, tensors["lam"], left, projection, orders)


def _dealing(tensors: Mapping[str, Tensor], sizes: list[int], counts: list[int], entries: int) -> Dealing:
    """The one that is stored; older policies have chances alone, the same for all samples."""
    stored = under(dict(tensors), "dealing.")
    weights = stored["weights"] if stored else tensors["weights"]
    if weights.shape != (len(counts), len(sizes)) or not bool((weights >= 0).all() and weights.sum(1).all()):
        raise ValueError("its plans' chances")
    dealing = Dealing(weights, sizes, counts, entries)
    try:
        dealing.load_state_dict(stored or dealing.state_dict())
    except RuntimeError:
        raise ValueError("its network") from None
    return dealing


def _descend(plans: Tensor, points: int) -> bool:
    """Whether plans begin at the grid's first point and go on to later ones, until they end."""
    later = (plans.diff(dim=2) > 0) | (plans[..., 1:] == points)
    return bool((plans[..., 0] == 0).all() and later.all() and (plans >= 0).all() and (plans <= points).all())
