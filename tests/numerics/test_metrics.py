"""Metrics mean what they say: on real digits, on hand-made points, against independent computations."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from envs.errors import UserError
from stepdrop_rl.config import DataConfig
from stepdrop_rl.data import load, to_float
from stepdrop_rl.metrics import (
    METRICS,
    ROLES,
    Extractor,
    Reference,
    block_mean,
    compute,
    distances,
    gather,
    load_extractor,
    load_reference,
    make_reference,
    over_blocks,
    paired_difference,
    pairs,
    quality,
    reference,
)
from stepdrop_rl.metrics.blocks import t_quantile
from stepdrop_rl.metrics.extractor import ExtractorConfig
from stepdrop_rl.metrics.training import accuracy, augment

ALL_METRICS = {"kid", "is_mean", "precision", "recall"}


def _blur(images: Tensor, amount: float) -> Tensor:
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, 4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3) / 8
    smooth = nn.functional.conv2d(nn.functional.pad(images, (1,) * 4, mode="replicate"), kernel)
    return (1 - amount) * images + amount * smooth


class Halves(NamedTuple):
    """A reference of one half of an extractor's real images, and the other half with its labels."""

    extractor: Extractor
    reference: Reference
    images: Tensor
    labels: Tensor

    def of(self, images: Tensor) -> dict[str, float]:
        values = quality(images, self.reference, self.extractor)
        return values | {"fd": values[f"fd_{self.extractor.name}"]}


@pytest.fixture(scope="module", params=ROLES)
def halves(request: pytest.FixtureRequest) -> Halves:
    data = load(DataConfig(), ROLES[request.param].split)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    first, second = order.tensor_split(2)
    extractor = load_extractor(request.param)
    real = make_reference(data.images[first], extractor)
    return Halves(extractor, real, to_float(data.images[second]), data.labels[second])


# --- what the numbers mean on real digits -------------------------------------------------------------------


def test_two_halves_of_the_real_images_are_near(halves: Halves) -> None:
    values = halves.of(halves.images)
    assert values["fd"] < 6
    assert abs(values["kid"]) < 0.03
    assert values["is_mean"] > 9.5  # ten classes
    assert min(values["precision"], values["recall"]) > 0.8


@pytest.mark.parametrize("damage", ["noise", "blur", "less contrast", "more contrast", "missing classes"])
def test_distances_grow_with_the_damage(halves: Halves, damage: str) -> None:
    x, labels = halves.images, halves.labels
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    worse: Sequence[Tensor] = {
        "noise": [x + sigma * noise for sigma in (0.05, 0.1, 0.2, 0.4)],
        "blur": [_blur(x, amount) for amount in (0.25, 0.5, 1.0)],
        "less contrast": [(x + 1) * factor - 1 for factor in (0.95, 0.9, 0.8)],
        "more contrast": [(x + 1) * factor - 1 for factor in (1.2, 1.5, 2.0)],
        "missing classes": [x[labels < kept] for kept in (9, 7, 5)],
    }[damage]
    values = [halves.of(images) for images in (x, *worse)]
    for metric in ("fd", "kid"):
        series = [value[metric] for value in values]
        assert all(a < b for a, b in itertools.pairwise(series)), f"{metric}: {series}"
    assert values[-1]["fd"] > 4 * values[0]["fd"]


def test_mode_collapse_keeps_precision_and_loses_recall(halves: Halves) -> None:
    few = halves.images[:20].repeat(15, 1, 1, 1)
    noise = 0.02 * torch.randn(few.shape, generator=torch.Generator().manual_seed(2))
    values = halves.of(few + noise)
    assert values["precision"] > 0.8
    assert values["recall"] < 0.05
    assert values["fd"] > 5 * halves.of(halves.images)["fd"]


def test_images_are_judged_as_files(halves: Halves) -> None:
    """A third of a grey level vanishes in a file, and so does what lies beyond white and black."""
    x = halves.images[:100]
    assert halves.of(x) == halves.of(x + 0.3 / 127.5) == halves.of(torch.where(x == 1, 3.0, x))


