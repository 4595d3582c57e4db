"""What is learned from looks: which plan a sample begins and, from what it shows, how it goes on.

All branches of all looks are kept, none is drawn: the Fréchet distance of all that is drawn is descended
(:mod:`agents.population`), by chances of plans (:mod:`agents.dealing`) and of branches
(:mod:`agents.cascade`), a policy gradient over all actions (Sutton et al. 2000; Ciosek and Whiteson 2018). A
distance of distributions alone trades nearness for variety, and precision falls. So membership in the
manifold of real images (:mod:`agents.manifold`) has a price, ``realism``: a result is worth

    realism·membership/σ_m − φ/σ_φ,

φ the first variation of the distance and σ the deviations of both between branches of an image. (A price
that rises until as much lies among the real as of the most realistic plan runs away: on looks that gates
learned from more lies there than on fresh ones, and on looks that are held back ever less, the dearer it is.)

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


class Worth(NamedTuple):
    """What results are worth to a set.

    Args:
        slope: φ.
        scale: 1/σ_φ.
        price: Of membership, realism/σ_m.
    """

    slope: Slope
    scale: float
    price: float

    def of_results(self, looks: Looks) -> Tensor:
        """(M, B)."""
        fall = self.slope(looks.results.flatten(0, 1)).reshape(looks.inside.shape)
        return self.price * looks.inside.double() - self.scale * fall


class Deciding:
    """Looks, and what chances of plans and branches make of them.

    Args:
        plans: What images were drawn along.
        dealing: Deals them.
        cascade: Tells their branches apart.
        real: Features (M, F) of real images.
        realism: Price of membership.
    """

    def __init__(
        self,
        plans: Plans,
        dealing: Dealing,
        cascade: Cascade,
        real: Tensor,
        realism: float,
    ) -> None:
        self.plans, self.dealing, self.cascade = plans, dealing, cascade
        self.realism = realism
        self.manifold = Manifold(real)
        self.real = moments(real.cpu())
        entries = cascade.first.mean.shape[1]
        nothing = no_looks(cascade.nodes[-1].stop, entries, len(plans.more), real.shape[1])
        self.looks = [nothing] * len(plans.sizes)
        self.begun = torch.zeros(0, entries)
        self._worths: dict[int, Worth] = {}

    @torch.no_grad()
    def keep(self, plan: int, begun: Tensor, entries: Tensor, features: Tensor) -> None:
        """Keep what images showed and became along all branches of a plan.

        Args:
            plan: Which one.
            begun: (R, D) after the first evaluation, the same at all plans.
            entries: (R, T, D) at every look.
            features: (R, B, F).
        """
        inside = torch.stack([self.manifold.membership(f) for f in features.unbind(1)], 1)
        new = Looks(entries.cpu(), features.half().cpu(), inside.cpu())
        self.looks[plan] = self.looks[plan].and_more(new)
        self.cascade.usual(plan, self.looks[plan].entries)
        more = len(self.looks[plan].entries) - len(self.begun)
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
            self._worths[budget] = self._worth(budget, crowd)
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
            among.append(float((taken * looks.inside).sum(1).mean()))
            kept.append(float(taken[:, home].mean()))
        share = torch.stack(shares) / torch.stack(shares).sum()
        inside, at_home = (float(share @ torch.tensor(one).double()) for one in (among, kept))
        return Crowd(mixed_moments(parts, share), inside, 1 - at_home)

    @torch.no_grad()
    def _worth(self, budget: int, crowd: Crowd) -> Worth:
        """What results are worth to a crowd."""
        falls = slope(crowd.moments, self.real)
        deviations = []
        for plan in self.dealing.members(budget):
            some = Looks(*(part[:_SOME] for part in self.looks[plan]))
            fall = falls(some.results.flatten(0, 1)).reshape(some.inside.shape)
            deviations.append([_deviation(fall), _deviation(some.inside.double())])
        far, inside = torch.tensor(deviations).mean(0).clamp(min=_LEAST).tolist()
        return Worth(falls, 1 / far, self.realism / inside)

    def climb(self, budget: int, size: int, generator: torch.Generator) -> Tensor:
        """What to climb, for ``size`` looks at the plans that a budget deals, since the last survey."""
        members = self.dealing.members(budget)
        least = min(len(self.looks[plan].entries) for plan in members)
        chosen = torch.randperm(least, generator=generator)[: max(size // len(members), 1)]
        plan = torch.tensor(members).repeat_interleave(len(chosen))
        looks = deal(self.looks, plan, chosen.repeat(len(members)))
        with torch.no_grad():
            gain = self._worths[budget].of_results(looks)
        brought = self.cascade.climb(plan, looks.entries, gain - gain.mean())
        worth = torch.zeros(len(chosen), len(self.looks), dtype=brought.dtype)
        worth[:, members] = brought.reshape(len(members), len(chosen)).T
        return self.dealing.climb(budget, self.begun[chosen], worth)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, but for what learns."""
        kept = {"begun": self.begun}
        for row, looks in enumerate(self.looks):
            kept |= {f"looks.{row}.{name}": part for name, part in looks._asdict().items()}
        return kept

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.begun = tensors["begun"]
        self.looks = [Looks(**under(tensors, f"looks.{row}.")) for row in range(len(self.looks))]


def _deviation(score: Tensor) -> float:
    """By how much a score (M, B) depends on the branch."""
    return float((score - score.mean(1, keepdim=True)).std())
