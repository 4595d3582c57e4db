"""Algorithms of sb3-contrib, through the adapter of :mod:`agents.sb3`.

Shapes: D observation entries; Q quantiles of each of the two actions; H numbers remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from sb3_contrib import QRDQN, TRPO, RecurrentPPO

from agents.actor import copied, layers_of
from agents.policy import LSTM, Layers, LearnedPolicy, PolicyInfo, RecurrentPolicy
from agents.sb3 import BatchLearner, DQNLearner, PPOLearner
from envs.errors import UserError
from envs.observation import Projection

_QUANTILES = 32
_MEMORY = 64


class TRPOLearner(BatchLearner):
    """Trust region policy optimisation (Schulman et al. 2015): one step per rollout, as far as the KL allows.

    ``learning_rate`` and the batches are the critic's alone.
    """

    algorithm = TRPO
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "final_rate": 0.1,
        "gae_lambda": 0.95,
        "target_kl": 0.02,
        "cg_max_steps": 15,
        "n_critic_updates": 10,
        "initial_nfe": 5.0,
    }


class QRDQNLearner(DQNLearner):
    """Quantile-regression DQN (Dabney et al. 2018): learns how returns are spread, acts on their mean.

    A resumed run refills its memory.
    """

    algorithm = QRDQN
    widths: ClassVar[Mapping[str, Any]] = {**DQNLearner.widths, "n_quantiles": _QUANTILES}

    def actor(self) -> Layers:
        """The layers of the action values.

        A value is the mean of Q quantiles, and these are linear in the last hidden layer, so the mean is
        folded into the last weights: exact.
        """
        net = self.model.policy.quantile_net
        layers = layers_of(net.quantile_net)
        weight, bias = layers[-1]  # (Q·2, D), (Q·2,), read by sb3-contrib as (Q, 2)
        shape = (net.n_quantiles, 2)
        return [*layers[:-1], (weight.unflatten(0, shape).mean(0), bias.unflatten(0, shape).mean(0))]


class RecurrentPPOLearner(PPOLearner):
    """PPO whose policy remembers, by an LSTM, what it saw of the sample; its critic has one of its own."""

    algorithm = RecurrentPPO
    network = "MlpLstmPolicy"
    widths: ClassVar[Mapping[str, Any]] = {"net_arch": (64,), "lstm_hidden_size": _MEMORY}

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """A policy without a memory is no beginning for one that has it."""
        raise UserError("recurrent_ppo cannot start from another policy")

    def policy(self, info: PolicyInfo, projection: Projection | None = None) -> RecurrentPolicy:
        """What has been learned so far."""
        lstm = self.model.policy.lstm_actor
        return RecurrentPolicy(
            replace(info, memory=lstm.hidden_size),
            [getattr(lstm, f"{name}_l0").detach().clone() for name in LSTM],
            copied(self.actor()),
            projection,
        )
