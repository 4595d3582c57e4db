"""Network calls compiled for a CPU: what lies between convolutions is joined into few kernels.

Compilation takes half a minute for each set of features, a quarter of that where torch has kept it from an
earlier run, and needs a C++ compiler. One compiled call serves batches of all sizes from :data:`FEWEST` up.
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor

from stepdrop_rl.models.captured import Call, Output

FEWEST = 64  # rows: torch makes other kernels for fewer, and the engine's last few rounds are not worth them


class Compiled:
    """A network call that is compiled when it is first made with enough rows.

    Calls that need gradients, or have few rows, are made as they are; so are all calls once compilation has
    failed.

    Args:
        call: ``(x (R, C, H, W), t (R,), names of features)`` to output and pooled features.
        backend: What torch compiles with.
    """

    def __init__(self, call: Call, backend: str = "inductor") -> None:
        self._call = call
        # It looks for CUDA, and warns where torch was built for it and there is none.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        self._compiled: Call = torch.compile(call, backend=backend)
        self._works = True

    def __call__(self, x: Tensor, t: Tensor, features: tuple[str, ...]) -> Output:
        """What ``call`` returns, to within the rounding of joined kernels."""
        if not self._works or len(x) < FEWEST or (torch.is_grad_enabled() and x.requires_grad):
            return self._call(x, t, features)
        x, t = x.contiguous(), t.contiguous()
        for rows in (x, t):
            torch._dynamo.maybe_mark_dynamic(rows, 0)
        try:
            with torch.no_grad():
                return self._compiled(x, t, features)
        except Exception as error:  # of many kinds, and each leaves the call as it was
            self._works = False
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"network calls are not compiled: {reason}", stacklevel=2)
            return self._call(x, t, features)
