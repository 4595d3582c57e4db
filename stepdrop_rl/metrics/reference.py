"""Images in, numbers out: features gathered in batches, the cached reference, the quality of a set.

Images are judged as the files they would become: clamped to [-1, 1] and rounded to uint8 first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from envs.errors import UserError
from envs.registry import unknown_name
from stepdrop_rl.caches import cache_folder
from stepdrop_rl.config import DataConfig, RewardName
from stepdrop_rl.data import as_files, load, to_float
from stepdrop_rl.metrics.base import EXTRACTORS, FeatureExtractor, Reference, RewardExtractor, measure
from stepdrop_rl.metrics.both import NAME as BOTH
from stepdrop_rl.metrics.both import Both
from stepdrop_rl.metrics.checkpoints import load_file
from stepdrop_rl.metrics.cifar_resnet import CifarResNet
from stepdrop_rl.metrics.distances import statistics
from stepdrop_rl.metrics.extractor import PRETRAINED, ROLES, Extractor, load_extractor
from stepdrop_rl.metrics.joined import NAME as JOINED
from stepdrop_rl.metrics.joined import Joined
from stepdrop_rl.weights import PathLike, content_hash, load_tensors, load_weights, save_tensors, save_weights

BATCH_SIZE = 256
DISK_CACHE_FROM = 10_000  # images; the features of fewer are made in a moment
OUR_JUDGES = ("digits", "mnist")  # handwriting says little to a network that knows photographs
REFERENCE_FEATURES = 4096  # of real images, for metrics of pairs; statistics are of all
STANDARDISING = 10_000  # training images that give the features of a foreign classifier their units
JOINED_IMAGES = 4096  # training images that principal components are found on
_VERSION = 2  # of what is stored; a change of the meaning of features changes it

_references: dict[str, Reference] = {}


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 in convolutions, which is CUDA's default: a judge has one opinion on every device."""
    cudnn: Any = torch.backends.cudnn
    operations = (cudnn.conv, cudnn.rnn)  # both, or torch sees a contradiction
    before = [operation.fp32_precision for operation in operations]
    try:
        for operation in operations:
            operation.fp32_precision = "ieee"
        yield
    finally:
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision


