"""SB3's algorithms behind one adapter: exported policies, first ratios, a problem that must be solved."""

import numpy as np
import pytest
import torch

from agents import ALGORITHMS
from agents.policy import PolicyInfo
from envs.sb3 import StepDropVecEnv

from .conftest import N

QUICK = {
    "ppo": {"batch_size": 64, "n_epochs": 4, "learning_rate": 3e-3},
    "a2c": {"learning_rate": 3e-3},
    "dqn": {"learning_starts": 64, "batch_size": 64, "train_freq": 1, "gradient_steps": 1},
}


def learner_of(problem, algo, num_envs=16, seed=0, reward=None, prices=(0.01, 0.1), **hyperparameters):
    env = StepDropVecEnv(problem.core(num_envs, reward or {"feature": 1.0}, prices=prices))
    logged = []
    learner = ALGORITHMS.load(algo)(
        env,
        seed=seed,
        hyperparameters=QUICK[algo] | hyperparameters,
        log=lambda numbers, step: logged.append((step, numbers)),
    )
    return learner, logged


def info_of(problem, learner, algo):
    return PolicyInfo(
        algo=algo,
        activation=learner.activation,
        output=learner.output,
        dataset="digits",
        model_hash="0",
        solver="multistep",
        times=problem.times.tolist(),
        prices=[0.01, 0.1],
    )


@pytest.mark.parametrize("algo", list(ALGORITHMS))
def test_the_exported_policy_is_the_learned_one(problem, algo):
    learner, logged = learner_of(problem, algo)
    learner.learn(256, lambda decisions: True)
    policy = learner.policy(info_of(problem, learner, algo))
    observation = torch.rand(64, 10)
    if algo == "dqn":
        expected = learner.model.predict(observation.numpy(), deterministic=True)[0]
        assert np.array_equal(policy.probabilities(observation).numpy() > 0.5, expected == 1)
    else:
        expected = learner.model.policy.get_distribution(observation).distribution.probs[:, 1]
        torch.testing.assert_close(policy.probabilities(observation), expected.detach())
    assert logged, "learning curves reach the log"
    steps = [step for step, _ in logged]
    assert steps == sorted(steps)


def test_ppos_first_ratio_is_one(problem):
    # one epoch over one batch: the policy has not moved when its ratio is taken, so nothing is clipped
    learner, logged = learner_of(problem, "ppo", n_epochs=1, batch_size=16 * (N - 1))
    learner.learn(16 * (N - 1), lambda decisions: True)
    numbers = {key: value for _, row in logged for key, value in row.items()}
    assert numbers["train/clip_fraction"] == 0.0
    assert numbers["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)


def mean_nfe(learner, problem, price):
    """Evaluations per image of the current policy, at one price."""
    core = problem.core(256, {"feature": 1.0}, prices=(price, price))
    core.seed(core.rows, torch.arange(256))
    core.begin(core.rows)
    policy = learner.policy(info_of(problem, learner, "ppo"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(N - 1):
        p = policy.probabilities(core.walk.observe(core.rows))
        core.step(core.rows, (torch.rand(256, generator=generator) < p).long())
    return float(core.walk.nfe.double().mean())


def test_ppo_learns_not_to_buy_what_costs_too_much(problem):
    learner, _ = learner_of(problem, "ppo", num_envs=64, prices=(5.0, 5.0))
    learner.learn(64 * (N - 1) * 12, lambda decisions: True)
    assert mean_nfe(learner, problem, 5.0) < 1.2


def test_ppo_learns_to_buy_what_is_free(problem):
    learner, _ = learner_of(problem, "ppo", num_envs=64, prices=(0.0, 0.0), ent_coef=0.0)
    before = mean_nfe(learner, problem, 0.0)
    learner.learn(64 * (N - 1) * 25, lambda decisions: True)
    assert mean_nfe(learner, problem, 0.0) > before


def test_runs_of_different_seeds_share_no_episode(problem):
    seen = []
    for seed in (0, 1):
        learner, _ = learner_of(problem, "ppo", num_envs=64, seed=seed)
        learner.learn(1, lambda decisions: False)
        learner.env.reset()
        seen.append(set(learner.env.core.seeds.tolist()))
    assert len(seen[0]) == 64
    assert not seen[0] & seen[1]


def test_a_stopped_run_stops_between_rollouts(problem):
    learner, _ = learner_of(problem, "ppo")
    learner.learn(10_000, lambda decisions: decisions < 300)
    assert learner.model.num_timesteps == 3 * 16 * (N - 1)  # the first rollout's end past 300
