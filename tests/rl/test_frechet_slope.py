"""The Fréchet distance's slope against differences of the distance itself."""

import pytest
import torch

from envs.rewards import REWARDS
from envs.rewards.base import Candidates, Ground, WeightedQuality
from envs.rewards.frechet import distance, moments, slope
from stepdrop_rl.metrics.distances import frechet_distance, statistics

F = 6
GENERATOR = torch.Generator().manual_seed(0)
REAL = (
    torch.randn(400, F, generator=GENERATOR, dtype=torch.float64)
    @ torch.randn(F, F, generator=GENERATOR).double()
)
DRAWN = 0.7 * REAL[:300] + 0.4 + 0.3 * torch.randn(300, F, generator=GENERATOR, dtype=torch.float64)


def test_the_distance_is_torch_fidelitys():
    assert distance(moments(DRAWN), moments(REAL)) == pytest.approx(
        frechet_distance(DRAWN, statistics(REAL)), rel=1e-6
    )


def mixed_distance(f, weight):
    """Of (1 − w)·g + w·δ_f, from the moments of the mixture."""
    mean, covariance = DRAWN.mean(0), torch.cov(DRAWN.T)
    off = f - mean
    moments = {
        "mu": (mean + weight * off).numpy(),
        "sigma": ((1 - weight) * covariance + weight * (1 - weight) * torch.outer(off, off)).numpy(),
    }
    return frechet_distance(moments, statistics(REAL))


def test_the_slope_is_the_derivative_of_the_distance_by_mixing():
    found = slope(moments(DRAWN), moments(REAL))
    step = 1e-5
    for f in (DRAWN[3], REAL[7], 5 * torch.ones(F, dtype=torch.float64)):
        derivative = (mixed_distance(f, step) - mixed_distance(f, -step)) / (2 * step)
        assert float(found(f.unsqueeze(0))) == pytest.approx(derivative, rel=1e-3, abs=1e-3)


def test_the_slope_averages_zero_over_the_set_itself():
    found = slope(moments(DRAWN), moments(REAL))
    scale = float(found(DRAWN).abs().mean())
    assert abs(float(found(DRAWN).mean())) < 0.01 * scale  # a covariance with n − 1 for n


def test_at_the_real_set_the_slope_vanishes():
    found = slope(moments(REAL), moments(REAL))
    assert float(found(DRAWN).abs().max()) < 1e-6


@pytest.fixture
def quality():
    def features(x):
        return x.flatten(1).float()

    def images(n, scale, shift):
        return torch.randn(n, 1, 1, F, generator=GENERATOR) * scale + shift

    teacher = images(600, 1.0, 0.1)
    ground = Ground(
        features=features,
        real=features(images(800, 1.0, 0.0)),
        teacher=teacher,
        teacher_features=features(teacher),
        first=images(200, 0.4, 1.0),
        prices=(0.01, 0.1),
    )
    return WeightedQuality({"frechet": 1.0}, ground, 4)


def test_a_score_is_frozen_while_its_episode_runs(quality):
    term = quality.terms["frechet"]
    rows, prices = torch.arange(4), torch.tensor([0.011, 0.011, 0.09, 0.09], dtype=torch.float64)
    x = torch.randn(4, 1, 1, F, generator=GENERATOR)
    quality.begin(rows, rows, prices)
    before = quality.score(rows, x)
    for _ in range(90):  # the other rows' results are far away; row 0 goes on
        quality.end(torch.tensor([1, 1, 1, 1]), x + 3)
    quality.begin(torch.tensor([1]), torch.tensor([9]), prices[1:2])
    assert torch.equal(quality.score(rows[:1], x[:1]), before[:1])
    assert not torch.equal(quality.score(rows[1:2], x[1:2]), before[1:2])
    assert torch.equal(quality.score(rows[2:], x[2:]), before[2:])  # another price bin
    # What is where the set went too often costs; what draws it back to the real images pays.
    away, back = term.score(
        Candidates(quality.ground, torch.tensor([1, 1]), rows[:2], torch.stack((x[1] * 0 + 3, x[1] * 0 - 1)))
    )
    assert float(back) > float(away)


def test_it_is_registered():
    assert "frechet" in REWARDS
