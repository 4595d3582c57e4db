"""Learning by Stable-Baselines3's algorithms, behind one adapter.

The observation is small, so the policy lives on the CPU; images stay where the diffusion model is. γ = 1:
the price is the only reason to stop. What is learned leaves as :class:`agents.policy.LearnedPolicy`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from agents.actor import copied, layers_of, load_optimizer_state, optimizer_state, start_at, under
from agents.decay import LinearDecay
from agents.policy import Layers, LearnedPolicy, PolicyInfo
from agents.start import copy_layers, fit_critic
from envs.errors import UserError
from envs.observation import Projection
from envs.registry import unknown_name
from envs.sb3 import StepDropVecEnv

_WIDTHS = (64, 64)


class _Dump(KVWriter):  # type: ignore[misc]
    """Hands a whole dump of SB3's logger to one callable: a tracker's call costs the same for 20 keys."""

    def __init__(self, log: Callable[[dict[str, float], int], None]) -> None:
        self._log = log

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        numbers = {k: float(v) for k, v in key_values.items() if isinstance(v, int | float | np.number)}
        self._log(numbers, step)

    def close(self) -> None:
        """Nothing to close."""


class _StopLearning(Exception):  # noqa: N818 - a signal, not an error
    """Ends a run before its next rollout, where nothing is half done."""


class _BetweenRollouts(BaseCallback):  # type: ignore[misc]
    """Asks between rollouts whether to go on."""

    def __init__(self, go_on: Callable[[int], bool]) -> None:
        super().__init__()
        self._go_on = go_on

    def _on_rollout_start(self) -> None:
        if not self._go_on(self.num_timesteps):
            raise _StopLearning

    def _on_step(self) -> bool:
        return True


class Learner:
    """An SB3 algorithm over a batch of trajectories.

    Args:
        env: The batch.
        seed: Of the algorithm.
        hyperparameters: Over the algorithm's ``defaults``.
        log: Takes each dump of learning curves and the number of decisions so far.
    """

    algorithm: ClassVar[type[BaseAlgorithm]]
    output: ClassVar[str] = "softmax"
    activation: ClassVar[str] = "tanh"
    log_interval: ClassVar[int] = 1  # rollouts (DQN: episodes) between dumps
    network: ClassVar[str] = "MlpPolicy"
    widths: ClassVar[Mapping[str, Any]] = {"net_arch": _WIDTHS}
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        env: StepDropVecEnv,
        *,
        seed: int,
        hyperparameters: Mapping[str, Any],
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        self.env = env
        self.hyperparameters = {**self.settings(env), **hyperparameters}
        given = dict(self.hyperparameters)
        if self.output == "greedy" and "initial_nfe" in given:  # values have no odds to begin with
            raise unknown_name("hyperparameter", "initial_nfe", self.defaults)
        initial_nfe = given.pop("initial_nfe", None)  # ours; the others are SB3's
        given["learning_rate"] = LinearDecay(given["learning_rate"], given.pop("final_rate", 1.0))
        try:
            self.model = self.algorithm(
                self.network,
                env,
                seed=seed,
                device="cpu",
                gamma=1.0,
                policy_kwargs={k: list(v) if k == "net_arch" else v for k, v in self.widths.items()},
                **given,
            )
        except TypeError as error:
            unexpected = [key for key in hyperparameters if f"'{key}'" in str(error)]
            if unexpected:
                known = [*self.defaults, "learning_rate", "n_steps", "batch_size", "ent_coef"]
                raise unknown_name("hyperparameter", unexpected[0], known) from None
            raise UserError(f"hyperparameters do not fit {self.algorithm.__name__}: {error}") from None
        except (ValueError, AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"hyperparameters do not fit {self.algorithm.__name__}: {reason}") from None
        if initial_nfe is not None:
            start_at(self.actor(), initial_nfe, len(env.core.walk.grid))
        self.model.set_logger(Logger(folder=None, output_formats=[_Dump(log)]))

    @property
    def num_decisions(self) -> int:
        """Decisions learned from so far."""
        return int(self.model.num_timesteps)

    def settings(self, env: StepDropVecEnv) -> dict[str, Any]:
        """Hyperparameters for this environment."""
        return dict(self.defaults)

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """Begin where ``policy`` ended; :class:`UserError` where this algorithm cannot."""
        raise UserError(f"{self.algorithm.__name__} cannot start from another policy")

    def learn(self, decisions: int, go_on: Callable[[int], bool]) -> None:
        """Learn until ``decisions`` in all; ``go_on`` hears the count before each rollout and may end it."""
        remaining = decisions - self.model.num_timesteps
        if remaining > 0:
            with contextlib.suppress(_StopLearning):
                self.model.learn(
                    remaining,
                    callback=_BetweenRollouts(go_on),
                    reset_num_timesteps=False,
                    log_interval=self.log_interval,
                )
            self.model.logger.dump(self.model.num_timesteps)  # what the last update wrote

    def actor(self) -> Layers:
        """(weight, bias) of every layer from the observation to skip/evaluate."""
        policy = self.model.policy
        return layers_of([*policy.mlp_extractor.policy_net, policy.action_net])

    def policy(self, info: PolicyInfo, projection: Projection | None = None) -> LearnedPolicy:
        """What has been learned so far."""
        return LearnedPolicy(info, copied(self.actor()), projection)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs: weights, optimiser, counters, generators, episodes."""
        model = self.model
        tensors = {f"policy.{k}": v for k, v in model.policy.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_state(model.policy.optimizer).items()}
        legacy: Any = np.random.get_state()
        tensors["generator.torch"] = torch.get_rng_state()
        tensors["generator.numpy"] = torch.from_numpy(legacy[1].astype(np.int64))
        tensors["generator.numpy_position"] = torch.tensor(legacy[2])
        tensors["num_timesteps"] = torch.tensor(model.num_timesteps)
        tensors["n_updates"] = torch.tensor(getattr(model, "_n_updates", 0))
        return tensors | {f"core.{k}": v for k, v in self.env.core.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`, at the start of an episode in every row."""
        model = self.model
        model.policy.load_state_dict(under(tensors, "policy."))
        load_optimizer_state(model.policy.optimizer, under(tensors, "optimizer."))
        model.num_timesteps = int(tensors["num_timesteps"])
        if isinstance(
            model, OffPolicyAlgorithm
        ):  # its memory was not kept: it fills again before it is learned from
            model.learning_starts += model.num_timesteps
        model._n_updates = int(tensors["n_updates"])
        self.env.resume(under(tensors, "core."))
        model._last_obs = None  # learn() resets the environment, which begins the saved episodes
        model._setup_learn(0, None, False)
        torch.set_rng_state(tensors["generator.torch"])
        numbers = tensors["generator.numpy"].numpy().astype(np.uint32)
        position = int(tensors["generator.numpy_position"])
        np.random.set_state(("MT19937", numbers, position, 0, 0.0))


class OnPolicyLearner(Learner):
    """Rollouts of whole episodes: every row ends as the rollout does, and nothing is bootstrapped."""

    def __init__(self, env: StepDropVecEnv, *, hyperparameters: Mapping[str, Any], **others: Any) -> None:
        if "n_steps" in hyperparameters:
            raise UserError("n_steps is an episode's length: set env.num_decisions instead")
        super().__init__(env, hyperparameters=hyperparameters, **others)

    def settings(self, env: StepDropVecEnv) -> dict[str, Any]:
        """``n_steps`` is an episode's length."""
        return dict(self.defaults) | {"n_steps": len(env.core.walk.grid) - 1}

    def start_from(self, policy: LearnedPolicy, seed: int) -> None:
        """The actor gets its weights, the critic learns what they earn."""
        copy_layers(self.actor(), policy.layers)
        own = self.model.policy
        critic = [*own.mlp_extractor.value_net.parameters(), *own.value_net.parameters()]
        fit_critic(
            lambda seen: own.predict_values(seen).squeeze(1),
            critic,
            self.env.core,
            policy.probabilities,
            seed,
        )


class BatchLearner(OnPolicyLearner):
    """Learns from a rollout in batches."""

    def settings(self, env: StepDropVecEnv) -> dict[str, Any]:
        """Four batches per rollout."""
        settings = super().settings(env)
        return settings | {"batch_size": max(2, settings["n_steps"] * env.num_envs // 4)}


class PPOLearner(BatchLearner):
    """Proximal policy optimisation (Schulman et al. 2017)."""

    algorithm = PPO
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "final_rate": 0.1,
        "n_epochs": 10,
        "gae_lambda": 0.95,
        "ent_coef": 0.001,
        "clip_range": 0.2,
        "initial_nfe": 5.0,
    }


class A2CLearner(OnPolicyLearner):
    """Advantage actor–critic (Mnih et al. 2016)."""

    algorithm = A2C
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 2e-3,
        "final_rate": 0.1,
        "gae_lambda": 0.95,
        "ent_coef": 0.002,
        "normalize_advantage": True,
        "initial_nfe": 5.0,
    }


class DQNLearner(Learner):
    """Deep Q-learning (Mnih et al. 2015); acts greedily once learned. A resumed run refills its memory."""

    algorithm = DQN
    output = "greedy"
    activation = "relu"
    log_interval = 256
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "buffer_size": 200_000,
        "learning_starts": 16_000,
        "batch_size": 1024,
        "train_freq": 8,
        "gradient_steps": 8,
        "target_update_interval": 4_000,
        "exploration_fraction": 0.3,
        "exploration_final_eps": 0.02,
    }

    def actor(self) -> Layers:
        """The layers of the action values."""
        return layers_of(self.model.q_net.q_net)
