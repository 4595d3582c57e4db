"""Learning algorithms: exported policies, first ratios, siblings, a problem that must be solved."""

from pathlib import Path

import numpy as np
import pytest
import torch

from agents import ALGORITHMS
from agents.base import RecurrentAgent
from agents.planning import shown
from agents.policy import PolicyInfo
from agents.rloo import advantages, sibling_advantages
from envs.errors import UserError
from envs.sb3 import StepDropVecEnv

from .conftest import N

QUICK = {
    "ppo": {"batch_size": 64, "n_epochs": 4, "learning_rate": 3e-3},
    "a2c": {"learning_rate": 3e-3},
    "rloo": {"learning_rate": 3e-3, "n_epochs": 4},
    "relaxed": {"learning_rate": 1e-2, "batch_size": 16},
    "pathwise": {"learning_rate": 1e-2, "batch_size": 16, "min_nfe": 2, "max_nfe": 6},
    "fork": {"learning_rate": 1e-2, "batch_size": 16, "min_nfe": 3, "max_nfe": 6, "left": 1, "updates": 4},
    "dqn": {"learning_starts": 64, "batch_size": 64, "train_freq": 1, "gradient_steps": 1},
    "qrdqn": {"learning_starts": 64, "batch_size": 64, "train_freq": 1, "gradient_steps": 1},
    "trpo": {"learning_rate": 3e-3},
    "recurrent_ppo": {"batch_size": 64, "n_epochs": 4, "learning_rate": 3e-3},
    "clone": {"experts": [str(Path(__file__).with_name("schedule.json"))]},
}


def learner_of(
    problem,
    algo,
    num_envs=16,
    seed=0,
    reward=None,
    prices=(0.01, 0.1),
    solver="multistep",
    moving=None,
    **hyperparameters,
):
    core = problem.core(num_envs, reward or {"feature": 1.0}, prices=prices, solver=solver, moving=moving)
    env = StepDropVecEnv(core)
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
    if algo in ("dqn", "qrdqn"):
        expected = learner.model.predict(observation.numpy(), deterministic=True)[0]
        assert np.array_equal(policy.probabilities(observation).numpy() > 0.5, expected == 1)
    elif algo == "recurrent_ppo":
        states, start = None, np.ones(64, dtype=bool)
        memory = policy.initial_state(64)
        for k in range(3):  # its actions that are likelier, and the state that it keeps
            seen = (observation + k) / (k + 1)
            expected, states = learner.model.predict(
                seen.numpy(), state=states, episode_start=start, deterministic=True
            )
            p, memory = policy.step(seen, memory)
            assert np.array_equal(p.numpy() > 0.5, expected == 1)
            for ours, theirs in zip(memory.chunk(2, 1), states, strict=True):
                np.testing.assert_allclose(ours.numpy(), theirs[0], atol=1e-6)
            start = np.zeros(64, dtype=bool)
    elif algo == "pathwise":
        observation[:, 3] /= 3  # evaluations: no more than it ever has
        seen = shown(observation, N)
        learned = learner.timing(seen, learner.tariff.count(seen.log_price)).detach()
        torch.testing.assert_close(policy.plan(observation).lam, learned)
    elif algo == "fork":  # its gates are the average of what was learned
        learner.average.give({"dealing": learner.dealing, "cascade": learner.cascade})
        seen, rows = shown(observation, N), torch.zeros(64).long()
        ours, theirs = (one.cascade.worths(rows, seen.entries.unsqueeze(1))[0] for one in (policy, learner))
        torch.testing.assert_close(ours, theirs.detach())
    elif algo in ("rloo", "relaxed", "clone"):
        expected = torch.softmax(learner.actor_network(observation), -1)[:, 1]
        torch.testing.assert_close(policy.probabilities(observation), expected.detach())
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
    state = policy.initial_state(256) if isinstance(policy, RecurrentAgent) else None
    for _ in range(N - 1):
        observation = core.walk.observe(core.rows)
        if state is None:
            p = policy.probabilities(observation)
        else:
            p, state = policy.step(observation, state)
        core.step(core.rows, (torch.rand(256, generator=generator) < p).long())
    return float(core.walk.nfe.double().mean())


@pytest.mark.parametrize("algo", ["ppo", "rloo", "trpo"])
def test_it_learns_not_to_buy_what_costs_too_much(problem, algo):
    learner, _ = learner_of(problem, algo, num_envs=64, prices=(5.0, 5.0))
    learner.learn(64 * (N - 1) * 12, lambda decisions: True)
    assert mean_nfe(learner, problem, 5.0) < 1.2


@pytest.mark.parametrize("algo", ["ppo", "rloo"])
def test_it_learns_to_buy_what_is_free(problem, algo):
    learner, _ = learner_of(problem, algo, num_envs=64, prices=(0.0, 0.0), ent_coef=0.0)
    before = mean_nfe(learner, problem, 0.0)
    learner.learn(64 * (N - 1) * 25, lambda decisions: True)
    assert mean_nfe(learner, problem, 0.0) > before


def test_a_memory_learns_not_to_buy_what_costs_too_much(problem):
    learner, _ = learner_of(problem, "recurrent_ppo", num_envs=64, prices=(5.0, 5.0), batch_size=256)
    learner.learn(64 * (N - 1) * 12, lambda decisions: True)
    assert mean_nfe(learner, problem, 5.0) < 1.2


