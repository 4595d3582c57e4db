"""Who does a study's jobs: this process, one after the other, or several, which share its threads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from envs.errors import UserError
from stepdrop_rl.interrupt import StopRequest, Workers
from stepdrop_rl.studies.plan import needs

if TYPE_CHECKING:
    from stepdrop_rl.config import StudyConfig
    from stepdrop_rl.studies.plan import Job
    from stepdrop_rl.studies.work import Workshop

LOG = "workers.log"  # what several processes print


def work(config: StudyConfig, shop: Workshop, todo: Sequence[Job]) -> int:
    """Do the jobs that are not done; how many are left when time is up or a signal came."""
    began = time.monotonic()

    def say(job: Job) -> None:
        print(f"[{todo.index(job) + 1}/{len(todo)}] {job.label}", file=sys.stderr, flush=True)

    with StopRequest(None) as stop:

        def over() -> bool:
            late = config.max_minutes is not None and time.monotonic() - began > 60 * config.max_minutes
            return late or bool(stop)

        if config.workers == 1:
            _alone(shop, todo, over, say)
        else:
            _together(config, shop, todo, over, say, stop)
    return sum(not shop.done(job) for job in todo)


def _alone(shop: Workshop, todo: Sequence[Job], over: Callable[[], bool], say: Callable[[Job], None]) -> None:
    for job in todo:
        if over():
            return
        if shop.done(job):
            continue
        say(job)
        shop.do(job)
        if not shop.done(job):  # a training that was asked to stop
            return


def _together(
    config: StudyConfig,
    shop: Workshop,
    todo: Sequence[Job],
    over: Callable[[], bool],
    say: Callable[[Job], None],
    stop: StopRequest,
) -> None:
    """A job begins when those that it needs are done; the first of them that is ready goes first."""
    import torch

    threads = max(torch.get_num_threads() // config.workers, 1)
    waiting = list(todo)
    running: dict[Future[None], Job] = {}
    with Workers(config.workers, _begin, (config, shop.root, threads)) as crew:
        told = False
        while running or (waiting and not over()):
            for job in list(waiting):
                if over() or len(running) == config.workers:
                    break
                if not {*waiting, *running.values()}.isdisjoint(needs(config, job)):
                    continue
                waiting.remove(job)
                if not shop.done(job):  # told only now: it may rest on what has just been done again
                    say(job)
                    running[crew.submit(_do, job)] = job
            if stop and not told:
                crew.ask_to_stop()  # a training stops at its next step, all else is finished
                told = True
            for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                try:
                    future.result()
                except BrokenProcessPool:
                    raise UserError(
                        f"a worker was killed (memory?): see {shop.root / LOG}; the same command goes on"
                    ) from None
                if not shop.done(running.pop(future)):  # a training that was asked to stop
                    waiting.clear()


_shop: Workshop | None = None  # of a worker process


def _begin(config: StudyConfig, root: Path, threads: int) -> None:
    """In a worker: its own workshop; what it prints goes to the study's log."""
    global _shop
    import torch

    from stepdrop_rl.studies.work import Workshop

    root.mkdir(parents=True, exist_ok=True)
    with (root / LOG).open("ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    _shop = Workshop(config, root)


def _do(job: Job) -> None:
    assert _shop is not None
    with StopRequest(None):
        _shop.do(job)
