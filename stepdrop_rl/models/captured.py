"""Network calls as CUDA graphs: recorded once per batch shape, replayed with one launch.

A tiny network's kernels are done sooner than a CPU launches them one by one. A graph's shapes are fixed, and
batches are not (samples finish one by one), so a batch is padded to the next of a few sizes: 1, 2, 3, 4, 6,
8, 12, 16 …: a third of it is padding at most. Shapes: R = rows asked for; B >= R = rows of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Output = tuple[Tensor, Tensor | None]
Call = Callable[[Tensor, Tensor, tuple[str, ...]], Output]
Replay = Callable[[], None]
Recorder = Callable[[Callable[[], Output]], tuple[Output, Replay]]

_WARM_UPS = 3  # calls before recording: libraries choose their kernels and their workspaces then


def padded_size(rows: int) -> int:
    """The smallest 2ᵏ or 3·2ᵏ that is not below ``rows``."""
    power = 1 << (rows - 1).bit_length()
    three_quarters = power // 4 * 3
    return three_quarters if three_quarters >= rows else power


@dataclass
class _Recording:
    x: Tensor
    t: Tensor
    output: Output
    replay: Replay


class Captured:
    """A network call that is recorded for every padded batch size and set of features, and then replayed.

    Calls that need gradients are made as they are; so are all calls once one could not be recorded.

    Args:
        call: ``(x (R, C, H, W), t (R,), names of features)`` to output and pooled features.
        record: Makes the recording; the default is a CUDA graph.
    """

    def __init__(self, call: Call, record: Recorder | None = None) -> None:
        self._call = call
        self._record = CudaGraphs() if record is None else record
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._works = True

    def __call__(self, x: Tensor, t: Tensor, features: tuple[str, ...]) -> Output:
        """What ``call`` returns, to within the rounding of another batch size."""
        if not self._works or wants_gradients(x, t):
            return self._call(x, t, features)
        rows, size = len(x), padded_size(len(x))
        key = (size, x.shape[1:], x.dtype, t.dtype, features)
        recording = self._recordings.get(key)
        if recording is None:
            recording = self._new(x, t, features, size)
            if recording is None:
                return self._call(x, t, features)
            self._recordings[key] = recording
        recording.x[:rows] = x
        recording.t[:rows] = t
        recording.replay()
        output, pooled = recording.output
        return output[:rows].clone(), None if pooled is None else pooled[:rows].clone()

    def _new(self, x: Tensor, t: Tensor, features: tuple[str, ...], size: int) -> _Recording | None:
        held_x, held_t = x.new_zeros(size, *x.shape[1:]), t.new_zeros(size)
        try:
            with torch.no_grad():
                output, replay = self._record(lambda: self._call(held_x, held_t, features))
        except RuntimeError as error:
            self._works = False
            warnings.warn(f"network calls are not captured as CUDA graphs: {error}", stacklevel=2)
            return None
        return _Recording(held_x, held_t, output, replay)


def wants_gradients(x: Tensor, t: Tensor) -> bool:
    """Whether a call has to be differentiable: by its images, or by the times that it is told."""
    return torch.is_grad_enabled() and (x.requires_grad or t.requires_grad)


class CudaGraphs:
    """Records calls as CUDA graphs that share one pool of memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Callable[[], Output]) -> tuple[Output, Replay]:
        """Run ``call`` some times beside the main stream, then record it."""
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                call()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = call()
        self._pool = graph.pool()
        return output, graph.replay
