"""``python -m stepdrop_rl.study_training``: what a way of training is worth, over seeds, with controls."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepdrop_rl.cli import command
from stepdrop_rl.config import LossConfig, StudyTrainingConfig, TrainDiffusionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from stepdrop_rl.diffusion import NoiseSchedule
    from stepdrop_rl.metrics import FeatureExtractor, Reference
    from stepdrop_rl.models.denoiser import Denoiser

SCHEMA = "stepdrop_rl.study_training/1"
RESULT = "result.json"
SETS = ("held out", "training")  # which real images a distance is to

Distances = dict[str, dict[str, dict[str, float]]]
"""NFE → set of real images → metric → value."""


def run(config: StudyTrainingConfig) -> None:
    """Train what is not there yet, judge it, and print the tables of all that is complete."""
    from dataclasses import asdict

    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.runs import run_folder
    from stepdrop_rl.solvers import make_solver
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json, write_text

    make_solver(config.solver)
    resolve_device(config.device)
    plan = {name: _settings(config, changes) for name, changes in config.variants.items()}
    dataset = next(iter(plan.values())).data.name
    root = Path(config.output) if config.output else run_folder(dataset, "study_training")
    judge = _Judge(config, next(iter(plan.values())))
    began = time.monotonic()
    with start_run(f"study-training-{dataset}", mode=config.tracking, config=asdict(config)) as tracker:
        for seed in config.seeds:
            for name, settings in plan.items():
                if config.max_minutes is not None and time.monotonic() - began > 60 * config.max_minutes:
                    print("time limit: call it again to go on", file=sys.stderr)
                    break
                folder = root / f"{_slug(name)}-{seed}"
                if _trained(replace(settings, seed=seed, output=str(folder)), judge.fingerprint):
                    judge.judge(folder, name)
        results = {
            name: found
            for name in [*config.variants, *config.scaled]
            if (found := _results(root, config, name, judge.fingerprint))
        }
        text = report(config, plan, judge.name, results)
        tracker.log_dict({"schema": SCHEMA, "results": results}, "study_training.json")
        where = tracker.where()
    print(text)
    if config.report is not None:
        print(f"report: {write_text(config.report, text)}")
    if config.json is not None:
        write_json(config.json, {"schema": SCHEMA, "results": results})
    if where:
        print(where)


def _settings(config: StudyTrainingConfig, changes: Mapping[str, Any]) -> TrainDiffusionConfig:
    """The training settings of a variant: the file's, with its changes."""
    from stepdrop_rl.cli import parse

    options = [f"--{key}={value}" for key, value in changes.items()]
    files = ["--config", config.training] if config.training is not None else []
    first = [] if files else [f"--data.name={config.data.name}"]
    settings = parse(TrainDiffusionConfig, "train_diffusion", [*files, *first, *options])
    return replace(settings, choose_ends=False, device=config.device, tracking=config.tracking)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _trained(settings: TrainDiffusionConfig, fingerprint: str) -> bool:
    """Train or go on; whether it is complete."""
    from stepdrop_rl.diffusion_training import CHECKPOINT
    from stepdrop_rl.train_diffusion import run as train
    from stepdrop_rl.weights import read_json

    assert settings.output is not None
    folder = Path(settings.output)
    checkpoint = folder / f"{CHECKPOINT}.json"
    if checkpoint.is_file() and read_json(checkpoint)["step"] >= settings.steps:
        return True
    train(replace(settings, resume=checkpoint.is_file()))
    return bool(read_json(checkpoint)["step"] >= settings.steps)


