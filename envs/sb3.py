"""Many samples as a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from envs.mdp import StepDropCore
from envs.shell import (
    METADATA,
    Frame,
    frame,
    fresh_seed,
    information,
    seeds_tensor,
    single_action_space,
    single_observation_space,
    to_numpy,
)

Array = NDArray[Any]


class StepDropVecEnv(VecEnv):  # type: ignore[misc]
    """A batch of :class:`envs.single.StepDropEnv` for SB3; a finished row is reset at once.

    Args:
        core: The batched decision problem.
        render_mode: None or "rgb_array".
    """

    metadata = METADATA

    def __init__(self, core: StepDropCore, render_mode: str | None = None) -> None:
        self.core = core
        self.render_mode = render_mode  # SB3's constructor asks for it
        self._actions = torch.zeros_like(core.rows)
        self._seeded = False
        num_envs = core.walk.process.num_rows
        super().__init__(num_envs, single_observation_space(core), single_action_space())
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._began = time.time()

    def reset(self) -> Array:
        """Begin every row's next episode, with the seeds that :meth:`seed` gave."""
        if any(seed is not None for seed in self._seeds) or not self._seeded:
            generator = np.random.default_rng()
            seeds = [fresh_seed(generator) if seed is None else seed for seed in self._seeds]
            self.core.seed(self.core.rows, seeds_tensor(self.core, seeds))
            self.core.reset(seeds[0])
            self._seeded = True
        self._reset_seeds()
        self._reset_options()
        self.core.begin(self.core.rows)
        self._returns[:] = 0
        self._lengths[:] = 0
        info = information(self.core, self.core.rows)
        self.reset_infos = [
            {key: values[row] for key, values in info.items()} for row in range(self.num_envs)
        ]
        return self._observations()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from the core's saved state: the next :meth:`reset` begins its episodes."""
        self.core.load_state(state)
        self._reset_seeds()
        self._seeded = True

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed every row from ``seed``; SB3's own seed + row would share all rows but one with seed + 1."""
        words = np.random.SeedSequence(seed).generate_state(self.num_envs, dtype=np.uint32)
        self._seeds = [int(word) for word in words]
        return self._seeds

    def step_async(self, actions: Array) -> None:
        """Remember the actions."""
        self._actions = torch.as_tensor(actions, device=self.core.rows.device).long().reshape(-1)

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Act in every row."""
        core = self.core
        step = core.step(core.rows, self._actions)
        reward, done = to_numpy(step.reward), to_numpy(step.terminated)
        self._returns += reward
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            ended = core.rows[step.terminated]
            last = to_numpy(core.walk.observe(ended))
            known = information(core, ended)
            for k, row in enumerate(ended.tolist()):
                infos[row] = {key: values[k] for key, values in known.items()} | {
                    "terminal_observation": last[k],
                    "TimeLimit.truncated": False,
                    "episode": {
                        "r": float(self._returns[row]),
                        "l": int(self._lengths[row]),
                        "t": round(time.time() - self._began, 6),
                    },
                }
            self._returns[done] = 0
            self._lengths[done] = 0
            core.begin(ended)
        return self._observations(), reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The batch's attribute, once per row asked for."""
        return [getattr(self, attr_name)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set the batch's attribute: rows have none of their own."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call the batch's method, once per row asked for."""
        return [getattr(self, method_name)(*args, **kwargs) for _ in self._indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Rows are never wrapped."""
        return [False] * len(self._indices(indices))

    def get_images(self) -> Sequence[Frame | None]:
        """One frame per row."""
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        return [frame(self.core, row) for row in range(self.num_envs)]

    def _indices(self, indices: Any) -> list[int]:
        return list(self._get_indices(indices))

    def _observations(self) -> Array:
        return to_numpy(self.core.walk.observe(self.core.rows))
