"""Our own feature extractors: small classifiers whose features of several depths see what a person sees.

The last features of a classifier are blind to contrast and noise, which its training taught it to ignore.
So the features here are the mean and the standard deviation over space of every channel of the stem and of
each stage, standardised on real images. Normalisation is by batch statistics (fixed after training), never
per sample: that would take the contrast away before it is measured.

Roles have different networks: ``reward``, ``second`` (what rewards may look through besides:
:mod:`stepdrop_rl.metrics.both`) and ``validation`` learn from the split ``train``, ``judge`` from the split
``judge``. What rewards never judges.

Shapes: B images (B, C, H, W) float32 in [-1, 1]; D = 2 x (channels of stem and stages) features; K classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from envs.errors import UserError
from envs.registry import unknown_name
from stepdrop_rl.data import Split
from stepdrop_rl.metrics.base import EXTRACTORS
from stepdrop_rl.metrics.depths import DepthFeatures
from stepdrop_rl.runs import run_folder
from stepdrop_rl.weights import PathLike, load_into, load_weights, save_weights

PRETRAINED = Path(__file__).parents[1] / "models" / "pretrained"
_FILE = "extractor"


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """Architecture of an :class:`Extractor`.

    Args:
        channels: Of the images.
        num_classes: K.
        widths: Channels of the stem, then of each stage.
        strides: Of each stage; 2 halves height and width.
        blocks: Residual blocks per stage.
        stem_kernel: Side of the stem's filters (odd).
    """

    channels: int = 1
    num_classes: int = 10
    widths: Sequence[int]
    strides: Sequence[int] = (1, 2, 2)
    blocks: int = 1
    stem_kernel: int = 3

    def __post_init__(self) -> None:
        for name in ("widths", "strides"):  # lists, where they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.widths) != len(self.strides) + 1 or min(*self.widths, *self.strides, self.blocks) < 1:
            raise UserError("an extractor needs one width for its stem and a width and a stride per stage")


@dataclass(frozen=True)
class Role:
    """One of the users of an extractor: the images it learns from and the network it gets."""

    split: Split
    widths: Sequence[int]
    strides: Sequence[int]
    blocks: int
    stem_kernel: int

    def config(self, channels: int, num_classes: int) -> ExtractorConfig:
        """The architecture for images of ``channels`` and ``num_classes``."""
        return ExtractorConfig(
            channels=channels,
            num_classes=num_classes,
            widths=self.widths,
            strides=self.strides,
            blocks=self.blocks,
            stem_kernel=self.stem_kernel,
        )


# Different depths, widths and filters, so that fooling one is not fooling the others.
ROLES: dict[str, Role] = {
    "reward": Role("train", widths=(16, 20, 24, 32), strides=(1, 2, 2), blocks=1, stem_kernel=3),
    "validation": Role("train", widths=(12, 16, 20, 28), strides=(1, 2, 2), blocks=2, stem_kernel=5),
    "judge": Role("judge", widths=(16, 16, 24, 28), strides=(1, 2, 1), blocks=2, stem_kernel=3),
    "second": Role("train", widths=(12, 20, 28, 36), strides=(1, 1, 2), blocks=1, stem_kernel=5),
}


class _Block(nn.Module):
    """Residual block: two 3 x 3 convolutions, the first with the stage's stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.norm1(self.conv1(x)))
        return nn.functional.silu(self.skip(x) + self.norm2(self.conv2(y)))


class Extractor(DepthFeatures):
    """A classifier of ours that shows its work: features of several depths, and logits.

    ``name`` is what metrics are called by: ``fd_<name>``. Never "FID": that is Inception's.
    """

    def __init__(self, config: ExtractorConfig, name: str) -> None:
        super().__init__(name, config.widths)
        self.config = config
        self.metadata: dict[str, Any] = {}  # role, split, accuracy, seed: what save() writes beside it
        stem, *widths = config.widths
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, stem, config.stem_kernel, padding="same", bias=False),
            nn.BatchNorm2d(stem),
            nn.SiLU(),
        )
        self.stages = nn.ModuleList()
        for inputs, outputs, stride in zip(config.widths, widths, config.strides, strict=False):
            first = _Block(inputs, outputs, stride)
            self.stages.append(
                nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(config.blocks - 1)))
            )
        self.head = nn.Linear(widths[-1], config.num_classes)

    @property
    def views(self) -> tuple[int, ...]:
        """One network looks."""
        return (self.num_features,)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations of the stem and of each stage."""
        depths = [self.stem(x)]
        for stage in self.stages:
            depths.append(stage(depths[-1]))
        return depths

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits (B, K) of the last stage's means over space."""
        return self.head(pooled)

    def save(self, folder: PathLike) -> str:
        """Write ``extractor.safetensors`` and ``extractor.json``; return the content hash."""
        described = {"name": self.name, **self.metadata, "config": asdict(self.config)}
        return save_weights(folder, _FILE, self.state_dict(), described)


def _folder(name_or_folder: PathLike, dataset: str) -> Path:
    """The folder that holds an extractor: itself, the shipped one of that name, or the one trained here."""
    folder = Path(name_or_folder)
    if (folder / f"{_FILE}.json").exists():
        return folder
    name = str(name_or_folder)
    role = name.removeprefix(f"{dataset}_")
    found = {
        role: place
        for role in ROLES
        for place in (run_folder(dataset, f"extractor-{role}"), PRETRAINED / dataset / "extractors" / role)
        if (place / f"{_FILE}.json").is_file()
    }
    if role in found:
        if not found[role].is_relative_to(PRETRAINED):
            print(f"{dataset}_{role} is the extractor trained here, in {found[role]}", file=sys.stderr)
        return found[role]
    if folder.is_dir() or len(folder.parts) > 1:
        raise UserError(f"no extractor in {folder}: {_FILE}.json is missing")
    if role in ROLES:
        raise UserError(
            f"no {role} extractor for '{dataset}'; train it: "
            f"python -m stepdrop_rl.train_extractor --data.name {dataset} --role {role}"
        )
    raise unknown_name("extractor", name, [*(f"{dataset}_{role}" for role in ROLES), *EXTRACTORS])


def load_extractor(name_or_folder: PathLike, dataset: str = "digits") -> Extractor:
    """Return a trained extractor, frozen, in evaluation mode, on the CPU.

    Args:
        name_or_folder: A role (``judge``), a shipped name (``digits_judge``) or a folder of one.
        dataset: Whose shipped extractors to look among.

    Raises:
        UserError: There is none of that name, or its files are damaged.
    """
    folder = _folder(name_or_folder, dataset)
    tensors, described = load_weights(folder, _FILE)
    try:
        name = str(described.pop("name"))
        config = ExtractorConfig(**described.pop("config"))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / _FILE}.json does not describe an extractor: {error}") from error
    described.pop("content_hash")
    extractor = Extractor(config, name)
    load_into(extractor, tensors, folder / f"{_FILE}.safetensors")
    extractor.metadata = described
    return extractor.eval().requires_grad_(False)
