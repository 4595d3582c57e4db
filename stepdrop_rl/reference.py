"""``python -m stepdrop_rl.reference``: keep a judge's view of real images, so that judging needs no data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from stepdrop_rl.cli import command
from stepdrop_rl.config import ReferenceConfig


def run(config: ReferenceConfig) -> None:
    """Compute mean, covariance and features of the judge's split; write them."""
    from stepdrop_rl.data import load
    from stepdrop_rl.device import resolve_device
    from stepdrop_rl.metrics import default_judge, find_extractor, make_reference
    from stepdrop_rl.metrics.extractor import PRETRAINED, ROLES
    from stepdrop_rl.metrics.reference import save_reference
    from stepdrop_rl.weights import content_hash, write_json

    name = config.metrics.judge or default_judge(config.data.name)
    split = ROLES[name].split if name in ROLES else "judge"
    images = load(config.data, split).images
    extractor = find_extractor(name, config.data.name).to(resolve_device(config.device))
    reference = make_reference(images, extractor)
    folder = Path(config.output) if config.output else PRETRAINED / config.data.name / "references"
    described = {
        "dataset": config.data.name,
        "split": split,
        "size": images.shape[-1],
        "images_hash": content_hash({"images": images}),
    }
    save_reference(folder, reference, extractor, described)
    if config.json is not None:
        write_json(config.json, described | {"extractor": extractor.name, "num_images": len(images)})
    print(
        f"{folder / extractor.name}.safetensors: {len(images):,} images of {config.data.name}, {split} split"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command(ReferenceConfig, run, "reference", argv)


if __name__ == "__main__":
    sys.exit(main())