def test_batch_size_changes_nothing(halves: Halves) -> None:
    whole = quality(halves.images, halves.reference, halves.extractor, batch_size=10_000)
    parts = quality(halves.images, halves.reference, halves.extractor, batch_size=7)
    assert whole == pytest.approx(parts, rel=1e-4, abs=1e-5)


# --- the extractors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_shipped_extractors_are_what_they_say(role: str) -> None:
    extractor, real = load_reference(DataConfig(), role)
    described = extractor.metadata
    assert extractor.name == real.extractor == f"digits_{role}"
    assert (described["role"], described["split"]) == (role, ROLES[role].split)
    assert extractor.config == ROLES[role].config(1, 10)
    (other,) = {"train", "judge"} - {described["split"]}
    assert accuracy(extractor, load(DataConfig(), other)) == described["accuracy_on_other_split"] > 0.97
    # Standardised on the images that the reference is made of.
    assert 100 <= real.features.shape[1] == extractor.num_features <= 250
    torch.testing.assert_close(
        real.features.mean(dim=0), torch.zeros(extractor.num_features), atol=1e-4, rtol=0
    )
    deviation = real.features.std(dim=0)
    assert deviation.max() < 1.001
    assert (deviation > 0.999).float().mean() > 0.9


def test_what_rewards_never_judges() -> None:
    extractors = [load_extractor(role) for role in ROLES]
    assert ROLES["reward"].split == ROLES["second"].split == ROLES["validation"].split == "train"
    assert ROLES["judge"].split == "judge"
    assert len({str(extractor.config) for extractor in extractors}) == len(ROLES)
    assert len({extractor.content_hash for extractor in extractors}) == len(ROLES)


def test_features_are_differentiable_moments_of_every_depth() -> None:
    config = ExtractorConfig(channels=3, num_classes=4, widths=(4, 5, 6), strides=(1, 2), stem_kernel=5)
    extractor = Extractor(config, "tiny").eval()
    x = torch.zeros(2, 3, 32, 32, requires_grad=True)  # constant: deviations sit on their floor
    features, logits = extractor.features_and_logits(x)
    assert features.shape == (2, 30)
    assert logits.shape == (2, 4)
    torch.testing.assert_close(features, extractor(x))
    torch.testing.assert_close(logits, extractor.logits(x))
    stem = extractor.stem(x)
    torch.testing.assert_close(features[:, :4], stem.mean(dim=(2, 3)))
    features.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_saved_extractor_comes_back(tmp_path: Path) -> None:
    extractor = load_extractor("digits_judge")
    identity = extractor.save(tmp_path)
    again = load_extractor(tmp_path)
    assert again.content_hash == identity == extractor.content_hash
    assert again.metadata == extractor.metadata
    assert not again.training
    x = to_float(load(DataConfig(), "judge").images[:9])
    assert torch.equal(again(x), extractor(x))


def test_extractors_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r"unknown extractor 'juge'; did you mean 'digits_judge'\?"):
        load_extractor("juge")
    with pytest.raises(UserError, match="no judge extractor for 'celeba'; train it"):
        load_extractor("judge", "celeba")
    with pytest.raises(UserError, match=r"no extractor in some.folder: extractor\.json is missing"):
        load_extractor("some/folder")


def test_an_extractor_json_that_describes_none(tmp_path: Path) -> None:
    load_extractor("judge").save(tmp_path)
    path = tmp_path / "extractor.json"
    path.write_text(path.read_text().replace('"blocks"', '"bricks"'))
    with pytest.raises(UserError, match="does not describe an extractor"):
        load_extractor(tmp_path)


def test_augmentation_shifts_by_a_pixel_and_keeps_the_images_apart() -> None:
    images = -torch.ones(500, 1, 8, 8)
    images[:, :, 4, 4] = torch.linspace(0.5, 1.0, 500).view(-1, 1)
    seen = augment(images, torch.Generator().manual_seed(0))
    peaks = {divmod(int(index), 8) for index in seen.flatten(1).argmax(dim=1)}
    assert peaks == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    assert torch.equal(seen, augment(images, torch.Generator().manual_seed(0)))


# --- the reference ------------------------------------------------------------------------------------------


