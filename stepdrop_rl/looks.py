"""Drawing with a fixed schedule, and keeping what every evaluation showed.

Shapes: M images (M, C, H, W); D numbers that are shown of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.fixed import FixedSchedule
from envs.observation import Projection
from envs.philox import Role
from stepdrop_rl.arena import Arena
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import make_solver


def draw_looking(arena: Arena, agent: FixedSchedule, num_samples: int) -> tuple[Tensor, list[Tensor]]:
    """Images 0 … of the evaluation noise, and for every evaluation what it showed, (M, D).

    Shown are what observations tell of a sample and all of the network's pooled features.
    """
    widths = arena.model.denoiser.feature_widths
    total = sum(widths.values())
    everything = Projection(torch.eye(total), torch.zeros(total), tuple(widths)) if total else None
    times = arena.engine(agent).grid(agent)
    images: list[Tensor] = []
    looks: list[list[Tensor]] = [[] for _ in times]
    for ids in torch.arange(num_samples, device=times.device).split(arena.batch_size):
        process = DiffusionProcess(
            arena.model.denoiser,
            make_solver(arena.solver),
            num_rows=len(ids),
            seed=arena.seed,
            role=Role.EVALUATION,
            clip=arena.clip,
            projection=everything,
        )
        rows = torch.arange(len(ids), device=times.device)
        process.start(rows, ids, times[0].expand(len(ids)))
        for n, t in enumerate(times):
            process.evaluate(rows, t.expand(len(ids)))
            seen = process.evidence(rows)
            entries = torch.stack((seen.eps_rms, seen.x0_change, seen.clipped), 1)
            looks[n].append(torch.cat((entries, seen.features), 1).cpu())
        images.append(process.x0(rows).cpu())
    return torch.cat(images), [torch.cat(look) for look in looks]
