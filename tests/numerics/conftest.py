"""What the numerics' tests share: exactness, and a U-Net that is tiny and knows nothing."""

from typing import Any

import torch
from torch import Tensor, nn

from stepdrop_rl.config import UNetConfig
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.models.denoiser import NetworkDenoiser
from stepdrop_rl.models.unet import make_network

SHAPE = (1, 8, 8)
TINY = UNetConfig(channels=[8, 16], attention=[False, True], head_dim=8)


def exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def network(unet: UNetConfig = TINY, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make_network(unet, SHAPE).eval().requires_grad_(False)


def denoiser_of(net: nn.Module, prediction: str = "epsilon", **settings: Any) -> NetworkDenoiser:
    schedule = NoiseSchedule("cosine", 1000)
    return NetworkDenoiser(net, schedule, prediction=prediction, shape=SHAPE, **settings)