class _Judge:
    """Draws from trained networks and measures the distances to held-out and to training images."""

    def __init__(self, config: StudyTrainingConfig, settings: TrainDiffusionConfig) -> None:
        import torch

        from stepdrop_rl.caches import cache_folder
        from stepdrop_rl.data import load
        from stepdrop_rl.device import resolve_device
        from stepdrop_rl.metrics import default_judge, find_extractor, make_reference

        self.config = config
        self.device = resolve_device(config.device)
        data = settings.data
        self.extractor: FeatureExtractor = find_extractor(
            config.extractor or default_judge(data.name), data.name
        ).to(self.device)
        self.references: dict[str, Reference] = {}
        for which, split in zip(SETS, ("judge", "train"), strict=True):
            images = load(data, split).images
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            self.references[which] = make_reference(
                images[order[: config.num_real]], self.extractor, cache=cache_folder("references")
            )
        self.fingerprint = f"{config.solver}-{config.num_samples}-{config.num_real}-{config.seed}-{self.name}"

    @property
    def name(self) -> str:
        return self.extractor.name

    def judge(self, folder: Path, variant: str) -> None:
        """Judge one trained network, as it is and with every scale asked for; keep the result beside it."""
        from functools import partial

        from stepdrop_rl.models.scaled import ScaledDenoiser
        from stepdrop_rl.models.unet import load_model
        from stepdrop_rl.weights import read_json, write_json

        path = folder / RESULT
        done = read_json(path) if path.is_file() else {}
        if done.get("fingerprint") != self.fingerprint:
            done = {"schema": SCHEMA, "fingerprint": self.fingerprint, "results": {}}
        denoiser = load_model(str(folder / "unet"), self.device).denoiser
        wanted: dict[str, Denoiser] = {variant: denoiser}
        for name, (of, skip) in self.config.scaled.items():
            if of == variant:
                wanted[name] = ScaledDenoiser(denoiser, partial(_s2dm_scale, denoiser.schedule, skip))
        for name, one in wanted.items():
            results = done["results"].setdefault(name, {})
            for nfe in self.config.nfe:
                if str(nfe) not in results:
                    results[str(nfe)] = self._distances(one, nfe)
                    write_json(path, done)

    def _distances(self, denoiser: Denoiser, nfe: int) -> dict[str, dict[str, float]]:
        import torch

        from agents.fixed import FixedSchedule
        from stepdrop_rl.engine import Engine
        from stepdrop_rl.grid_ends import default_ends
        from stepdrop_rl.metrics import gather
        from stepdrop_rl.metrics.distances import frechet_distance
        from stepdrop_rl.metrics.pairs import kid
        from stepdrop_rl.solvers import make_solver

        times = torch.linspace(*default_ends(denoiser.schedule), nfe, dtype=torch.float64)
        engine = Engine(
            denoiser=denoiser, solver=make_solver(self.config.solver), times=times, seed=self.config.seed
        )
        images = engine.sample(FixedSchedule("uniform", times), self.config.num_samples).images
        features, _ = gather(images, self.extractor)
        return {
            which: {
                "fd": frechet_distance(features, reference.statistics),
                "kid": kid(features, reference.cloud),
            }
            for which, reference in self.references.items()
        }


def _s2dm_scale(schedule: NoiseSchedule, skip: int, t: Tensor) -> Tensor:
    """b(t): S²-DM's loss teaches ε × b (see :mod:`stepdrop_rl.losses`)."""
    from stepdrop_rl.losses import s2dm_weight_and_scale

    return s2dm_weight_and_scale(schedule, t, skip, LossConfig().tau)[1]


def _results(root: Path, config: StudyTrainingConfig, name: str, fingerprint: str) -> dict[str, Distances]:
    """Seed → distances, of the runs that are complete."""
    from stepdrop_rl.weights import read_json

    trained = config.scaled[name][0] if name in config.scaled else name
    found = {}
    for folder in sorted(root.glob(f"{_slug(trained)}-[0-9]*")):
        path = folder / RESULT
        if path.is_file() and (result := read_json(path)).get("fingerprint") == fingerprint:
            distances = result["results"].get(name, {})
            if all(str(nfe) in distances for nfe in config.nfe):
                found[folder.name.rpartition("-")[2]] = distances
    return found


def report(
    config: StudyTrainingConfig,
    plan: Mapping[str, TrainDiffusionConfig],
    judge: str,
    results: Mapping[str, Mapping[str, Distances]],
) -> str:
    """Markdown: a table per metric and set of real images, differences with the first variant paired."""
    from stepdrop_rl.report.tables import markdown_table

    settings = next(iter(plan.values()))
    images = settings.steps * settings.batch_size
    lines = [
        f"Every network: {settings.steps:,} steps of {settings.batch_size} images ({images:,} seen), same "
        f"seeds, same data order; {config.num_samples:,} images per budget, solver {config.solver}, judge "
        f"{judge}. Means over training seeds; below each, the paired difference with "
        f"“{next(iter(plan))}” and its 95 % t-interval over the seeds.",
        "",
    ]
    for metric, label in (("fd", f"fd_{judge}"), ("kid", f"kid_{judge}")):
        for which in SETS:
            header = ["training", "seeds", *(f"{nfe} evaluations" for nfe in config.nfe)]
            rows = []
            for name, seeds in results.items():
                cells = [_cell(config, results, name, metric, which, str(nfe)) for nfe in config.nfe]
                rows.append([name, str(len(seeds)), *cells])
            lines += [f"**{label}, to {which} images**", "", markdown_table(header, rows)]
    return "\n".join(lines)


def _cell(
    config: StudyTrainingConfig,
    results: Mapping[str, Mapping[str, Distances]],
    name: str,
    metric: str,
    which: str,
    nfe: str,
) -> str:
    from stepdrop_rl.metrics import paired_difference

    digits = 1 if metric == "fd" else 4
    own = {seed: found[nfe][which][metric] for seed, found in results[name].items()}
    text = f"{sum(own.values()) / len(own):.{digits}f}"
    base = results.get(next(iter(config.variants)), {})
    shared = [seed for seed in own if seed in base]
    if name == next(iter(config.variants)) or len(shared) < 2:
        return text
    d = paired_difference([own[s] for s in shared], [base[s][nfe][which][metric] for s in shared])
    return f"{text} ({d.mean:+.{digits}f} ± {d.half_width:.{digits}f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(StudyTrainingConfig, run, "study_training", argv)


if __name__ == "__main__":
    sys.exit(main())
