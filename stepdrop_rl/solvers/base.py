"""What a solver is: one jump, from a sample's anchor at time t to any s < t, each sample at its own.

Every jump is linear in what was seen, so a solver is its weights:

    x_s = w_x·x_t + Σ_k w_k·x0_hat_k + Σ_k v_k·eps_k + w_z·z,    k over the last evaluations, newest first.

The data-prediction form (Lu et al. 2022, DPM-Solver++, eq. 8) carries the deterministic family:

    x_s = (σ_s/σ_t)·x_t − α_s·(e^{−h} − 1)·D,   h = lam_s − lam_t,

where D is x0_hat (order 1: DDIM) or its extrapolation through the sample's own history.
Shapes: B = samples; K = evaluations looked back on; images (B, C, H, W) float32; times and weights (B,) or
(B, K) float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stepdrop_rl.diffusion import NoiseSchedule, image_scale


@dataclass(frozen=True)
class Anchor:
    """Where samples were last evaluated, and what was seen there.

    Args:
        x: Noisy images x_t, (B, C, H, W).
        x0: Clean estimates of the last evaluations, newest first, (B, K, C, H, W).
        times: Times of those evaluations, newest first, (B, K).
        count: How many of the K are filled, (B,).
        eps: Noise estimates of the last evaluations, like ``x0``; None for solvers that do not need them.
    """

    x: Tensor
    x0: Tensor
    times: Tensor
    count: Tensor
    eps: Tensor | None = None


@dataclass(frozen=True)
class Weights:
    """What a jump takes of everything: ``x``, ``noise`` (B,), ``data``, ``eps`` (B, K); None for nothing.

    The weight of an evaluation that a sample does not have yet is 0.
    """

    x: Tensor
    data: Tensor | None = None
    eps: Tensor | None = None
    noise: Tensor | None = None


class Solver(ABC):
    """A jump rule.

    ``order`` is the global order that the tests measure, of the default without noise (None: none declared);
    ``history`` is K, how many evaluations it looks back on; ``stochastic`` tells whether it needs noise,
    ``needs_eps`` whether it extrapolates eps, not x0_hat.
    """

    order: ClassVar[int | None]
    history: ClassVar[int]
    needs_eps: ClassVar[bool] = False
    stochastic: bool = False

    @abstractmethod
    def weights(self, schedule: NoiseSchedule, times: Tensor, count: Tensor, s: Tensor) -> Weights:
        """The weights of jumps to ``s`` (B,), ``0 <= s < t``, differentiable in all times.

        Args:
            schedule: The noise schedule.
            times: (B, K) of the last evaluations, newest first; ``times[:, 0]`` is t.
            count: (B,) how many of the K are filled; the others' times are any.
            s: Never the clean image: that jump is the clean estimate itself.
        """

    def jump(self, schedule: NoiseSchedule, anchor: Anchor, s: Tensor, noise: Tensor | None) -> Tensor:
        """Return x_s, (B, C, H, W); ``noise`` where the solver is stochastic."""
        w = self.weights(schedule, anchor.times[:, : self.history], anchor.count, s)
        x = anchor.x
        result = image_scale(w.x, x) * x
        for shares, seen in ((w.data, anchor.x0), (w.eps, anchor.eps)):
            if shares is not None:
                assert seen is not None
                for k in range(shares.shape[1]):
                    result = torch.addcmul(result, image_scale(shares[:, k], x), seen[:, k])
        if w.noise is not None:
            assert noise is not None
            result = torch.addcmul(result, image_scale(w.noise, x), noise)
        return result


def at_most(count: Tensor, orders: Tensor | int | None) -> Tensor:
    """How many evaluations jumps look back on, (B,), of ``count`` (B,) that there are: ``orders`` at most.

    A multistep solver that looks back on k evaluations has order k, so this is how its order is chosen.
    """
    return count if orders is None else torch.clamp(count, max=torch.as_tensor(orders, device=count.device))


def data_weights(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Of x_t and of D in the data-prediction form, (B,)."""
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    _, sigma_t = schedule.alpha_sigma(t)
    h = schedule.lam(s) - schedule.lam(t)
    return sigma_s / sigma_t, -alpha_s * torch.expm1(-h)


def data_jump(schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor, data: Tensor) -> Tensor:
    """x_s by the data-prediction form, exact where the denoiser's x0_hat stays ``data`` all the way."""
    of_x, of_data = data_weights(schedule, t, s)
    return torch.addcmul(image_scale(of_x, x) * x, image_scale(of_data, x), data)