def test_quantile_values_learn_not_to_buy_what_costs_too_much(problem):
    learner, _ = learner_of(problem, "qrdqn", prices=(5.0, 5.0), exploration_fraction=0.5)
    learner.learn(16 * (N - 1) * 12, lambda decisions: True)
    assert mean_nfe(learner, problem, 5.0) < 1.2


def test_values_have_no_odds_to_begin_with(problem):
    with pytest.raises(UserError, match="unknown hyperparameter 'initial_nfe'"):
        learner_of(problem, "qrdqn", initial_nfe=4.0)


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


# --- siblings -----------------------------------------------------------------------------------


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0], [0.0], [2.0]])
    values = torch.tensor([[0.5], [1.0], [1.5]])
    # δ = r + V' − V: 1.5, 0.5, 0.5.
    torch.testing.assert_close(advantages(rewards, values, 1.0), torch.tensor([[2.5], [1.0], [0.5]]))
    torch.testing.assert_close(advantages(rewards, values, 0.0), torch.tensor([[1.5], [0.5], [0.5]]))
    torch.testing.assert_close(advantages(rewards, values, 0.5), torch.tensor([[1.875], [0.75], [0.5]]))


def test_what_siblings_share_cancels():
    own = torch.tensor([[1.0, 3.0, 2.0, 10.0, 11.0, 12.0]])
    expected = torch.tensor([[1 - 2.5, 3 - 1.5, 2 - 2, 10 - 11.5, 11 - 11, 12 - 10.5]])
    torch.testing.assert_close(sibling_advantages(own, 3), expected)
    shared = own + torch.tensor([5.0, 5.0, 5.0, -7.0, -7.0, -7.0])
    torch.testing.assert_close(sibling_advantages(shared, 3), expected)
    assert sibling_advantages(own, 1) is own


def test_siblings_share_image_and_price_and_nothing_else(problem):
    learner, _ = learner_of(problem, "rloo", num_envs=16, group=4)
    learner.learn(1, lambda decisions: True)
    images = learner.core.images.reshape(4, 4)
    prices = learner.core.walk.price.reshape(4, 4)
    assert bool((images == images[:, :1]).all())
    assert bool((prices == prices[:, :1]).all())
    assert len(set(prices[:, 0].tolist())) == 4
    taken = learner.core.walk.evaluated.reshape(4, 4, -1)
    assert any(not bool((group == group[0]).all()) for group in taken)


def resumed_run(problem, algo, total, **settings):
    """A run that was stopped half-way and went on elsewhere, started there with another seed."""
    other, _ = learner_of(problem, algo, **settings)
    other.learn(total, lambda decisions: decisions < total // 2)
    state = {name: value.clone() for name, value in other.state().items()}
    resumed, _ = learner_of(problem, algo, seed=5, **settings)
    resumed.load_state(state)
    assert resumed.num_decisions == other.num_decisions < total
    resumed.learn(total, lambda decisions: True)
    return resumed


@pytest.mark.parametrize(
    "algo, settings",
    [
        *(
            (algo, {})
            for algo in ("ppo", "a2c", "trpo", "recurrent_ppo", "rloo", "clone", "pathwise", "fork")
        ),
        ("fork", {"times_share": 0.0}),  # looks are kept from the beginning
    ],
)
def test_a_run_resumes_exactly(problem, algo, settings):
    settings = {"num_envs": 16, "reward": {"neighbour": 1.0}, **settings}
    total = 16 * (N - 1) * 6
    one, _ = learner_of(problem, algo, **settings)
    one.learn(total, lambda decisions: True)
    resumed = resumed_run(problem, algo, total, **settings)
    theirs = resumed.policy(info_of(problem, resumed, algo)).tensors()
    for name, tensor in one.policy(info_of(problem, one, algo)).tensors().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("algo", ["dqn", "qrdqn"])
def test_a_run_with_a_replay_memory_goes_on(problem, algo):
    total = 16 * (N - 1) * 6
    resumed = resumed_run(problem, algo, total)
    assert resumed.num_decisions == total
    assert resumed.model.learning_starts == 64 + total // 2  # its memory fills first


@pytest.mark.parametrize("algo", ["rloo", "relaxed", "clone"])
@pytest.mark.parametrize("sees, entries", [("schedule", {0, 1, 2, 3, 4}), ("time", {0, 1, 4})])
def test_a_policy_sees_no_more_than_it_may(problem, algo, sees, entries):
    learner, _ = learner_of(problem, algo, sees=sees)
    learner.learn(16 * (N - 1) * 3, lambda decisions: True)
    policy = learner.policy(info_of(problem, learner, algo))
    base = torch.rand(50, 10, generator=torch.Generator().manual_seed(0))
    for entry in range(10):
        other = base.clone()
        other[:, entry] = torch.rand(50)
        same = torch.equal(policy.probabilities(base), policy.probabilities(other))
        assert same == (entry not in entries), entry


def test_rloo_refuses_what_it_cannot_use(problem):
    with pytest.raises(UserError, match="did you mean 'group'"):
        learner_of(problem, "rloo", groups=3)
    with pytest.raises(UserError, match="did you mean 'sample'"):
        learner_of(problem, "rloo", sees="samples")
    with pytest.raises(UserError, match="must be a multiple of the group"):
        learner_of(problem, "rloo", num_envs=16, group=3)
    with pytest.raises(UserError, match="group must be at least 1, not 0"):
        learner_of(problem, "rloo", group=0)
