"""What an image costs: floating-point operations, memory, time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_MIB = 2**20


class Latency(NamedTuple):
    """Milliseconds of a call: median and 95th percentile."""

    p50: float
    p95: float


@torch.no_grad()
def gflops_per_call(module: nn.Module | Callable[..., Any], *inputs: Any) -> float:
    """10^9 floating-point operations of one call, per image of the first input's batch.

    FLOPs, not MACs: a multiplication and its addition count as 2. Matrix products, convolutions and attention
    are counted; elementwise work, a few per cent of a U-Net, is not.
    """
    counter = FlopCounterMode(display=False)
    # Fused attention kernels are not all known to the counter; spelt out as matrix products they are.
    with sdpa_kernel(SDPBackend.MATH), counter:
        module(*inputs)
    return counter.get_total_flops() / len(inputs[0]) / 1e9


def reset_peak_memory(device: torch.device | str) -> None:
    """Start a new measurement on CUDA; a process's own peak cannot be reset."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device | str) -> float:
    """MiB at the peak: of CUDA tensors since the last reset, else of the process's memory in its life."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024  # bytes there, KiB elsewhere


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0..100), linear between neighbours."""
    return float(torch.quantile(torch.tensor(values, dtype=torch.float64), q / 100))


def latency(
    call: Callable[[], Any], *, device: torch.device | str = "cpu", repeats: int = 20, warmup: int = 3
) -> Latency:
    """Time ``call`` after ``warmup`` untimed calls; on CUDA each call is waited for."""
    on_cuda = torch.device(device).type == "cuda"
    milliseconds = []
    for number in range(warmup + repeats):
        began = time.perf_counter()
        call()
        if on_cuda:
            torch.cuda.synchronize(device)
        if number >= warmup:
            milliseconds.append(1000 * (time.perf_counter() - began))
    return Latency(percentile(milliseconds, 50), percentile(milliseconds, 95))
