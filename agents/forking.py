"""Learning where to evaluate and, after one look, how to go on: all branches are tried, none is drawn.

Plans are learned first: a batch of images is drawn along the branches of a :class:`agents.tree.Tree` that
differ in cost, and gradients of Φ through the sampler move them (as :mod:`agents.pathwise` does, but samples
share them). Or they are given, by files of searched schedules or mixtures (``plans``), whose members keep
their chances. Then the gate is learned: what images showed at the fork and what all branches made of them are
kept, and it descends the Fréchet distance of all that is drawn (:mod:`agents.population`), while samples
spend what their plan spends on average. Its gradient is a policy gradient over all actions (Sutton et al.
2000; Ciosek and Whiteson 2018): no coin adds noise, and the price of an evaluation is solved for in every
step. Beside it counts, with weight ``realism``, the share that lies on the manifold of real images
(:mod:`agents.manifold`): a distance of distributions alone trades nearness for variety, and precision falls.
A gate that finds nothing leaves everyone to the plan. Φ itself would mislead it where it holds nearness to
the teacher: each evaluation brings an image nearer to its teacher, and few bring what is drawn nearer to
what is real.

An image costs its plan's network calls and those of the other branches; while times are learned, four times
as many. Images × (N − 1) are counted as decisions, as for all learners.

Shapes: R rows of the batch; P plans; B branches; D observation entries; F features of the reward; M looks
kept of one plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.actor import under
from agents.drawing import Drawn, draw
from agents.endings import read_endings
from agents.fork import Fork
from agents.gate import Gate
from agents.looks import Looks, deal, no_looks
from agents.manifold import Manifold
from agents.planning import Tariff
from agents.plans import Plans
from agents.policy import LearnedPolicy, PolicyInfo
from agents.population import Population
from agents.through import ThroughSampler
from agents.tree import Tree
from envs.errors import UserError
from envs.observation import Projection
from envs.rewards.frechet import Moments, Slope, distance, moments, slope

_SLACK = 0.01  # of a plan's evaluations, kept back: on fresh noise it spends no more than it is told


class ForkLearner(ThroughSampler):
    """Learns plans of ``min_nfe`` to ``max_nfe`` evaluations that fork when ``left`` of them are to come.

    The batch's process must be differentiable. ``plans`` names files of schedules or mixtures, one for each
    budget, that take the place of learned ones: their branches have the same cost.
    """

    algo = "fork"
    output = "time"
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "times_rate": 0.05,
        "final_rate": 0.1,
        "times_share": 0.4,
        "batch_size": 64,
        "min_nfe": 4,
        "max_nfe": 15,
        "plans": (),
        "left": 2,
        "width": 1,
        "stretches": (-0.5, 0.5),
        "side_weight": 0.4,
        "updates": 32,
        "update_size": 512,
        "realism": 1.0,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "recompute": True,
        "sees": "sample",
    }

    def _check(self) -> None:
        h, core = self.hyperparameters, self.core
        least, most, left, width = (int(h[name]) for name in ("min_nfe", "max_nfe", "left", "width"))
        if not 1 <= least <= most:
            raise UserError(f"need 1 <= min_nfe <= max_nfe, not {least} and {most}")
        if not (1 <= width <= left < least or h["plans"]):
            raise UserError(
                f"need 1 <= width <= left < min_nfe ({least}), not {width} and {left}: a branch cannot spend "
                "less than was spent at the fork"
            )
        if core.moving is not None:
            raise UserError("'fork' spends what it is told: give it min_nfe and max_nfe, no env.target_nfe")
        if core.prices[0] == core.prices[1]:
            raise UserError("prices tell 'fork' how many evaluations to spend: leave env.price out")
        if int(h["update_size"]) < 2:
            raise UserError(f"update_size must be 2 at least, not {h['update_size']}")
        if 0 in h["stretches"]:
            raise UserError("a stretch of 0 is the plan itself: leave it out of stretches")
        if not len(core.quality.real):
            raise UserError(
                "'fork' compares what it draws with real images: give it a reward that looks at them"
            )
        if not 0 <= float(h["times_share"]) <= 1:
            raise UserError(f"times_share must lie between 0 and 1, not {h['times_share']}")
        super()._check()

    def _make_networks(self, inputs: int) -> dict[str, nn.Module]:
        """Times that are even, or given, and a gate that leaves everyone to the plan."""
        self.plans = self._make_plans()
        counts = self.plans.counts
        self.tariff = Tariff(counts[0], counts[-1], self.core.prices)
        self.gate = Gate(len(self.plans.sizes), inputs, self.plans.more)
        nothing = no_looks(inputs, len(self.plans.more), self.core.quality.real.shape[1])
        self.looks = [nothing] * len(self.plans.sizes)
        self.manifold = Manifold(self.core.quality.real)
        self.real = moments(self.core.quality.real.cpu())
        self._next_plans: list[int] = []
        self._order = torch.randperm(self.core.num_images, generator=self.generator)
        return {"gate": self.gate, "tree": self.plans}

    def _make_plans(self) -> Plans:
        h = self.hyperparameters
        left, stretches = int(h["left"]), [float(s) for s in h["stretches"]]
        if not h["plans"]:
            return Tree(int(h["min_nfe"]), int(h["max_nfe"]), left, int(h["width"]), stretches)
        grid, process = self.core.walk.grid, self.core.walk.process

        def lam_of(times: Tensor) -> Tensor:
            lam = process.lam(times.to(grid.times))
            return ((lam - grid.lam[0]) / (grid.lam[-1] - grid.lam[0])).clamp(0, 1).cpu()

        return read_endings(h["plans"], float(grid.times[0]), lam_of, left, stretches)

    @property
    def actor_network(self) -> nn.Sequential:
        """From what a sample shows at the fork to what each branch is worth to it."""
        return self.gate.actor

    def _rates(self) -> list[tuple[list[nn.Parameter], float]]:
        h = self.hyperparameters
        return [
            (list(self.gate.parameters()), float(h["learning_rate"])),
            (list(self.plans.parameters()), float(h["times_rate"])),
        ]

    def _round(self, left: float) -> dict[str, float]:
        """One episode of every row: for the times first, then for the gate."""
        share, gone = float(self.hyperparameters["times_share"]), 1 - left
        if gone < share and isinstance(self.plans, Tree):
            # The times' rate falls over their own part of the run.
            rate, final = float(self.hyperparameters["times_rate"]), float(self.hyperparameters["final_rate"])
            self.optimizer.param_groups[1]["lr"] = rate * (1 - (1 - final) * gone / share)
            told = self._learn_times(self.plans)
        else:
            told = self._learn_gate()
        self.num_decisions += len(self.core.rows) * (len(self.core.walk.grid) - 1)
        return told

    def _learn_times(self, tree: Tree) -> dict[str, float]:
        """A step of the optimiser for every ``batch_size`` rows."""
        core, h = self.core, self.hyperparameters
        sides = 2 * tree.width
        weights = torch.full((sides + 1,), float(h["side_weight"]) / sides, dtype=torch.float64)
        weights[tree.home] = 1 - float(h["side_weight"])
        told = []
        for rows in core.rows.split(int(h["batch_size"])):
            plan = self._next_plan()
            images = torch.randint(0, core.num_images, (len(rows),), generator=self.generator).to(rows.device)
            core.quality.begin(rows, images, self._prices(images, plan))
            drawn = self._draw(images, plan, stretched=False)
            values = torch.stack([core.quality.score(rows, x0).double() for x0 in drawn.results], 1)
            quality = values.mean(0) @ weights.to(values.device)
            self._need_slope(quality)
            norm = self._descend(-quality, list(tree.parameters()))
            taken = torch.multinomial(weights, len(rows), replacement=True, generator=self.generator)
            self._end(rows, drawn, taken)
            told.append([float(quality.detach()), norm])
        quality_mean, norm_mean = torch.tensor(told).mean(0).tolist()
        return {"rollout/ep_quality_mean": quality_mean, "train/gradient_norm": norm_mean}

    def _learn_gate(self) -> dict[str, float]:
        """All branches of every row, for one plan; then steps on all looks so far."""
        self._look(self._next_plan())
        looked = torch.tensor([len(looks.entries) > 0 for looks in self.looks])
        known = [c for c, chances in enumerate(self.plans.weights) if bool(looked[chances > 0].all())]
        if not known:
            return {}
        # Chances change little within a round: one slope of the distance serves all its steps.
        drawn = {budget: self._population(budget) for budget in known}
        slopes = {budget: slope(found, self.real) for budget, found in drawn.items()}
        left_plan = []
        for _ in range(int(self.hyperparameters["updates"])):
            budget = known[int(torch.randint(len(known), (1,), generator=self.generator))]
            left_plan.append(self._update(budget, slopes[budget]))
        far = sum(distance(found, self.real) for found in drawn.values()) / len(known)
        return {"gate/distance": far, "gate/leaves_plan": sum(left_plan) / max(len(left_plan), 1)}

    @torch.no_grad()
    def _look(self, plan: int) -> None:
        """Draw every row along all branches of a plan; keep what it showed and became."""
        core = self.core
        # Every noise in turn, the same ones at all plans: one that was seen already teaches nothing new.
        turn = (torch.arange(len(core.rows)) + len(self.looks[plan].entries)) % core.num_images
        drawn = self._draw(self._order[turn].to(core.rows.device), plan, stretched=True)
        features = torch.stack([core.quality.features(x0) for x0 in drawn.results], 1)
        inside = torch.stack([self.manifold.membership(f) for f in features.unbind(1)], 1)
        new = Looks(drawn.entries, features.half().cpu(), inside.cpu())
        self.looks[plan] = self.looks[plan].and_more(new)
        self.gate.usual(plan, self.looks[plan].entries)

    @torch.no_grad()
    def _population(self, budget: int) -> Moments:
        """Moments of all that was looked at, drawn as the gate has it."""
        population = Population()
        for plan, share in enumerate(self.plans.weights[budget].tolist()):
            if share > 0:
                looks = self.looks[plan]
                worth = self.gate(torch.full((len(looks.entries),), plan), looks.entries)
                taken = self.gate.chances(worth, self.gate.price(worth, chance=True))
                population.add(looks.results, taken, share)
        return population.moments()

    def _update(self, budget: int, falls: Slope) -> float:
        """One step down the slope of the distance, at equal cost; the share that leaves the plans.

        ``budget``: which one; its plans are dealt to as many noises as a step looks at.
        """
        chances = self.plans.weights[budget]
        least = min(len(self.looks[plan].entries) for plan in chances.nonzero().flatten().tolist())
        size = min(int(self.hyperparameters["update_size"]), least)
        chosen = torch.randperm(least, generator=self.generator)[:size]
        plan = torch.multinomial(chances, size, replacement=True, generator=self.generator)
        looks = deal(self.looks, plan, chosen)
        worth = self.gate(plan, looks.entries)
        with torch.no_grad():
            taken = self.gate.chances(worth, self.gate.price(worth, chance=True))
            gain = -_standard(falls(looks.results.flatten(0, 1)).reshape(taken.shape))
            gain = gain + float(self.hyperparameters["realism"]) * _standard(looks.inside.double())
        self._descend(-self.gate.climb(worth, gain), list(self.gate.parameters()))
        shrink = 1 - self.optimizer.param_groups[0]["lr"] * float(self.hyperparameters["weight_decay"])
        with torch.no_grad():  # decoupled weight decay (Loshchilov and Hutter 2019)
            for parameter in self.gate.parameters():
                parameter.mul_(shrink)
        return float(1 - taken[:, self.plans.home].mean())

    def _next_plan(self) -> int:
        """Every plan in turn, in an order that changes."""
        if not self._next_plans:
            self._next_plans = torch.randperm(len(self.plans.sizes), generator=self.generator).tolist()
        return self._next_plans.pop()

    def _times(self, plan: int, *, stretched: bool = True) -> list[Tensor]:
        """Times of every branch's evaluations; differentiable."""
        grid = self.core.walk.grid
        span = grid.lam[-1] - grid.lam[0]
        lams = (lam.to(grid.lam) for lam in self.plans.lams(plan, stretched=stretched))
        return [
            torch.cat((grid.times[:1], self.process.time_of(grid.lam[0] + span * lam[1:]))) for lam in lams
        ]

    def _prices(self, images: Tensor, plan: int) -> Tensor:
        """What pays for the plan's evaluations, (R,)."""
        return torch.full_like(images, self.tariff.price(self.plans.sizes[plan]), dtype=torch.float64)

    def _draw(self, images: Tensor, plan: int, *, stretched: bool) -> Drawn:
        """Draw ``images`` (R,) along every branch of a plan, or those of other cost alone."""
        ways = self._times(plan, stretched=stretched)
        return draw(
            self.process,
            self.core.walk.grid,
            images,
            ways,
            self.plans.fork(plan),
            self._prices(images, plan),
            recompute=bool(self.hyperparameters["recompute"]),
        )

    def _end(self, rows: Tensor, drawn: Drawn, taken: Tensor) -> None:
        """The episodes end with the branches that were ``taken`` (R,)."""
        results = torch.stack([x0.detach() for x0 in drawn.results], 1)
        taken = taken.to(results.device)
        self.core.quality.end(rows, results[torch.arange(len(rows), device=results.device), taken])

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """Refuse: plans are learned together with their grid."""
        raise UserError("'fork' learns its own times from the beginning: leave start_from out")

    def policy(self, info: PolicyInfo, projection: Projection | None = None) -> LearnedPolicy:
        """What has been learned so far."""
        grid, plans = self.core.walk.grid, self.plans
        lam, table = plans.on_one_grid()
        inner = self.process.time_of((grid.lam[0] + (grid.lam[-1] - grid.lam[0]) * lam.to(grid.lam))[1:-1])
        times = [float(grid.times[0]), *inner.tolist(), float(grid.times[-1])]
        gate = deepcopy(self.gate)
        for plan, looks in enumerate(self.looks):
            if len(looks.entries):
                gate.settle(plan, looks.entries, _SLACK * plans.sizes[plan])
        info = replace(info, times=times, evaluations=[plans.counts[0], plans.counts[-1]])
        return Fork(info, gate, table, plans.counts, plans.weights, lam, plans.left, projection)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, looks included."""
        kept = super().state() | {"next": torch.tensor(self._next_plans, dtype=torch.int64)}
        kept["order"] = self._order
        for row, looks in enumerate(self.looks):
            kept |= {f"looks.{row}.{name}": part for name, part in looks._asdict().items()}
        return kept

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        super().load_state(tensors)
        self._next_plans, self._order = tensors["next"].tolist(), tensors["order"]
        self.looks = [Looks(**under(tensors, f"looks.{row}.")) for row in range(len(self.looks))]


def _standard(score: Tensor) -> Tensor:
    """What of a score (R, B) depends on the branch, in units of its deviation."""
    off = score - score.mean(1, keepdim=True)
    return off / off.std().clamp(min=1e-9)