class _Counting:
    """An extractor that counts the images it is shown."""

    def __init__(self, extractor: Extractor) -> None:
        self.name, self.content_hash = extractor.name, extractor.content_hash
        self.device, self.seen, self._inner = extractor.device, 0, extractor

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(x)
        return self._inner.features_and_logits(x)


def test_a_reference_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load(DataConfig(), "judge").images[:50]
    extractor = _Counting(load_extractor("judge"))
    monkeypatch.setattr(reference, "_references", {})
    first = make_reference(images, extractor, cache=tmp_path)
    assert make_reference(images.clone(), extractor) is first
    assert extractor.seen == 50
    make_reference(images[1:], extractor)
    assert extractor.seen == 99
    monkeypatch.setattr(reference, "_references", {})  # as another process
    second = make_reference(images, extractor, cache=tmp_path)
    assert extractor.seen == 99
    assert torch.equal(second.features, first.features)
    assert all(np.array_equal(second.statistics[key], first.statistics[key]) for key in ("mu", "sigma"))
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    monkeypatch.setattr(reference, "_references", {})
    make_reference(images, extractor, cache=tmp_path)
    assert extractor.seen == 149
    monkeypatch.setattr(reference, "_references", {})
    (tmp_path / "file").touch()
    make_reference(images, extractor, cache=tmp_path / "file")  # cannot be written: does without
    assert extractor.seen == 199


def test_what_cannot_be_judged_is_refused() -> None:
    extractor, real = load_reference(DataConfig(), "judge")
    images = torch.zeros(8, 1, 8, 8)
    images[3, 0, 2, 2] = float("nan")
    with pytest.raises(UserError, match="1 of 8 images hold NaN"):
        quality(images, real, extractor)
    with pytest.raises(UserError, match="no images"):
        quality(images[:0], real, extractor)
    with pytest.raises(UserError, match="at least 6 images, not 3"):
        quality(images[:3], real, extractor)
    with pytest.raises(UserError, match="the reference is digits_judge's"):
        quality(images, real, load_extractor("reward"))


def test_gathering_leaves_the_precision_of_convolutions_alone() -> None:
    backend: Any = torch.backends.cudnn.conv
    before = backend.fp32_precision
    gather(torch.zeros(4, 1, 8, 8), load_extractor("judge"))
    assert backend.fp32_precision == before


# --- Fréchet ------------------------------------------------------------------------------------------------


def _normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator) / math.sqrt(d)
    return scale * torch.randn(n, d, generator=generator) @ mixing + shift


def test_frechet_of_known_normals() -> None:
    """N(0, I) and N(m, s^2 I): |m|^2 + D (1 - s)^2."""
    one = {"mu": np.zeros(6), "sigma": np.eye(6)}
    other = {"mu": np.full(6, 0.5), "sigma": 9 * np.eye(6)}
    assert distances.frechet_distance(one, other) == pytest.approx(6 * 0.25 + 6 * 4)


def test_frechet_agrees_with_scipy_and_with_torch_fidelity() -> None:
    f, g = _normal(400, 30, 0), _normal(300, 30, 1, scale=1.3, shift=0.2)
    mine = distances.frechet_distance(f, distances.statistics(g))
    a, b = np.cov(f.double().numpy(), rowvar=False), np.cov(g.double().numpy(), rowvar=False)
    gap = f.double().mean(dim=0) - g.double().mean(dim=0)
    root = scipy.linalg.sqrtm(a @ b).real
    assert mine == pytest.approx(float(gap @ gap) + np.trace(a + b - 2 * root), rel=1e-9)
    own = [fid_features_to_statistics(x.double()) for x in (f, g)]
    assert mine == fid_statistics_to_metric(*own, verbose=False)["frechet_inception_distance"]


