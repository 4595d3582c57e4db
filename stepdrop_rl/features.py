"""What observations show of the network's own features: which of them, and projected how.

``principal``: the components of largest variance; ``random``: Gaussian directions (nothing is fitted but the
scale: what any projection would show); ``encoder``: all of them, each scaled, so that the policy network's
first layer learns the projection. All numbers have deviation 1 over the grid.

Shapes: F₀ = features asked for; F = numbers shown; M = images and times the scales are fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from envs.errors import UserError
from envs.observation import Projection
from envs.philox import Role, Stream, normal
from envs.registry import unknown_name
from stepdrop_rl.diffusion import q_sample
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.teacher import TeacherBank

ProjectionKind = Literal["principal", "random", "encoder"]

_PER_TIME = 256
_NUM_TIMES = 8
_SMALLEST = 1e-6  # deviation of a feature that says something


def check_features(widths: Mapping[str, int], names: Sequence[str], num: int) -> int:
    """Return F₀ of these features; :class:`UserError` where the model has not them, or fewer than ``num``."""
    for name in names:
        if name not in widths:
            raise unknown_name("feature of this model", name, widths)
    total = sum(widths[name] for name in names)
    if num > total:
        raise UserError(
            f"env.num_features is {num}, the model's features ({' + '.join(names)}) have {total} channels"
        )
    return total


def fit_projection(
    denoiser: Denoiser,
    bank: TeacherBank,
    times: Tensor,
    *,
    features: tuple[str, ...],
    kind: ProjectionKind,
    num: int,
) -> Projection:
    """Fit a projection to ``num`` numbers (``encoder``: all) on teacher images noised all over the grid.

    A function of its arguments alone: random directions come from the bank's seed.
    """
    table = _table(denoiser, bank, times, features)
    mean = table.mean(0)
    if kind == "principal":
        _, singular, basis = torch.linalg.svd(table - mean, full_matrices=False)
        deviation = singular[:num] / (len(table) - 1) ** 0.5
        matrix = (basis[:num] / deviation.clamp(min=_SMALLEST).unsqueeze(1)).T.contiguous()
        return Projection(matrix, mean, features)
    # Features whose deviation is 0 are not blown up to 1.
    unit = torch.diag(1 / table.std(0).clamp(min=_SMALLEST))
    if kind == "encoder":
        return Projection(unit, mean, features)
    generator = torch.Generator().manual_seed(bank.seed)
    directions = unit @ torch.randn(len(mean), num, generator=generator).to(unit)
    deviation = ((table - mean) @ directions).std(0)
    return Projection(directions / deviation.clamp(min=_SMALLEST), mean, features)


def _table(denoiser: Denoiser, bank: TeacherBank, times: Tensor, features: Sequence[str]) -> Tensor:
    """(M, F₀) pooled features."""
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
            _, seen = denoiser(
                q_sample(denoiser.schedule, bank.teacher[:count].to(device), at, eps), at, features=features
            )
        assert seen is not None
        pooled.append(seen)
    return torch.cat(pooled)
