"""Learning where to evaluate and, after one look, how to go on: all branches are tried, none is drawn.

First times are learned: a batch of images is drawn along the branches of a :class:`agents.tree.Tree` that
differ in cost, and gradients of Φ through the sampler move them (as :mod:`agents.pathwise` does, but samples
share them). Then the gate is: what images showed at the fork and what all branches made of them are kept, and
it climbs −E(π), the energy distance of all that is drawn (:mod:`agents.population`), while samples spend K
evaluations on average. Its gradient is a policy gradient over all actions (Sutton et al. 2000; Ciosek and
Whiteson 2018): no coin adds noise, and the price of an evaluation is solved for in every step. A gate that
finds nothing leaves everyone to the plan of K, a fixed schedule. Φ itself would mislead it where it holds
nearness to the teacher: each evaluation brings an image nearer to its teacher, and few bring what is drawn
nearer to what is real.

An image costs K network calls and those of the other branches; while times are learned, four times as many.
Images × (N − 1) are counted as decisions, as for all learners.

Shapes: R rows; B branches; D observation entries; F features of the reward; M looks kept of one number of
evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from agents.actor import under
from agents.fork import MARGIN, Fork
from agents.gate import Gate
from agents.planning import Tariff, shown
from agents.policy import LearnedPolicy, PolicyInfo
from agents.population import Population
from agents.through import ThroughSampler
from agents.tree import Tree
from envs.errors import UserError
from envs.observation import Projection, observe_from
from envs.protocols import TimedTrajectories


class Drawn(NamedTuple):
    """What the branches brought: what was shown at the fork (R, D), and x0 (R, C, H, W) of each."""

    entries: Tensor
    results: list[Tensor]


class Looks(NamedTuple):
    """What is kept of images: what they showed (M, D), their results (M, B, F), half precision, and how far
    these are from real images on average (M, B)."""

    entries: Tensor
    results: Tensor
    to_real: Tensor

    def and_more(self, other: Looks) -> Looks:
        """These and then the others."""
        return Looks(*(torch.cat(both) for both in zip(self, other, strict=True)))


class ForkLearner(ThroughSampler):
    """Learns plans of ``min_nfe`` to ``max_nfe`` evaluations that fork when ``left`` of them are to come.

    The batch's process must be differentiable.
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
        "left": 2,
        "width": 1,
        "stretches": (-0.5, 0.5),
        "side_weight": 0.4,
        "updates": 32,
        "update_size": 256,
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
        if not 1 <= width <= left < least:
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
        """Times that are even, and a gate that leaves everyone to the plan."""
        h = self.hyperparameters
        least, most, left, width = (int(h[name]) for name in ("min_nfe", "max_nfe", "left", "width"))
        self.tariff = Tariff(least, most, self.core.prices, MARGIN)
        self.tree = Tree(least, most, left, width, [float(s) for s in h["stretches"]])
        ways = len(self.tree.more)
        self.gate = Gate(most - least + 1, inputs, self.tree.more)
        results = torch.zeros(0, ways, self.core.quality.real.shape[1], dtype=torch.float16)
        nothing = Looks(torch.zeros(0, inputs), results, torch.zeros(0, ways))
        self.looks = [nothing] * (most - least + 1)
        self._counts: list[int] = []
        return {"gate": self.gate, "tree": self.tree}

    @property
    def actor_network(self) -> nn.Sequential:
        """From what a sample shows at the fork to what each branch is worth to it."""
        return self.gate.actor

    def _rates(self) -> list[tuple[list[nn.Parameter], float]]:
        h = self.hyperparameters
        return [
            (list(self.gate.parameters()), float(h["learning_rate"])),
            (list(self.tree.parameters()), float(h["times_rate"])),
        ]

    def _round(self, left: float) -> dict[str, float]:
        """One episode of every row: for the times first, then for the gate."""
        share, gone = float(self.hyperparameters["times_share"]), 1 - left
        if gone < share:
            # The times' rate falls over their own part of the run.
            rate, final = float(self.hyperparameters["times_rate"]), float(self.hyperparameters["final_rate"])
            self.optimizer.param_groups[1]["lr"] = rate * (1 - (1 - final) * gone / share)
            told = self._learn_times()
        else:
            told = self._learn_gate()
        self.num_decisions += len(self.core.rows) * (len(self.core.walk.grid) - 1)
        return told

    def _learn_times(self) -> dict[str, float]:
        """A step of the optimiser for every ``batch_size`` rows."""
        core, h = self.core, self.hyperparameters
        sides = 2 * self.tree.width
        weights = torch.full((sides + 1,), float(h["side_weight"]) / sides, dtype=torch.float64)
        weights[self.tree.width] = 1 - float(h["side_weight"])
        told = []
        for rows in core.rows.split(int(h["batch_size"])):
            count = self._next_count()
            images = torch.randint(0, core.num_images, (len(rows),), generator=self.generator).to(rows.device)
            core.quality.begin(rows, images, self._prices(images, count))
            drawn = self._draw(images, count, stretched=False)
            values = torch.stack([core.quality.score(rows, x0).double() for x0 in drawn.results], 1)
            quality = values.mean(0) @ weights.to(values.device)
            self._need_slope(quality)
            norm = self._descend(-quality, list(self.tree.parameters()))
            taken = torch.multinomial(weights, len(rows), replacement=True, generator=self.generator)
            self._end(rows, drawn, taken)
            told.append([float(quality.detach()), norm])
        quality_mean, norm_mean = torch.tensor(told).mean(0).tolist()
        return {"rollout/ep_quality_mean": quality_mean, "train/gradient_norm": norm_mean}

    def _learn_gate(self) -> dict[str, float]:
        """All branches of every row, for one number of evaluations; then steps on all looks so far."""
        core, count = self.core, self._next_count()
        row = count - self.tree.least
        # Every noise in turn: an image that was seen already teaches nothing new.
        images = (torch.arange(len(core.rows)) + len(self.looks[row].entries)) % core.num_images
        with torch.no_grad():
            drawn = self._draw(images.to(core.rows.device), count, stretched=True)
            features = torch.stack([core.quality.features(x0) for x0 in drawn.results], 1)
            to_real = torch.stack([torch.cdist(f, core.quality.real).mean(1) for f in features.unbind(1)], 1)
            new = Looks(drawn.entries, features.half().cpu(), to_real.cpu())
            self.looks[row] = self.looks[row].and_more(new)
            self.gate.usual(row, self.looks[row].entries)
        known = [row for row, looks in enumerate(self.looks) if len(looks.entries)]
        told = []
        for _ in range(int(self.hyperparameters["updates"])):
            told.append(self._update(known[int(torch.randint(len(known), (1,), generator=self.generator))]))
        if not told:
            return {}
        gain, left_plan = torch.tensor(told).mean(0).tolist()
        return {"gate/gain": gain, "gate/leaves_plan": left_plan}

    def _update(self, row: int) -> tuple[float, float]:
        """One step down E(π) at equal cost; by how much E is below the plan's, and who leaves the plan."""
        looks = self.looks[row]
        size = min(int(self.hyperparameters["update_size"]), len(looks.entries))
        chosen = torch.randperm(len(looks.entries), generator=self.generator)[:size]
        worth = self.gate(torch.full((size,), row), looks.entries[chosen])
        with torch.no_grad():
            population = Population(looks.results[chosen].float(), looks.to_real[chosen])
            chances = self.gate.chances(worth, self.gate.price(worth, 0.0, chance=True))
            plan = torch.zeros_like(chances)
            plan[:, self.tree.width] = 1
            gain = population.witness(chances)
            gain = gain - gain.mean(1, keepdim=True)
            gain = gain / gain.std().clamp(min=1e-9)
        self._descend(-self.gate.climb(worth, gain), list(self.gate.parameters()))
        shrink = 1 - self.optimizer.param_groups[0]["lr"] * float(self.hyperparameters["weight_decay"])
        with torch.no_grad():  # decoupled weight decay (Loshchilov and Hutter 2019)
            for parameter in self.gate.parameters():
                parameter.mul_(shrink)
        saved = population.energy(plan) - population.energy(chances)
        return saved, float(1 - chances[:, self.tree.width].mean())

    def _next_count(self) -> int:
        """Every number of evaluations in turn, in an order that changes."""
        if not self._counts:
            size = self.tree.most - self.tree.least + 1
            self._counts = torch.randperm(size, generator=self.generator).tolist()
        return self.tree.least + self._counts.pop()

    def _times(self, count: int, *, stretched: bool = True) -> list[Tensor]:
        """Times of every branch's evaluations; differentiable."""
        grid = self.core.walk.grid
        span = grid.lam[-1] - grid.lam[0]
        lams = (lam.to(grid.lam) for lam in self.tree(count, stretched=stretched))
        return [
            torch.cat((grid.times[:1], self.process.time_of(grid.lam[0] + span * lam[1:]))) for lam in lams
        ]

    def _prices(self, images: Tensor, count: int) -> Tensor:
        """What pays for ``count`` evaluations, (R,)."""
        return torch.full_like(images, self.tariff.price(count), dtype=torch.float64)

    def _draw(self, images: Tensor, count: int, *, stretched: bool) -> Drawn:
        """Draw ``images`` (R,) along every branch of ``count`` evaluations, or those of other cost alone."""
        grid = self.core.walk.grid
        plans, fork = self._times(count, stretched=stretched), self.tree.fork(count)
        first = plans[0][:1].expand(len(images))
        trunk = self.process.timed(images, first, recompute=bool(self.hyperparameters["recompute"]))
        _follow(trunk, plans[0][1:fork])
        with torch.no_grad():
            # At any point: what a look shows stays the same up to the next one.
            index = torch.full_like(images, len(grid) - 1)
            prices = self._prices(images, count)
            seen = observe_from(grid, index, trunk.lam_anchor, trunk.nfe, prices, trunk.evidence())
            entries = shown(seen.cpu(), len(grid)).entries
        results = []
        for plan in plans:
            branch = trunk.branch()
            _follow(branch, plan[fork:])
            results.append(branch.x0())
        return Drawn(entries, results)

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
        grid, tree = self.core.walk.grid, self.tree
        lam, plans = tree.on_one_grid()
        inner = self.process.time_of((grid.lam[0] + (grid.lam[-1] - grid.lam[0]) * lam.to(grid.lam))[1:-1])
        times = [float(grid.times[0]), *inner.tolist(), float(grid.times[-1])]
        gate = deepcopy(self.gate)
        for row, looks in enumerate(self.looks):
            if len(looks.entries):
                gate.settle(row, looks.entries)
        info = replace(info, times=times, evaluations=[tree.least, tree.most])
        return Fork(info, gate, plans, lam, tree.left, projection)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, looks included."""
        kept = super().state() | {"counts": torch.tensor(self._counts, dtype=torch.int64)}
        for row, looks in enumerate(self.looks):
            kept |= {f"looks.{row}.{name}": part for name, part in looks._asdict().items()}
        return kept

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        super().load_state(tensors)
        self._counts = tensors["counts"].tolist()
        self.looks = [Looks(**under(tensors, f"looks.{row}.")) for row in range(len(self.looks))]


def _follow(trajectory: TimedTrajectories, times: Tensor) -> None:
    """Evaluate all rows at ``times`` (K,)."""
    for t in times:
        trajectory.advance(t.expand(trajectory.nfe.shape))


__all__ = ["ForkLearner"]
