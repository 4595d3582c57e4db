"""Which device computes, and in which numbers."""

from __future__ import annotations

import torch

from envs.errors import UserError


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


def autocast_type(precision: str, device: torch.device | str) -> torch.dtype | None:
    """The type networks compute in: auto is bfloat16 on CUDA and float32 (None) on a CPU."""
    on_cuda = torch.device(device).type == "cuda"
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and on_cuda) else None
