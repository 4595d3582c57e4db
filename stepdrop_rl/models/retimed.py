"""A denoiser whose network is told other times than the images': what LD3 learns beside the schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepdrop_rl.models.denoiser import Denoiser


class RetimedDenoiser:
    """A :class:`~stepdrop_rl.models.denoiser.Denoiser` for the times of one schedule.

    Args:
        inner: The denoiser.
        times: (K,) the schedule's times, descending.
        network_times: (K,) what the network is told instead.
    """

    def __init__(self, inner: Denoiser, times: Tensor, network_times: Tensor) -> None:
        self.inner = inner
        self.schedule = inner.schedule
        self.shape = inner.shape
        self.feature_widths = inner.feature_widths
        self._rising = times.double().flip(0).to(inner.schedule.device)
        self._told = network_times.double().flip(0).to(inner.schedule.device)

    def __call__(
        self, x: Tensor, t: Tensor, *, features: Sequence[str] = (), told: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return eps of ``x`` at ``t``, which is one of the schedule's times."""
        if told is None:
            place = torch.searchsorted(self._rising, t.double().contiguous()).clamp(max=len(self._rising) - 1)
            told = self._told[place]
        return self.inner(x, t, features=features, told=told)
