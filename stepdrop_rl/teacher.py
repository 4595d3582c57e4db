"""The teacher bank: noises and what the full trajectory makes of them, computed once and kept.

Image i of the bank is the noise (BANK_SEED, policy training, i): only results are stored. A bank belongs to
one model, solver and grid; the digits' one ships.
Shapes: M = images of the bank; K = those whose first clean estimate is kept too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.fixed import FixedSchedule
from envs.errors import UserError
from envs.philox import Role
from stepdrop_rl.caches import cache_folder, key_of
from stepdrop_rl.engine import Engine
from stepdrop_rl.models.unet import PRETRAINED, Model
from stepdrop_rl.solvers import make_solver
from stepdrop_rl.weights import load_weights, save_weights

BANK_SEED = 0
NUM_FIRST = 512
_FILE = "bank"


@dataclass(frozen=True)
class TeacherBank:
    """Results of the full trajectory.

    Args:
        teacher: (M, C, H, W) float32.
        first: (K, C, H, W) clean estimates after the first evaluation of the bank's first K noises.
        seed: Of the noises, in the role of policy training.
    """

    teacher: Tensor
    first: Tensor
    seed: int = BANK_SEED

    def to(self, device: torch.device) -> TeacherBank:
        """The bank on a device."""
        return TeacherBank(self.teacher.to(device), self.first.to(device), self.seed)


def full_trajectory(t_start: float, t_end: float, steps: int) -> FixedSchedule:
    """The teacher's schedule: ``steps`` evaluations evenly spaced between the model's ends."""
    return FixedSchedule("full", torch.linspace(t_start, t_end, steps, dtype=torch.float64))


def describe_bank(model: Model, solver: str, steps: int, size: int) -> dict[str, Any]:
    """All that determines a bank."""
    info = model.info
    return {
        "model_hash": model.hash,
        "prediction": info.prediction,
        "schedule": asdict(info.schedule),
        "autocast": str(model.denoiser.autocast),
        "solver": solver,
        "t_start": info.t_start,
        "t_end": info.t_end,
        "steps": steps,
        "size": size,
        "seed": BANK_SEED,
    }


def build_bank(
    model: Model, solver: str, steps: int, size: int, progress: Callable[[int], None] | None = None
) -> TeacherBank:
    """Run the full trajectory of every noise in the bank."""
    schedule = full_trajectory(model.info.t_start, model.info.t_end, steps)
    assert schedule.times is not None
    engine = Engine(
        denoiser=model.denoiser,
        solver=make_solver(solver),
        times=schedule.times,
        seed=BANK_SEED,
        role=Role.POLICY_TRAINING,
    )
    teacher = engine.sample(schedule, size, progress=progress).images
    once = FixedSchedule("first", schedule.times[:1])
    first = engine.sample(once, min(NUM_FIRST, size)).images
    return TeacherBank(teacher, first)


def load_bank(
    model: Model, solver: str, *, steps: int, size: int, device: torch.device | str = "cpu"
) -> TeacherBank:
    """Return the bank: shipped, from the cache, or computed now and put there."""
    description = describe_bank(model, solver, steps, size)
    key = key_of(description)
    folders = [PRETRAINED / model.info.dataset / "teacher" / key, cache_folder("teacher") / key]
    for folder in folders:
        if (folder / f"{_FILE}.json").is_file():
            tensors, _ = load_weights(folder, _FILE)
            return TeacherBank(tensors["teacher"].float(), tensors["first"].float()).to(torch.device(device))
    from stepdrop_rl.report.progress import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("full trajectories of the teacher bank", total=size, note="")
        bank = build_bank(model, solver, steps, size, lambda count: bar.advance(task, count))
    try:
        save_bank(folders[-1], bank, description)
    except UserError as error:  # a cache that cannot be written costs time, not the run
        print(f"teacher bank not kept: {error}", file=sys.stderr)
    return load_rounded(bank).to(torch.device(device))


def load_rounded(bank: TeacherBank) -> TeacherBank:
    """The bank as its file holds it: half precision."""
    return TeacherBank(bank.teacher.half().float(), bank.first.half().float(), bank.seed)


def save_bank(folder: Path, bank: TeacherBank, description: dict[str, Any]) -> None:
    """Write a bank in half precision: a hundredth of a grey level."""
    tensors = {"teacher": bank.teacher.half(), "first": bank.first.half()}
    save_weights(folder, _FILE, tensors, description)