@pytest.mark.parametrize("num", [2, 30, 500])
def test_frechet_of_features_of_low_rank(num: int) -> None:
    """Fewer images than features, and features that repeat: finite, symmetric, 0 to itself, right."""
    f, g = (_normal(num, 40, seed, shift=3.0).repeat(1, 4) for seed in (0, 1))
    s, t = distances.statistics(f), distances.statistics(g)
    forth, back = distances.frechet_distance(s, t), distances.frechet_distance(t, s)
    # tr sqrt(AB) = sum of the singular values of sqrt(A) sqrt(B), with factors of A and B from the data.
    x, y = ((z.double() - z.double().mean(dim=0)) / math.sqrt(num - 1) for z in (f, g))
    overlap = torch.linalg.svdvals(x @ y.T).sum()
    gap = f.double().mean(dim=0) - g.double().mean(dim=0)
    exact = float(gap @ gap + x.square().sum() + y.square().sum() - 2 * overlap)
    assert forth == pytest.approx(exact, rel=1e-4)
    assert forth == pytest.approx(back, rel=1e-4)
    assert 0 <= distances.frechet_distance(s, s) < 1e-3


# --- KID ----------------------------------------------------------------------------------------------------


def _kid_by_definition(f: Tensor, g: Tensor) -> float:
    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    n, m = len(f), len(g)
    own = sum(k(f[i], f[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    real = sum(k(g[i], g[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + real - 2 * sum(k(x, y) for x in f for y in g) / (n * m)


def test_kid_is_its_definition_whatever_the_sizes() -> None:
    f, g = _normal(9, 5, 0).double(), _normal(14, 5, 1, shift=0.3).double()
    assert pairs.kid(f, g) == pytest.approx(_kid_by_definition(f, g), rel=1e-10)


def test_kid_agrees_with_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    f, g = _normal(300, 16, 0), _normal(300, 16, 1, shift=0.3)
    whole = pairs.kid(f, g)
    options = {"kid_subsets": 1, "kid_subset_size": 300, "verbose": False}
    theirs = kid_features_to_metric(f.double(), g.double(), **options)
    assert whole == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    # Large sets: a mean over subsets, of the same quantity.
    monkeypatch.setattr(pairs, "KID_FULL_LIMIT", 100)
    monkeypatch.setattr(pairs, "KID_SUBSET", 150)
    subsets = pairs.kid(f, g, seed=0)
    assert subsets == pairs.kid(f, g, seed=0) != pairs.kid(f, g, seed=1)
    assert subsets == pytest.approx(whole, rel=0.1)


# --- Inception score, precision, recall ---------------------------------------------------------------------


def test_inception_score_by_hand() -> None:
    assert distances.inception_score(torch.zeros(50, 10)) == (pytest.approx(1.0), 0.0)
    certain = 1e4 * torch.eye(10).repeat(5, 1)  # beyond what exp holds
    assert distances.inception_score(certain) == (pytest.approx(10.0), 0.0)
    pair = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    # Each diverges from their mean (1/2, 1/2) by 0.9 ln 1.8 + 0.1 ln 0.2.
    by_hand = math.exp(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert distances.inception_score(pair).mean == pytest.approx(by_hand)


def test_inception_score_splits_only_large_sets() -> None:
    logits = 5 * torch.randn(6000, 10, generator=torch.Generator().manual_seed(0))
    assert distances.inception_score(logits[:999]).std == 0
    assert distances.inception_score(logits) == distances.inception_score(logits, splits=10)
    assert distances.inception_score(logits[:1500]) == distances.inception_score(logits[:1500], splits=3)


def test_precision_and_recall_of_points_on_a_line() -> None:
    """The third neighbours of 0, 1, 2, 3 give balls [-3, 3], [-1, 3], [0, 4], [0, 6]."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    wide = torch.tensor([[-3.5], [-3.0], [6.0], [6.5]])  # two inside, two just outside; huge balls
    assert pairs.precision_recall(wide, real) == (0.5, 1.0)
    narrow = torch.tensor([[3.0], [3.1], [3.2], [3.3]])  # all inside; their balls reach 3 alone
    assert pairs.precision_recall(narrow, real) == (1.0, 0.25)
    assert pairs.precision_recall(real + 100, real) == (0.0, 0.0)


@pytest.mark.parametrize(("num", "others"), [(256, 256), (300, 700), (700, 300)])
def test_precision_and_recall_agree_with_torch_fidelity(num: int, others: int) -> None:
    """Whatever rows are looked at together, in features of units and far off the origin."""
    f, g = 1.2 * _normal(num, 12, 0) + 40.2, _normal(others, 12, 1) + 40.0
    options = {"prc_neighborhood": 3, "save_cpu_ram": False, "verbose": False, "prc_batch_size": 100}
    theirs = prc_features_to_metric(f.double(), g.double(), **options)
    found = pairs.precision_recall(f, g)
    assert found == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-7)  # theirs: float32
    assert 0.05 < found.precision < 0.95
    assert 0.05 < found.recall < 0.95


def test_one_pass_says_what_each_says_alone() -> None:
    f, g = pairs.cloud(_normal(300, 8, 0)), pairs.cloud(_normal(500, 8, 1, shift=0.4))
    found = pairs.compare(f, g)
    assert found.kid == pairs.kid(f.features, g.features)
    assert found[1:3] == pairs.precision_recall(f.features, g)
    assert found[3:] == pairs.density_coverage(f, g.features)
    reference = Reference("hand", g.features, distances.statistics(g.features))
    assert reference.cloud is reference.cloud


# --- blocks -------------------------------------------------------------------------------------------------


def test_every_metric_comes_over_blocks() -> None:
    extractor, real = load_reference(DataConfig(), "judge")
    images = to_float(load(DataConfig(), "train").images[:500])
    features, logits = gather(images, extractor)
    blocks = over_blocks(features, logits, real, 5)
    assert blocks.keys() == quality(images, real, extractor).keys()
    assert blocks.keys() >= ALL_METRICS | {"fd_digits_judge"}
    third = quality(images[200:300], real, extractor)
    for name, value in blocks.items():
        assert value.values[2] == pytest.approx(third[name], rel=1e-4, abs=1e-5)
        assert value.mean == pytest.approx(np.mean(value.values))
        assert value.standard_error == pytest.approx(scipy.stats.sem(value.values))
    assert "frechet" in METRICS
    for wrong in (1, 7):
        with pytest.raises(UserError, match=f"500 images cannot be cut into {wrong} blocks"):
            over_blocks(features, logits, real, wrong)


def test_paired_differences_are_students() -> None:
    a, b = [1.3, 0.9, 1.8, 1.1, 1.6], [1.0, 0.7, 1.2, 1.0, 1.1]
    found = paired_difference(a, b)
    test = scipy.stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(0.34)
    assert found.mean / found.standard_error == pytest.approx(test.statistic)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert t_quantile(4) == pytest.approx(2.7764451)
    assert block_mean(a).half_width == pytest.approx(t_quantile(4) * scipy.stats.sem(a))
    with pytest.raises(UserError, match="do not pair: 5 and 4"):
        paired_difference(a, b[:4])
    with pytest.raises(UserError, match="at least 2 blocks, not 1"):
        block_mean([1.0])


# --- cost ---------------------------------------------------------------------------------------------------


class _Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("batch", [1, 5])
def test_flops_by_hand(batch: int) -> None:
    """FLOPs: 2 x MACs, of one image."""
    linear = compute.gflops_per_call(nn.Linear(30, 20), torch.zeros(batch, 30))
    assert linear * 1e9 == pytest.approx(2 * 30 * 20)
    conv = compute.gflops_per_call(nn.Conv2d(3, 7, 3, padding=1), torch.zeros(batch, 3, 8, 8))
    assert conv * 1e9 == pytest.approx(2 * 64 * 7 * 3 * 9)
    tokens, width, heads = 16, 8, 2  # queries times keys, then weights times values
    attention = compute.gflops_per_call(_Attention(), torch.zeros(batch, heads, tokens, width))
    assert attention * 1e9 == pytest.approx(2 * 2 * heads * tokens * tokens * width)


def test_memory_and_time() -> None:
    ballast = torch.ones(2**26)  # 256 MiB of float32
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    assert ballast.nbytes / 2**20 < compute.peak_memory_mb("cpu") < installed
    assert compute.percentile([4.0, 1.0, 2.0, 3.0], 50) == 2.5
    assert compute.percentile([0.0, 10.0], 95) == pytest.approx(9.5)
    found = compute.latency(lambda: time.sleep(0.003), repeats=5, warmup=1)
    assert 3 <= found.p50 <= found.p95
