"""What is learned from looks: which plan a sample begins and, from what it shows, how it goes on.

All branches of all looks are kept, none is drawn: the Fréchet distance of all that is drawn is descended
(:mod:`agents.population`), by chances of plans (:mod:`agents.dealing`) and of branches
(:mod:`agents.cascade`), a policy gradient over all actions (Sutton et al. 2000; Ciosek and Whiteson 2018). A
distance of distributions alone trades nearness for variety, and precision falls. So of all that is drawn at
a budget as much must lie in the manifold of real images (:mod:`agents.manifold`) as of what a ``rival``
brings, and ``margin`` more: the best plan that the budget pays for, or all of its plans dealt as they were
given. Membership has a price ν for that.

A reward may look through several networks (``views``), and what pleases one may displease the others. The
distance in each view v is then a share of the best plan's, and the worst share is descended, by weights w_v;
each view asks for its own realism. What branch b makes of an image is worth

    Σ_v ν_v·m_vb − φ/σ_φ,   φ = Σ_v w_v·φ_v/d_v,

m_vb the mean membership of all that b makes, φ_v the first variation of the distance, d_v the best plan's,
and σ_φ the deviation of φ between branches of an image. Each survey moves ν and w
(:mod:`agents.multipliers`): no price suits all budgets and models. Image by image membership can hardly be
told from what a look shows: gates that are paid by that learn noise by heart. So they are paid by branches'
means. What is lacking is told by what images get, for those take a branch whom it suits less than others, and
of the option that a policy would take: a chance is kept for all of them while learning.

Gates learn single images by heart. So one look in four is only surveyed: what looking changes, and with it
distances, slopes, prices and weights, is seen on images that no gate has learned from. What branches make of
images without looking all looks tell: else gates would learn what is peculiar to the surveyed ones.

Φ itself would mislead where it holds nearness to the teacher: each evaluation brings an image nearer to its
teacher, and few bring what is drawn nearer to what is real.

Shapes: R images; M looks at a plan; T looks at an image; P plans; B branches; D observation entries; F
features of the reward, F_v of them a view's; V views; C budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from agents.cascade import Cascade
from agents.dealing import Dealing
from agents.looks import Looks, joined, no_looks
from agents.manifold import Manifold
from agents.multipliers import Multipliers
from agents.plans import Plans
from agents.population import branch_moments, drawn_moments, mixed_moments
from envs.errors import UserError
from envs.registry import unknown_name
from envs.rewards.frechet import Moments, Slope, distance, moments, slope

RIVALS = ("schedule", "mixture")
"""Whose realism is kept: the best plan's that a budget pays for; its plans', dealt as they were given."""

_SHOWN = 4  # one look in so many is surveyed, and never learned from
_SOME = 512  # looks at a plan that tell by how much branches differ
_LEAST = 1e-9  # deviation, share of a plan
_AS_GOOD = 0.1  # how much farther than the best plan one is that is as good


class Crowd(NamedTuple):
    """A set of images.

    Args:
        moments: Mean (F_v,) and covariance (F_v, F_v), in every view.
        inside: (V,) the share that lies among the real.
        astray: The share that does not go on as its plan does.
    """

    moments: list[Moments]
    inside: Tensor
    astray: float


class Worth(NamedTuple):
    """What results are worth to a set: Σ_v ν_v·m_v − φ/σ_φ.

    Args:
        price: ν_v, (V,).
        slopes: φ_v.
        weights: w_v/d_v, (V,).
        deviation: σ_φ.
    """

    price: Tensor
    slopes: list[Slope]
    weights: Tensor
    deviation: float

    def of(self, results: Tensor, inside: Tensor) -> Tensor:
        """(M, B), of ``results`` (M, B, F) whose branches bring ``inside`` (B, V)."""
        seen = results.flatten(0, 1).split([len(slope.mean) for slope in self.slopes], 1)
        rises = torch.stack([slope(f) for slope, f in zip(self.slopes, seen, strict=True)], 1)
        rise = (rises.double() @ self.weights).reshape(results.shape[:2])
        return inside @ self.price - rise / self.deviation


class Deciding:
    """Looks, and what chances of plans and branches make of them.

    Args:
        plans: What images were drawn along.
        dealing: Deals them.
        cascade: Tells their branches apart.
        real: Features (M, F) of real images.
        views: How many of them are of each network that looks.
        rival: One of :data:`RIVALS`.
        margins: By how much more of all is to lie among the real than of what the rival brings, (C,).

    Raises:
        UserError: There is no such rival, or a margin is no share.
    """

    def __init__(
        self,
        plans: Plans,
        dealing: Dealing,
        cascade: Cascade,
        real: Tensor,
        views: Sequence[int],
        rival: str,
        margins: Sequence[float],
    ) -> None:
        self.plans, self.dealing, self.cascade = plans, dealing, cascade
        if rival not in RIVALS:
            raise unknown_name("rival", rival, RIVALS)
        for margin in margins:
            if not -1 <= margin <= 1:
                raise UserError(f"margin must lie between -1 and 1, not {margin:g}")
        self.rival, self.margins = rival, list(margins)
        self.views = list(views)
        self.manifolds = [Manifold(part) for part in real.split(self.views, 1)]
        self.real = [moments(part.cpu()) for part in real.split(self.views, 1)]
        entries = cascade.first.mean.shape[1]
        nothing = no_looks(cascade.nodes[-1].stop, entries, len(plans.more), real.shape[1], len(self.views))
        self.looks = [nothing] * len(plans.sizes)
        size = (len(plans.sizes), len(plans.more), len(self.views))
        self.inside = torch.zeros(size, dtype=torch.float64)  # m_vb of every plan
        self.alone = torch.zeros(size[0], size[2], dtype=torch.float64)  # its distance, where all follow it
        self.multipliers = Multipliers(len(plans.counts), size[2])
        self.begun = torch.zeros(0, entries)
        self._worths: dict[int, Worth] = {}
        self._branches: dict[int, list[list[Moments]]] = {}

    @torch.no_grad()
    def keep(self, plan: int, begun: Tensor, entries: Tensor, features: Tensor) -> None:
        """Keep what images showed and became along all branches of a plan.

        Args:
            plan: Which one.
            begun: (R, D) after the first evaluation, the same at all plans.
            entries: (R, T, D) at every look.
            features: (R, B, F).

        Raises:
            UserError: Features are beyond half precision.
        """
        results = features.half().cpu()
        if not bool(results.isfinite().all()):
            raise UserError(
                "looks are kept in half precision, and the reward's features are too large for it"
            )
        found = Looks(entries.cpu(), results, self._memberships(features).cpu())
        self.looks[plan] = joined((self.looks[plan], found))
        count = len(self.looks[plan].entries)
        self.inside[plan] = self.looks[plan].inside.double().mean(0)
        plain = self.looks[plan].results[:, [self.plans.home]]
        self.alone[plan] = self._distances(self._drawn(plain, torch.ones(len(plain), 1).double()))
        self._branches.pop(plan, None)
        self.cascade.usual(plan, self.looks[plan].entries)
        more = count - len(self.begun)
        if more > 0:
            self.begun = torch.cat((self.begun, begun[-more:].cpu()))
            self.dealing.usual(self.begun)

    def _memberships(self, features: Tensor) -> Tensor:
        """Membership of ``features`` (R, B, F) in every view, (R, B, V)."""
        seen = zip(self.manifolds, features.split(self.views, 2), strict=True)
        found = [manifold.membership(part.flatten(0, 1)) for manifold, part in seen]
        return torch.stack(found, 1).unflatten(0, features.shape[:2])

    def _drawn(self, results: Tensor, chances: Tensor) -> list[Moments]:
        """Moments of ``results`` (M, B, F) taken with ``chances`` (M, B), in every view."""
        return [drawn_moments(part, chances) for part in results.split(self.views, 2)]

    def _of_branches(self, plan: int) -> list[list[Moments]]:
        """In every view moments of a plan's branches: those of all looks, then those of the surveyed."""
        if plan not in self._branches:
            seen = self.looks[plan].results.split(self.views, 2)
            self._branches[plan] = [branch_moments(part) + branch_moments(part[::_SHOWN]) for part in seen]
        return self._branches[plan]

    def _distances(self, seen: list[Moments]) -> Tensor:
        """(V,)."""
        each = [distance(one, real) for one, real in zip(seen, self.real, strict=True)]
        return torch.tensor(each, dtype=torch.float64)

    def known(self) -> list[int]:
        """The budgets all of whose plans were looked at: once to be surveyed, again to learn from."""
        looked = torch.tensor([len(looks.entries) > 1 for looks in self.looks])
        return [c for c in range(len(self.plans.counts)) if bool(looked[self.dealing.members(c)].all())]

    def survey(self, budget: int) -> dict[str, float]:
        """See what is drawn at a budget, and what results are worth there; what is asked is paid for anew.

        Chances change little from one step to the next: what is found here serves all steps until the next.
        """
        self.dealing.afford(budget, self.begun)
        crowd = self.crowd(budget)
        price = self.multipliers.price(budget, self.asked(budget) - crowd.inside)
        distances = self._distances(crowd.moments)
        weights = self.multipliers.weights(budget, distances / self._best(budget))
        self._worths[budget] = self._worth(budget, crowd, price, weights)
        told = {"leaves_plan": crowd.astray}
        seen = {
            "distance": distances,
            "realism": crowd.inside,
            "price": price,
            "weight": weights,
        }
        if len(self.views) == 1:
            del seen["weight"]
            told |= {name: float(value) for name, value in seen.items()}
        else:
            told |= {
                f"{name}_{v}": value for name, one in seen.items() for v, value in enumerate(one.tolist())
            }
        return {f"gate/{name}_at_{self.plans.counts[budget]}": value for name, value in told.items()}

    def _paid(self, budget: int) -> list[int]:
        """The plans that a budget pays for."""
        count = self.plans.counts[budget]
        return [plan for plan in self.dealing.members(budget) if self.dealing.sizes[plan] <= count]

    def _best(self, budget: int) -> Tensor:
        """The smallest distance of a plan that a budget pays for, in every view, (V,)."""
        return self.alone[self._paid(budget)].amin(0).clamp(min=_LEAST)

    def asked(self, budget: int) -> Tensor:
        """The share of all that is drawn at a budget that is to lie among the real, in every view, (V,)."""
        if self.rival == "mixture":
            given = self.dealing.weights[budget].double() @ self.inside[:, self.plans.home]
            return given + self.margins[budget]
        share = (self.alone / self._best(budget)).amax(1)  # of the best distance, in the worst view
        paid = self._paid(budget)
        bound = (1 + _AS_GOOD) * float(share[paid].min())
        best = [plan for plan in paid if share[plan] <= bound]
        return self.inside[best, self.plans.home].amax(0) + self.margins[budget]

    @torch.no_grad()
    def crowd(self, budget: int) -> Crowd:
        """All that is drawn at a budget."""
        members = self.dealing.members(budget)
        begins = self.dealing.chances(budget, self.begun[::_SHOWN])[:, members]
        share = begins.mean(0).double()
        each = [self._on(plan, begin) for plan, begin in zip(members, begins.unbind(1), strict=True)]
        mixed = [mixed_moments(view, share) for view in zip(*(one.moments for one in each), strict=True)]
        inside = share @ torch.stack([one.inside for one in each])
        astray = share @ torch.tensor([one.astray for one in each], dtype=torch.float64)
        return Crowd(mixed, inside, float(astray))

    def _on(self, plan: int, begin: Tensor) -> Crowd:
        """All that is drawn on a plan which the surveyed images begin with these chances, (M,)."""
        looks = self.looks[plan].some(slice(None, None, _SHOWN))
        begin = begin[: len(looks.entries)]
        begin = (begin / begin.mean().clamp(min=_LEAST)).double().unsqueeze(1)
        branches = self.cascade.taken(torch.full((len(looks.entries),), plan), looks.entries)

        taken = branches.chances * begin
        mean = taken.mean(0)
        weights = torch.cat((mean.new_ones(1), mean, -mean))
        seen = zip(self._drawn(looks.results, taken), self._of_branches(plan), strict=True)
        drawn = [mixed_moments([one, *each], weights) for one, each in seen]

        # A policy takes the best option, not one by chance. How real its branches are all looks say; that
        # images take those that suit them less, these alone.
        taken = branches.choices * begin
        mean = taken.mean(0)
        suits = torch.einsum("mb,mbv->v", taken - mean, looks.inside.double()) / len(looks.entries)
        return Crowd(drawn, mean @ self.inside[plan] + suits, 1 - float(mean[self.plans.home]))

    @torch.no_grad()
    def _worth(self, budget: int, crowd: Crowd, price: Tensor, weights: Tensor) -> Worth:
        """What results are worth to a crowd, by ν_v and w_v."""
        slopes = [slope(one, real) for one, real in zip(crowd.moments, self.real, strict=True)]
        bare = Worth(torch.zeros_like(price), slopes, weights / self._best(budget), 1.0)
        members = self.dealing.members(budget)
        some = (bare.of(self.looks[plan].results[:_SOME], self.inside[plan]) for plan in members)
        each = [_deviation(worth) for worth in some]
        return bare._replace(price=price, deviation=max(sum(each) / len(each), _LEAST))

    def climb(self, budget: int, size: int, generator: torch.Generator) -> Tensor:
        """What to climb, for ``size`` looks at the plans that a budget deals, since the last survey."""
        members = self.dealing.members(budget)
        least = min(len(self.looks[plan].entries) for plan in members)
        chosen = torch.randperm(least, generator=generator)
        chosen = chosen[chosen % _SHOWN != 0][: max(size // len(members), 1)]
        plan = torch.tensor(members).repeat_interleave(len(chosen))
        entries = torch.cat([self.looks[member].entries[chosen] for member in members])
        with torch.no_grad():
            worth = self._worths[budget]
            each = [worth.of(self.looks[member].results[chosen], self.inside[member]) for member in members]
        brought = self.cascade.climb(plan, entries, torch.cat(each))
        by_plan = torch.zeros(len(chosen), len(self.looks), dtype=brought.dtype)
        by_plan[:, members] = brought.reshape(len(members), len(chosen)).T
        return self.dealing.climb(budget, self.begun[chosen], by_plan)

    def state(self, looks: bool = True) -> dict[str, Tensor]:
        """All that a resumed run needs, but for what learns and, as is said, for ``looks``."""
        kept = self.multipliers.state()
        if looks:
            kept |= {"begun": self.begun, "inside": self.inside, "alone": self.alone}
            for row, at_plan in enumerate(self.looks):
                kept |= {f"looks.{row}.{name}": part for name, part in at_plan._asdict().items()}
        return kept

    def load_state(self, tensors: dict[str, Tensor], looks: bool = True) -> None:
        """Go on from :meth:`state`, and from the looks that were taken over where it holds none."""
        self.multipliers.load_state(tensors)
        if looks:
            self.inside, self.alone = tensors["inside"], tensors["alone"]
            self.begun = tensors["begun"]
            self.looks = [Looks(*_kept(tensors, row, Looks._fields)) for row in range(len(self.looks))]
            self._branches = {}

    def look_again(self, tensors: dict[str, Tensor], generator: torch.Generator) -> None:
        """Take over the looks of :meth:`state`, in another order, so that others of them are surveyed.

        Raises:
            KeyError, ValueError: They are not of these plans.
        """
        found = [_kept(tensors, row, ("entries", "results")) for row in range(len(self.looks))]
        for mine, (entries, results) in zip(self.looks, found, strict=True):
            for part, taken in ((mine.entries, entries), (mine.results, results)):
                if part.shape[1:] != taken.shape[1:] or not len(taken):
                    raise ValueError("its looks")
        least = min(len(entries) for entries, _ in found)
        order = torch.randperm(least, generator=generator)  # one for all plans: places are noises
        for plan, (entries, results) in enumerate(found):
            turn = torch.cat((order, torch.arange(least, len(entries))))
            kept = results[turn].to(self.manifolds[0].real)
            self.keep(plan, tensors["begun"][turn], entries[turn], kept)


def _kept(tensors: Mapping[str, Tensor], plan: int, names: Sequence[str]) -> list[Tensor]:
    """Parts of a plan's looks, as :meth:`Deciding.state` keeps them."""
    return [tensors[f"looks.{plan}.{name}"] for name in names]


def _deviation(score: Tensor) -> float:
    """By how much a score (M, B) depends on the branch."""
    return float((score - score.mean(1, keepdim=True)).std())
