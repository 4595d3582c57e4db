"""``python -m stepdrop_rl.headroom``: what a policy that looks could gain by giving images unequal shares.

Every image is drawn with every number of evaluations. An oracle that knows how far each result is from the
full trajectory's gives to each image as many as reduce the sum most; a learner may at best know what an
evaluation showed. Both are upper bounds of policies that choose among whole schedules.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import HeadroomConfig

if TYPE_CHECKING:
    from torch import Tensor

    from stepdrop_rl.arena import Arena

Row = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """All images with all counts; M images, C counts, F features of the judge.

    Args:
        counts: (C,) evaluations.
        errors: (M, C) distances to the full trajectory's results, in features that the judge does not know.
        features: (M, C, F) what the judge sees.
        shown: For every count what each of its evaluations showed, (M, D).
        full: The judge's distance of the full trajectory.
    """

    counts: Tensor
    errors: Tensor
    features: Tensor
    shown: list[list[Tensor]]
    full: float


def run(config: HeadroomConfig) -> None:
    """Draw, allocate, judge; print two tables: what could be gained, and what can be known when."""
    from dataclasses import asdict

    from agents import BASELINES
    from agents.fixed import FixedSchedule
    from envs.errors import UserError
    from stepdrop_rl.allocation import told
    from stepdrop_rl.arena import make_arena
    from stepdrop_rl.config import AgentChoice
    from stepdrop_rl.policies import check_name
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json, write_text

    check_name(config.schedule)
    if config.schedule not in BASELINES:
        raise UserError(
            f"headroom needs a spacing for every number of evaluations (uniform, log_snr, …), not "
            f"'{config.schedule}'"
        )
    choice = AgentChoice(
        policy=config.schedule,
        solver=config.solver,
        data=config.data,
        model=config.model,
        device=config.device,
        seed=config.seed,
        precision=config.precision,
        compile=config.compile,
    )
    arena, contender = make_arena(choice, blocks=2, judge=config.metrics.judge)
    if not isinstance(contender.agent, FixedSchedule):
        raise UserError(f"headroom is of fixed spacings, which '{config.schedule}' is not")
    name, tags = f"headroom-{config.data.name}", {"command": "headroom"}
    with start_run(name, mode=config.tracking, config=asdict(config), tags=tags) as tracker:
        drawn = draw(arena, config)
        known = [[told(look, drawn.errors[:, i]) for look in looks] for i, looks in enumerate(drawn.shown)]
        rows = deal(arena, drawn, [looks[0][1] for looks in known], config.nfe)
        r2 = {
            count: [r2 for r2, _ in looks] for count, looks in zip(drawn.counts.tolist(), known, strict=True)
        }
        text = report(arena, config, drawn.full, rows, r2)
        for row in rows:
            who = row["who"].replace(" ", "_").replace("'", "").replace(",", "")
            numbers = {key: value for key, value in row.items() if key not in ("nfe", "who")}
            tracker.log_metrics({f"{who}/{key}": value for key, value in numbers.items()}, row["nfe"])
        result = {"rows": rows, "told": {str(count): each for count, each in r2.items()}}
        tracker.log_dict(result, "headroom.json")
        where = tracker.where()
    print(text)
    if config.report is not None:
        write_text(config.report, text)
    if config.json is not None:
        write_json(config.json, result)
    if where:
        print(f"runs: {where}")


def draw(arena: Arena, config: HeadroomConfig) -> Drawn:
    """Draw the same images with every number of evaluations."""
    import torch

    from agents.fixed import FixedSchedule
    from stepdrop_rl.looks import draw_looking
    from stepdrop_rl.metrics import gather, load_reference
    from stepdrop_rl.report.progress import progress_bar

    extractor, _ = load_reference(arena.data, "validation", arena.times.device)
    counts = torch.arange(config.fewest, config.most + 1)
    errors, features, shown = [], [], []
    with progress_bar() as bar:
        task = bar.add_task("drawing", total=len(counts) + 1, note="the full trajectory")
        full = arena.full(config.num_samples)
        wanted, _ = gather(full, extractor)
        bar.advance(task)
        for count in counts.tolist():
            bar.update(task, note=f"{count} evaluations")
            agent = arena.tuned(config.schedule, count).agent
            assert isinstance(agent, FixedSchedule)
            images, looks = draw_looking(arena, agent, config.num_samples)
            errors.append((gather(images, extractor)[0] - wanted).norm(dim=1))
            features.append(gather(images, arena.extractor)[0])
            shown.append(looks)
            bar.advance(task)
    return Drawn(counts, torch.stack(errors, 1), torch.stack(features, 1), shown, arena.distance(full))


def deal(arena: Arena, drawn: Drawn, guesses: Sequence[Any], means: Sequence[int]) -> list[Row]:
    """Judge what each way of dealing evaluations out makes of each mean; guesses (M,) are errors by count."""
    import torch

    from stepdrop_rl.allocation import allocate

    image = torch.arange(len(drawn.errors))
    guessed = torch.stack([torch.as_tensor(each) for each in guesses], 1)
    rows = []
    for nfe in means:
        oracle = allocate(drawn.errors, drawn.counts, nfe)
        ways = {
            "all alike": torch.full_like(image, nfe - int(drawn.counts[0])),
            "oracle": oracle,
            "oracle's, dealt to others": oracle.roll(1),
            "by the first look": allocate(guessed, drawn.counts, nfe),
        }
        for who, chosen in ways.items():
            spent = drawn.counts[chosen].double()
            numbers = {
                "nfe_mean": float(spent.mean()),
                "nfe_std": float(spent.std()),
                "error": float(drawn.errors[image, chosen].mean()),
            }
            rows.append({"nfe": nfe, "who": who, **numbers, **arena.scores(drawn.features[image, chosen])})
    return rows


def report(
    arena: Arena, config: HeadroomConfig, full: float, rows: Sequence[Row], r2: Mapping[int, Sequence[float]]
) -> str:
    """Markdown: both tables."""
    from stepdrop_rl.arena import TEACHER_STEPS
    from stepdrop_rl.metrics import distance_name
    from stepdrop_rl.report.tables import markdown_table

    distance = distance_name(arena.extractor.name)
    title = (
        f"{config.data.name}: {config.num_samples:,} images, {arena.solver}, {config.schedule}*; the full "
        f"trajectory's {distance}, {TEACHER_STEPS} evaluations: {full:.2f}"
    )
    gained = markdown_table(
        ["evaluations", "who gets how many", "spread", "error to the teacher", distance, "KID"],
        [
            [
                f"{row['nfe_mean']:.2f}",
                row["who"],
                f"{row['nfe_std']:.2f}",
                f"{row['error']:.3f}",
                f"{row[distance]:.2f}",
                f"{row['kid']:.4f}",
            ]
            for row in rows
        ],
    )
    known = markdown_table(
        ["evaluations", *(f"n = {n}" for n in range(1, config.most + 1))],
        [
            [str(count), *(f"{share:.2f}" for share in each), *[""] * (config.most - len(each))]
            for count, each in r2.items()
        ],
    )
    says = "Share of the error's variance that is told by what the n-th evaluation showed (R²):"
    return f"{title}\n\n{gained}\n{says}\n\n{known}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(HeadroomConfig, run, "headroom", argv)


if __name__ == "__main__":
    sys.exit(main())
