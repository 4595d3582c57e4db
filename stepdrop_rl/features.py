"""A projection of the network's pooled middle features, for observations: principal components, scaled.

Shapes: F₀ = channels of the middle block; F = components kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.philox import Role
from stepdrop_rl.diffusion import q_sample
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.teacher import TeacherBank

_PER_TIME = 256
_NUM_TIMES = 8


def feature_projection(
    denoiser: Denoiser, bank: TeacherBank, times: Tensor, num: int
) -> tuple[Tensor, Tensor]:
    """Return (F₀, F) matrix and (F₀,) mean: the ``num`` components of largest variance, each of deviation 1.

    Fitted on the teacher's images noised to times all over the grid.
    """
    from envs.philox import Stream, normal

    device = denoiser.schedule.device
    count = min(_PER_TIME, len(bank.teacher))
    images = torch.arange(count, device=device)
    chosen = torch.linspace(0, len(times) - 1, _NUM_TIMES).round().long()
    pooled = []
    for t in times[chosen.to(times.device)].to(device):
        at = t.expand(count)
        eps = normal(
            denoiser.shape, seed=bank.seed, role=Role.VALIDATION, stream=Stream.SUBSET, image=images, time=at
        )
        with torch.no_grad():
            _, middle = denoiser(
                q_sample(denoiser.schedule, bank.teacher[:count].to(device), at, eps), at, features=True
            )
        assert middle is not None
        pooled.append(middle)
    table = torch.cat(pooled)
    mean = table.mean(0)
    _, singular, basis = torch.linalg.svd(table - mean, full_matrices=False)
    deviation = singular[:num] / (len(table) - 1) ** 0.5
    return (basis[:num] / deviation.clamp(min=1e-6).unsqueeze(1)).T.contiguous(), mean
