"""Many samples as a ``gymnasium.vector.VectorEnv``: one network call for all that evaluate."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

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


class StepDropVectorEnv(VectorEnv[Array, Array, Array]):
    """A batch of :class:`envs.single.StepDropEnv`; see there for observations, actions and rewards.

    Row i of ``reset(seed=s)`` behaves as a single environment seeded with s + i (up to the network's
    tolerance across batch sizes, and to scores that compare with what the whole batch generated).

    Args:
        core: The batched decision problem.
        autoreset_mode: NEXT_STEP (a finished row is reset by the next step, whose action it ignores) or
            SAME_STEP (it is reset at once; its last observation and info are in ``final_obs``,
            ``final_info``).
        render_mode: None or "rgb_array".
    """

    metadata: ClassVar[dict[str, Any]] = METADATA | {"autoreset_mode": AutoresetMode.NEXT_STEP}  # type: ignore[misc]

    def __init__(
        self,
        core: StepDropCore,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        self.core = core
        self.num_envs = core.walk.process.num_rows
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = self.metadata | {"autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.render_mode = render_mode
        self.single_observation_space = single_observation_space(core)
        self.single_action_space = single_action_space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._finished = torch.zeros(self.num_envs, dtype=torch.bool, device=core.rows.device)
        self._seeded = False

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Begin the rows' next episodes; ``options["reset_mask"]`` names the rows, else all."""
        super().reset(seed=seed if isinstance(seed, int) else None)
        rows = self._masked_rows((options or {}).get("reset_mask"))
        self._seed(rows, seed)
        self.core.begin(rows)
        self._finished[rows] = False
        return self._observations(), self._infos(rows)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Act in every row."""
        core = self.core
        acting = core.rows[~self._finished]
        reward = torch.zeros(self.num_envs, dtype=torch.float64, device=core.rows.device)
        terminated = torch.zeros_like(self._finished)
        infos: dict[str, Any] = {}
        waiting = core.rows[self._finished]
        if len(acting):
            chosen = torch.as_tensor(np.asarray(actions), device=core.rows.device).long()[acting]
            step = core.step(acting, chosen)
            reward[acting], terminated[acting] = step.reward, step.terminated
        if len(waiting):
            core.begin(waiting)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            ended = core.rows[terminated]
            if len(ended):
                infos |= self._final(ended)
                core.begin(ended)
        elif self.autoreset_mode == AutoresetMode.NEXT_STEP:
            self._finished = terminated.clone()
        infos |= self._infos(core.rows)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observations(), to_numpy(reward), to_numpy(terminated), truncated, infos

    def render(self) -> tuple[Frame, ...] | None:
        """One frame per row."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(frame(self.core, row) for row in range(self.num_envs))

    def _masked_rows(self, mask: Any) -> Tensor:
        if mask is None:
            return self.core.rows
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise TypeError(f"options['reset_mask'] must be a bool array of shape ({self.num_envs},)")
        if not mask.any():
            raise ValueError("options['reset_mask'] must name at least one row")
        return self.core.rows[torch.as_tensor(mask, device=self.core.rows.device)]

    def _seed(self, rows: Tensor, seed: int | list[int | None] | None) -> None:
        if seed is None and self._seeded:
            return
        if isinstance(seed, list):
            if len(seed) != self.num_envs:
                raise ValueError(f"need {self.num_envs} seeds, got {len(seed)}")
            seeds = [fresh_seed(self.np_random) if one is None else one for one in seed]
        else:
            base = fresh_seed(self.np_random) if seed is None else seed
            seeds = [base + i for i in range(self.num_envs)]
        chosen = seeds_tensor(self.core, seeds)
        self.core.seed(rows, chosen[rows])
        if len(rows) == self.num_envs:  # else episodes still running would lose what they compare with
            self.core.reset(seeds[0])
        self._seeded = True

    def _observations(self) -> Array:
        return to_numpy(self.core.walk.observe(self.core.rows))

    def _infos(self, rows: Tensor) -> dict[str, Any]:
        """Gymnasium's vector infos: whole arrays, and masks of the rows that they speak of."""
        named = np.zeros(self.num_envs, dtype=np.bool_)
        named[to_numpy(rows)] = True
        infos: dict[str, Any] = {}
        for key, values in information(self.core, self.core.rows).items():
            infos[key] = np.where(named, values, np.zeros_like(values))
            infos[f"_{key}"] = named.copy()
        return infos

    def _final(self, ended: Tensor) -> dict[str, Any]:
        final = np.full(self.num_envs, None, dtype=object)
        for row, observation in zip(ended.tolist(), to_numpy(self.core.walk.observe(ended)), strict=True):
            final[row] = observation
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[to_numpy(ended)] = True
        return {
            "final_obs": final,
            "_final_obs": mask,
            "final_info": self._infos(ended),
            "_final_info": mask.copy(),
        }
