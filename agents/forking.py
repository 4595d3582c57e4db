"""Learning where to evaluate and, after one look, how often: all ways to go on are tried, none is drawn.

First times are learned: a batch of images is drawn along every branch of a :class:`agents.tree.Tree`, and
gradients through the sampler move them (as :mod:`agents.pathwise` does, but samples share them). Then the
gate is: what all branches were worth to an image, Φ, and what it showed at the fork are kept, and the gate
climbs the mean of

    Σ_b π_b(look)·Φ_b   while Σ_b π_b(look)·K_b = K on average

whose gradient is a policy gradient over all actions (Sutton et al. 2000; Ciosek and Whiteson 2018): no coin
adds noise, and the price of an evaluation is solved for in every step. A gate that finds nothing leaves
everyone to the plan of K, a fixed schedule. ``gate_reward`` names the terms of Φ that count here (none: all):
nearness to the teacher, which keeps the gradients of times quiet, misleads the gate, since each evaluation
brings an image nearer to its teacher, and few bring what is drawn nearer to what is real.

An image costs K network calls and those of the other branches; while times are learned, four times as many.
Images × (N − 1) are counted as decisions, as for all learners.

Shapes: R rows; B branches; D observation entries; M looks kept of one number of evaluations.
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
from agents.through import ThroughSampler
from agents.tree import Tree
from envs.errors import UserError
from envs.observation import Projection, observe_from
from envs.protocols import TimedTrajectories


class Drawn(NamedTuple):
    """What the branches brought: what was shown at the fork (R, D), and x0 (R, C, H, W) of each."""

    entries: Tensor
    results: list[Tensor]


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
        "side_weight": 0.4,
        "gate_reward": (),
        "updates": 16,
        "update_size": 512,
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
        if int(h["update_size"]) < 1:
            raise UserError(f"update_size must be positive, not {h['update_size']}")
        if not 0 <= float(h["times_share"]) <= 1:
            raise UserError(f"times_share must lie between 0 and 1, not {h['times_share']}")
        super()._check()

    def _make_networks(self, inputs: int) -> dict[str, nn.Module]:
        """Times that are even, and a gate that leaves everyone to the plan."""
        h = self.hyperparameters
        least, most, left, width = (int(h[name]) for name in ("min_nfe", "max_nfe", "left", "width"))
        self.tariff = Tariff(least, most, self.core.prices, MARGIN)
        self.tree = Tree(least, most, left, width)
        self.gate = Gate(most - least + 1, inputs, width)
        terms = list(h["gate_reward"])
        self.worth = self.core.quality.part(terms) if terms else self.core.quality
        nothing = torch.zeros(0, inputs), torch.zeros(0, 2 * width + 1, dtype=torch.float64)
        self.looks: list[tuple[Tensor, Tensor]] = [nothing] * (most - least + 1)
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
            drawn = self._draw(rows, images, count)
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
        core = self.core
        count = self._next_count()
        row = count - self.tree.least
        kept_entries, kept_values = self.looks[row]
        # Every noise in turn: an image that was seen already teaches nothing new.
        images = (torch.arange(len(core.rows)) + len(kept_entries)) % core.num_images
        with torch.no_grad():
            drawn = self._draw(core.rows, images.to(core.rows.device), count)
            values = torch.stack([self.worth.score(core.rows, x0).double() for x0 in drawn.results], 1).cpu()
            entries = torch.cat((kept_entries, drawn.entries))
            self.looks[row] = entries, torch.cat((kept_values, values))
            self.gate.usual(row, entries)
            worth = self.gate(torch.full((len(images),), row), drawn.entries)
            chance = self.gate.chances(worth, self.gate.price(worth, 0.0, chance=True))
            taken = torch.multinomial(chance, 1, generator=self.generator).squeeze(1)
            self._end(core.rows, drawn, taken)
        gains = [self._update() for _ in range(int(self.hyperparameters["updates"]))]
        return {
            "rollout/ep_quality_mean": float(values.gather(1, taken.unsqueeze(1)).mean()),
            "rollout/ep_nfe_mean": count + float((taken - self.tree.width).double().mean()),
            "gate/leaves_plan": float((taken != self.tree.width).double().mean()),
            "gate/gain": sum(gains) / max(len(gains), 1),
        }

    def _update(self) -> float:
        """One step up the mean of Σ π·Φ at equal cost; by how much it exceeds the plan's, in deviations."""
        h = self.hyperparameters
        known = [row for row, (entries, _) in enumerate(self.looks) if len(entries)]
        row = known[int(torch.randint(len(known), (1,), generator=self.generator))]
        entries, values = self.looks[row]
        size = min(int(h["update_size"]), len(entries))
        chosen = torch.randint(len(entries), (size,), generator=self.generator)
        gain = values[chosen] - values[chosen, self.tree.width].unsqueeze(1)
        gain = gain / gain.std().clamp(min=1e-9)
        worth = self.gate(torch.full((size,), row), entries[chosen])
        found = self.gate.climb(worth, gain)
        self._descend(-found, list(self.gate.parameters()))
        shrink = 1 - self.optimizer.param_groups[0]["lr"] * float(h["weight_decay"])
        with torch.no_grad():  # decoupled weight decay (Loshchilov and Hutter 2019)
            for parameter in self.gate.parameters():
                parameter.mul_(shrink)
        return float(found.detach())

    def _next_count(self) -> int:
        """Every number of evaluations in turn, in an order that changes."""
        if not self._counts:
            size = self.tree.most - self.tree.least + 1
            self._counts = torch.randperm(size, generator=self.generator).tolist()
        return self.tree.least + self._counts.pop()

    def _times(self, count: int) -> list[Tensor]:
        """Times of every branch's evaluations; differentiable."""
        grid = self.core.walk.grid
        span = grid.lam[-1] - grid.lam[0]
        lams = (lam.to(grid.lam) for lam in self.tree(count))
        return [
            torch.cat((grid.times[:1], self.process.time_of(grid.lam[0] + span * lam[1:]))) for lam in lams
        ]

    def _draw(self, rows: Tensor, images: Tensor, count: int) -> Drawn:
        """Draw ``images`` along every branch of ``count`` evaluations; their episodes begin."""
        core, grid = self.core, self.core.walk.grid
        prices = torch.full_like(images, self.tariff.price(count), dtype=torch.float64)
        core.quality.begin(rows, images, prices)
        plans, fork = self._times(count), self.tree.fork(count)
        first = plans[0][:1].expand(len(images))
        trunk = self.process.timed(images, first, recompute=bool(self.hyperparameters["recompute"]))
        _follow(trunk, plans[0][1:fork])
        with torch.no_grad():
            # At any point: what a look shows stays the same up to the next one.
            index = torch.full_like(images, len(grid) - 1)
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
        for row, (entries, _) in enumerate(self.looks):
            if len(entries):
                gate.settle(row, entries)
        info = replace(info, times=times, evaluations=[tree.least, tree.most])
        return Fork(info, gate, plans, lam, tree.left, projection)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, looks included."""
        kept = super().state() | {"counts": torch.tensor(self._counts, dtype=torch.int64)}
        for row, (entries, values) in enumerate(self.looks):
            kept |= {f"looks.{row}.entries": entries, f"looks.{row}.values": values}
        return kept

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        super().load_state(tensors)
        self._counts = tensors["counts"].tolist()
        looks = under(tensors, "looks.")
        self.looks = [(looks[f"{row}.entries"], looks[f"{row}.values"]) for row in range(len(self.looks))]


def _follow(trajectory: TimedTrajectories, times: Tensor) -> None:
    """Evaluate all rows at ``times`` (K,)."""
    for t in times:
        trajectory.advance(t.expand(trajectory.nfe.shape))


__all__ = ["ForkLearner"]
