"""The CIFAR ResNets of He et al. (2015, section 4.2) as second judges: features of several depths.

6n + 2 layers, widths 16, 32 and 64, shortcuts without parameters. Reads the checkpoints of
github.com/akamaster/pytorch_resnet_cifar10. Shapes: B images (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepdrop_rl.metrics.checkpoints import read_checkpoint
from stepdrop_rl.metrics.depths import DepthFeatures
from stepdrop_rl.weights import load_into

WIDTHS = (16, 16, 32, 64)  # stem and stages
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in [0, 1]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        # Shortcut A: every other pixel, and channels of zeros on both sides.
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + short)


class CifarResNet(DepthFeatures):
    """A CIFAR ResNet of ``blocks`` residual blocks a stage; its features want :meth:`standardise`."""

    deviation: Tensor
    mean: Tensor

    def __init__(self, name: str, blocks: int) -> None:
        super().__init__(name, WIDTHS)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        for number, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS), 1):
            first = _Block(inputs, outputs, 1 if number == 1 else 2)
            rest = (_Block(outputs, outputs, 1) for _ in range(blocks - 1))
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(WIDTHS[-1], 10)
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).reshape(1, 3, 1, 1), persistent=False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations of the stem and of each stage."""
        found = [F.relu(self.bn1(self.conv1(((x + 1) / 2 - self.mean) / self.deviation)))]
        for number in (1, 2, 3):
            found.append(self.get_submodule(f"layer{number}")(found[-1]))
        return found

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits (B, 10)."""
        return self.linear(pooled)

    @classmethod
    def read(cls, path: Path) -> CifarResNet:
        """Read a checkpoint; :class:`UserError` if it does not fit."""
        tensors = read_checkpoint(path)
        blocks = len({name.split(".")[1] for name in tensors if name.startswith("layer1.")})
        network = cls(f"resnet{6 * blocks + 2}", blocks)
        own = {name: network.state_dict()[name] for name in ("feature_mean", "feature_deviation")}
        load_into(network, tensors | own, path)
        return network.eval().requires_grad_(False)
