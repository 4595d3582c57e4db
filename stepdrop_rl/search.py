"""``python -m stepdrop_rl.search``: find the times of a fixed schedule, or a mixture of several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import SearchConfig

if TYPE_CHECKING:
    from agents.search.base import Found


def run(config: SearchConfig) -> None:
    """Search, write the schedule, say what it cost."""
    import time
    from dataclasses import asdict

    import torch

    from agents.search import ORDER_1, make_search, read_search
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.models.unet import load_model
    from stepdrop_rl.runs import run_folder
    from stepdrop_rl.search_ground import ModelGround
    from stepdrop_rl.solvers import make_solver, require_lower
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import require_writable, write_json

    method = make_search(config.method)
    order = read_search(config.method).order
    solver = make_solver(config.solver)
    require_lower(order, solver, config.solver)
    device = resolve_device(config.device)
    model = load_model(
        config.model or config.data.name,
        device,
        precision=config.precision,
        dataset=config.data.name,
        compiled=config.compile,
    )
    name = f"{config.method}-{config.solver}-{config.nfe}".replace(":", "-")
    path = (
        Path(config.output) if config.output else run_folder(model.info.dataset, "schedules") / f"{name}.json"
    )
    require_writable(path.parent)  # said now, not after the search
    ground = ModelGround(
        model, solver, config.data, clip=config.clip, extractor=config.extractor, order=order
    )
    with start_run(
        f"search-{name}", mode=config.tracking, config=asdict(config), tags={"command": "search"}
    ) as tracker:
        began = time.monotonic()
        found = method(config.nfe, ground, config.seed)
        seconds = time.monotonic() - began
        for times in [found.times, *(times for _, times in found.components), *found.per_image]:
            model.denoiser.schedule.check_times(torch.tensor(times, dtype=torch.float64))
        schedule = _times_record(found, name, config.solver, order) | {
            "method": config.method,
            "model_hash": model.hash,
            "clip": config.clip,
            "extractor": config.extractor,
            "objective": found.objective,
            "evaluations": ground.evaluations,
            "seed": config.seed,
        }
        told = {"evaluations": float(ground.evaluations), "seconds": seconds}
        if found.shared is not None:
            schedule["objective_shared"] = told["objective_shared"] = found.shared
        write_json(path, schedule)
        for step, value in enumerate(found.trace):
            tracker.log_metrics({"objective": value}, step)
        tracker.log_metrics({"objective": found.objective, **told}, len(found.trace))
        tracker.log_artifact(path)
        where = tracker.where()
    if config.json is not None:
        write_json(config.json, schedule | {"output": str(path)})
    if found.components:
        print(f"{path}:")
        for chance, times in sorted(found.components, reverse=True):
            print(f"  {chance:6.1%}  {', '.join(f'{t:.1f}' for t in times)}")
    elif found.per_image:
        print(f"{path}: a schedule for each of {len(found.per_image):,} training noises")
    else:
        print(f"{path}: {', '.join(f'{t:.1f}' for t in found.times)}")
    if found.shared is not None:
        print(
            f"the bound on looking: {found.objective:.6g}, each noise by its own schedule, against "
            f"{found.shared:.6g}, all of them by the one of oss"
        )
    if read_search(config.method)[0] in ORDER_1 and config.solver != "ddim":
        print(f"found with order-1 jumps, for {config.solver} too")
    print(f"objective {found.objective:.6g}; {ground.evaluations:,} network evaluations in {seconds:.0f} s")
    if where:
        print(where)


def _times_record(found: Found, name: str, solver: str, order: int | None) -> dict[str, Any]:
    """The schedule's or the mixture's own part of the file."""
    from agents.fixed import SCHEDULE_SCHEMA
    from agents.planned import Mixture, Oracle, mixture_record, oracle_record

    if found.per_image:
        return oracle_record(Oracle(name, found.per_image, solver))
    if found.components:
        weights, schedules = zip(*found.components, strict=True)
        return mixture_record(Mixture(name, schedules, weights, solver))
    record: dict[str, Any] = {"schema": SCHEDULE_SCHEMA, "solver": solver, "times": found.times}
    if found.network_times is not None:
        record["network_times"] = found.network_times
    if order is not None:
        record["orders"] = [order] * len(found.times)
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(SearchConfig, run, "search", argv)


if __name__ == "__main__":
    sys.exit(main())
