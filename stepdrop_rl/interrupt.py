"""Stopping in good order: Ctrl-C, SIGTERM and ``--max-minutes`` end a run at its next step boundary.

And a worker process ends with the one that started it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from types import FrameType, TracebackType


class StopRequest:
    """A flag that a training loop looks at between steps. A second Ctrl-C ends at once."""

    def __init__(self, max_minutes: float | None = None) -> None:
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.reason: str | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        print(f"\n{self.reason}: finishing this step and saving (again to end at once)", file=sys.stderr)

    def __bool__(self) -> bool:
        """Whether to stop now."""
        if self.reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = "time limit"
        return self.reason is not None


def end_with_parent() -> None:
    """In a worker process: end at once when the process that started this one has ended, however it did.

    A signal that kills a parent runs none of its clean-up, so it is the worker that watches.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def one_worker() -> ProcessPoolExecutor:
    """A fresh process for one piece of work, which does not outlive this one."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent)
