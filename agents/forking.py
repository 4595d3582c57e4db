"""Learning where to evaluate and, after a look, how to go on: all branches are tried, none is drawn.

Plans are learned first: a batch of images is drawn along the branches of a :class:`agents.tree.Tree` that
differ in cost, and gradients of Φ through the sampler move them (as :mod:`agents.pathwise` does, but samples
share them). Or they are given, by files of searched schedules or mixtures (``plans``). Then decisions are
learned (:mod:`agents.deciding`): what images showed at every look and what all branches made of them are
kept, and the gates learn from all of it, while samples spend what their plan spends on average. Gates that
find nothing leave everyone to the plan.

An image costs its plan's network calls and those of the other branches; while times are learned, four times
as many. Images × (N − 1) are counted as decisions, as for all learners.

Shapes: R rows of the batch; P plans; B branches; T looks at an image; D observation entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.actor import blind, see_only, under
from agents.average import Average
from agents.branches import Branches
from agents.cascade import Cascade
from agents.dealing import Dealing
from agents.deciding import Deciding
from agents.drawing import Drawn
from agents.endings import Endings, grid_for, read_endings
from agents.fork import Fork
from agents.forking_settings import margins_of, require_orders, require_settings
from agents.planning import Tariff
from agents.plans import Plans
from agents.policy import LearnedPolicy, PolicyInfo
from agents.through import ThroughSampler
from agents.tree import Tree
from envs.errors import UserError
from envs.observation import Grid, Projection

_SLACK = 0.01  # of a plan's evaluations, kept back: on fresh noise it spends no more than it is told


class ForkLearner(ThroughSampler):
    """Learns plans of ``min_nfe`` to ``max_nfe`` evaluations that fork when ``left`` of them are to come.

    The batch's process must be differentiable. ``plans`` names files of schedules or mixtures, one or more
    for each budget, that take the place of learned ones: all branches of one have the same cost, and
    ``looks`` looks choose among them: ``stretches`` of the gap that follows, and ``orders`` of the jump over
    it, where they are not the solver's own; ``keep_end`` leaves the last evaluation where it is. Which plan a
    sample gets is left to chance or, with ``first_look``, to what its first evaluation shows as well.
    Of the decisions that are not for times, ``looks_share`` draw what is learned from, and the rest learn
    from all of it; 1 learns while it draws. Plans have ``own_networks``, one for each look, or share them.
    ``rival`` and ``margin`` are those of :class:`agents.deciding.Deciding`, one margin for all budgets or
    ``{K: margin}``, 0 at the others. A policy's gates are the average of those of the last ``averaged``
    surveys' steps.
    """

    algo = "fork"
    output = "time"
    of_many_kinds = ("margin", "orders")
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "times_rate": 0.05,
        "final_rate": 0.1,
        "times_share": 0.4,
        "looks_share": 0.5,
        "batch_size": 64,
        "min_nfe": 4,
        "max_nfe": 15,
        "plans": (),
        "left": 2,
        "width": 1,
        "looks": 2,
        "first_look": False,
        "stretches": (-0.5, 0.5),
        "orders": (),
        "keep_end": False,
        "side_weight": 0.4,
        "updates": 8,
        "update_size": 1024,
        "averaged": 6,
        "own_networks": True,
        "rival": "schedule",
        "margin": 0.0,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "recompute": True,
        "sees": "sample",
    }

    @classmethod
    def require(cls, hyperparameters: Mapping[str, Any]) -> None:
        super().require(hyperparameters)
        require_settings({**cls.defaults, **hyperparameters})

    def _check(self) -> None:
        h, core = self.hyperparameters, self.core
        if core.moving is not None:
            raise UserError("'fork' spends what it is told: give it min_nfe and max_nfe, no env.target_nfe")
        if core.prices[0] == core.prices[1]:
            raise UserError("prices tell 'fork' how many evaluations to spend: leave env.price out")
        if not len(core.quality.real):
            raise UserError(
                "'fork' compares what it draws with real images: give it a reward that looks at them"
            )
        super()._check()
        require_orders(h, self.process.history)

    def _make_networks(self, inputs: int) -> dict[str, nn.Module]:
        """Times that are even, or given, and gates that leave everyone to the plan."""
        h = self.hyperparameters
        grid, self.plans = self._make_plans()
        plans = self.plans
        self.tariff = Tariff(plans.counts[0], plans.counts[-1], self.core.prices)
        self.branches = Branches(plans, grid, self.process, self.tariff, bool(h["recompute"]))
        self.dealing = Dealing(plans.weights, plans.sizes, plans.counts, inputs)
        networks = len(plans.sizes) if h["own_networks"] else 1
        self.cascade = Cascade(len(plans.sizes), inputs, plans.first, plans.looks, networks)
        quality, rival = self.core.quality, str(h["rival"])
        margins = margins_of(h["margin"], plans.counts)
        self.deciding = Deciding(
            plans, self.dealing, self.cascade, quality.real, quality.views, rival, margins
        )
        for network in (self.dealing.actor, *self.cascade.layered):
            if network is not self.actor_network:  # which is blinded where it is made known
                blind(network, str(h["sees"]), inputs)
        if not h["first_look"]:
            see_only(self.dealing.actor, range(inputs, inputs + len(plans.counts)))
        self.average = Average({"dealing": self.dealing, "cascade": self.cascade}, self._horizon())
        self._next_plans: list[int] = []
        self._draws = True  # images to learn from; or it was given another run's looks
        self._order = torch.randperm(self.core.num_images, generator=self.generator)
        return {"dealing": self.dealing, "cascade": self.cascade, "tree": plans}

    def _horizon(self) -> int:
        """Over how many steps gates are averaged: surveys change prices, and gates follow them to and fro."""
        return int(self.hyperparameters["averaged"]) * max(int(self.hyperparameters["updates"]), 1)

    def _make_plans(self) -> tuple[Grid, Plans]:
        """Plans, and the grid from whose beginning to whose end they reach."""
        h, grid, process = self.hyperparameters, self.core.walk.grid, self.core.walk.process
        left, stretches = int(h["left"]), [float(s) for s in h["stretches"]]
        if not h["plans"]:
            return grid, Tree(int(h["min_nfe"]), int(h["max_nfe"]), left, int(h["width"]), stretches)
        grid = grid_for(h["plans"], grid, process)
        looks, keep_end = int(h["looks"]), bool(h["keep_end"])
        return grid, read_endings(h["plans"], grid, process, left, stretches, looks, keep_end, h["orders"])

    @property
    def actor_network(self) -> nn.Sequential:
        """From what a sample shows at the (first plan's) fork to what each option there is worth to it."""
        return self.cascade.first.layered[0]

    def _rates(self) -> list[tuple[list[nn.Parameter], float]]:
        h = self.hyperparameters
        return [
            (self._deciders(), float(h["learning_rate"])),
            (list(self.plans.parameters()), float(h["times_rate"])),
        ]

    def _deciders(self) -> list[nn.Parameter]:
        """What learns to decide."""
        return [*self.dealing.parameters(), *self.cascade.parameters()]

    def _round(self, left: float) -> dict[str, float]:
        """One episode of every row: for the times first, then to look, then for the gates."""
        share = float(self.hyperparameters["times_share"]) if isinstance(self.plans, Tree) else 0.0
        gone = round(1 - left, 9)
        if gone < share and isinstance(self.plans, Tree):
            # The times' rate falls over their own part of the run.
            self.optimizer.param_groups[1]["lr"] = self._decays[1](1 - gone / share)
            told = self._learn_times(self.plans)
        else:
            told = self._look_or_learn((gone - share) / (1 - share))
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
            core.quality.begin(rows, images, self.branches.prices(images, plan))
            drawn = self.branches.draw(images, plan, stretched=False)
            values = torch.stack([core.quality.score(rows, x0).double() for x0 in drawn.results], 1)
            quality = values.mean(0) @ weights.to(values.device)
            self._need_slope(quality)
            norm = self._descend(-quality, list(tree.parameters()))
            taken = torch.multinomial(weights, len(rows), replacement=True, generator=self.generator)
            self._end(rows, drawn, taken)
            told.append([float(quality.detach()), norm])
        quality_mean, norm_mean = torch.tensor(told).mean(0).tolist()
        return {"rollout/ep_quality_mean": quality_mean, "train/gradient_norm": norm_mean}

    def _look_or_learn(self, gone: float) -> dict[str, float]:
        """All branches of every row for one plan, until a share of these rounds is ``gone``; then learn."""
        share = float(self.hyperparameters["looks_share"]) if self._draws else 0.0
        looks = gone < share
        if looks:
            self._look(self._next_plan())
        if looks and share < 1:
            return {}
        # The gates' rate falls over their own part of the run.
        learned = gone if share == 1 else (gone - share) / (1 - share)
        self.optimizer.param_groups[0]["lr"] = self._decays[0](1 - learned)
        return self._learn_to_decide()

    def _learn_to_decide(self) -> dict[str, float]:
        """Steps at all budgets, on all looks so far."""
        known = self.deciding.known()
        if not known:
            return {}
        told = {name: value for budget in known for name, value in self.deciding.survey(budget).items()}
        parameters = self._deciders()
        for _ in range(int(self.hyperparameters["updates"])):
            self._update(known, parameters)
        return told

    @torch.no_grad()
    def _look(self, plan: int) -> None:
        """Draw every row along all branches of a plan; keep what it showed and became."""
        core = self.core
        # Every noise in turn, the same ones at all plans: one that was seen already teaches nothing new.
        seen = len(self.deciding.looks[plan].entries)
        turn = (torch.arange(len(core.rows)) + seen) % core.num_images
        drawn = self.branches.draw(self._order[turn].to(core.rows.device), plan)
        features = torch.stack([core.quality.features(x0) for x0 in drawn.results], 1)
        self.deciding.keep(plan, drawn.begun, drawn.entries, features)

    def _update(self, budgets: list[int], parameters: list[nn.Parameter]) -> None:
        """One step of the gates, at all budgets together."""
        size = max(int(self.hyperparameters["update_size"]) // len(budgets), 1)
        climbs = [self.deciding.climb(budget, size, self.generator).mean() for budget in budgets]
        self._descend(-torch.stack(climbs).mean(), parameters)
        shrink = 1 - self.optimizer.param_groups[0]["lr"] * float(self.hyperparameters["weight_decay"])
        with torch.no_grad():  # decoupled weight decay (Loshchilov and Hutter 2019)
            for parameter in parameters:
                parameter.mul_(shrink)
        self.average.update()

    def _next_plan(self) -> int:
        """Every plan in turn, in an order that changes."""
        if not self._next_plans:
            self._next_plans = torch.randperm(len(self.plans.sizes), generator=self.generator).tolist()
        return self._next_plans.pop()

    def _end(self, rows: Tensor, drawn: Drawn, taken: Tensor) -> None:
        """The episodes end with the branches that were ``taken`` (R,)."""
        results = torch.stack([x0.detach() for x0 in drawn.results], 1)
        taken = taken.to(results.device)
        self.core.quality.end(rows, results[torch.arange(len(rows), device=results.device), taken])

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """Refuse: plans are learned together with their grid, and gates with what they are asked for."""
        raise UserError("'fork' starts from nobody's weights: from a run's looks, by look_again")

    def look_again(self, tensors: dict[str, Tensor]) -> None:
        """Learn from the looks of another run, whose :meth:`state` this is: the network is called no more.

        Raises:
            UserError: It is no state of this algorithm, or one of other plans.
        """
        if not isinstance(self.plans, Endings):
            raise UserError("'fork' starts from the looks of a run whose plans were given: give it plans")
        self.plans.require(under(tensors, "tree."))
        try:
            self.deciding.look_again(tensors, self.generator)
        except (KeyError, ValueError):
            raise UserError("'fork' starts from the looks of a run of 'fork' that chose as often") from None
        self._draws = False

    def policy(self, info: PolicyInfo, projection: Projection | None = None) -> LearnedPolicy:
        """What has been learned so far."""
        plans = self.plans
        times, lam, table = self.branches.on_one_grid()
        dealing, cascade = deepcopy(self.dealing), deepcopy(self.cascade)
        self.average.give({"dealing": dealing, "cascade": cascade})
        for plan, looks in enumerate(self.deciding.looks):
            if len(looks.entries):
                cascade.settle(plan, looks.entries, _SLACK * plans.sizes[plan])
        for budget in self.deciding.known():
            dealing.settle(budget, self.deciding.begun)
        info = replace(info, times=times, evaluations=[plans.counts[0], plans.counts[-1]])
        orders = plans.orders_on(table, len(lam), self.process.history)
        return Fork(info, dealing, cascade, table, lam, plans.left, projection, orders)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, its own looks included; another run's are not copied."""
        kept = super().state() | {"next": torch.tensor(self._next_plans, dtype=torch.int64)}
        kept |= {"order": self._order, "looking": torch.tensor(self._draws)}
        return kept | self.average.state() | self.deciding.state(looks=self._draws)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`; :class:`UserError` where it is of other plans.

        A run that learns from another's looks must have taken them over, by :meth:`look_again`.
        """
        if isinstance(self.plans, Endings):
            self.plans.require(under(tensors, "tree."))
        super().load_state(tensors)
        self._next_plans, self._order = tensors["next"].tolist(), tensors["order"]
        self._draws = bool(tensors.get("looking", True))
        self.average.load_state(tensors)
        self.deciding.load_state(tensors, looks=self._draws)
