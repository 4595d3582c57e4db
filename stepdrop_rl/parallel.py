"""Several processes, one run: as ``accelerate launch`` or ``torchrun`` start them.

Each process knows its rank from the environment variables that both launchers set. Only rank 0 speaks,
tracks and writes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from envs.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Args:
        rank: This one's number.
        size: How many there are.
        local_rank: This one's number on its machine: its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process speaks, tracks and writes."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """This process's contiguous part of ``total`` items: all parts differ by one item at most."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows (M, …) of all processes, in order of rank, on the CPU of each; lengths may differ."""
        if self.size == 1:
            return rows.cpu()
        parts: list[Tensor | None] = [None] * self.size
        dist.all_gather_object(parts, rows.cpu())
        return torch.cat([part for part in parts if part is not None])

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.size == 1:
            return flag
        flags: list[bool] = [False] * self.size
        dist.all_gather_object(flags, flag)
        return any(flags)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """The end of the run."""
        if self.size > 1:
            dist.destroy_process_group()


def join(device: torch.device) -> World:
    """Join the processes that a launcher started, or be alone.

    Raises:
        UserError: The launcher's variables do not fit together.
    """
    try:
        rank, size, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
    except ValueError:
        raise UserError("RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as a launcher sets them") from None
    if size == 1:
        return World()
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"cannot join the other processes: {' '.join(str(error).split())[:200]}"
            ) from None
    return World(rank, size, local)


def device_of(device: torch.device, local_rank: int) -> torch.device:
    """The GPU of this process, where ``device`` names no particular one."""
    if str(device) == "cuda":
        return torch.device("cuda", local_rank)
    return device
