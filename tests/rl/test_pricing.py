"""Finding the price of a budget, with a policy whose spending is known in closed form."""

import math

import pytest
import torch

from agents.policy import LearnedPolicy, PolicyInfo, build_policy, describe
from envs.errors import UserError
from envs.observation import ENTRIES
from envs.philox import Role
from stepdrop_rl.engine import Engine
from stepdrop_rl.policies import load_policy, save_policy
from stepdrop_rl.pricing import log_spaced, price_for
from stepdrop_rl.solvers.multistep import Multistep

from .conftest import N

PRICE = [entry.name for entry in ENTRIES].index("log_price")
SLOPE = -4.0


def priced_policy(times, table=(), slope=SLOPE, prices=(0.001, 1.0)):
    """P(evaluate) = sigmoid(slope·(log10 price)/2 − 3)."""
    weight = torch.zeros(2, len(ENTRIES))
    weight[1, PRICE] = slope
    info = PolicyInfo(
        algo="ppo",
        activation="tanh",
        output="softmax",
        dataset="digits",
        model_hash="0",
        solver="multistep",
        times=times.tolist(),
        prices=list(prices),
        price_table=[list(row) for row in table],
    )
    return LearnedPolicy(info, [(weight, torch.tensor([0.0, -3.0]))])


def expected_nfe(price):
    p = 1 / (1 + math.exp(3 - SLOPE * math.log10(price) / 2))
    return 1 + (N - 1) * p


def engine_of(problem, policy):
    return Engine(
        denoiser=problem.denoiser, solver=Multistep(), times=policy.times, seed=0, role=Role.VALIDATION
    )


def test_the_policy_spends_what_its_formula_says(problem):
    policy = priced_policy(problem.times)
    for price in (0.001, 0.03, 0.5):
        samples = engine_of(problem, policy).sample(policy, 512, price=price)
        error = float(samples.nfe.double().std()) / math.sqrt(512)
        assert float(samples.nfe.double().mean()) == pytest.approx(expected_nfe(price), abs=4 * error)


@pytest.mark.parametrize("target", [2.0, 4.0, 6.5])
@pytest.mark.parametrize("with_table", [False, True])
def test_targets_are_met_from_below(problem, target, with_table):
    table = [(p, expected_nfe(p)) for p in log_spaced(0.001, 1.0, 6)] if with_table else []
    policy = priced_policy(problem.times, table)
    found = price_for(policy, engine_of(problem, policy), target, num_images=512)
    assert found.spent <= target
    assert found.spent >= 0.98 * target
    fresh = Engine(denoiser=problem.denoiser, solver=Multistep(), times=policy.times, seed=99)
    samples = fresh.sample(policy, 2048, price=found.price)
    assert float(samples.nfe.double().mean()) <= target * 1.01


@pytest.mark.parametrize("target", [1.01, 8.9])
def test_targets_out_of_reach_are_refused_with_the_range(problem, target):
    policy = priced_policy(problem.times)
    with pytest.raises(UserError, match=r"out of reach .* from \d.*to \d"):
        price_for(policy, engine_of(problem, policy), target, num_images=128)


@pytest.mark.parametrize("factor", [0.7, 0.9, 0.97, 1.03, 1.1, 1.4])
def test_a_table_that_lies_is_corrected(problem, factor):
    wrong = [(p, factor * expected_nfe(p)) for p in log_spaced(0.001, 1.0, 9)]
    policy = priced_policy(problem.times, wrong)
    found = price_for(policy, engine_of(problem, policy), 4.0, num_images=512)
    assert 0.95 * 4.0 <= found.spent <= 4.0


def test_a_policy_folder_gives_the_same_policy(problem, tmp_path):
    policy = priced_policy(problem.times, [(0.1, 2.0)])
    save_policy(tmp_path / "p", policy)
    loaded = load_policy(tmp_path / "p")
    assert describe(loaded) == describe(policy)
    observation = torch.rand(16, len(ENTRIES))
    assert torch.equal(loaded.probabilities(observation), policy.probabilities(observation))


def test_a_policy_of_another_observation_version_is_refused(problem, tmp_path):
    policy = priced_policy(problem.times)
    raw = describe(policy) | {"observation_version": 999}
    with pytest.raises(UserError, match="observation version 999"):
        build_policy(raw, policy.tensors(), tmp_path / "policy.json")


def test_a_policy_whose_network_does_not_fit_is_refused(problem, tmp_path):
    policy = priced_policy(problem.times)
    tensors = policy.tensors() | {"layers.0.weight": torch.zeros(2, 3)}
    with pytest.raises(UserError, match="does not fit the observation"):
        build_policy(describe(policy), tensors, tmp_path / "policy.json")
