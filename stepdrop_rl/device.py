"""Which device computes, and in which numbers."""

from __future__ import annotations

import torch
from torch import nn

from envs.errors import UserError

GAINS_FROM = 1_000_000
"""Parameters from which bfloat16 pays on a CPU that has it. Against float32, the same calls, one thread of an
AVX512-BF16 core (``benchmark --parts [cpu]``): 7.2 M 1.7, 2.7 M 1.6, 0.7 M 1.2 ×."""


def resolve_device(name: str) -> torch.device:
    """auto: CUDA where there is one; :class:`UserError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"no GPU for --device {name}: torch sees {torch.cuda.device_count()}; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported; use auto, cpu, cuda or cuda:N")
    return device


def autocast_type(
    precision: str, device: torch.device | str, network: nn.Module | None = None
) -> torch.dtype | None:
    """The type a network computes in, None for float32.

    auto is bfloat16 on CUDA, and where a ``network`` of at least :data:`GAINS_FROM` parameters is only called
    also on a CPU that multiplies in it.
    """
    if precision == "auto":
        on_cuda = torch.device(device).type == "cuda"
        large = network is not None and sum(p.numel() for p in network.parameters()) >= GAINS_FROM
        return torch.bfloat16 if on_cuda or (large and cpu_has_bfloat16()) else None
    return torch.bfloat16 if precision == "bfloat16" else None


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; torch before 2.12 does not say: False."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
