"""``python -m stepdrop_rl.headroom``: what a policy that looks could gain by giving images unequal shares.

Every image is drawn with every number of evaluations. An oracle that knows how far each result is from the
full trajectory's gives to each image as many as reduce the sum most; a learner may at best know what an
evaluation showed. Both are upper bounds of policies that choose among whole schedules.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import HeadroomConfig

Row = dict[str, Any]


def run(config: HeadroomConfig) -> None:
    """Draw, allocate, judge; print two tables: what could be gained, and what can be known when."""
    from dataclasses import asdict

    import torch

    from agents.fixed import FixedSchedule
    from envs.errors import UserError
    from stepdrop_rl.allocation import allocate, told
    from stepdrop_rl.arena import TEACHER_STEPS, make_arena
    from stepdrop_rl.config import AgentChoice
    from stepdrop_rl.looks import draw_looking
    from stepdrop_rl.metrics import distance_name, gather, load_reference
    from stepdrop_rl.metrics.distances import frechet_distance, kid
    from stepdrop_rl.report.progress import progress_bar
    from stepdrop_rl.report.tables import markdown_table
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json, write_text

    choice = AgentChoice(
        policy=config.schedule,
        solver=config.solver,
        data=config.data,
        model=config.model,
        device=config.device,
        seed=config.seed,
        precision=config.precision,
    )
    arena, contender = make_arena(choice, blocks=2, judge=config.metrics.judge)
    if not isinstance(contender.agent, FixedSchedule):
        raise UserError(f"headroom is of fixed spacings, which '{config.schedule}' is not")
    distance = distance_name(arena.extractor.name)
    extractor, _ = load_reference(arena.data, "validation", arena.times.device)
    counts = torch.arange(config.fewest, config.most + 1)
    errors, judged, shown = [], [], []
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
            judged.append(gather(images, arena.extractor)[0])
            shown.append(looks)
            bar.advance(task)
    known, guesses = [], []
    for index, looks in enumerate(shown):
        found = [told(look, errors[index]) for look in looks]
        known.append([r2 for r2, _ in found])
        guesses.append(torch.from_numpy(found[0][1]))
    table, features = torch.stack(errors, 1), torch.stack(judged, 1)

    def judge(chosen: torch.Tensor) -> tuple[float, float]:
        seen = features[torch.arange(len(chosen)), chosen]
        return frechet_distance(seen, arena.reference.statistics), kid(seen, arena.reference.features)

    rows: list[Row] = []
    for nfe in config.nfe:
        same = torch.full((config.num_samples,), nfe - config.fewest)
        oracle = allocate(table, counts, nfe)
        first = allocate(torch.stack(guesses, 1), counts, nfe)
        for who, chosen in [
            ("all alike", same),
            ("oracle", oracle),
            ("oracle's, dealt to others", oracle.roll(1)),
            ("by the first look", first),
        ]:
            fd, k = judge(chosen)
            spent = counts[chosen].double()
            error = table[torch.arange(len(chosen)), chosen]
            rows.append(
                {
                    "nfe": nfe,
                    "who": who,
                    "nfe_mean": float(spent.mean()),
                    "nfe_std": float(spent.std()),
                    "error": float(error.mean()),
                    distance: fd,
                    "kid": k,
                }
            )
    title = (
        f"{config.data.name}: {config.num_samples:,} images, {arena.solver}, {config.schedule}*; the full "
        f"trajectory's {distance}, {TEACHER_STEPS} evaluations: {arena.distance(full):.2f}"
    )
    header = ["evaluations", "who gets how many", "spread", "error to the teacher", distance, "KID"]
    body = [
        [
            f"{row['nfe_mean']:.2f}",
            row["who"],
            f"{row['nfe_std']:.2f}",
            f"{row['error']:.3f}",
            f"{row[distance]:.2f}",
            f"{row['kid']:.4f}",
        ]
        for row in rows
    ]
    when = [
        [str(count), *(f"{r2:.2f}" for r2 in row), *[""] * (config.most - len(row))]
        for count, row in zip(counts.tolist(), known, strict=True)
    ]
    text = (
        f"{title}\n\n{markdown_table(header, body)}\n"
        "Share of the error's variance that is told by what the n-th evaluation showed (R²):\n\n"
        f"{markdown_table(['evaluations', *(f'n = {n}' for n in range(1, config.most + 1))], when)}"
    )
    result = {"rows": rows, "told": dict(zip(map(str, counts.tolist()), known, strict=True))}
    with start_run(
        f"headroom-{config.data.name}",
        mode=config.tracking,
        config=asdict(config),
        tags={"command": "headroom"},
    ) as tracker:
        for row in rows:
            name = row["who"].replace(" ", "_").replace("'", "").replace(",", "")
            tracker.log_metrics({f"{name}/{distance}": row[distance], f"{name}/kid": row["kid"]}, row["nfe"])
        tracker.log_dict(result, "headroom.json")
        where = tracker.where()
    print(text)
    if config.report is not None:
        write_text(config.report, text)
    if config.json is not None:
        write_json(config.json, result)
    if where:
        print(f"runs: {where}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(HeadroomConfig, run, "headroom", argv)


if __name__ == "__main__":
    sys.exit(main())
