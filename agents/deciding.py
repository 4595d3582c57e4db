"""What is learned from looks: which plan a sample begins and, from what it shows, how it goes on.

All branches of all looks are kept, none is drawn: the Fréchet distance of all that is drawn is descended
(:mod:`agents.population`), by chances of plans (:mod:`agents.dealing`) and of branches
(:mod:`agents.cascade`), a policy gradient over all actions (Sutton et al. 2000; Ciosek and Whiteson 2018). A
distance of distributions alone trades nearness for variety, and precision falls. So membership in the
manifold of real images (:mod:`agents.manifold`) has a price, ``realism``: what branch b makes of an image is
worth

    realism·m_b − φ/σ_φ,

m_b the mean membership of all that b makes, φ the first variation of the distance and σ_φ its deviation
between branches of an image. Image by image membership can hardly be told from what a look shows: gates that
are paid by that learn noise by heart. A price alone keeps nothing. So in the end realistic plans are dealt
more often, until of all no more than ``shortfall`` less lies there than of the most realistic plan that the
budget pays for. (A price that rises until that holds runs away where the bound cannot be met.)

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

_SOME = 512  # looks at a plan that tell by how much branches differ
_LEAST = 1e-9  # deviation, share of a plan


class Crowd(NamedTuple):
    """A set of images.

    Args:
        moments: Mean (F,) and covariance (F, F).
        inside: The share that lies among the real.
        astray: The share that does not go on as its plan does.
    """

    moments: Moments
    inside: float
    astray: float


class Rise(NamedTuple):
    """By how much results take a set away from what is real: φ/σ_φ.

    Args:
        slope: φ.
        deviation: σ_φ.
    """

    slope: Slope
    deviation: float

    def of_results(self, results: Tensor) -> Tensor:
        """(M, B), of ``results`` (M, B, F)."""
        return self.slope(results.flatten(0, 1)).reshape(results.shape[:2]) / self.deviation


class Deciding:
    """Looks, and what chances of plans and branches make of them.

    Args:
        plans: What images were drawn along.
        dealing: Deals them.
        cascade: Tells their branches apart.
        real: Features (M, F) of real images.
        realism: Price of membership, in deviations of the distance's slope.
        shortfall: By how much less of all may lie there than of the most realistic plan within the budget.
    """

    def __init__(
        self,
        plans: Plans,
        dealing: Dealing,
        cascade: Cascade,
        real: Tensor,
        realism: float,
        shortfall: float,
    ) -> None:
        self.plans, self.dealing, self.cascade = plans, dealing, cascade
        self.realism, self.shortfall = realism, shortfall
        self.manifold = Manifold(real)
        self.real = moments(real.cpu())
        entries = cascade.first.mean.shape[1]
        nothing = no_looks(cascade.nodes[-1].stop, entries, len(plans.more), real.shape[1])
        self.looks = [nothing] * len(plans.sizes)
        self.inside = torch.zeros(len(plans.sizes), len(plans.more), dtype=torch.float64)  # m_b of every plan
        self.begun = torch.zeros(0, entries)
        self._rises: dict[int, Rise] = {}

    @torch.no_grad()
    def keep(self, plan: int, begun: Tensor, entries: Tensor, features: Tensor) -> None:
        """Keep what images showed and became along all branches of a plan.

        Args:
            plan: Which one.
            begun: (R, D) after the first evaluation, the same at all plans.
            entries: (R, T, D) at every look.
            features: (R, B, F).
        """
        inside = torch.stack([self.manifold.membership(f).double().mean() for f in features.unbind(1)])
        self.looks[plan] = self.looks[plan].and_more(Looks(entries.cpu(), features.half().cpu()))
        count = len(self.looks[plan].entries)
        self.inside[plan] += (inside.cpu() - self.inside[plan]) * (len(features) / count)
        self.cascade.usual(plan, self.looks[plan].entries)
        more = count - len(self.begun)
        if more > 0:
            self.begun = torch.cat((self.begun, begun[-more:].cpu()))
            self.dealing.usual(self.begun)

    def known(self) -> list[int]:
        """The budgets all of whose plans were looked at."""
        looked = torch.tensor([len(looks.entries) > 0 for looks in self.looks])
        return [c for c in range(len(self.plans.counts)) if bool(looked[self.dealing.members(c)].all())]

    def survey(self) -> dict[str, float]:
        """See what is drawn now, and what results are worth to it; budgets are kept.

        Chances change little from one step to the next: what is found here serves all steps between.
        """
        seen = []
        for budget in self.known():
            self.dealing.afford(budget, self.begun)
            crowd = self.crowd(budget)
            self._rises[budget] = self._rise(budget, crowd)
            seen.append([distance(crowd.moments, self.real), crowd.inside, crowd.astray])
        found = torch.tensor(seen).mean(0).tolist()
        return dict(zip(("gate/distance", "gate/realism", "gate/leaves_plan"), found, strict=True))

    @torch.no_grad()
    def crowd(self, budget: int) -> Crowd:
        """All that is drawn at a budget."""
        members, home = self.dealing.members(budget), self.plans.home
        begins = self.dealing.chances(budget, self.begun)[:, members]
        parts, among, kept, shares = [], [], [], []
        for plan, chances in zip(members, begins.unbind(1), strict=True):
            looks = self.looks[plan]
            begin = chances[: len(looks.entries)]
            shares.append(begin.mean())
            begin = begin / shares[-1].clamp(min=_LEAST)
            taken = self.cascade.chances(torch.full((len(looks.entries),), plan), looks.entries)
            taken = taken * begin.unsqueeze(1)
            parts.append(drawn_moments(looks.results, taken))
            among.append(float(taken.mean(0) @ self.inside[plan]))
            kept.append(float(taken[:, home].mean()))
        share = torch.stack(shares) / torch.stack(shares).sum()
        inside, at_home = (float(share @ torch.tensor(one).double()) for one in (among, kept))
        return Crowd(mixed_moments(parts, share), inside, 1 - at_home)

    @torch.no_grad()
    def _rise(self, budget: int, crowd: Crowd) -> Rise:
        """What results do to a crowd."""
        rise = Rise(slope(crowd.moments, self.real), 1.0)
        members = self.dealing.members(budget)
        each = [_deviation(rise.of_results(self.looks[plan].results[:_SOME])) for plan in members]
        return rise._replace(deviation=max(sum(each) / len(each), _LEAST))

    def climb(self, budget: int, size: int, generator: torch.Generator) -> Tensor:
        """What to climb, for ``size`` looks at the plans that a budget deals, since the last survey."""
        members = self.dealing.members(budget)
        least = min(len(self.looks[plan].entries) for plan in members)
        chosen = torch.randperm(least, generator=generator)[: max(size // len(members), 1)]
        plan = torch.tensor(members).repeat_interleave(len(chosen))
        looks = deal(self.looks, plan, chosen.repeat(len(members)))
        with torch.no_grad():
            gain = self.realism * self.inside[plan] - self._rises[budget].of_results(looks.results)
        brought = self.cascade.climb(plan, looks.entries, gain)
        worth = torch.zeros(len(chosen), len(self.looks), dtype=brought.dtype)
        worth[:, members] = brought.reshape(len(members), len(chosen)).T
        return self.dealing.climb(budget, self.begun[chosen], worth)

    @torch.no_grad()
    def settle(self, dealing: Dealing) -> None:
        """Make of a copy of what deals one that a policy keeps, as realistic as it must be."""
        for budget in self.known():
            inside = torch.zeros(len(self.looks), dtype=torch.float64)
            for plan in dealing.members(budget):
                entries = self.looks[plan].entries
                taken = self.cascade.chances(torch.full((len(entries),), plan), entries).mean(0)
                inside[plan] = taken @ self.inside[plan]
            paid = [plan for plan in dealing.members(budget) if dealing.sizes[plan] <= dealing.counts[budget]]
            most = float(self.inside[paid, self.plans.home].max())
            dealing.settle(budget, self.begun, inside, min(most - self.shortfall, float(inside[paid].max())))

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, but for what learns."""
        kept = {"begun": self.begun, "inside": self.inside}
        for row, looks in enumerate(self.looks):
            kept |= {f"looks.{row}.{name}": part for name, part in looks._asdict().items()}
        return kept

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.begun, self.inside = tensors["begun"], tensors["inside"]
        self.looks = [Looks(**under(tensors, f"looks.{row}.")) for row in range(len(self.looks))]


def _deviation(score: Tensor) -> float:
    """By how much a score (M, B) depends on the branch."""
    return float((score - score.mean(1, keepdim=True)).std())
