"""What the numerics' tests share: exactness, and a U-Net that is tiny and knows nothing."""

from typing import Any

import torch
from torch import Tensor, nn

from envs.philox import Role
from stepdrop_rl.config import UNetConfig
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.estimates import Clip
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.models.denoiser import NetworkDenoiser
from stepdrop_rl.models.unet import make_network
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import make_solver

SHAPE = (1, 8, 8)
MIXTURE_SHAPE = (1, 2, 2)
TINY = UNetConfig(channels=[8, 16], attention=[False, True], head_dim=8)


def exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def network(unet: UNetConfig = TINY, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make_network(unet, SHAPE).eval().requires_grad_(False)


def denoiser_of(net: nn.Module, prediction: str = "epsilon", **settings: Any) -> NetworkDenoiser:
    schedule = NoiseSchedule("cosine", 1000)
    return NetworkDenoiser(net, schedule, prediction=prediction, shape=SHAPE, **settings)


def mixture_process(solver: str, count: int = 12, clip: Clip = "static") -> DiffusionProcess:
    """Of a mixture of Gaussians, whose clean estimates are exact."""
    means = torch.randn(3, *MIXTURE_SHAPE, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    model = GaussianMixture(NoiseSchedule("cosine", 1000), means, 0.2)
    return DiffusionProcess(
        model, make_solver(solver), num_rows=count, seed=3, role=Role.POLICY_TRAINING, clip=clip
    )
