"""The border between networks and the sampling mathematics: everything inside speaks eps.

``Denoiser(x, t) -> (eps, features or None)``. Shapes: x, eps (B, C, H, W) float32; t (B,) real times;
features (B, F₀) float32, the activations that were asked for by name (:data:`FEATURES`), averaged over space
and joined in that order.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stepdrop_rl.diffusion import NoiseSchedule, to_epsilon
from stepdrop_rl.models.captured import Call, Captured
from stepdrop_rl.models.compiled import FEWEST, Compiled

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
        compiled: Compile calls (:mod:`stepdrop_rl.models.compiled`), where they are not captured.
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
        compiled: bool = False,
    ) -> None:
        self.network = network
        self._watched: dict[tuple[str, ...], Watched] = {}
        self._type: torch.dtype = getattr(network, "dtype", torch.float32)  # diffusers' networks tell it
        self.schedule = schedule
        self.prediction = prediction
        self.shape = shape
        self.autocast = autocast
        self.pad_to = pad_to
        self.feature_widths: Mapping[str, int] = feature_widths(network)
        self._call: Call = self._network
        if capture or compiled:
            self._call = Captured(self._network) if capture else Compiled(self._network)

    def __call__(
        self, x: Tensor, t: Tensor, *, features: Sequence[str] = (), told: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return eps (and the pooled features of these names) of ``x`` at ``t``."""
        told = t if told is None else told
        features = tuple(features)
        if features:
            watched = self._watching(features)  # made here: compilation cannot follow how
            if watched.training != self.network.training:
                watched.train(self.network.training)
        if self.pad_to is None:
            output, pooled = self._call(x, told, features)
        else:
            output, pooled = self._padded(x, told, features, self.pad_to)
        return to_epsilon(self.schedule, self.prediction, output.float(), x, t), pooled

    @property
    def numbers(self) -> str:
        """What it computes in, for a record."""
        type_ = str(self.autocast or self._type).removeprefix("torch.")
        return f"{type_}, compiled" if isinstance(self._call, Compiled) else type_

    @property
    def warm_up(self) -> int:
        """Images of a first call after which others take their usual time."""
        return FEWEST if isinstance(self._call, Compiled) else 8

    def raw(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network itself says: eps or v."""
        return self._call(x, t, ())[0].float()

    def _network(self, x: Tensor, t: Tensor, features: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
        enabled = self.autocast is not None
        x = x.to(self._type)
        with torch.autocast(x.device.type, dtype=self.autocast or torch.bfloat16, enabled=enabled):
            if features:
                return self._watching(features)(x, t.float())
            return self.network(x, t.float()).sample, None

    def _watching(self, features: tuple[str, ...]) -> Watched:
        if features not in self._watched:
            self._watched[features] = Watched(self.network, features)
        return self._watched[features]

    def _padded(
        self, x: Tensor, t: Tensor, features: tuple[str, ...], size: int
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


class Watched(nn.Module):
    """A network that also says its blocks' outputs, averaged over space and joined: (B, F₀).

    It is a copy in structure alone, of the same weights: neither hooks nor a wrapped ``forward`` stand in the
    way of other calls, or of compilation. Weights that change in place are followed, replaced ones are not.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        shared = {id(kept): kept for kept in (*network.parameters(), *network.buffers())}
        self.network = copy.deepcopy(network, shared)
        self.training = network.training
        self._blocks: list[Any] = [_block(self.network, name) for name in names]
        for block in self._blocks:
            kind: Any = type(block)
            block.__class__ = _remembering(kind)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network says, and what its blocks showed."""
        output = self.network(x, t).sample
        shown = torch.cat([block.shown for block in self._blocks], dim=1)
        for block in self._blocks:
            block.shown = None  # nor what gradients would need
        return output, shown


@functools.cache  # for compilation: blocks of all models are of the same kind
def _remembering(kind: type[nn.Module]) -> type[nn.Module]:
    """The same kind of block, which keeps the mean of what it put out last, ``shown``."""

    class Remembering(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: object, **kwargs: object) -> Tensor:
            hidden: Tensor = super().forward(*args, **kwargs)
            self.shown = hidden.float().mean((2, 3))
            return hidden

    return Remembering
