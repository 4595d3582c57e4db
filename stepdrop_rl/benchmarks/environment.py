"""Decisions per second of the vector environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from stepdrop_rl import ENVIRONMENT_ID
from stepdrop_rl.benchmarks.timing import Row, interleaved
from stepdrop_rl.config import BenchmarkConfig
from stepdrop_rl.environment import make_vector

ENVIRONMENT_STEPS = 6


def measure_environment(config: BenchmarkConfig) -> list[Row]:
    """Decisions per second: the vector environment against as many single ones in a ``SyncVectorEnv``."""
    model = config.model or config.data.name
    batched = make_vector(config.num_envs, model=model)
    single = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make(ENVIRONMENT_ID, model=model, disable_env_checker=True)] * config.num_envs
    )
    generator = np.random.default_rng(config.seed)
    actions = generator.integers(0, 2, (ENVIRONMENT_STEPS, config.num_envs))

    def walk(environment: Any) -> None:
        for row in actions:
            environment.step(row)

    batched.reset(seed=config.seed)
    single.reset(seed=config.seed)
    repeats = max(2, min(3, config.repeats))  # an episode must not end in between: it would hide the steps
    fast, slow, ratio = interleaved(lambda: walk(batched), lambda: walk(single), repeats)
    decisions = ENVIRONMENT_STEPS * config.num_envs
    return [
        {
            "what": f"{config.num_envs} trajectories, batched against single",
            "batched decisions/s": decisions / fast,
            "single decisions/s": decisions / slow,
            "ratio": 1 / ratio,
        }
    ]
