"""``python -m stepdrop_rl.train_extractor``: train the network that rewards, validates or judges."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stepdrop_rl.cli import command
from stepdrop_rl.config import TrainExtractorConfig

RESULT = "stepdrop_rl.extractor/1"


def run(config: TrainExtractorConfig) -> None:
    """Train, save, say how well it tells the classes of the other split apart."""
    from stepdrop_rl.data import SPLITS, load
    from stepdrop_rl.device import autocast_type, resolve_device
    from stepdrop_rl.metrics.extractor import ROLES
    from stepdrop_rl.metrics.training import fit
    from stepdrop_rl.report.progress import progress_bar
    from stepdrop_rl.tracking import start_run
    from stepdrop_rl.weights import write_json

    device = resolve_device(config.device)
    split = ROLES[config.role].split
    (other,) = set(SPLITS) - {split}
    data, held_out = (load(config.data, name) for name in (split, other))
    folder = _output(config)
    name = f"extractor-{config.role}-{config.data.name}"
    with start_run(name, mode=config.tracking, config=asdict(config)) as tracker:
        with progress_bar() as bar:
            task = bar.add_task(f"{config.data.name}_{config.role}", total=config.epochs, note="")

            def after_epoch(epoch: int, metrics: dict[str, float]) -> None:
                tracker.log_metrics(metrics, epoch)
                bar.update(task, completed=epoch, note=f"loss {metrics['loss']:.4f}")

            extractor = fit(
                config.role,
                config.data.name,
                data,
                held_out,
                epochs=config.epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                seed=config.seed,
                device=device,
                autocast=autocast_type(config.precision, device),
                progress=after_epoch,
            )
        identity = extractor.save(folder)
        accuracy = extractor.metadata["accuracy_on_other_split"]
        tracker.log_metrics({"accuracy_on_other_split": accuracy}, config.epochs)
        tracker.log_artifact(folder / "extractor.json")
        tracker.log_artifact(folder / "extractor.safetensors")
        where = tracker.where()
    print(
        f"{folder}: {extractor.name} ({identity}), {extractor.num_features} features; "
        f"names {accuracy:.1%} of the {len(held_out):,} images of the other split"
    )
    if config.json is not None:
        record = {"name": extractor.name, "content_hash": identity, **extractor.metadata}
        write_json(config.json, {"schema": RESULT, "records": [record]})
        print(f"record: {config.json}")
    if where:
        print(where)


def _output(config: TrainExtractorConfig) -> Path:
    """The folder to write into, proved writable before any work; an earlier extractor there is kept."""
    from envs.errors import UserError
    from stepdrop_rl.runs import prepare_output, run_folder

    marker = "extractor.json"
    if config.output is not None and (Path(config.output) / marker).is_file():
        raise UserError(f"{config.output} already holds an extractor; choose another --output")
    default = run_folder(config.data.name, f"extractor-{config.role}")
    return prepare_output(config.output, default, marker=marker, resume=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(TrainExtractorConfig, run, "train_extractor", argv)


if __name__ == "__main__":
    sys.exit(main())
