"""What the decision problem needs from outside: a reverse process and a quality score.

Rows are slots of a batch; each row holds one sample at its own time. Shapes: R = rows asked for;
``rows`` (R,) int64; times (R,) float64; images (R, C, H, W) float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """What the last evaluations showed of each sample, all (R,) float32 but ``features``.

    Args:
        eps_rms: Root mean square of the predicted noise (about 1 where the model is sure of its ground).
        x0_change: Root mean square change of x0_hat between the last two evaluations; 0 after the first.
        lam_change: Change of half log-SNR between them; 0 after the first.
        clipped: Share of x0_hat's pixels that left [−1, 1] before clipping.
        features: (R, F) projected middle features of the network; F may be 0.
    """

    eps_rms: Tensor
    x0_change: Tensor
    lam_change: Tensor
    clipped: Tensor
    features: Tensor


class ReverseProcess(Protocol):
    """The reverse diffusion of a batch, for any subset of its rows, each at its own time."""

    num_rows: int
    num_features: int

    def lam(self, t: Tensor) -> Tensor:
        """Half log-SNR at real times."""

    def log_alpha(self, t: Tensor) -> Tensor:
        """log √ᾱ at real times."""

    def start(self, rows: Tensor, images: Tensor, t: Tensor) -> None:
        """Put fresh noise of these images (ids) into the rows, at times ``t``, not yet evaluated."""

    def evaluate(self, rows: Tensor, t: Tensor, orders: Tensor | None = None) -> None:
        """Jump each row from its anchor to ``t``, call the network there, and make that its anchor.

        ``orders`` (R,): evaluations that the jump looks back on at most; None: as many as the solver does.
        """

    def jump(self, rows: Tensor, s: Tensor) -> Tensor:
        """Return the rows' images at times ``s``; changes nothing. Differentiable."""

    def x0(self, rows: Tensor) -> Tensor:
        """The rows' current clean estimates."""

    def evidence(self, rows: Tensor) -> Evidence:
        """What the last evaluations showed of these rows."""


class DifferentiableTrajectories(Protocol):
    """Trajectories of a batch; all that is told of them is differentiable in what led there.

    They begin with an evaluation.
    """

    @property
    def lam_anchor(self) -> Tensor:
        """Half log-SNR of the rows' last evaluations, (R,) float64."""

    @property
    def nfe(self) -> Tensor:
        """Evaluations so far, (R,) float64."""

    def x0(self) -> Tensor:
        """The rows' current clean estimates."""

    def evidence(self) -> Evidence:
        """What the last evaluations showed."""


class GatedTrajectories(DifferentiableTrajectories, Protocol):
    """Trajectories down a grid in which every evaluation has a weight, its gate, in [0, 1].

    Gates of 0 and 1 are the decision problem's skip and evaluate, and bring its results. ``nfe`` is the sum
    of the gates.
    """

    def advance(self, gates: Tensor) -> None:
        """Go on to the next point, where each row evaluates with the weight of its gate, (R,)."""


class TimedTrajectories(DifferentiableTrajectories, Protocol):
    """Trajectories whose evaluation times are real numbers, each row its own.

    Times of a grid bring the results that evaluations at these points bring.
    """

    def advance(self, s: Tensor, order: int | None = None) -> None:
        """Jump to ``s``, (R,), each row below its last time, and evaluate there.

        ``order``: evaluations that the jump looks back on at most; None: as many as the solver does.
        """

    def branch(self) -> TimedTrajectories:
        """Others that begin where these are, and go their own way."""


@runtime_checkable
class DifferentiableProcess(Protocol):
    """A :class:`ReverseProcess` that gradients pass through.

    ``relaxes``: whether gates between 0 and 1 mean anything; where they do not, give whole ones, whose
    gradients are those of relaxed ones (straight through). ``history``: evaluations that a jump looks back
    on, where nobody asks for fewer.
    """

    relaxes: bool
    history: int

    def time_of(self, lam: Tensor) -> Tensor:
        """The times whose half log-SNR is ``lam``; differentiable."""

    def gated(self, images: Tensor, times: Tensor, *, recompute: bool = True) -> GatedTrajectories:
        """Start images (ids, (R,)) down a grid ``times`` (N,), beside the process's own rows.

        ``recompute``: call the network a second time for gradients instead of keeping its activations.
        """

    def timed(self, images: Tensor, t: Tensor, *, recompute: bool = True) -> TimedTrajectories:
        """Start images (ids, (R,)) with an evaluation at ``t`` (R,), beside the process's own rows."""


class QualityScore(Protocol):
    """Says how good a clean estimate is: Φ. Higher is better.

    Within an episode Φ is a fixed function of the sample: of its image and, in some scores, of the
    evaluations that led there. So the reward telescopes.
    """

    def reset(self, seed: int) -> None:
        """Forget everything that earlier episodes taught."""

    def state(self) -> dict[str, Tensor]:
        """What earlier episodes taught."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`."""

    def begin(self, rows: Tensor, images: Tensor, prices: Tensor) -> None:
        """Episodes of these images at these prices begin in these rows."""

    def score(self, rows: Tensor, x0: Tensor, lam: Tensor | None = None) -> Tensor:
        """Φ of each row's clean estimate, (R,) float32, made at half log-SNR ``lam`` (R,)."""

    def end(self, rows: Tensor, x0: Tensor) -> None:
        """These rows' episodes end with these images."""

    @property
    def real(self) -> Tensor:
        """Features of real images, (N, F); none where it does not look at them."""

    @property
    def views(self) -> tuple[int, ...]:
        """How many of the F features are of each network that looks."""

    def features(self, images: Tensor) -> Tensor:
        """What it compares images (R, C, H, W) by, (R, F)."""
