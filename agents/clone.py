"""Cloning: a policy that does what schedules do that were found by search, or in hindsight.

Policy gradients from scratch first learn *that* to evaluate and then *when*, and settle where no single
change betters the reward. Searched schedules start far beyond that, and cloning costs little: the dearest
ones serve the lowest prices. What the clone cannot know beforehand, an oracle's choice for a sample's own
noise, it learns as far as its observation tells it (Pomerleau 1989; strays: DART, Laskey et al. 2017).

Shapes: R = rows; T = decisions of an episode; D observation entries; E = experts; N = points of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.actor import (
    blind,
    copied,
    layers_of,
    load_optimizer_state,
    make_network,
    optimizer_state,
    sharpen,
    under,
)
from agents.fixed import FixedSchedule
from agents.planned import Mixture, Oracle, read_plan
from agents.policy import LearnedPolicy, PolicyInfo
from agents.start import copy_layers
from envs.errors import UserError
from envs.observation import Projection
from envs.registry import unknown_name
from envs.sb3 import StepDropVecEnv

Expert = FixedSchedule | Mixture | Oracle


def marks(times: Tensor, grid: Tensor) -> Tensor:
    """(N,) bool: the grid points next to ``times``, each at another one, the first always."""
    taken = torch.zeros(len(grid), dtype=torch.bool)
    taken[0] = True
    for t in times[1:]:
        order = (grid - t).abs().argsort()
        taken[next(int(k) for k in order if not taken[k])] = True
    return taken


class Experts:
    """Schedules on a decision grid, the dearest first.

    Args:
        experts: What is cloned.
        grid: (N,) decision times.
    """

    def __init__(self, experts: list[Expert], grid: Tensor) -> None:
        self.experts = sorted(experts, key=_spent, reverse=True)
        grid = grid.double().cpu()
        self.masks = [
            torch.stack([marks(torch.tensor(times, dtype=torch.float64), grid) for times in _schedules(e)])
            for e in self.experts
        ]

    def plan(self, place: Tensor, images: Tensor, coins: Tensor) -> tuple[Tensor, Tensor]:
        """What each row is to evaluate, (R, N), and whether that was meant for it, (R,).

        Args:
            place: (R,) where its price lies in the range of prices, 0 lowest to 1 highest.
            images: (R,) its noise.
            coins: (R,) uniform on [0, 1).
        """
        number = (place * len(self.experts)).long().clamp(0, len(self.experts) - 1)
        plan = torch.zeros(len(place), self.masks[0].shape[1], dtype=torch.bool)
        meant = torch.ones(len(place), dtype=torch.bool)
        for e, (expert, masks) in enumerate(zip(self.experts, self.masks, strict=True)):
            here = number == e
            if isinstance(expert, FixedSchedule):
                plan[here] = masks[0]
            else:
                plan[here] = masks[expert.choice(images[here], coins[here])]
            if isinstance(expert, Oracle):
                meant[here] = images[here] < len(masks)
        return plan, meant


def _schedules(expert: Expert) -> list[list[float]]:
    if isinstance(expert, FixedSchedule):
        assert expert.times is not None
        return [expert.times.tolist()]
    return expert.schedules


def _spent(expert: Expert) -> float:
    """Mean evaluations."""
    if isinstance(expert, Mixture):
        return expert.nfe
    schedules = _schedules(expert)
    return sum(map(len, schedules)) / len(schedules)


class CloneLearner:
    """An :class:`agents.sb3.Learner` that imitates.

    Hyperparameters: ``experts`` are files of schedules, mixtures or oracles; neighbours in price blend into
    each other over a share ``blend`` of their bands; a share ``stray`` of the actions is not the expert's.
    """

    output: ClassVar[str] = "softmax"
    activation: ClassVar[str] = "tanh"
    defaults: ClassVar[Mapping[str, Any]] = {
        "experts": [],
        "learning_rate": 3e-3,
        "final_rate": 0.02,
        "n_epochs": 6,
        "minibatches": 4,
        "stray": 0.02,
        "blend": 0.3,
        "smoothing": 0.01,
        "sees": "sample",
    }

    def __init__(
        self,
        env: StepDropVecEnv,
        *,
        seed: int,
        hyperparameters: Mapping[str, Any],
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        for name in hyperparameters:
            if name not in self.defaults:
                raise unknown_name("hyperparameter", name, self.defaults)
        self.env = env
        self.core = env.core
        self.log = log
        self.hyperparameters = {**self.defaults, **hyperparameters}
        h = self.hyperparameters
        if not h["experts"]:
            raise UserError(
                'cloning needs experts: --hyperparameters "{experts: [FILE, …]}", files that search writes'
            )
        found = [read_plan(Path(str(path))) for path in h["experts"]]
        self.experts = Experts(found, self.core.walk.grid.times)
        self.generator = torch.Generator().manual_seed(seed)
        inputs = self.core.walk.observe(self.core.rows[:0]).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor_network = make_network(inputs, 2, 0.01)
        first = self.actor_network[0]
        assert isinstance(first, nn.Linear)
        sharpen(first.weight)
        blind(self.actor_network, str(h["sees"]))
        self.optimizer = torch.optim.Adam(self.actor_network.parameters(), lr=h["learning_rate"], eps=1e-5)
        self.num_decisions = 0
        self.core.reset(seed)

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """Copy its weights; there is no critic."""
        copy_layers(layers_of(self.actor_network), policy.layers)
        blind(self.actor_network, str(self.hyperparameters["sees"]))

    def learn(self, decisions: int, go_on: Callable[[int], bool]) -> None:
        """Learn until ``decisions`` in all; ``go_on`` hears the count before each round and may end it."""
        h = self.hyperparameters
        while self.num_decisions < decisions and go_on(self.num_decisions):
            done = self.num_decisions / decisions
            rate = h["learning_rate"] * (h["final_rate"] + (1 - h["final_rate"]) * (1 - done))
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = rate
            self.log(self._round() | {"train/learning_rate": rate}, self.num_decisions)

    def _round(self) -> dict[str, float]:
        """One rollout of whole episodes, imitated."""
        h = self.hyperparameters
        observations, actions, meant, metrics = self._rollout()
        size = -(-len(actions) // int(h["minibatches"]))
        losses = []
        for _ in range(int(h["n_epochs"])):
            for part in torch.randperm(len(actions), generator=self.generator).split(size):
                part = part[meant[part]]
                if len(part):
                    losses.append(self._update(observations[part], actions[part]))
        self.num_decisions += len(actions)
        return metrics | {"train/imitation_loss": sum(losses) / max(len(losses), 1)}

    @torch.no_grad()
    def _rollout(self) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        """Observations (T·R, D), the experts' actions, whether they were meant (T·R,), learning curves."""
        core, rows, h = self.core, self.core.rows, self.hyperparameters
        core.seed(rows, torch.randint(0, 2**32, (len(rows),), generator=self.generator).to(rows.device))
        core.begin(rows)
        count = len(rows)
        low, high = core.prices
        prices = core.walk.price[rows].cpu()
        place = (prices / low).log() / math.log(high / low) if high > low else torch.full((count,), 0.5)
        place = place.double()
        blend = (torch.rand(count, generator=self.generator) - 0.5) * h["blend"]
        place = (place + blend / len(self.experts.experts)).clamp(0, 1)
        coins = torch.rand(count, generator=self.generator, dtype=torch.float64)
        plan, meant = self.experts.plan(place, core.images[rows].cpu(), coins)
        seen, wanted, total = [], [], torch.zeros(count)
        for k in range(1, len(core.walk.grid)):
            seen.append(core.walk.observe(rows).cpu())
            wanted.append(plan[:, k])
            stray = torch.rand(count, generator=self.generator) < h["stray"]
            action = torch.where(stray, ~plan[:, k], plan[:, k]).long().to(rows.device)
            total += core.step(rows, action).reward.float().cpu()
        metrics = {
            "rollout/ep_rew_mean": float(total.mean()),
            "rollout/ep_nfe_mean": float(core.walk.nfe[rows].double().mean()),
        }
        decisions = len(wanted)
        return torch.cat(seen), torch.cat(wanted).long(), meant.repeat(decisions), metrics

    def _update(self, observation: Tensor, action: Tensor) -> float:
        loss = nn.functional.cross_entropy(
            self.actor_network(observation), action, label_smoothing=self.hyperparameters["smoothing"]
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def policy(self, info: PolicyInfo, projection: Projection | None = None) -> LearnedPolicy:
        """What has been learned so far."""
        return LearnedPolicy(info, copied(layers_of(self.actor_network)), projection)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs."""
        tensors = {f"actor.{k}": v for k, v in self.actor_network.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_state(self.optimizer).items()}
        tensors["generator"] = self.generator.get_state()
        tensors["num_decisions"] = torch.tensor(self.num_decisions)
        return tensors | {f"quality.{k}": v for k, v in self.core.learned().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        self.actor_network.load_state_dict(under(tensors, "actor."))
        load_optimizer_state(self.optimizer, under(tensors, "optimizer."))
        self.generator.set_state(tensors["generator"])
        self.num_decisions = int(tensors["num_decisions"])
        self.core.load_learned(under(tensors, "quality."))
