"""The border between networks and the sampling mathematics: everything inside speaks eps.

``Denoiser(x, t) -> (eps, features or None)``. Shapes: x, eps (B, C, H, W) float32; t (B,) real times;
features (B, F₀) float32, the activations that were asked for by name (:data:`FEATURES`), averaged over space
and joined in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from stepdrop_rl.diffusion import NoiseSchedule, to_epsilon
from stepdrop_rl.models.captured import Captured

FEATURES = ("middle", "decoder")
"""Features that a U-Net can be asked for: the output of its middle block, and of its last block upwards."""


class Denoiser(Protocol):
    """Says what noise is in ``x`` at real time ``t``, each sample at its own."""

    schedule: NoiseSchedule
    shape: tuple[int, int, int]
    feature_widths: Mapping[str, int]

    def __call__(
        self, x: Tensor, t: Tensor, *, features: Sequence[str] = (), told: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return eps and, where any are asked for, features.

        ``features`` are names in ``feature_widths``, which says how many numbers each is; ``told`` are the
        times that the network is given, where they are not the images' own.
        """


class NetworkDenoiser:
    """A diffusers U-Net as a :class:`Denoiser`.

    Args:
        network: ``UNet2DModel`` or anything called alike: ``network(x, t).sample``; images are shown to it in
            the type of its weights.
        schedule: Its noise schedule.
        prediction: "epsilon" or "v_prediction".
        shape: (C, H, W) of its images.
        autocast: Type the network computes in; the trajectory stays float32.
        pad_to: With it, every call holds exactly this many rows (the last one padded by zeros), so that
            image i is bit-equal whatever the batch size; without it, a call holds the rows it is given.
        capture: Replay calls as CUDA graphs (:mod:`stepdrop_rl.models.captured`).
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
        capture: bool = False,
    ) -> None:
        self.network = network
        self._type: torch.dtype = getattr(network, "dtype", torch.float32)  # diffusers' networks tell it
        self.schedule = schedule
        self.prediction = prediction
        self.shape = shape
        self.autocast = autocast
        self.pad_to = pad_to
        self.feature_widths: Mapping[str, int] = feature_widths(network)
        self._call = Captured(self._network) if capture else self._network

    def __call__(
        self, x: Tensor, t: Tensor, *, features: Sequence[str] = (), told: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return eps (and the pooled features of these names) of ``x`` at ``t``."""
        told = t if told is None else told
        if self.pad_to is None:
            output, pooled = self._call(x, told, features)
        else:
            output, pooled = self._padded(x, told, features, self.pad_to)
        return to_epsilon(self.schedule, self.prediction, output.float(), x, t), pooled

    def raw(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network itself says: eps or v."""
        return self._call(x, t, ())[0].float()

    def _network(self, x: Tensor, t: Tensor, features: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        enabled = self.autocast is not None
        x = x.to(self._type)
        with torch.autocast(x.device.type, dtype=self.autocast or torch.bfloat16, enabled=enabled):
            if features:
                return forward_with_features(self.network, x, t.float(), features)
            return self.network(x, t.float()).sample, None

    def _padded(
        self, x: Tensor, t: Tensor, features: Sequence[str], size: int
    ) -> tuple[Tensor, Tensor | None]:
        outputs, pooled = [], []
        for part_x, part_t in zip(x.split(size), t.split(size), strict=True):
            missing = size - len(part_x)
            full_x = torch.cat((part_x, part_x.new_zeros(missing, *part_x.shape[1:])))
            full_t = torch.cat((part_t, part_t.new_zeros(missing)))
            output, seen = self._call(full_x, full_t, features)
            outputs.append(output[: len(part_x)])
            if seen is not None:
                pooled.append(seen[: len(part_x)])
        return torch.cat(outputs), torch.cat(pooled) if pooled else None


def feature_widths(network: nn.Module) -> dict[str, int]:
    """How many numbers each of :data:`FEATURES` is; nothing where there is no U-Net to look into."""
    unet = unet_of(network)
    channels = getattr(getattr(unet, "config", None), "block_out_channels", None)
    if not channels or not hasattr(unet, "mid_block"):
        return {}
    return {"middle": int(channels[-1]), "decoder": int(channels[0])}


def unet_of(network: nn.Module) -> nn.Module:
    """The U-Net inside a wrapper that rearranges pixels, or the network itself."""
    inner = getattr(network, "unet", network)
    assert isinstance(inner, nn.Module)
    return inner


def _block(network: nn.Module, name: str) -> nn.Module:
    unet = unet_of(network)
    block = unet.mid_block if name == "middle" else unet.get_submodule("up_blocks")[-1]  # type: ignore[index]
    assert isinstance(block, nn.Module)
    return block


def forward_with_features(
    network: nn.Module, x: Tensor, t: Tensor, names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Run the network and also return these blocks' outputs, averaged over space and joined: (B, F₀).

    The blocks' ``forward`` is wrapped for the length of this call: hooks would break compilation of every
    other call.
    """
    seen: dict[str, Tensor] = {}

    def watched(name: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(*args: object, **kwargs: object) -> Tensor:
            hidden = original(*args, **kwargs)
            seen[name] = hidden.float().mean((2, 3))
            return hidden

        return forward

    blocks = {name: _block(network, name) for name in names}
    for name, block in blocks.items():
        block.forward = watched(name, block.forward)
    try:
        output = network(x, t).sample
    finally:
        for block in blocks.values():
            del block.forward  # the class's own method shows again
    return output, torch.cat([seen[name] for name in names], dim=1)
