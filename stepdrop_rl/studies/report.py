"""A study told: its claims, who stands where, and what the policy looks at, in tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepdrop_rl.report.figures import png
from stepdrop_rl.report.page import Block, write_page
from stepdrop_rl.studies.entries import Entry, difference_by_seed, label
from stepdrop_rl.studies.figures import rates_by_budget, study_curves
from stepdrop_rl.studies.plan import listed, slug
from stepdrop_rl.studies.questions import efforts, questions
from stepdrop_rl.studies.spread import Estimate
from stepdrop_rl.studies.verdict import Claim, Study

_SEEN = {
    "reward": "",
    "both": " Rewards, and the searches of this study, look through two networks of our own.",
    "joined": " Rewards, and the searches of this study, look through our own network joined with components "
    "of EfficientNet-Lite2, a sister of Lite0; schedules that are files may have been found otherwise.",
}


def write_report(study: Study, folder: Path) -> Path:
    """Write report.md, its figures and report.html; return the HTML file."""
    return write_page(f"stepdrop_rl study: {study.config.data.name}", compose(study), folder, "report")


def compose(study: Study) -> list[Block]:
    """All parts of the report."""
    config = study.config
    blocks = [Block(text=_opening(study))]
    if study.left:
        count = "1 judgement is" if len(study.left) == 1 else f"{len(study.left)} judgements are"
        text = f"{count} still missing (listed at the end)."
        blocks.append(Block(text=text))
    for solver in config.solvers:
        if not study.ends_are_sound(solver):
            blocks.append(
                Block(
                    text=f"Mind the model: with {solver}, a fixed schedule of ten evaluations or fewer beats "
                    "the full trajectory. Its ends are wrong or it is under-trained."
                )
            )
    a, b = study.claims()
    blocks += _claims("Claim A: the policy beats every fixed schedule", a, study)
    blocks += _claims("Claim B: looking at the sample beats everything that does not look", b, study)
    blocks += _against_each(study)
    for solver in config.solvers:
        full = study.full(solver)
        blocks.append(Block(heading=f"Solver {solver}"))
        blocks.append(Block(picture=(f"quality_{slug(solver)}.png", png(study_curves(study, solver)))))
        for nfe in config.nfe:
            entries = study.at(solver, nfe)
            if entries:
                blocks.append(Block(text=f"{nfe:g} evaluations per image, at most:"))
                blocks.append(Block(table=_table(study, entries, full)))
        figure = rates_by_budget(study, solver)
        if figure is not None:
            blocks.append(Block(picture=(f"rates_{slug(solver)}.png", png(figure))))
    if study.pictures:
        text = "Images by the whole schedule that the policy of seed 0 gave them (its last three times):"
        blocks += [Block(heading="Who gets what"), Block(text=text)]
        for name, path in study.pictures.items():
            blocks += [Block(text=name), Block(picture=(f"given_{path.name}", path.read_bytes()))]
    blocks += _sight(study)
    blocks += efforts(study)
    blocks += questions(study)
    if study.unreachable:
        blocks.append(Block(heading="Out of reach"))
        blocks += [Block(text=line) for line in study.unreachable]
    if study.left:
        blocks += [Block(heading="Not judged yet"), Block(text=f"{'; '.join(listed(study.left))}.")]
    return blocks


def _opening(study: Study) -> str:
    config = study.config
    others = ", ".join(study.distances[name] for name in study.judges[1:])
    made = f" Policies and searched schedules are those of {config.made}." if config.made else ""
    devices = {result["device"] for entry in study.entries for result in entry.results}
    return (
        f"{config.num_samples:,} images of each contender at each budget, the same noise for all, in "
        f"{config.blocks} blocks of {config.num_samples // config.blocks:,}; judged by {study.distance}"
        f"{f', second by {others}' if others else ''}, which no reward has seen. ± is half of a 95 % "
        "t-interval over blocks of noise and training seeds; differences are paired by block. "
        f"A control takes one thing away from the policy.{_SEEN[config.extractor]}{made} "
        f"Hardware: {'; '.join(sorted(devices)) or 'nothing yet'}; images/s are of the hour in which each "
        "was drawn, whatever else the machine did."
    )


def _number(value: Estimate, digits: int) -> str:
    return f"{value.mean:.{digits}f} ± {value.half_width:.{digits}f}"


def _signed(value: Estimate, digits: int) -> str:
    return f"{value.mean:+.{digits}f} ± {value.half_width:.{digits}f}"


def _table(study: Study, entries: Sequence[Entry], full: Entry | None) -> tuple[list[str], list[list[str]]]:
    judge = study.judges[0]
    second = study.judges[1:2]
    header = ["contender", "NFE", study.distance, "KID", "precision", "recall", "IS"]
    header += [study.distances[name] for name in second] + ["seeds", "images/s"]
    ranked = sorted(entries, key=lambda e: e.estimate(judge, study.distance).mean)
    rows = []
    for entry in [*ranked, *([full] if full is not None else [])]:
        cells = [
            f"**{entry.name}**" if study.looks(entry) else entry.name,
            f"{entry.mean('nfe_mean'):.2f}",
            _number(entry.estimate(judge, study.distance), 2),
            _number(entry.estimate(judge, "kid"), 4),
            *(_number(entry.estimate(judge, metric), 3) for metric in ("precision", "recall")),
            f"{entry.estimate(judge, 'is_mean').mean:.2f}",
            *(_number(entry.estimate(name, study.distances[name]), 2) for name in second),
            str(len(entry.results)),
            f"{entry.mean('images_per_second'):.0f}",
        ]
        rows.append(cells)
    return header, rows


def _claims(heading: str, claims: Sequence[Claim], study: Study) -> list[Block]:
    if not claims:
        return []
    header = [
        "policy",
        "solver",
        "budget",
        "nearest rival",
        "distance",
        "difference",
        "KID",
        "precision",
        "rivals",
        "the claim",
        *(f"nearest by {study.distances[name]}" for name in study.judges[1:]),
    ]
    judge = study.judges[0]
    rows = [
        [
            claim.policy.name,
            claim.policy.solver,
            f"{claim.policy.nfe:g}",
            claim.nearest.rival.name,
            f"{claim.policy.estimate(judge, study.distance).mean:.2f} against "
            f"{claim.nearest.rival.estimate(judge, study.distance).mean:.2f}",
            _signed(claim.nearest.distance, 2),
            _signed(claim.nearest.kid, 4),
            _signed(claim.nearest.precision, 3),
            str(len(claim.against)) + (f", {len(claim.left)} judgements missing" if claim.left else ""),
            claim.word + (f": {claim.fault}" if claim.fault else ""),
            *(_nearest_by(other, claim, study) for other in study.judges[1:]),
        ]
        for claim in claims
    ]
    said = sum(claim.holds for claim in claims)
    text = (
        f"Holds at {said} of {len(claims)}: the distance is smaller than every rival's outside the interval, "
        "KID agrees, and precision is not lower than that of any of the nearest (by 0.01 at most, and not "
        "outside its interval). Only who was judged is a rival: what holds so far has others to meet yet. "
        "The other judge has no say in it."
    )
    return [Block(heading=heading), Block(text=text), Block(table=(header, rows))]


def _nearest_by(judge: str, claim: Claim, study: Study) -> str:
    """Which rival another judge has nearest, and the policy minus it."""
    metric = study.distances[judge]
    nearest = min((one.rival for one in claim.against), key=lambda rival: rival.estimate(judge, metric).mean)
    return f"{nearest.name}: {_signed(study.minus(claim.policy, nearest, judge, metric), 2)}"


def _against_each(study: Study) -> list[Block]:
    """Policies that look against everyone else at their budget."""
    judge = study.judges[0]
    seconds = study.judges[1:]
    rows = []
    for policy in study.entries:
        if not study.looks(policy):
            continue
        for other in study.at(policy.solver, policy.nfe):
            if study.looks(other) or (other.control is not None and other.contender != policy.contender):
                continue
            told = [
                _signed(study.minus(policy, other, judge, metric), digits)
                for metric, digits in ((study.distance, 2), ("kid", 4), ("precision", 3), ("recall", 3))
            ]
            told += [_signed(study.minus(policy, other, name, study.distances[name]), 2) for name in seconds]
            rows.append([policy.name, policy.solver, f"{policy.nfe:g}", other.name, *told])
    if not rows:
        return []
    text = "The policy minus each of the others, paired by block; minus its own controls also by seed:"
    header = ["policy", "solver", "budget", "minus", study.distance, "KID", "precision", "recall"]
    header += [study.distances[name] for name in seconds]
    return [Block(heading="Against each"), Block(text=text), Block(table=(header, rows))]


def _sight(study: Study) -> list[Block]:
    """What the policies look at: what it costs to show them another sample's numbers instead."""
    judge = study.judges[0]
    found = {(e.contender, e.control, e.solver, e.nfe): e for e in study.entries}
    rows = []
    for name in study.config.policies:
        for control in study.config.controls_of(name):
            if not control.startswith("shuffled"):  # which blind policies do not have
                continue
            for solver in study.config.solvers:
                cells = []
                for nfe in study.config.nfe:
                    one, other = (found.get((name, what, solver, nfe)) for what in (control, None))
                    if one is None or other is None:
                        cells.append("–")
                        continue
                    gone = difference_by_seed(one, other, judge, study.distance)
                    cells.append(f"{_signed(gone, 2)} at {one.mean('nfe_mean'):.2f}")
                if any(cell != "–" for cell in cells):
                    rows.append([name, solver, label(control), *cells])
    if not rows:
        return []
    text = (
        "Each sample is shown another one's numbers, of one kind or of all, from a sample that stands where "
        f"it stands: by how much that changes {study.distance}, and the evaluations that it leads to."
    )
    header = ["policy", "solver", "of another sample", *(f"{nfe:g} evaluations" for nfe in study.config.nfe)]
    return [Block(heading="What the policy looks at"), Block(text=text), Block(table=(header, rows))]


__all__ = ["Block", "compose", "write_report"]