@torch.no_grad()
def gather(
    images: Tensor, extractor: FeatureExtractor, batch_size: int = BATCH_SIZE
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, K), float32 on the CPU, of images (N, C, H, W).

    Args:
        images: uint8, or float in [-1, 1], which is rounded to uint8 as a file would be; any device.
        extractor: Who looks; the images go to its device.
        batch_size: Changes the numbers by rounding (about 1e-6) only.

    Raises:
        UserError: There are no images, or some hold NaN.
    """
    if len(images) == 0:
        raise UserError("there are no images to measure")
    images = as_files(images)
    device = extractor.device
    parts = []
    with _full_precision(), torch.autocast(device.type, enabled=False):
        for batch in images.split(batch_size):
            features, logits = extractor.features_and_logits(to_float(batch.to(device)))
            parts.append((features.float().cpu(), logits.float().cpu()))
    features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, logits


def _read_cached(path: Path, extractor: str) -> Reference | None:
    try:
        stored = load_tensors(path)
        moments = {"mu": stored["mu"].numpy(), "sigma": stored["sigma"].numpy()}
        return Reference(extractor, stored["features"], moments, int(stored["counted"]))
    except (UserError, KeyError):  # missing, damaged or of another make: it is only a cache
        return None


def _write_cached(path: Path, reference: Reference) -> None:
    moments = {name: torch.from_numpy(value) for name, value in reference.statistics.items()}
    try:
        counted = torch.tensor(reference.num_images)
        save_tensors(path, {"features": reference.features, "counted": counted, **moments})
    except UserError:  # nowhere to write: computed again next time
        return


def make_reference(
    images: Tensor,
    extractor: FeatureExtractor,
    *,
    batch_size: int = BATCH_SIZE,
    cache: PathLike | None = None,
) -> Reference:
    """Return the reference of real images (M, C, H, W) uint8, computed once for these images and weights.

    ``cache`` is a folder that also keeps it for later processes, by the hash of images and extractor; a
    folder that cannot be written is passed over.
    """
    key = f"{content_hash({'images': images})}-{extractor.content_hash}-v{_VERSION}"
    known = _references.get(key)
    if known is not None and known.extractor == extractor.name:
        return known
    path = None if cache is None else Path(cache) / f"{key}.safetensors"
    reference = _read_cached(path, extractor.name) if path else None
    if reference is None:
        if len(images) >= DISK_CACHE_FROM:  # minutes on a CPU
            told = f"{extractor.name} looks at {len(images):,} real images, once on this machine"
            print(told, file=sys.stderr)
        features, _ = gather(images, extractor, batch_size)
        kept = features[:REFERENCE_FEATURES].clone()
        reference = Reference(extractor.name, kept, statistics(features), len(features))
        if path:
            _write_cached(path, reference)
    _references[key] = reference
    return reference


def save_reference(
    folder: Path, reference: Reference, extractor: FeatureExtractor, described: Mapping[str, Any]
) -> None:
    """Keep a reference where :func:`read_reference` finds it: all statistics, features of the first images.

    The covariance is kept as a triangle, features in half precision: a thirtieth of a per cent.
    """
    sigma = torch.from_numpy(reference.statistics["sigma"]).float()
    rows, columns = torch.triu_indices(*sigma.shape)
    tensors = {
        "mu": torch.from_numpy(reference.statistics["mu"]).float(),
        "sigma": sigma[rows, columns],
        "features": reference.features.half(),
    }
    identity = {"extractor": extractor.name, "extractor_hash": extractor.content_hash}
    save_weights(
        folder, extractor.name, tensors, {**identity, "num_images": reference.num_images, **described}
    )


def read_reference(folder: Path, extractor: FeatureExtractor, size: int | None = None) -> Reference | None:
    """The kept reference of these very weights and of images of ``size`` pixels (None: any), or None."""
    if not (folder / f"{extractor.name}.json").is_file():
        return None
    tensors, described = load_weights(folder, extractor.name)
    if described["extractor_hash"] != extractor.content_hash or size not in (None, described["size"]):
        return None
    num = len(tensors["mu"])
    sigma = torch.zeros(num, num, dtype=torch.float64)
    rows, columns = torch.triu_indices(num, num)
    sigma[rows, columns] = sigma[columns, rows] = tensors["sigma"].double()
    moments = {"mu": tensors["mu"].double().numpy(), "sigma": sigma.numpy()}
    return Reference(extractor.name, tensors["features"].float(), moments, described["num_images"])


def default_judge(dataset: str) -> str:
    """Who judges a data set if nobody is named: an ImageNet network, where it has something to see."""
    return "judge" if dataset in OUR_JUDGES else "efficientnet_lite0"


def find_extractor(name_or_folder: PathLike, dataset: str) -> FeatureExtractor:
    """Return an extractor by role, name, folder or file; :class:`UserError` where there is none.

    Two of them want images before they look: see :func:`load_fitted`.
    """
    if name_or_folder == BOTH:
        return Both(load_extractor("reward", dataset), load_extractor("second", dataset))
    if name_or_folder == JOINED:
        return Joined(load_extractor("reward", dataset))
    if name_or_folder in EXTRACTORS:
        make: Callable[[], FeatureExtractor] = EXTRACTORS.load(str(name_or_folder))
        return make()
    if Path(name_or_folder).is_file():
        return load_file(Path(name_or_folder))
    return load_extractor(name_or_folder, dataset)


def load_fitted(extractor: PathLike, data: DataConfig, device: torch.device | str) -> FeatureExtractor:
    """Return an extractor on ``device``; what it wants to know of real images it has seen."""
    found = find_extractor(extractor, data.name).to(device)
    if isinstance(found, CifarResNet):  # came without the deviations of its features
        found.standardise(to_float(load(data, "train").images[:STANDARDISING]).to(device))
    elif isinstance(found, Joined):
        found.fit(to_float(load(data, "train").images[:JOINED_IMAGES]))
    return found


def load_reward(extractor: RewardName, data: DataConfig, device: torch.device | str) -> RewardExtractor:
    """Return what rewards and searches look through, on ``device``; :class:`UserError` for any other."""
    if extractor not in get_args(RewardName):
        raise unknown_name("extractor of rewards", extractor, get_args(RewardName))
    found = load_fitted(extractor, data, device)
    assert isinstance(found, (Extractor, Both, Joined))
    return found


def load_reference(
    data: DataConfig,
    extractor: PathLike = "judge",
    device: torch.device | str = "cpu",
) -> tuple[FeatureExtractor, Reference]:
    """Return an extractor, on ``device``, and the reference of the real images that it compares with.

    A role of ours compares with the images of its split, everyone else with the split ``judge``, which no
    diffusion model and no reward has seen.
    """
    found = load_fitted(extractor, data, device)
    role = "reward" if extractor in (BOTH, JOINED) else str(extractor)
    split = ROLES[role].split if role in ROLES else "judge"
    shipped = read_reference(PRETRAINED / data.name / "references", found, data.size)
    if shipped is not None:
        return found, shipped
    images = load(data, split).images
    cache = cache_folder("references") if len(images) >= DISK_CACHE_FROM else None
    return found, make_reference(images, found, cache=cache)


def quality(
    images: Tensor, reference: Reference, extractor: FeatureExtractor, *, batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """Every metric of generated images (N, C, H, W) in [-1, 1] against real ones.

    Returns:
        What the registered metrics say: ``fd_<extractor>``, ``kid``, ``is_mean``, ``precision``,
        ``recall``.

    Raises:
        UserError: The reference is another extractor's, or the images are too few or hold NaN.
    """
    if reference.extractor != extractor.name:
        raise UserError(f"the reference is {reference.extractor}'s; {extractor.name} needs its own")
    return measure(*gather(images, extractor, batch_size), reference)
