"""The price that moves until a target is met: by hand, in closed form, learned, resumed, evaluated."""

import math
from dataclasses import replace

import pytest
import torch

from agents.policy import LearnedPolicy
from envs.dual import SPREAD, MovingPrice
from envs.errors import UserError
from envs.observation import HIGHEST_PRICE, LOWEST_PRICE
from envs.sb3 import StepDropVecEnv
from stepdrop_rl.config import EnvConfig
from stepdrop_rl.pricing import price_for
from stepdrop_rl.validation import ValidationJudge

from .conftest import N
from .test_learners import info_of, learner_of
from .test_pricing import engine_of, expected_nfe, priced_policy


def moving_price(target, start=0.02, step=0.2, batch=64):
    return MovingPrice(target, start=start, step=step, batch=batch)


def test_the_price_moves_by_its_formula():
    moving = moving_price(4.0, batch=4)
    assert moving.price == pytest.approx(0.02)
    moving.record(torch.tensor([6, 6, 5]))
    assert moving.price == pytest.approx(0.02)  # the batch is not full
    moving.record(torch.tensor([3]))
    assert (moving.nfe, moving.steps) == (5.0, 1)
    assert moving.price == pytest.approx(0.02 * math.exp(0.2 * 0.25 + 0.25))
    moving.record(torch.tensor([4, 4, 4, 4]))
    assert moving.price == pytest.approx(0.02 * math.exp(0.2 * 0.25))
    moving.reset()
    assert moving.price == pytest.approx(0.02)


def test_the_price_stays_where_policies_can_see_it():
    up, down = moving_price(1.5, step=9.0, batch=1), moving_price(8.0, step=9.0, batch=1)
    for _ in range(50):
        up.record(torch.tensor([9]))
        down.record(torch.tensor([1]))
    assert up.price == pytest.approx(HIGHEST_PRICE)
    assert down.price == pytest.approx(LOWEST_PRICE)


@pytest.mark.parametrize("target", [2.5, 4.0, 6.5])
@pytest.mark.parametrize("start", [0.001, 1.0])
def test_a_policy_whose_spending_is_known_is_brought_to_the_target(problem, target, start):
    moving = moving_price(target, start, step=0.5, batch=256)  # it follows at once
    core = problem.core(256, moving=moving)
    policy = priced_policy(problem.times)
    core.seed(core.rows, torch.arange(256))
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        core.begin(core.rows)
        prices = core.walk.price / moving.price
        assert 1 / SPREAD <= float(prices.min()) < float(prices.max()) <= SPREAD
        for _ in range(N - 1):
            p = policy.probabilities(core.walk.observe(core.rows))
            core.step(core.rows, (torch.rand(256, generator=generator) < p).long())
    assert moving.steps == 60
    assert expected_nfe(moving.price) == pytest.approx(target, rel=0.05)


def own(problem, learner, algo):
    """The policy with its single price."""
    moving = learner.env.core.moving
    info = replace(info_of(problem, learner, algo), prices=[moving.price] * 2, target_nfe=moving.target_nfe)
    return learner.policy(info)


@pytest.mark.parametrize("algo, rounds, others", [("ppo", 60, {"batch_size": 128}), ("rloo", 120, {})])
def test_what_is_learned_meets_the_target(problem, algo, rounds, others):
    # It starts by evaluating nearly everywhere, at a price that asks for no less.
    moving = moving_price(3.0, start=0.002)
    settings = {"num_envs": 64, "ent_coef": 0.02, "initial_nfe": 8.0}
    learner, _ = learner_of(problem, algo, moving=moving, **settings, **others)
    learner.learn(64 * (N - 1) * rounds, lambda decisions: True)
    policy = own(problem, learner, algo)
    found = price_for(policy, engine_of(problem, policy), 3.0, num_images=1024)
    assert found.mean == pytest.approx(3.0, rel=0.05)
    assert found.price == pytest.approx(moving.price)
    assert moving.price > 0.02


@pytest.mark.parametrize("algo", ["ppo", "rloo"])
def test_a_run_with_a_moving_price_resumes_exactly(problem, algo):
    total = 16 * (N - 1) * 6

    def run(seed):
        return learner_of(problem, algo, seed=seed, moving=moving_price(3.0, batch=16))[0]

    one = run(0)
    one.learn(total, lambda decisions: True)
    other = run(0)
    other.learn(total, lambda decisions: decisions < total // 2)
    state = {name: value.clone() for name, value in other.state().items()}
    resumed = run(5)
    resumed.load_state(state)
    resumed.learn(total, lambda decisions: True)
    assert one.env.core.moving.price == resumed.env.core.moving.price
    assert one.env.core.moving.steps == resumed.env.core.moving.steps == 6
    theirs = own(problem, resumed, algo).tensors()
    for name, tensor in own(problem, one, algo).tensors().items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_reset_by_a_seed_forgets_where_the_price_went(problem):
    env = StepDropVecEnv(problem.core(4, moving=moving_price(3.0, batch=4)))
    env.seed(0)
    env.reset()
    for _ in range(N - 1):
        env.step([1] * 4)
    assert env.core.moving.steps == 1
    price = env.core.moving.price
    assert price != pytest.approx(0.02)
    env.seed(0)
    env.reset()
    assert env.core.moving.price == pytest.approx(0.02)
    assert bool((env.core.walk.price <= 0.02 * SPREAD).all())


# --- a policy that was held to a target ---------------------------------------------------------


def held(problem, target, price):
    policy = priced_policy(problem.times)
    info = replace(policy.info, prices=[price, price], target_nfe=target)
    return LearnedPolicy(info, policy.layers)


def test_its_own_target_is_its_own_price(problem):
    policy = held(problem, expected_nfe(0.03) * 0.97, 0.03)
    found = price_for(policy, engine_of(problem, policy), policy.info.target_nfe, num_images=512)
    assert found.price == pytest.approx(0.03)
    assert found.mean == pytest.approx(expected_nfe(0.03), rel=0.05)


def test_another_target_is_refused(problem):
    policy = held(problem, 3.0, 0.03)
    with pytest.raises(UserError, match=r"held to 3 evaluations per image, not 4: .*--env\.target_nfe 4"):
        price_for(policy, engine_of(problem, policy), 4.0, num_images=64)


def test_a_target_that_was_missed_is_said(problem):
    policy = held(problem, 0.8 * expected_nfe(0.03), 0.03)
    with pytest.raises(UserError, match=r"train it longer, or take it as it is with --price 0\.03"):
        price_for(policy, engine_of(problem, policy), policy.info.target_nfe, num_images=256)


def test_the_judge_counts_every_miss(problem):
    policy = held(problem, 3.0, 0.03)
    judge = ValidationJudge(engine_of(problem, policy), lambda images: 2.0, [3.0], 256)
    look = judge.look(policy)
    ((price, nfe, _),) = look.table
    assert price == 0.03
    assert look.score == pytest.approx(math.log(2.0) + abs(nfe - 3.0))


def test_settings_of_a_moving_price():
    assert EnvConfig(target_nfe=5.0, price_min=0.004, price_max=0.1).prices == pytest.approx((0.02, 0.02))
    assert EnvConfig(target_nfe=5.0, price=0.3).prices == (0.3, 0.3)
    for settings in ({"target_nfe": 1.0}, {"target_nfe": 24.0}, {"target_nfe": 5.0, "price": 0.0}):
        with pytest.raises(UserError):
            EnvConfig(**settings)
    with pytest.raises(UserError, match="price_step"):
        EnvConfig(price_step=0.0)
