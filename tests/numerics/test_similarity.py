"""Likeness to the teacher, by hand; density, coverage and variety against plain loops."""

import math

import numpy as np
import pytest
import torch

from stepdrop_rl.metrics import distances, load_extractor, pairs
from stepdrop_rl.metrics.similarity import perceptual_distance, similarity

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(6, 1, 8, 8, generator=GENERATOR) * 1.6 - 0.8


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("reward")


def test_equal_images_are_as_like_as_can_be(extractor):
    found = similarity(IMAGES, IMAGES, extractor)
    assert found == {"mse": 0.0, "psnr": 100.0, "ssim": pytest.approx(1.0), "perceptual": 0.0}


def test_a_constant_difference_by_hand(extractor):
    found = similarity(IMAGES, IMAGES + 0.1, extractor)
    assert found["mse"] == pytest.approx(0.01, rel=1e-4)
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / 0.01), rel=1e-4)  # the range is 2
    assert 0.9 < found["ssim"] < 1  # only its luminance part changes
    assert found["perceptual"] > 0


def test_structure_counts_and_noise_is_worse_the_stronger_it_is(extractor):
    noise = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))
    series = [similarity(IMAGES, IMAGES + sigma * noise, extractor) for sigma in (0.02, 0.1, 0.4)]
    for name, sign in (("mse", 1), ("psnr", -1), ("ssim", -1), ("perceptual", 1)):
        values = [sign * one[name] for one in series]
        assert values == sorted(values), name


def test_the_perceptual_distance_is_of_unit_channels():
    a = torch.tensor([[3.0, 4.0]]).reshape(1, 2, 1, 1)  # unit (0.6, 0.8)
    b = torch.tensor([[1.0, 0.0]]).reshape(1, 2, 1, 1)
    assert float(perceptual_distance([a], [b])) == pytest.approx(0.16 + 0.64)
    assert float(perceptual_distance([a, a], [7 * a, b])) == pytest.approx(0.8)  # depths add, lengths do not


def test_density_and_coverage_against_loops():
    f, g = (torch.randn(n, 3, generator=GENERATOR).double() * s for n, s in ((40, 0.8), (30, 1.0)))
    k = 5
    radius = [sorted(np.linalg.norm(x - y) for y in g.numpy())[k] for x in g.numpy()]
    inside = np.array(
        [[np.linalg.norm(x - y) < r for y in f.numpy()] for x, r in zip(g.numpy(), radius, strict=True)]
    )
    found = pairs.density_coverage(f, g)
    assert found.density == pytest.approx(inside.sum() / (k * len(f)))
    assert found.coverage == pytest.approx(inside.any(1).mean())


def test_density_and_coverage_of_extremes():
    g = torch.randn(200, 4, generator=GENERATOR)
    assert pairs.density_coverage(g + 100, g) == (0, 0)
    one_mode = g[:1].expand(50, -1) + 1e-3 * torch.randn(50, 4, generator=GENERATOR)
    collapsed = pairs.density_coverage(one_mode, g)
    assert collapsed.density > 0.2
    assert collapsed.coverage < 0.15


def test_vendi_counts_different_things():
    eye = torch.eye(5)
    assert distances.vendi(eye) == pytest.approx(5)
    assert distances.vendi(eye[:1].expand(7, -1)) == pytest.approx(1)
    assert distances.vendi(torch.cat((eye[:2], 3 * eye[:2], eye[:2]))) == pytest.approx(
        2
    )  # lengths do not count
    wide = torch.randn(6, 40, generator=GENERATOR)  # fewer images than features, and the other way round
    cosines = torch.nn.functional.normalize(wide.double(), dim=1)
    weights = torch.linalg.eigvalsh(cosines @ cosines.T / 6)
    expected = math.exp(-sum(w * math.log(w) for w in weights.tolist()))
    assert distances.vendi(wide) == pytest.approx(expected)
    assert distances.vendi(wide.repeat(20, 1)) == pytest.approx(expected)
