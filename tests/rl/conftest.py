"""A decision problem whose diffusion is exact and takes no time: a Gaussian mixture of 1x4x4 images."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from envs.dual import MovingPrice
from envs.mdp import StepDropCore
from envs.philox import Role
from envs.rewards.base import Ground, WeightedQuality
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.engine import Engine
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import make_solver
from stepdrop_rl.solvers.multistep import Multistep
from stepdrop_rl.teacher import full_trajectory

SHAPE = (1, 4, 4)
BANK = 64
N = 9


def flat_features(images: Tensor) -> Tensor:
    """Features that tests can compute by hand: the pixels."""
    return images.flatten(1)


@dataclass(frozen=True)
class Problem:
    """Makes cores of any size over one bank."""

    denoiser: GaussianMixture
    times: Tensor
    ground: Ground

    def core(
        self,
        num_rows: int = 1,
        reward: dict[str, float] | None = None,
        prices: tuple[float, float] = (0.01, 0.1),
        solver: str = "multistep",
        moving: MovingPrice | None = None,
    ) -> StepDropCore:
        process = DiffusionProcess(
            self.denoiser, make_solver(solver), num_rows=num_rows, seed=0, role=Role.POLICY_TRAINING
        )
        ground = Ground(**(vars(self.ground) | {"prices": prices}))
        quality = WeightedQuality(reward or {"feature": 1.0}, ground, num_rows)
        return StepDropCore(process, self.times, quality, num_images=BANK, prices=prices, moving=moving)


@pytest.fixture(scope="session")
def problem() -> Problem:
    generator = torch.Generator().manual_seed(1)
    schedule = NoiseSchedule("cosine", 1000)
    means = torch.randn(3, *SHAPE, generator=generator).clamp(-1, 1) * 0.7
    denoiser = GaussianMixture(schedule, means, deviation=0.1)
    full = full_trajectory(950.0, 30.0, 40)
    engine = Engine(
        denoiser=denoiser, solver=Multistep(), times=full.times, seed=0, role=Role.POLICY_TRAINING
    )
    teacher = engine.sample(full, BANK).images
    first = engine.sample(full_trajectory(950.0, 30.0, 1), BANK).images
    real = denoiser.draw(100, generator)
    ground = Ground(
        features=flat_features,
        real=flat_features(real),
        teacher=teacher,
        teacher_features=flat_features(teacher),
        first=first,
        prices=(0.01, 0.1),
    )
    times = torch.linspace(950, 30, N, dtype=torch.float64)
    return Problem(denoiser, times, ground)


CoreMaker = Callable[..., StepDropCore]
