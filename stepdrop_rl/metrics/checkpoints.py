"""Networks of others that come as a file: which one it is, is told by what it holds."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from envs.errors import UserError

if TYPE_CHECKING:
    from stepdrop_rl.metrics.base import FeatureExtractor


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch checkpoint, without running code; :class:`UserError` if that fails."""
    try:
        raw: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no checkpoint of tensors: {' '.join(str(error).split())[:120]}") from None
    tensors = raw.get("state_dict", raw) if isinstance(raw, dict) else None
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path} is no checkpoint of tensors")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def load_file(path: Path) -> FeatureExtractor:
    """Return the extractor whose weights a file holds: torch-fidelity's Inception or a CIFAR ResNet."""
    names = read_checkpoint(path).keys()
    if any(name.startswith("Mixed_") for name in names):
        from stepdrop_rl.metrics.inception import Inception

        return Inception(path)
    if "layer3.0.conv1.weight" in names and "linear.weight" in names:
        from stepdrop_rl.metrics.cifar_resnet import CifarResNet

        return CifarResNet.read(path)
    raise UserError(f"{path} holds neither an Inception network nor a CIFAR ResNet")
