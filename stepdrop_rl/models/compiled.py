"""Network calls compiled for a CPU: what lies between convolutions is joined into few kernels.

Compilation takes up to a minute for each set of features, some seconds where torch has kept it from an
earlier run, and needs a C++ compiler. One compiled call serves batches of all sizes from :data:`FEWEST` up.
In bfloat16, joined kernels keep in float32 what single ones round in between.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
from torch import Tensor

from stepdrop_rl.models.captured import Call, Output, wants_gradients

FEWEST = 64  # rows: torch makes other kernels for fewer, and the engine's last few rounds are not worth them


class Compiled:
    """A network call that is compiled when it is first made with enough rows.

    Calls that need gradients, or have few rows, are made as they are; so are those of all of them once
    compilation has failed anywhere.

    Args:
        call: ``(x (R, C, H, W), t (R,), names of features)`` to output and pooled features.
        backend: What torch compiles with.
    """

    works = True  # until it has failed: no second attempt would do better

    def __init__(self, call: Call, backend: str = "inductor") -> None:
        self._call = call
        self._backend = backend
        self._compiled: Call | None = None
        self._known: set[tuple[str, ...]] = set()

    def __call__(self, x: Tensor, t: Tensor, features: tuple[str, ...]) -> Output:
        """What ``call`` returns, to within the rounding of joined kernels."""
        if not Compiled.works or len(x) < FEWEST or wants_gradients(x, t):
            return self._call(x, t, features)
        try:
            return self._made(x.contiguous(), t.float().contiguous(), features)
        except Exception as error:  # of many kinds, and each leaves the call as it was
            Compiled.works = False
            reason = str(error).strip().partition("\n")[0][:200]
            warnings.warn(
                f"network calls are not compiled: {reason} (it needs a C++ compiler, such as g++)",
                stacklevel=2,
            )
            return self._call(x, t, features)

    @torch.no_grad()
    def _made(self, x: Tensor, t: Tensor, features: tuple[str, ...]) -> Output:
        if self._compiled is None:
            self._compiled = torch.compile(self._call, backend=self._backend)
        for rows in (x, t):
            torch._dynamo.maybe_mark_dynamic(rows, 0)
        if features in self._known:
            return self._compiled(x, t, features)
        with _quiet("torch.utils.cpp_extension"):
            found: Output = self._compiled(x, t, features)
        self._known.add(features)
        return found


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No warnings of one logger: where torch was built for CUDA, it tells a CPU that there is none."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
