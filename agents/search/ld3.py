"""LD3 (Tong et al. 2025, arXiv 2405.15506): gradients of the results through the whole sampler.

lams are a normalised cumulative sum of a softmax, so they stay ordered between the model's ends; a second set
of offsets moves the times that the network is told. The student may start anywhere in a small ball around the
teacher's noise; here it starts on it (radius 0).
RMSprop; the schedule that serves held-back training noises best is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.search.base import Found, Ground, at_effort

NUM_TRAINING = 48
NUM_HELD_BACK = 48
BATCH = 24
EPOCHS = 60  # at most; patience ends most searches near the 20th
PATIENCE = 5
LEARNING_RATE = 5e-3
TEACHER_POINTS = 50
_MOST_OFFSET = 0.05  # of the whole range of lam, for the network's own times


def _schedule(theta: Tensor, offset: Tensor, ground: Ground, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Times and network times, both (K,), from free parameters (K,) and (K,)."""
    share = torch.cumsum(torch.softmax(theta, 0), 0)
    share = torch.cat((share.new_zeros(1), share[:-1])) / share[-2].clamp(min=1e-12)
    lam = ends[0] + (ends[1] - ends[0]) * share
    moved = lam + _MOST_OFFSET * (ends[1] - ends[0]) * torch.tanh(offset)
    return ground.scale.time_of(lam), ground.scale.time_of(moved.clamp(ends[0], ends[1]))


def search(nfe: int, ground: Ground, seed: int, effort: float = 1.0) -> Found:
    """Return the schedule whose results have features nearest to the teacher's."""
    ends = ground.scale.lam(torch.tensor([ground.t_start, ground.t_end], dtype=torch.float64))
    if nfe <= 2:
        return Found([ground.t_start, ground.t_end][:nfe], 0.0)
    fine = torch.linspace(ground.t_start, ground.t_end, TEACHER_POINTS, dtype=torch.float64)
    training, held = at_effort(NUM_TRAINING, effort), at_effort(NUM_HELD_BACK, effort)
    count = training + held
    with torch.no_grad():
        wanted = ground.features(ground.draw(fine, range(count)))
    theta = torch.zeros(nfe, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(nfe, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.RMSprop([theta, offset], LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)

    def loss(images: list[int]) -> Tensor:
        times, told = _schedule(theta, offset, ground, ends)
        drawn = ground.features(ground.draw(times, images, network_times=told))
        return (drawn - wanted[images]).square().mean()

    held_back = list(range(training, count))
    with torch.no_grad():
        best, kept = float(loss(held_back)), (theta.detach().clone(), offset.detach().clone())
    trace, waiting = [best], 0
    for _ in range(EPOCHS):
        for chosen in torch.randperm(training, generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss(chosen.tolist()).backward()
            optimizer.step()
        with torch.no_grad():
            now = float(loss(held_back))
        trace.append(now)
        waiting += 1
        if now < best:
            best, kept, waiting = now, (theta.detach().clone(), offset.detach().clone()), 0
        if waiting >= PATIENCE:
            break
    times, told = _schedule(*kept, ground, ends)
    return Found(times.tolist(), best, told.tolist(), tuple(trace))
