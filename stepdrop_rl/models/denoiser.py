"""The border between networks and the sampling mathematics: everything inside speaks eps.

``Denoiser(x, t) -> (eps, features or None)``. Shapes: x, eps (B, C, H, W) float32; t (B,) real times;
features (B, F) float32, the network's pooled middle activations, when they were asked for.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from stepdrop_rl.diffusion import NoiseSchedule, to_epsilon


class Denoiser(Protocol):
    """Says what noise is in ``x`` at real time ``t``, each sample at its own."""

    schedule: NoiseSchedule
    shape: tuple[int, int, int]
    num_features: int

    def __call__(
        self, x: Tensor, t: Tensor, *, features: bool = False, told: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """``told`` are the times that the network is given, where they are not the images' own."""


class NetworkDenoiser:
    """A diffusers U-Net as a :class:`Denoiser`.

    Args:
        network: ``UNet2DModel`` or anything called alike: ``network(x, t).sample``.
        schedule: Its noise schedule.
        prediction: "epsilon" or "v_prediction".
        shape: (C, H, W) of its images.
        autocast: Type the network computes in; the trajectory stays float32.
        pad_to: With it, every call holds exactly this many rows (the last one padded by zeros), so that
            image i is bit-equal whatever the batch size; without it, a call holds the rows it is given.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        *,
        prediction: str,
        shape: tuple[int, int, int],
        autocast: torch.dtype | None = None,
        pad_to: int | None = None,
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.shape = shape
        self.autocast = autocast
        self.pad_to = pad_to
        self.num_features = middle_width(network)

    def __call__(
        self, x: Tensor, t: Tensor, *, features: bool = False, told: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return eps (and pooled middle features) of ``x`` at ``t``."""
        told = t if told is None else told
        if self.pad_to is None:
            output, pooled = self._call(x, told, features)
        else:
            output, pooled = self._padded(x, told, features, self.pad_to)
        return to_epsilon(self.schedule, self.prediction, output.float(), x, t), pooled

    def _call(self, x: Tensor, t: Tensor, features: bool) -> tuple[Tensor, Tensor | None]:
        enabled = self.autocast is not None
        with torch.autocast(x.device.type, dtype=self.autocast or torch.bfloat16, enabled=enabled):
            if features:
                return forward_with_middle(self.network, x, t.float())
            return self.network(x, t.float()).sample, None

    def _padded(self, x: Tensor, t: Tensor, features: bool, size: int) -> tuple[Tensor, Tensor | None]:
        outputs, pooled = [], []
        for part_x, part_t in zip(x.split(size), t.split(size), strict=True):
            missing = size - len(part_x)
            full_x = torch.cat((part_x, part_x.new_zeros(missing, *part_x.shape[1:])))
            full_t = torch.cat((part_t, part_t.new_zeros(missing)))
            output, middle = self._call(full_x, full_t, features)
            outputs.append(output[: len(part_x)])
            if middle is not None:
                pooled.append(middle[: len(part_x)])
        return torch.cat(outputs), torch.cat(pooled) if pooled else None


def middle_width(network: nn.Module) -> int:
    """Channels of the U-Net's middle block; 0 where there is none to look into."""
    unet = unet_of(network)
    channels = getattr(getattr(unet, "config", None), "block_out_channels", None)
    return int(channels[-1]) if channels and hasattr(unet, "mid_block") else 0


def unet_of(network: nn.Module) -> nn.Module:
    """The U-Net inside a wrapper that rearranges pixels, or the network itself."""
    inner = getattr(network, "unet", network)
    assert isinstance(inner, nn.Module)
    return inner


def forward_with_middle(network: nn.Module, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Run the network and also return its middle block's output, averaged over space: (B, F).

    The middle block's ``forward`` is wrapped for the length of this call: hooks would break compilation
    of every other call.
    """
    block = unet_of(network).mid_block
    assert isinstance(block, nn.Module)
    seen: list[Tensor] = []
    original = block.forward

    def forward(*args: object, **kwargs: object) -> Tensor:
        hidden: Tensor = original(*args, **kwargs)
        seen.append(hidden.float().mean((2, 3)))
        return hidden

    block.forward = forward
    try:
        output = network(x, t).sample
    finally:
        del block.forward  # the class's own method shows again
    return output, seen[0]
