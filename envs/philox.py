"""Counter-based random numbers: every number is a pure function of what it is for.

Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3") in tensor
operations. A draw names its seed, its :class:`Role`, its :class:`Stream`, the image and the diffusion
time it belongs to. So batch size, packing, number of devices and order of the calls change no number, a
resumed run goes on exactly, and the noise of a jump to time ``s`` is the same on every grid that holds
``s``.

Shapes: B = number of samples (images); trailing dimensions are those of one sample.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl key increments
_ROUNDS = 10

TIME_RESOLUTION = 1 << 16  # a real time enters the counter as a multiple of 1/65536
MAX_SEED = _MASK


class Role(IntEnum):
    """Who draws. Noise of one role never meets that of another, whatever the seeds."""

    POLICY_TRAINING = 0
    VALIDATION = 1
    EVALUATION = 2
    DIFFUSION_TRAINING = 3


class Stream(IntEnum):
    """What is drawn."""

    INITIAL = 0  # x_T
    JUMP = 1  # noise of a stochastic solver's jump
    DECISION = 2  # u in "evaluate where u < p"
    EPISODE = 3  # image and price of an episode
    DATA_ORDER = 4  # order of the training images in an epoch
    DATA_TIME = 5  # time and flip of a training example
    DATA_NOISE = 6  # its noise
    SUBSET = 7  # choices of a reward or metric


def _mulhilo(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of ``a * m`` for 32-bit a, m held in int64 (the product wraps in 64 bits)."""
    lo16 = a * (m & 0xFFFF)  # < 2^48
    hi16 = a * (m >> 16)  # < 2^48
    mid = hi16 + (lo16 >> 16)
    return mid >> 16, ((mid & 0xFFFF) << 16) | (lo16 & 0xFFFF)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Return the four 32-bit outputs of Philox4x32-10 as int64 tensors.

    ``counter`` and ``key`` are int64 tensors with values in [0, 2^32) that broadcast together.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        hi0, lo0 = _mulhilo(c0, _M0)
        hi1, lo1 = _mulhilo(c2, _M1)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return [c0, c1, c2, c3]


def _words(
    num: int, seed: Tensor | int, role: Role, stream: Stream, image: Tensor, time: Tensor | None
) -> Tensor:
    """``(B, num)`` 32-bit words for ``image`` (B,) and real ``time`` (B,)."""
    image = image.to(torch.int64)
    device = image.device
    ticks = torch.zeros_like(image) if time is None else (time.double() * TIME_RESOLUTION).round().long()
    seed = torch.as_tensor(seed, dtype=torch.int64, device=device)
    block = torch.arange((num + 3) // 4, device=device)
    column = image.unsqueeze(-1)
    words = philox4x32(
        (block, column & _MASK, ticks.unsqueeze(-1) & _MASK, (column >> 32) * 16 + int(stream)),
        (seed.reshape(-1, 1) & _MASK, torch.tensor(int(role), device=device)),
    )
    return torch.stack(words, dim=-1).flatten(-2)[..., :num]


def uniform(
    num: int,
    *,
    seed: Tensor | int,
    role: Role,
    stream: Stream,
    image: Tensor,
    time: Tensor | None = None,
) -> Tensor:
    """``(B, num)`` float64 numbers in [0, 1). ``seed`` is an int or one int per row, in [0, 2^32)."""
    return _words(num, seed, role, stream, image, time).double() / 2.0**32


def normal(
    shape: tuple[int, ...],
    *,
    seed: Tensor | int,
    role: Role,
    stream: Stream,
    image: Tensor,
    time: Tensor | None = None,
) -> Tensor:
    """``(B, *shape)`` float32 standard normal numbers, by Box and Muller's transform in float64."""
    num = math.prod(shape)
    words = _words(2 * ((num + 1) // 2), seed, role, stream, image, time).double()
    u, v = words.unflatten(-1, (-1, 2)).unbind(-1)
    radius = torch.sqrt(-2.0 * torch.log((u + 0.5) / 2.0**32))  # u + ½: never log 0
    angle = (2.0 * math.pi / 2.0**32) * v
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs.flatten(-2)[..., :num].float().reshape(image.shape[0], *shape)
