"""Where the time of a PPO rollout goes: the denoiser, the reward's features, and all the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from agents import ALGORITHMS
from envs.sb3 import StepDropVecEnv
from stepdrop_rl.benchmarks.timing import Row
from stepdrop_rl.config import BenchmarkConfig, EnvConfig
from stepdrop_rl.device import resolve_device
from stepdrop_rl.environment import make_world
from stepdrop_rl.models.unet import load_model

ROLLOUT_BANK = 1024  # noises: the bank is not what is measured


class _Clocked:
    """Anything that can be called, with the seconds that its calls took; the rest is the thing itself."""

    def __init__(self, call: Callable[..., Any], device: torch.device) -> None:
        self.call = call
        self.device = device
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        began = _now(self.device)
        result = self.call(*args, **kwargs)
        self.seconds += _now(self.device) - began
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.call, name)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_rollout(config: BenchmarkConfig) -> list[Row]:
    """The networks' share of a PPO rollout, at ``num_envs`` trajectories and at four times as many."""
    device = resolve_device(config.device)
    model = load_model(config.model or config.data.name, device)
    world = make_world(EnvConfig(bank_size=ROLLOUT_BANK), model=model, data=config.data)
    rows = []
    for count in (config.num_envs, 4 * config.num_envs):
        denoiser = _Clocked(model.denoiser, device)
        features = _Clocked(world.ground.features, device)
        clocked = replace(
            world,
            model=replace(model, denoiser=denoiser),  # type: ignore[arg-type]
            ground=replace(world.ground, features=features),
        )
        learner = ALGORITHMS.load("ppo")(
            StepDropVecEnv(clocked.core(count)), seed=config.seed, hyperparameters={}, log=lambda *_: None
        )
        starts: list[tuple[float, float, float]] = []

        def between(
            decisions: int,
            denoiser: _Clocked = denoiser,
            features: _Clocked = features,
            starts: list[tuple[float, float, float]] = starts,
        ) -> bool:
            starts.append((_now(device), denoiser.seconds, features.seconds))
            return True

        ends: list[tuple[float, float, float]] = []
        update = learner.model.train

        def train(
            denoiser: _Clocked = denoiser,
            features: _Clocked = features,
            ends: list[tuple[float, float, float]] = ends,
            update: Callable[[], None] = update,
        ) -> None:
            ends.append((_now(device), denoiser.seconds, features.seconds))
            update()

        learner.model.train = train
        learner.learn(2 * count * (len(world.times) - 1), between)  # the first one warms up
        total, network, feature = (end - start for start, end in zip(starts[1], ends[1], strict=True))
        rows.append(
            {
                "what": f"PPO rollout, {count} trajectories, {len(world.times)} points",
                "decisions/s": count * (len(world.times) - 1) / total,
                "denoiser": network / total,
                "reward features": feature / total,
                "ratio": (network + feature) / total,
            }
        )
    return rows
