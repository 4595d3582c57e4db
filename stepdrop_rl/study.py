"""``python -m stepdrop_rl.study``: learned policies against every rival, with their controls."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import StudyConfig

if TYPE_CHECKING:
    from stepdrop_rl.studies.plan import Job
    from stepdrop_rl.studies.verdict import Claim, Study
    from stepdrop_rl.studies.work import Workshop
    from stepdrop_rl.tracking import Run


def run(config: StudyConfig) -> None:
    """Do what is not done yet, then tell what all results say."""
    from dataclasses import asdict

    from stepdrop_rl.runs import run_folder
    from stepdrop_rl.studies.crew import work
    from stepdrop_rl.studies.plan import jobs
    from stepdrop_rl.studies.report import write_report
    from stepdrop_rl.studies.work import Workshop
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import require_writable, write_json

    _check(config)
    root = Path(config.output) if config.output else run_folder(config.data.name, "study")
    shop = Workshop(config, root)
    todo = jobs(config)
    shop.require_made(todo)
    if config.plan:
        print(_plan(config, shop, todo))
        return
    shop.require_same_settings(todo)
    require_writable(root)
    folder = require_writable(Path(config.report) if config.report else root)
    tags = {"command": "study"}
    with start_run(
        f"study-{config.data.name}", mode=config.tracking, config=asdict(config), tags=tags
    ) as run:
        left = work(config, shop, todo)
        study = _study(config, shop, todo)
        if study.entries:
            _log(config, run, study)
            page = write_report(study, folder)
            for file in (page, page.with_suffix(".md")):
                run.log_artifact(file)
        where = run.where()
    print(_summary(study))
    if study.entries:
        print(f"report: {page}")
    if left:
        print(f"{left} of {len(todo)} jobs are left: the same command goes on")
    if config.json is not None:
        write_json(config.json, _record(study))
    if where:
        print(where)


def _check(config: StudyConfig) -> None:
    """Names are checked before anything is loaded."""
    from agents import ALGORITHMS, BASELINES
    from agents.fixed import whole
    from agents.search import ORACLES, read_search
    from envs.errors import UserError
    from envs.registry import unknown_name
    from stepdrop_rl.arena import TUNED, check_baseline
    from stepdrop_rl.solvers import make_solver, require_lower
    from stepdrop_rl.studies.plan import FULL, baselines_of, jobs, training_of

    solvers = {name: make_solver(name) for name in config.solvers}
    for name, entry in config.policies.items():
        ALGORITHMS[entry.get("algo", name)]
    for name in config.searches:
        reference = read_search(name)
        if reference.method in ORACLES:
            raise UserError(
                f"{name} finds schedules of training noises: experts to clone, no rivals to judge"
            )
        for called, solver in solvers.items():
            require_lower(reference.order, solver, called)
    for name, plan in baselines_of(config).items():
        if plan is None:
            check_baseline(name)
            BASELINES[name.removesuffix(TUNED)]
        elif whole(plan.nfe) not in config.nfe:
            raise UserError(
                f"{name} spends {plan.nfe:g} evaluations, which is none of the budgets {config.nfe}"
            )
        elif plan.solver not in (None, *config.solvers):
            raise UserError(f"{name} was made for solver '{plan.solver}', which the study does not have")
    for name in config.blind:
        if name not in config.policies and name not in config.searches:
            raise unknown_name("blind contender", name, [*config.policies, *config.searches])
    known = [FULL, *config.policies, *config.searches, *baselines_of(config)]
    for name in config.only:
        if name not in known:
            raise unknown_name("contender", name, known)
    root, taken = Path(config.output or "."), dict[Path, str]()
    for job in jobs(config):
        path = job.path(root)
        if path in taken:
            raise UserError(f"'{job.label}' and '{taken[path]}' would share {path}: rename one of them")
        taken[path] = job.label
        if job.kind == "train":
            training = training_of(config, job, root)
            require = getattr(ALGORITHMS.load(training.algo), "require", None)
            if require is not None:  # SB3's algorithms know what they take when they are made
                require(training.hyperparameters)


def _plan(config: StudyConfig, shop: Workshop, todo: Sequence[Job]) -> str:
    """What is to be done and what it will cost, at the speed that the network has here."""
    from collections import Counter

    import torch

    from stepdrop_rl.studies.plan import cost

    speed = _speed(shop, config.batch_size)
    lines = []
    total = 0.0
    for kind in ("train", "search", "judge"):
        mine = [job for job in todo if job.kind == kind]
        left = [job for job in mine if not shop.done(job)]
        evaluations = sum(cost(config, job, shop.made) for job in left)
        total += evaluations
        lines.append(
            f"{kind}: {len(left)} of {len(mine)} jobs left, about {evaluations / 1e6:.1f} million network "
            f"evaluations, {evaluations / speed / 60:.0f} minutes"
        )
        for name, count in Counter(job.name for job in left).items():
            lines.append(f"  {name}: {count}")
    lines.append(
        f"in all about {total / speed / 60:.0f} minutes at {speed:,.0f} evaluations/s on {shop.device} "
        f"({torch.get_num_threads()} threads), judges and learning on top"
    )
    return "\n".join(lines)


def _speed(shop: Workshop, batch_size: int) -> float:
    """Network evaluations per second, measured."""
    import torch

    x = torch.randn(batch_size, *shop.model.denoiser.shape, device=shop.device)
    t = torch.full((batch_size,), 500.0, dtype=torch.float64, device=shop.device)
    with torch.no_grad():
        shop.model.denoiser(x, t)
        began = time.perf_counter()
        for _ in range(3):
            float(shop.model.denoiser(x, t)[0].sum())
    return 3 * batch_size / (time.perf_counter() - began)


def _study(config: StudyConfig, shop: Workshop, todo: Sequence[Job]) -> Study:
    """All results that are there."""
    from stepdrop_rl.studies.entries import gather_entries
    from stepdrop_rl.studies.verdict import Study
    from stepdrop_rl.weights import read_json

    done = [job for job in todo if job.kind == "judge" and shop.done(job)]
    entries, unreachable = gather_entries(read_json(shop.path(job)) for job in done)
    own = [job for job in done if job.name in config.policies and job.control is None and job.seed == 0]
    paths = ((job, shop.path(job).with_suffix(".png")) for job in own)
    pictures = {f"{job.name} at {job.nfe:g}, {job.solver}": path for job, path in paths if path.is_file()}
    left = [job for job in todo if job.kind == "judge" and job not in done]
    return Study(config, shop.judges, shop.distances, entries, unreachable, pictures, left)


def _log(config: StudyConfig, parent: Run, study: Study) -> None:
    """The claims, and a child run per contender and solver; budgets are the steps."""
    from stepdrop_rl.tracking import start_run

    for letter, claims in zip("ab", study.claims(), strict=True):
        for claim in claims:
            name, nearest = f"{claim.policy.name}-{claim.policy.solver}", claim.nearest.distance
            told = {"minus_nearest": nearest.mean, "half_width": nearest.half_width}
            told |= {"holds": claim.holds, "left": len(claim.left)}
            numbers = {f"claim_{letter}/{name}/{key}": value for key, value in told.items()}
            parent.log_metrics(numbers, round(claim.policy.nfe))
    judge = study.judges[0]
    groups: dict[tuple[str, str], list[Any]] = {}
    for entry in study.entries:
        groups.setdefault((entry.name, entry.solver), []).append(entry)
    for (name, solver), entries in groups.items():
        settings = {"policy": name, "solver": solver, "num_samples": config.num_samples}
        with start_run(f"{name}-{solver}", mode=config.tracking, config=settings, parent=parent) as child:
            for entry in entries:
                numbers = {
                    metric: entry.estimate(judge, metric).mean
                    for metric in (study.distance, "kid", "precision", "recall", "is_mean")
                }
                numbers |= {key: entry.mean(key) for key in ("nfe_mean", "images_per_second")}
                child.log_metrics(numbers, round(entry.nfe))


def _summary(study: Study) -> str:
    """A line per claim."""
    a, b = study.claims()
    lines = []
    for letter, claims in (("A", a), ("B", b)):
        for claim in claims:
            d = claim.nearest.distance
            lines.append(
                f"claim {letter} {claim.word}: {claim.policy.name} at "
                f"{claim.policy.nfe:g}, {claim.policy.solver}: {d.mean:+.2f} ± {d.half_width:.2f} against "
                f"{claim.nearest.rival.name}, the nearest of {len(claim.against)}"
                f"{f'; {claim.fault}' if claim.fault else ''}"
            )
    return "\n".join(lines) or "no claim to judge yet"


def _record(study: Study) -> dict[str, Any]:
    """The study as JSON."""
    a, b = study.claims()

    def told(claim: Claim) -> dict[str, Any]:
        return {
            "policy": claim.policy.name,
            "solver": claim.policy.solver,
            "nfe": claim.policy.nfe,
            "rival": claim.nearest.rival.name,
            "rivals": len(claim.against),
            "left": len(claim.left),
            "distance": claim.nearest.distance._asdict(),
            "kid": claim.nearest.kid._asdict(),
            "precision": claim.nearest.precision._asdict(),
            "holds": claim.holds,
            "fault": claim.fault,
        }

    return {
        "schema": "stepdrop_rl.study/1",
        "distance": study.distance,
        "claim_a": [told(claim) for claim in a],
        "claim_b": [told(claim) for claim in b],
        "results": [dict(result) for entry in study.entries for result in entry.results],
        "unreachable": list(study.unreachable),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(StudyConfig, run, "study", argv)


if __name__ == "__main__":
    sys.exit(main())
