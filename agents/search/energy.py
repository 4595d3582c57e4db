"""Gradients of a distance between distributions through the whole sampler.

LD3 asks every sample to end where its teacher ended; a schedule is judged by where all of them end. The loss
here is both, in the reward's features f, with r of real images and d the typical distance of two of those:

    w·E‖f − f_teacher‖/d + (2·E‖f − r‖ − E‖f − f′‖)/d.

The second term is the energy distance (Székely and Rizzo 2013) but for a constant; batches estimate it
without bias. The first keeps the gradient's noise low, and a small w keeps it from deciding; where schedules
differ little in energy, an eighth may decide (docs/history.md has a case). ``teacher`` sets another w.
The gaps in lam are a softmax; the last one, from the last evaluation to t = 0, is free as well. Adam, whose
step falls linearly to 0. Shapes: B = batch; K evaluations; F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.search.base import Found, Ground, at_effort

STEPS = 240
BATCH = 64
NUM_TRAINING = 1024
NUM_REAL = 1024
LEARNING_RATE = 0.05
TEACHER_WEIGHT = 0.125  # w
TEACHER_POINTS = 50


def energy(features: Tensor, real: Tensor) -> Tensor:
    """2·E‖f − r‖ − E‖f − f′‖ of features (B, F), (M, F), over pairs of different ones."""
    count = len(features)
    among = torch.cdist(features, features).sum() / (count * (count - 1))
    return 2 * torch.cdist(features, real).mean() - among


def _apart(features: Tensor, others: Tensor) -> Tensor:
    """Mean distance of rows (B, F) from theirs."""
    return (features - others).square().sum(1).clamp(min=1e-12).sqrt().mean()


def _times(theta: Tensor, ground: Ground, ends: Tensor) -> Tensor:
    """(K,) times from free parameters (K,)."""
    share = torch.cumsum(torch.softmax(theta, 0), 0)[:-1]
    later = ground.scale.time_of(ends[0] + (ends[1] - ends[0]) * share)
    return torch.cat((theta.new_full((1,), ground.t_start), later))


def search(
    nfe: int, ground: Ground, seed: int, effort: float = 1.0, teacher: float = TEACHER_WEIGHT
) -> Found:
    """Return the schedule whose results are near their teachers' and, together, near the real images."""
    if nfe == 1:
        return Found([ground.t_start], 0.0)
    steps, training = at_effort(STEPS, effort), at_effort(NUM_TRAINING, effort)
    fine = torch.linspace(ground.t_start, ground.t_end, TEACHER_POINTS, dtype=torch.float64)
    with torch.no_grad():
        wanted = ground.features(ground.draw(fine, range(training))) if teacher else None
    real = ground.real_features(2 * NUM_REAL)
    typical = torch.cdist(real[::2], real[1::2]).median()
    even = torch.linspace(ground.t_start, ground.t_end, nfe, dtype=torch.float64)
    lams = ground.scale.lam(torch.cat((even, even.new_zeros(1))))
    theta = lams.diff().log().requires_grad_()
    ends = lams[[0, -1]]
    optimizer = torch.optim.Adam([theta], LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    trace = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        images = torch.randint(training, (BATCH,), generator=generator)
        against = real[torch.randint(len(real), (NUM_REAL,), generator=generator)]
        features = ground.features(ground.draw(_times(theta, ground, ends), images.tolist()))
        astray = 0.0 if wanted is None else _apart(features, wanted[images])
        loss = (teacher * astray + energy(features, against)) / typical
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trace.append(float(loss.detach()))
    with torch.no_grad():
        times = _times(theta, ground, ends)
    last = trace[-max(1, steps // 6) :]
    return Found(times.tolist(), sum(last) / len(last), trace=tuple(trace))
