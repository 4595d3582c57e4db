"""What every command takes, and how settings are checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from envs.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]
RewardName = Literal["reward", "both", "joined"]
Prediction = Literal["epsilon", "v_prediction"]
Tracking = Literal["mlflow", "offline", "none"]

MAX_SEED = 2**32 - 1  # a seed is one word of the random numbers' key
_LEAST_BLOCK = 6  # images: density and coverage look at five neighbours of each


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition``."""
    if not condition:
        raise UserError(message)


def require_blocks(num_samples: int, blocks: int) -> None:
    """Images are judged in blocks of equal size, two at least, that no metric is too large for."""
    require(blocks >= 2, f"blocks must be at least 2, not {blocks}")
    require(
        num_samples % blocks == 0,
        f"num_samples ({num_samples}) must be a multiple of blocks ({blocks})",
    )
    require(
        num_samples >= _LEAST_BLOCK * blocks,
        f"num_samples ({num_samples}) must be at least {_LEAST_BLOCK} for each of {blocks} blocks",
    )


def require_minutes(max_minutes: float | None) -> None:
    """A time limit is None or not negative."""
    require(max_minutes is None or max_minutes >= 0, f"max_minutes must not be negative: {max_minutes}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images.

    Args:
        name: Data set.
        root: Folder that holds it, where it is not embedded (else the variable STEPDROP_DATA, else a cache).
        size: Pixels per side, for sets whose images come in any size (default: 32, CelebA 64).
        download: Fetch what is missing, where the set may be fetched.
    """

    name: str = "digits"
    root: str | None = None
    size: int | None = None
    download: bool = True

    def __post_init__(self) -> None:
        require(self.size is None or self.size > 0, f"data.size must be positive, not {self.size}")


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What every command takes.

    Args:
        seed: Every random number is a function of it.
        device: auto, cpu, cuda or cuda:N.
        tracking: Where the run is recorded: mlflow, offline (a JSONL spool) or none.
        json: Also write the result as JSON to this file.
        data: The images.
    """

    seed: int = 0
    device: str = "auto"
    tracking: Tracking = "mlflow"
    json: str | None = None
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed <= MAX_SEED, f"seed must be in 0..{MAX_SEED}, not {self.seed}")
