"""Stopping in good order: Ctrl-C, SIGTERM and ``--max-minutes`` end a run at its next step boundary.

And worker processes end with the one that started them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from types import FrameType, TracebackType
from typing import Any


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


class Workers(ProcessPoolExecutor):
    """Fresh processes for pieces of work, which do not outlive this one.

    Ctrl-C in a terminal reaches only this process, which :meth:`ask_to_stop` passes on in good order. Left
    with an exception, they are ended at once.

    Args:
        count: How many.
        begin: What each does first, with ``args``.
        args: Of ``begin``.
    """

    def __init__(
        self, count: int = 1, begin: Callable[..., None] | None = None, args: tuple[Any, ...] = ()
    ) -> None:
        context = multiprocessing.get_context("spawn")
        super().__init__(count, mp_context=context, initializer=_begin, initargs=(begin, args))

    def ask_to_stop(self) -> None:
        """SIGTERM to each: a training ends at its next step boundary (:class:`StopRequest`)."""
        for process in multiprocessing.active_children():
            process.terminate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in multiprocessing.active_children():
                process.kill()
        self.shutdown(wait=kind is None, cancel_futures=True)


def _begin(begin: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    """In a worker process: out of the terminal's reach, and ended when the process that started it has ended.

    A signal that kills a parent runs none of its clean-up, so it is the worker that watches.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # idle, it has nothing to end

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin(*args)
