"""A denoiser whose eps is multiplied by a function of time: a control, not a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from stepdrop_rl.diffusion import image_scale
from stepdrop_rl.models.denoiser import Denoiser


class ScaledDenoiser:
    """A :class:`~stepdrop_rl.models.denoiser.Denoiser` that says scale(t) · eps.

    Args:
        inner: The denoiser.
        scale: Times (B,) to factors (B,).
    """

    def __init__(self, inner: Denoiser, scale: Callable[[Tensor], Tensor]) -> None:
        self.inner = inner
        self.scale = scale
        self.schedule = inner.schedule
        self.shape = inner.shape
        self.feature_widths = inner.feature_widths

    def __call__(
        self, x: Tensor, t: Tensor, *, features: Sequence[str] = (), told: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return scale(t) · eps (and pooled features) of ``x`` at ``t``."""
        eps, pooled = self.inner(x, t, features=features, told=told)
        return image_scale(self.scale(t), eps) * eps, pooled
