"""A fixed schedule run by a whole batch in step: all weights known before the first call.

What a sample of its own pace needs (a state per row, weights per row) falls away: between two network calls
lie a handful of operations on images. Differentiable in the schedule's times, where they ask for it.
Shapes: B images (B, C, H, W) float32; K times, (K,) float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stepdrop_rl.estimates import Clip, in_range
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.solvers.base import Solver, at_most

Number = float | Tensor  # a tensor of no dimension, where gradients flow through it


class FixedPass:
    """A model, a solver and a schedule.

    Args:
        denoiser: The model.
        solver: The jump.
        times: (K,) descending.
        clip: How clean estimates are kept in range.
        network_times: (K,) what the network is told instead of the times, or None.
        orders: (K,) on how many evaluations jumps to the times look back at most; None: as the solver does.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        times: Tensor,
        *,
        clip: Clip = "static",
        network_times: Tensor | None = None,
        orders: Tensor | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.solver = solver
        self.times = times.double()
        self.told = None if network_times is None else network_times.double()
        self.clip = clip
        schedule = denoiser.schedule
        alpha, sigma = schedule.alpha_sigma(self.times)
        self._alpha, self._sigma = _numbers(alpha), _numbers(sigma)
        self._of_x: list[Number] = []
        self._of_data: list[list[Number]] = []
        self._of_eps: list[list[Number]] = []
        self._of_noise: list[Number] = []
        if len(times) > 1:
            # Jump k starts at time k; the evaluations that lie behind it are k, k − 1, …
            jumps = torch.arange(len(times) - 1, device=times.device)
            behind = jumps.unsqueeze(1) - torch.arange(solver.history, device=times.device)
            count = at_most(jumps + 1, None if orders is None else orders[1:])
            w = solver.weights(schedule, self.times[behind.clamp(min=0)], count, self.times[1:])
            self._of_x = _numbers(w.x)
            self._of_data = [] if w.data is None else [_numbers(row) for row in w.data]
            self._of_eps = [] if w.eps is None else [_numbers(row) for row in w.eps]
            self._of_noise = [] if w.noise is None else _numbers(w.noise)

    def run(self, x: Tensor, noise: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Clean estimates (B, C, H, W) after each of the K network calls; the last ones are the results.

        Args:
            x: Noise, at the first time.
            noise: Of the jump to a time (B,), for stochastic solvers.
        """
        data: list[Tensor] = []
        eps: list[Tensor] = []
        for k, t in enumerate(self.times):
            at = t.expand(len(x))
            if k:
                x = self._jump(k - 1, x, data, eps, noise, at)
            told = None if self.told is None else self.told[k].expand(len(x))
            predicted, _ = self.denoiser(x, at, told=told)
            raw = _times(_plus(x, -self._sigma[k], predicted), 1 / self._alpha[k])
            x0 = in_range(raw, self.clip)
            data = [x0, *data][: self.solver.history]
            if self.solver.needs_eps:
                own = _times(_plus(x, -self._alpha[k], x0), 1 / self._sigma[k])
                eps = [own, *eps][: self.solver.history]
            yield x0

    def _jump(
        self,
        k: int,
        x: Tensor,
        data: list[Tensor],
        eps: list[Tensor],
        noise: Callable[[Tensor], Tensor],
        to: Tensor,
    ) -> Tensor:
        """From time k to the next, by what was seen."""
        x = _times(x, self._of_x[k])
        for weights, seen in ((self._of_data, data), (self._of_eps, eps)):
            if weights:
                for weight, image in zip(weights[k], seen, strict=False):
                    x = _plus(x, weight, image)
        return _plus(x, self._of_noise[k], noise(to)) if self._of_noise else x


def _numbers(values: Tensor) -> list[Number]:
    """The values, as plain numbers (one look at the device for all of them) unless gradients flow."""
    return list(values.unbind()) if values.requires_grad else values.tolist()


def _times(images: Tensor, number: Number) -> Tensor:
    return images * (number if isinstance(number, float) else number.to(images.dtype))


def _plus(images: Tensor, weight: Number, other: Tensor) -> Tensor:
    """images + weight·other."""
    if isinstance(weight, float):
        return torch.add(images, other, alpha=weight)
    return images + weight.to(images.dtype) * other
