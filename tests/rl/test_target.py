"""Target-NFE samplers: exactly K evaluations, every set as likely, times where DDIM errs most."""

import itertools
import math

import pytest
import torch

from agents import BASELINES
from agents.base import Budget
from agents.target import DATA_DEVIATION, TargetStochastic, selection, target_importance
from envs.observation import ENTRIES
from stepdrop_rl.diffusion import NoiseSchedule, image_scale
from stepdrop_rl.engine import Engine
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.solvers.ddim import DDIM

START, END, N = 960.0, 20.0, 12


def gaussian(deviation=DATA_DEVIATION, schedule="cosine"):
    return GaussianMixture(NoiseSchedule(schedule, 1000), torch.zeros(1, 1, 2, 2), deviation)


def drawn(nfe, count=600, batch_size=256):
    times = torch.linspace(START, END, N, dtype=torch.float64)
    engine = Engine(denoiser=gaussian(), solver=DDIM(), times=times, seed=4, batch_size=batch_size)
    return engine.sample(BASELINES.load("target_stochastic")(Budget(nfe, START, END, N)), count)


@pytest.mark.parametrize("nfe", [1, 2, 3, 5, N - 1, N])
def test_every_sample_gets_exactly_its_evaluations(nfe):
    samples = drawn(nfe)
    assert samples.nfe.tolist() == [nfe] * 600
    assert bool(samples.evaluated[:, 0].all())
    assert bool(samples.evaluated[:, -1].all()) == (nfe >= 2)


@pytest.mark.parametrize("nfe", [1.5, 2.25, 6.7, N - 0.5])
def test_a_fraction_buys_one_more_for_some(nfe):
    samples = drawn(nfe, 2000)
    low = math.floor(nfe)
    assert set(samples.nfe.tolist()) == {low, low + 1}
    share = float((samples.nfe == low + 1).double().mean())
    assert share == pytest.approx(nfe - low, abs=4 * math.sqrt(0.25 / 2000))


def test_every_set_of_points_is_as_likely():
    points, count = 6, 4
    take, reach = selection(points, count)
    torch.testing.assert_close(reach.sum(1), torch.ones(points, dtype=torch.float64))
    for chosen in itertools.product([0, 1], repeat=points):
        probability, so_far = 1.0, 0
        for point, evaluates in enumerate(chosen):
            p = float(take[point, so_far])
            probability *= p if evaluates else 1 - p
            so_far += evaluates
        allowed = sum(chosen) == count and chosen[0] and chosen[-1]
        expected = 1 / math.comb(points - 2, count - 2) if allowed else 0.0
        assert probability == pytest.approx(expected), chosen


def test_the_mixture_draws_the_sets_of_its_two_budgets():
    points, nfe = 5, 3.4
    agent = TargetStochastic(Budget(nfe, START, END, points))
    for chosen in itertools.product([0, 1], repeat=points - 1):
        probability, so_far = 1.0, 1
        for point, evaluates in enumerate(chosen, start=1):
            observation = torch.zeros(1, len(ENTRIES))
            observation[0, 0], observation[0, 3] = point / (points - 1), so_far / points
            p = float(agent.probabilities(observation))
            probability *= p if evaluates else 1 - p
            so_far += evaluates
        expected = 0.0
        if chosen[-1] and so_far in (3, 4):
            expected = {3: 0.6, 4: 0.4}[so_far] / math.comb(points - 2, so_far - 2)
        assert probability == pytest.approx(expected, abs=1e-6), chosen


def test_the_lot_does_not_depend_on_packing():
    whole, packed = drawn(4.5, 50), drawn(4.5, 50, batch_size=7)
    assert torch.equal(whole.evaluated, packed.evaluated)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_importance_is_even_in_the_angle(schedule):
    noise = NoiseSchedule(schedule, 1000)
    times = target_importance(Budget(9, START, END, N, noise)).times
    assert times[0] == START
    assert times[-1] == END
    angle = torch.atan(DATA_DEVIATION * torch.exp(noise.lam(times)))
    torch.testing.assert_close(angle.diff(), angle.diff().mean().expand(8))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_importance_is_the_root_of_ddims_local_error(schedule):
    # The error of one short step on Gaussian data, measured, carried to the end by the flow x ~ sqrt(v).
    model = gaussian(schedule=schedule)
    lam = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)
    h = 1e-3
    t, s = model.schedule.time_of(lam), model.schedule.time_of(lam + h)

    def deviation(at):
        alpha, sigma = model.schedule.alpha_sigma(at)
        return torch.sqrt(alpha**2 * DATA_DEVIATION**2 + sigma**2)

    x = torch.ones(11, 1, 2, 2, dtype=torch.float64) * image_scale(
        deviation(t), torch.ones(1, 1, 1, 1).double()
    )
    x0 = model.x0(x, t)
    (alpha_s, sigma_s), (_, sigma_t) = model.schedule.alpha_sigma(s), model.schedule.alpha_sigma(t)
    stepped = image_scale(sigma_s / sigma_t, x) * x - image_scale(alpha_s * math.expm1(-h), x) * x0
    error = (stepped[:, 0, 0, 0] / deviation(s) - 1).abs()
    r = torch.exp(lam)
    density = r / (1 + DATA_DEVIATION**2 * r**2)
    ratio = error.sqrt() / density
    torch.testing.assert_close(ratio, ratio.mean().expand(11), rtol=5e-3, atol=0)


def test_importance_errs_less_than_even_times_under_the_linear_schedule():
    model = gaussian(schedule="linear")
    fine = torch.linspace(START, END, 2000, dtype=torch.float64)

    def error(name):
        agent = BASELINES.load(name)(Budget(10, START, END, N, model.schedule))
        engine = Engine(denoiser=model, solver=DDIM(), times=fine, seed=0, clip="none")
        wanted = engine.sample(BASELINES.load("uniform")(Budget(400, START, END, N)), 40).images
        return float((engine.sample(agent, 40).images - wanted).square().mean())

    assert error("target_importance") < 0.5 * error("uniform")
