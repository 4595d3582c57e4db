"""What is learned from looks: which plan a sample begins and, from what it shows, how it goes on.

All branches of all looks are kept, none is drawn: the Fréchet distance of all that is drawn is descended
(:mod:`agents.population`), by chances of plans (:mod:`agents.dealing`) and of branches
(:mod:`agents.cascade`), a policy gradient over all actions (Sutton et al. 2000; Ciosek and Whiteson 2018). A
distance of distributions alone trades nearness for variety, and precision falls. So membership in the
manifold of real images (:mod:`agents.manifold`) has a price: it rises while less of what is drawn lies there
than of the most realistic plan, and ``realism`` more, and falls while there is more than that. On fresh noise
less lies there than on the looks that were learned from: hence the "more". (Counted on looks that are held
back, the price runs away: the dearer membership is, the more of it is fitted noise.)

Φ itself would mislead where it holds nearness to the teacher: each evaluation brings an image nearer to its
teacher, and few bring what is drawn nearer to what is real.

Shapes: R images; M looks at a plan; T looks at an image; P plans; B branches; D observation entries; F
features of the reward; C budgets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from agents.actor import under
from agents.cascade import Cascade
from agents.dealing import Dealing
from agents.looks import Looks, deal, no_looks
from agents.manifold import Manifold
from agents.plans import Plans
from agents.population import drawn_moments, mixed_moments
from envs.rewards.frechet import Moments, Slope, distance, moments, slope

_CARE_RATE = 20.0  # by how much membership weighs more after a round in which all of it was missing
_MOST_CARE = 10.0
_SOME = 512  # looks at a plan that tell in what units it is


class Crowd(NamedTuple):
    """A set of images: its moments, and shares of it.

    Args:
        moments: Mean (F,) and covariance (F, F).
        parts: The same of what each of its plans brings.
        among: The shares of these that lie among the real.
        inside: The share of all that does.
        most: That of its most realistic plan, followed by all.
        astray: The share that does not go on as its plan does.
    """

    moments: Moments
    parts: list[Moments]
    among: list[float]
    inside: float
    most: float
    astray: float


class Deciding:
    """Looks, and what chances of plans and branches make of them.

    Args:
        plans: What images were drawn along.
        cascade: Tells them apart.
        real: Features (M, F) of real images.
        realism: By how much more of what is drawn shall lie among them than of the most realistic plan.
        deal_rate: How fast chances of plans move; 0 keeps them.
    """

    def __init__(
        self, plans: Plans, cascade: Cascade, real: Tensor, *, realism: float, deal_rate: float
    ) -> None:
        self.plans, self.cascade = plans, cascade
        self.realism, self.deal_rate = realism, deal_rate
        self.manifold = Manifold(real)
        self.real = moments(real.cpu())
        self.dealing = Dealing(plans.weights, plans.sizes, plans.counts)
        self.care = torch.ones(len(plans.counts), dtype=torch.float64)
        nothing = no_looks(
            cascade.nodes[-1].stop, cascade.first.mean.shape[1], len(plans.more), real.shape[1]
        )
        self.looks = [nothing] * len(plans.sizes)
        self._slopes: dict[int, Slope] = {}

    @torch.no_grad()
    def keep(self, plan: int, entries: Tensor, features: Tensor) -> None:
        """Keep what images showed, (R, T, D), and became along all branches of a plan, (R, B, F)."""
        inside = torch.stack([self.manifold.membership(f) for f in features.unbind(1)], 1)
        new = Looks(entries.cpu(), features.half().cpu(), inside.cpu())
        self.looks[plan] = self.looks[plan].and_more(new)
        self.cascade.usual(plan, self.looks[plan].entries)

    def known(self) -> list[int]:
        """The budgets all of whose plans were looked at."""
        looked = torch.tensor([len(looks.entries) > 0 for looks in self.looks])
        return [c for c in range(len(self.plans.counts)) if bool(looked[self.dealing.members(c)].all())]

    def survey(self) -> dict[str, float]:
        """See what is drawn now; chances of plans and the price of membership move by it.

        Chances of branches change little from one to the next: its slopes serve all steps between.
        """
        told = []
        for budget in self.known():
            crowd = self.crowd(budget)
            self._slopes[budget] = slope(crowd.moments, self.real)
            short = crowd.most + self.realism - crowd.inside
            self.care[budget] = (self.care[budget] + _CARE_RATE * short).clamp(0, _MOST_CARE)
            self.deal(budget, crowd)
            told.append([distance(crowd.moments, self.real), crowd.inside, crowd.astray])
        means = torch.tensor(told).mean(0).tolist()
        return dict(zip(("gate/distance", "gate/realism", "gate/leaves_plan"), means, strict=True))

    @torch.no_grad()
    def crowd(self, budget: int) -> Crowd:
        """All that is drawn at a budget."""
        members = self.dealing.members(budget)
        shares = self.dealing.weights[budget, members]
        parts, among, alone, home = [], [], [], []
        for plan in members:
            looks = self.looks[plan]
            taken = self.cascade.chances(torch.full((len(looks.entries),), plan), looks.entries)
            parts.append(drawn_moments(looks.results, taken))
            among.append(float((taken * looks.inside).sum(1).mean()))
            alone.append(float(looks.inside[:, self.plans.home].mean()))
            home.append(float(taken[:, self.plans.home].mean()))
        inside, kept = (float(shares @ torch.tensor(one).double()) for one in (among, home))
        return Crowd(mixed_moments(parts, shares), parts, among, inside, max(alone), 1 - kept)

    @torch.no_grad()
    def deal(self, budget: int, crowd: Crowd) -> None:
        """Deal plans more often whose images, going on as they do, are worth more."""
        members = self.dealing.members(budget)
        if len(members) == 1:
            return
        falls, units = self._slopes[budget], []
        for looks in (self.looks[plan] for plan in members):
            some = looks.results[:_SOME]
            fall = falls(some.flatten(0, 1)).reshape(some.shape[:2])
            units.append(torch.stack((_off(fall).std(), _off(looks.inside.double()).std())))
        # In units of the distance; the two weigh as they do for branches.
        far, inside = torch.stack(units).mean(0).tolist()
        price = float(self.care[budget]) * far / max(inside, 1e-9)
        worth = [price * share - falls.of(part) for part, share in zip(crowd.parts, crowd.among, strict=True)]
        self.dealing.climb(budget, torch.tensor(worth), self.deal_rate)

    def climb(self, budget: int, size: int, generator: torch.Generator) -> Tensor:
        """What to climb, for ``size`` images that a budget deals its plans to, since the last survey."""
        chances = self.dealing.weights[budget]
        least = min(len(self.looks[plan].entries) for plan in self.dealing.members(budget))
        chosen = torch.randperm(least, generator=generator)[:size]
        plan = torch.multinomial(chances, len(chosen), replacement=True, generator=generator)
        looks = deal(self.looks, plan, chosen)
        with torch.no_grad():
            gain = -_standard(self._slopes[budget](looks.results.flatten(0, 1)).reshape(looks.inside.shape))
            gain = gain + self.care[budget] * _standard(looks.inside.double())
        return self.cascade.climb(plan, looks.entries, gain)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, but for the cascade."""
        kept = {"dealt": self.dealing.weights, "care": self.care}
        for row, looks in enumerate(self.looks):
            kept |= {f"looks.{row}.{name}": part for name, part in looks._asdict().items()}
        return kept

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.dealing.weights, self.care = tensors["dealt"], tensors["care"]
        self.looks = [Looks(**under(tensors, f"looks.{row}.")) for row in range(len(self.looks))]


def _off(score: Tensor) -> Tensor:
    """What of a score (…, B) depends on the branch."""
    return score - score.mean(-1, keepdim=True)


def _standard(score: Tensor) -> Tensor:
    """What of a score (R, B) depends on the branch, in units of its deviation."""
    off = _off(score)
    return off / off.std().clamp(min=1e-9)
