"""Policies with a memory: the engine shows them the grid in order, and keeps what they remember."""

import numpy as np
import pytest
import torch

from agents.base import RecurrentAgent
from agents.policy import LearnedPolicy, build_policy, describe
from envs.errors import UserError
from envs.mdp import Trajectories
from envs.philox import Role, Stream, uniform
from stepdrop_rl.engine import Engine
from stepdrop_rl.policies import load_policy, save_policy
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers.multistep import Multistep

from .conftest import N
from .test_learners import info_of, learner_of

SEED, PRICE, IMAGES = 7, 0.03, 60


@pytest.fixture(scope="module")
def learner(problem):
    """Its memory matters: weights that shake its odds from point to point."""
    learner, _ = learner_of(problem, "recurrent_ppo", initial_nfe=5.0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learner.model.policy.lstm_actor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        weight = learner.model.policy.action_net.weight
        weight.copy_(2 * torch.randn(weight.shape, generator=generator))
    return learner


def engine_of(problem, **settings):
    return Engine(denoiser=problem.denoiser, solver=Multistep(), times=problem.times, seed=SEED, **settings)


def coins(problem, point):
    at = problem.times[point].expand(IMAGES)
    ids = torch.arange(IMAGES)
    return uniform(1, seed=SEED, role=Role.EVALUATION, stream=Stream.DECISION, image=ids, time=at)[:, 0]


def walked(problem, learner, mode):
    """The plain way: sb3-contrib's own network, point by point, with the state that it hands back."""
    process = DiffusionProcess(
        problem.denoiser, Multistep(), num_rows=IMAGES, seed=SEED, role=Role.EVALUATION
    )
    walk, rows = Trajectories(process, problem.times), torch.arange(IMAGES)
    walk.begin(rows, rows, torch.full((IMAGES,), PRICE, dtype=torch.float64))
    states, start = None, np.ones(IMAGES, dtype=bool)
    policy = learner.model.policy
    for point in range(1, N):
        seen = walk.observe(rows)
        if mode:
            actions, states = learner.model.predict(
                seen.numpy(), state=states, episode_start=start, deterministic=True
            )
            actions = torch.from_numpy(actions)
        else:
            zeros = torch.zeros(policy.lstm_hidden_state_shape).repeat(1, IMAGES, 1)
            with torch.no_grad():
                distribution, states = policy.get_distribution(
                    seen, states or (zeros, zeros), torch.from_numpy(start).float()
                )
            actions = coins(problem, point) < distribution.distribution.probs[:, 1]
        start = np.zeros(IMAGES, dtype=bool)
        walk.advance(rows, actions)
    return walk.evaluated


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("slots", [64, 7, 1])
def test_the_engine_decides_as_sb3_contrib_does_whatever_the_packing(problem, learner, mode, slots):
    policy = learner.policy(info_of(problem, learner, "recurrent_ppo"))
    samples = engine_of(problem, batch_size=slots, mode=mode).sample(policy, IMAGES, price=PRICE)
    assert torch.equal(samples.evaluated, walked(problem, learner, mode))
    assert len(set(samples.nfe.tolist())) > 2


def test_a_sample_that_follows_another_into_its_slot_remembers_nothing_of_it(problem, learner):
    policy = learner.policy(info_of(problem, learner, "recurrent_ppo"))
    engine = engine_of(problem, batch_size=5)
    whole = engine.sample(policy, 30, price=PRICE)
    alone = engine.sample(policy, 1, price=PRICE, first_image=29)
    assert torch.equal(whole.evaluated[29:], alone.evaluated)


def test_the_memory_decides(problem, learner):
    policy = learner.policy(info_of(problem, learner, "recurrent_ppo"))
    assert isinstance(policy, RecurrentAgent)

    class Forgetful(LearnedPolicy):
        def probabilities(self, observation):
            return policy.probabilities(observation)

    forgetful = Forgetful(policy.info, policy.layers)
    assert not isinstance(forgetful, RecurrentAgent)
    with_memory, without = (engine_of(problem).sample(a, IMAGES, price=PRICE) for a in (policy, forgetful))
    assert not torch.equal(with_memory.evaluated, without.evaluated)


def test_a_policy_folder_gives_the_same_policy(problem, learner, tmp_path):
    policy = learner.policy(info_of(problem, learner, "recurrent_ppo"))
    save_policy(tmp_path / "p", policy)
    loaded = load_policy(tmp_path / "p")
    assert isinstance(loaded, RecurrentAgent)
    assert describe(loaded) == describe(policy)
    observation, state = torch.rand(16, 10), torch.rand(16, 2 * policy.info.memory)
    for ours, theirs in zip(policy.step(observation, state), loaded.step(observation, state), strict=True):
        assert torch.equal(ours, theirs)


def test_a_memory_of_another_size_is_refused(problem, learner, tmp_path):
    policy = learner.policy(info_of(problem, learner, "recurrent_ppo"))
    for name, shape in (("lstm.weight_hh", (256, 32)), ("lstm.bias_ih", (1,))):
        tensors = policy.tensors() | {name: torch.zeros(shape)}
        with pytest.raises(UserError, match="does not fit the observation"):
            build_policy(describe(policy), tensors, tmp_path / "policy.json")
    lacking = {name: tensor for name, tensor in policy.tensors().items() if name != "lstm.bias_hh"}
    with pytest.raises(UserError, match="is damaged"):
        build_policy(describe(policy), lacking, tmp_path / "policy.json")
