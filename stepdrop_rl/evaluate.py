"""``python -m stepdrop_rl.evaluate``: a policy and its baselines, same mean NFE, same solver, same noise."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from stepdrop_rl.cli import command
from stepdrop_rl.config import EvaluateConfig

if TYPE_CHECKING:
    from stepdrop_rl.arena import Arena, Contender
    from stepdrop_rl.comparison import Outcome
    from stepdrop_rl.engine import Samples
    from stepdrop_rl.parallel import World
    from stepdrop_rl.tracking import Run


def run(config: EvaluateConfig) -> None:
    """Compare, print the table, write the record, log figures.

    Under ``accelerate launch`` or ``torchrun`` the processes share the images; the first speaks and writes.
    """
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.ladder import climb
    from stepdrop_rl.parallel import join

    if config.ladder:
        climb(config)
        return
    world = join(resolve_device(config.device))
    try:
        _run(config, world)
    finally:
        world.leave()


def _run(config: EvaluateConfig, world: World) -> None:
    from stepdrop_rl.arena import TUNED, check_baseline, make_arena
    from stepdrop_rl.comparison import RESULT_SCHEMA, records
    from stepdrop_rl.metrics import distance_name
    from stepdrop_rl.report.tables import comparison_rows, print_table
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json

    for name in config.baselines:
        check_baseline(name)
    arena, requested = make_arena(config, blocks=config.blocks, judge=config.metrics.judge, world=world)
    for name in config.baselines:
        arena.agent(name.removesuffix(TUNED))  # what does not fit is noticed before images are drawn
    # A judge that cannot be had is noticed before images are drawn.
    distance = distance_name(arena.extractor.name)
    name = f"evaluate-{requested.agent.name}-{config.data.name}"
    mode = config.tracking if world.is_main else "none"
    with start_run(name, mode=mode, config=asdict(config), tags={"command": "evaluate"}) as tracker:
        outcomes = compare(config, arena, requested)
        if not world.is_main:
            return
        header, rows = comparison_rows(outcomes, distance)
        per_block = config.num_samples // config.blocks
        title = (
            f"{config.data.name}, solver {arena.solver}: {config.num_samples:,} images in {config.blocks} "
            f"blocks of {per_block:,}, ± standard error; difference paired with {outcomes[0].name}; "
            "spacings spend its mean, rounded up"
        )
        ids = [_log_outcome(config, tracker, outcome) for outcome in outcomes]
        found = records(outcomes, arena, git_commit=git_commit(), run_ids=ids)
        tracker.log_dict({"schema": RESULT_SCHEMA, "records": found}, "result.json")
        print_table(header, rows, title)
        if config.json is not None:
            write_json(config.json, {"schema": RESULT_SCHEMA, "records": found})
            print(f"records: {config.json}", flush=True)
        # Drawing takes a while: what was found is told before.
        _log_figures(config, arena, tracker, outcomes, distance)
        where = tracker.where()
    if where:
        print(f"figures and runs: {where}")


def compare(config: EvaluateConfig, arena: Arena, requested: Contender) -> list[Outcome]:
    """Draw and judge the requested policy, its baselines at its mean NFE (rounded up), and the teacher.

    Baselines that are files or lists of times cost what they cost.
    Contenders are judged one after the other, so that only one set of images is held at a time.
    """
    from agents import BASELINES
    from agents.fixed import FixedSchedule
    from stepdrop_rl.arena import TEACHER_STEPS, TUNED, Contender
    from stepdrop_rl.comparison import judged
    from stepdrop_rl.report.progress import progress_bar
    from stepdrop_rl.teacher import full_trajectory

    info = arena.model.info
    full = Contender(full_trajectory(info.t_start, info.t_end, TEACHER_STEPS))
    with progress_bar(visible=arena.world.is_main) as bar:

        def draw(contender: Contender) -> Samples:
            total = len(arena.world.share(config.num_samples))
            task = bar.add_task(contender.agent.name, total=total, note="")
            return arena.draw(contender, config.num_samples, lambda count: bar.advance(task, count))

        trajectory = draw(full) if config.teacher else None
        teacher = None if trajectory is None else trajectory.images
        last = [] if trajectory is None else [judged(arena, full, trajectory, teacher)]
        outcomes = [judged(arena, requested, draw(requested), teacher)]
        spent = outcomes[0].nfe_mean
        for name in config.baselines:
            if name not in (requested.agent.name, config.policy):
                rivals = [arena.contender(name, spent)]
                may = config.tuned and name in BASELINES and name + TUNED not in config.baselines
                if may and isinstance(rivals[0].agent, FixedSchedule):
                    rivals.append(arena.tuned(name, spent))
                outcomes += [judged(arena, rival, draw(rival), teacher) for rival in rivals]
    return outcomes + last


def _log_outcome(config: EvaluateConfig, parent: Run, outcome: Outcome) -> str:
    """A child run per contender, with the same metric names, so that the UI compares them."""
    from stepdrop_rl.tracking import start_run

    told = {"policy": outcome.name, "num_samples": config.num_samples, "seed": config.seed}
    # What it was told is no metric: the UI would draw its first comparison of it.
    numbers = {
        key: float(value)
        for key, value in outcome.record().items()
        if isinstance(value, int | float) and key not in told
    }
    with start_run(
        outcome.name,
        mode=config.tracking,
        config=told,
        tags={"command": "evaluate"},
        parent=parent,
    ) as child:
        child.log_metrics(numbers)
        return child.id


def _log_figures(
    config: EvaluateConfig, arena: Arena, tracker: Run, outcomes: Sequence[Outcome], distance: str
) -> None:
    from stepdrop_rl.report.figures import (
        evaluation_rates,
        images_by_evaluations,
        quality_against_nfe,
        samples_side_by_side,
    )

    if config.tracking == "none":
        return
    tracker.log_figure(evaluation_rates(outcomes), "evaluation_rates.png")
    tracker.log_figure(samples_side_by_side(outcomes), "samples.png")
    few_and_many = images_by_evaluations(outcomes[0].samples)
    if few_and_many is not None:
        tracker.log_figure(few_and_many, "images_by_evaluations.png")
    if config.curve:
        # The same for the points and the floor, of which this process kept so many.
        count = min(config.curve_samples, len(outcomes[-1].samples.images))
        curves = draw_curves(config, arena, outcomes[0].contender, outcomes, count)
        floor = outcomes[-1].samples.images[:count] if config.teacher else None
        figure = quality_against_nfe(
            curves,
            None if floor is None else arena.distance(floor),
            distance,
            count,
            config.data.name,
        )
        tracker.log_figure(figure, "quality_against_nfe.png")
        tracker.log_dict({"images_per_point": count, "curves": curves}, "quality_against_nfe.json")


def draw_curves(
    config: EvaluateConfig, arena: Arena, requested: Contender, outcomes: Sequence[Outcome], count: int
) -> dict[str, list[tuple[float, float]]]:
    """(mean NFE, distance) of ``count`` images: a learned policy at prices that span ``config.curve``.

    Baselines at its budgets.
    Of the fixed schedules with a chosen last time only the best is drawn: choosing takes its time.
    """
    from stepdrop_rl.arena import TUNED
    from stepdrop_rl.metrics import distance_name
    from stepdrop_rl.report.progress import progress_bar

    contenders = {requested.agent.name: _curve_of(config, arena, requested)}
    distance = distance_name(arena.extractor.name)
    tuned = [outcome for outcome in outcomes if outcome.name.endswith(TUNED)]
    for outcome in outcomes[1 : -1 if config.teacher else None]:
        if not outcome.name.endswith(TUNED):
            contenders[outcome.name] = _curve_of(config, arena, outcome.contender)
    if tuned:
        best = min(tuned, key=lambda outcome: outcome.estimates[distance].mean).name
        contenders[best] = [arena.tuned(best.removesuffix(TUNED), nfe) for nfe in config.curve]
    curves: dict[str, list[tuple[float, float]]] = {}
    with progress_bar() as bar:
        task = bar.add_task("quality against NFE", total=sum(map(len, contenders.values())), note="")
        for name, several in contenders.items():
            curves[name] = []
            for one in several:
                samples = arena.engine(one.agent).sample(one.agent, count, price=one.price)
                spent = float(samples.nfe.double().mean())
                curves[name].append((spent, arena.distance(samples.images)))
                bar.advance(task)
    return {name: points for name, points in curves.items() if points}


def _curve_of(config: EvaluateConfig, arena: Arena, requested: Contender) -> list[Contender]:
    """The requested policy all along the curve; just as it is, where its budget cannot be moved."""
    from agents import BASELINES
    from agents.policy import LearnedPolicy
    from stepdrop_rl.arena import Contender

    agent = requested.agent
    if agent.name in BASELINES:
        return [arena.contender(agent.name, nfe) for nfe in config.curve]
    if not isinstance(agent, LearnedPolicy):
        return [requested]
    least, most = min(config.curve) - 0.5, max(config.curve) + 0.5
    return [Contender(agent, price) for price, nfe in agent.info.price_table if least <= nfe <= most]


def git_commit() -> str:
    """The commit of this code, or "" outside a git repository."""
    from stepdrop_rl.tracking.context import standard_tags

    return standard_tags().get("mlflow.source.git.commit", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(EvaluateConfig, run, "evaluate", argv)


if __name__ == "__main__":
    sys.exit(main())
