"""Learners of our own: rounds of whole episodes in every row, by networks on the CPU.

What a round does with its episodes is each learner's subject. Here is what they share: how they begin, how
their learning rate falls, and what is kept of them, from which a resumed run goes on exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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
    start_at,
    under,
)
from agents.decay import LinearDecay
from agents.kinds import require_kinds
from agents.policy import LearnedPolicy, PolicyInfo
from agents.start import copy_layers
from envs.observation import Projection
from envs.sb3 import StepDropVecEnv


class OwnLearner(ABC):
    """Has the methods of :class:`agents.sb3.Learner`; a subclass has ``defaults`` and :meth:`_round`.

    Args:
        env: The batch.
        seed: Of weights, episodes and whatever else is drawn.
        hyperparameters: Over ``defaults``.
        log: Takes each round's learning curves and the number of decisions so far.
    """

    output: ClassVar[str] = "softmax"
    activation: ClassVar[str] = "tanh"
    defaults: ClassVar[Mapping[str, Any]]
    of_many_kinds: ClassVar[tuple[str, ...]] = ()  # hyperparameters that check their kind themselves

    def __init__(
        self,
        env: StepDropVecEnv,
        *,
        seed: int,
        hyperparameters: Mapping[str, Any],
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        self.require(hyperparameters)
        self.env = env
        self.core = env.core
        self.log = log
        self.hyperparameters = {**self.defaults, **hyperparameters}
        self._check()
        self.generator = torch.Generator().manual_seed(seed)
        self.entries = self.core.walk.observe(self.core.rows[:0]).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = self._make_networks(self.entries)
        blind(self.actor_network, str(self.hyperparameters["sees"]), self.entries)
        groups = [{"params": parameters, "lr": rate} for parameters, rate in self._rates()]
        self.optimizer = torch.optim.Adam(groups, eps=1e-5)
        self._decays = [LinearDecay(rate, self.hyperparameters["final_rate"]) for _, rate in self._rates()]
        self.num_decisions = 0
        self.core.reset(seed)

    @classmethod
    def require(cls, hyperparameters: Mapping[str, Any]) -> None:
        """Raise :class:`UserError` where they are none, or do not fit each other, in whatever environment."""
        require_kinds(hyperparameters, cls.defaults, cls.of_many_kinds)

    def _check(self) -> None:  # noqa: B027 - nothing to refuse is the usual case
        """:class:`UserError` where hyperparameters and environment do not fit."""

    def _make_networks(self, inputs: int) -> dict[str, nn.Module]:
        """Fresh networks by the names that they are kept under: an actor that spends ``initial_nfe``."""
        actor = make_network(inputs, 2, 0.01)
        start_at(layers_of(actor), self.hyperparameters["initial_nfe"], len(self.core.walk.grid))
        return {"actor": actor}

    @abstractmethod
    def _round(self, left: float) -> dict[str, float]:
        """Learn from one episode a row and count its decisions; returns learning curves.

        Args:
            left: Share of the declared run that is to come, 1 at its beginning.
        """

    @property
    def actor_network(self) -> nn.Sequential:
        """From observations to the logits of skip, evaluate."""
        return self._layered("actor")

    def _layered(self, name: str) -> nn.Sequential:
        network = self.networks[name]
        assert isinstance(network, nn.Sequential)
        return network

    def _rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """What learns, in parts, each with the rate at which it begins; the first one's is logged."""
        return [(self.parameters(), float(self.hyperparameters["learning_rate"]))]

    def parameters(self) -> list[nn.Parameter]:
        """All that learns."""
        return [parameter for network in self.networks.values() for parameter in network.parameters()]

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """Begin where ``policy`` ended: the actor gets its weights."""
        copy_layers(layers_of(self.actor_network), policy.layers)
        blind(self.actor_network, str(self.hyperparameters["sees"]), self.entries)

    def learn(self, decisions: int, go_on: Callable[[int], bool]) -> None:
        """Learn until ``decisions`` in all; ``go_on`` hears the count before each round and may end it."""
        while self.num_decisions < decisions and go_on(self.num_decisions):
            left = 1 - self.num_decisions / decisions
            for group, decay in zip(self.optimizer.param_groups, self._decays, strict=True):
                group["lr"] = decay(left)
            told = self._round(left)
            told["train/learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
            self.log(told, self.num_decisions)

    def policy(self, info: PolicyInfo, projection: Projection | None = None) -> LearnedPolicy:
        """What has been learned so far."""
        return LearnedPolicy(info, copied(layers_of(self.actor_network)), projection)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs: weights, optimiser, generator, counter, what rewards have learned."""
        tensors: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            tensors |= {f"{name}.{k}": v for k, v in network.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_state(self.optimizer).items()}
        tensors["generator"] = self.generator.get_state()
        tensors["num_decisions"] = torch.tensor(self.num_decisions)
        return tensors | {f"quality.{k}": v for k, v in self.core.learned().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        for name, network in self.networks.items():
            network.load_state_dict(under(tensors, f"{name}."))
        load_optimizer_state(self.optimizer, under(tensors, "optimizer."))
        self.generator.set_state(tensors["generator"])
        self.num_decisions = int(tensors["num_decisions"])
        self.core.load_learned(under(tensors, "quality."))
