"""Noise schedules, the forward process, training targets and loss weights."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from envs.errors import UserError
from stepdrop_rl.diffusion import (
    CLEAN,
    SCHEDULES,
    NoiseSchedule,
    q_sample,
    target,
    to_epsilon,
)

from .conftest import exact

T = 1000
DIFFUSERS_NAME = {"linear": "linear", "cosine": "squaredcos_cap_v2"}

every_schedule = pytest.mark.parametrize("name", sorted(SCHEDULES))


@pytest.mark.parametrize("name", sorted(DIFFUSERS_NAME))
def test_alpha_bar_agrees_with_diffusers(name: str) -> None:
    theirs = DDPMScheduler(T, beta_start=1e-4, beta_end=0.02, beta_schedule=DIFFUSERS_NAME[name])
    ours = NoiseSchedule(name, T).alpha_bar
    # Theirs is float32: every factor 1 − beta is off by 6e-8, and where the cosine's last beta is 0.999 by
    # 6e-8/1e-3; a thousand factors add up to less than 1e-4.
    torch.testing.assert_close(ours, theirs.alphas_cumprod.double(), rtol=1e-4, atol=0)
    betas = 1 - ours / torch.cat((ours.new_ones(1), ours[:-1]))
    torch.testing.assert_close(betas, theirs.betas.double(), rtol=1e-5, atol=0)


def test_closed_forms_of_alpha_bar() -> None:
    def cosine(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    ours = NoiseSchedule("cosine", T).alpha_bar
    for t in (0, 1, 500, 900):  # Nichol & Dhariwal 2021, eq. 17: the uncapped product telescopes
        assert float(ours[t]) == pytest.approx(cosine((t + 1) / T) / cosine(0), rel=1e-12)
    linear = NoiseSchedule("linear", T).alpha_bar
    assert float(linear[0]) == pytest.approx(1 - 1e-4, rel=1e-12)
    assert float(linear[1]) == pytest.approx((1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999), rel=1e-12)


@pytest.mark.parametrize("steps", [10, 100, 250, 4000])
def test_a_linear_schedule_of_other_length_ends_at_similar_noise(steps: int) -> None:
    assert float(NoiseSchedule("linear", steps).lam(torch.tensor(steps - 1.0))) < -4


@every_schedule
@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_a_schedule_is_a_schedule(name: str, steps: int) -> None:
    alpha_bar = NoiseSchedule(name, steps).alpha_bar
    assert alpha_bar.dtype == torch.float64
    assert len(alpha_bar) == steps
    assert bool((alpha_bar.diff() < 0).all())
    assert float(alpha_bar[-1]) > 0
    assert float(alpha_bar[0]) < 1


@every_schedule
def test_lam_is_exact_at_integers_and_linear_between(name: str) -> None:
    schedule = NoiseSchedule(name, T)
    k = torch.arange(T, dtype=torch.float64)
    at_integers = schedule.lam(k)
    exact(at_integers, 0.5 * (torch.log(schedule.alpha_bar) - torch.log1p(-schedule.alpha_bar)))
    for part in (0.25, 0.5, 0.9):
        between = (1 - part) * at_integers[:-1] + part * at_integers[1:]
        torch.testing.assert_close(schedule.lam(k[:-1] + part), between, rtol=1e-12, atol=1e-12)


@every_schedule
def test_alpha_and_sigma_follow_from_lam(name: str) -> None:
    schedule = NoiseSchedule(name, T)
    t = torch.tensor([0.0, 0.4, 3.0, 500.5, 998.7, 999.0], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.log(alpha / sigma), schedule.lam(t), rtol=1e-12, atol=1e-12)
    whole = t == t.round()
    torch.testing.assert_close(alpha[whole] ** 2, schedule.alpha_bar[t[whole].long()], rtol=1e-12, atol=0)


@every_schedule
def test_lam_is_differentiable_in_time(name: str) -> None:
    schedule = NoiseSchedule(name, T)
    t = torch.tensor([0.3, 17.5, 640.2, 998.5], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.lam(t).sum(), t)
    k = t.detach().floor().long()
    table = schedule.lam(torch.arange(T, dtype=torch.float64))
    torch.testing.assert_close(slope, table[k + 1] - table[k], rtol=1e-10, atol=0)
    assert torch.autograd.gradcheck(lambda t: schedule.alpha_sigma(t)[0], (t,), eps=1e-4)


@every_schedule
@pytest.mark.parametrize("steps", [2, 50, 1000])
def test_time_of_inverts_lam(name: str, steps: int) -> None:
    schedule = NoiseSchedule(name, steps)
    t = torch.linspace(0, steps - 1, 777, dtype=torch.float64)
    # Where lam is flattest (about 1e-3 per step) an error of 1e-15 in lam is one of 1e-12 in t.
    torch.testing.assert_close(schedule.time_of(schedule.lam(t)), t, rtol=0, atol=1e-9)


@every_schedule
def test_the_clean_end(name: str) -> None:
    schedule = NoiseSchedule(name, T)
    t = torch.tensor([CLEAN, 0.0], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    assert float(schedule.lam(t)[0]) == math.inf
    assert (float(alpha[0]), float(sigma[0])) == (1.0, 0.0)
    assert float(sigma[1]) > 0
    x0 = torch.randn(2, 1, 2, 2)
    exact(q_sample(schedule, x0, t, torch.randn(2, 1, 2, 2))[0], x0[0])


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([], "at least one time"),
        ([1.0, float("nan")], "finite"),
        ([1000.0, 3.0], r"\[0, 999\]"),
        ([5.0, -1.0], r"\[0, 999\]"),
        ([5.0, 5.0], "descend"),
        ([3.0, 5.0], "descend"),
    ],
)
def test_impossible_times_are_refused(times: list[float], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        NoiseSchedule("linear", T).check_times(torch.tensor(times, dtype=torch.float64))
    assert "\n" not in str(error.value)


def test_possible_times_are_accepted() -> None:
    NoiseSchedule("linear", T).check_times(torch.tensor([999.0, 0.25, 0.0], dtype=torch.float64))


def test_an_unknown_schedule_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        NoiseSchedule("cosin", T)


def some(batch: int = 6) -> tuple[NoiseSchedule, Tensor, Tensor, Tensor]:
    """A schedule, clean images, real times (each image at its own) and noise."""
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, batch, 2, 4, 4, generator=generator).unbind()
    t = torch.rand(batch, generator=generator, dtype=torch.float64) * (T - 1)
    return NoiseSchedule("cosine", T), x0, t, eps


def test_q_sample_agrees_with_diffusers() -> None:
    schedule, x0, t, eps = some()
    t = t.round()
    theirs = DDPMScheduler(T, beta_schedule="squaredcos_cap_v2").add_noise(x0, eps, t.long())
    # float32 roots of a float32 table against float64 ones.
    torch.testing.assert_close(q_sample(schedule, x0, t, eps), theirs, rtol=0, atol=1e-5)


def test_q_sample_is_each_sample_at_its_own_time() -> None:
    schedule, x0, t, eps = some()
    together = q_sample(schedule, x0, t, eps)
    assert together.dtype == torch.float32
    for i in range(len(t)):
        j = slice(i, i + 1)
        exact(together[j], q_sample(schedule, x0[j], t[j], eps[j]))


def test_targets() -> None:
    schedule, x0, t, eps = some()
    exact(target(schedule, "epsilon", x0, t, eps), eps)
    theirs = DDPMScheduler(T, beta_schedule="squaredcos_cap_v2").get_velocity(x0, eps, t.round().long())
    ours = target(schedule, "v_prediction", x0, t.round(), eps)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_network_is_turned_into_the_very_noise(prediction: str) -> None:
    schedule, x0, t, eps = some()
    x0, eps = x0.double(), eps.double()
    x_t = q_sample(schedule, x0, t, eps)
    perfect = target(schedule, prediction, x0, t, eps)
    back = to_epsilon(schedule, prediction, perfect, x_t, t)
    torch.testing.assert_close(back, eps, rtol=0, atol=1e-12)
