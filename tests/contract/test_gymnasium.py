"""The three shells against what Gymnasium and Stable-Baselines3 demand of environments."""

import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import VecMonitor

from envs.sb3 import StepDropVecEnv
from stepdrop_rl.config import EnvConfig
from stepdrop_rl.environment import make_world
from stepdrop_rl.models.unet import load_model

ID = "stepdrop_rl:StepDrop-v0"
SMALL = {"num_decisions": 8}


@pytest.fixture(scope="module")
def world():
    return make_world(EnvConfig(num_decisions=8), model=load_model("digits"))


@pytest.fixture
def env():
    return gymnasium.make(ID, **SMALL)


def episode(env, seed=None, policy=lambda k: k % 2):
    observation, _ = env.reset(seed=seed)
    observations, rewards, ended, k = [observation], [], False, 0
    while not ended:
        observation, reward, ended, truncated, _ = env.step(policy(k))
        assert not truncated
        observations.append(observation)
        rewards.append(reward)
        k += 1
    return np.array(observations), np.array(rewards)


@pytest.mark.filterwarnings("error")
def test_gymnasiums_checker_passes():
    check_env(gymnasium.make(ID, render_mode="rgb_array", **SMALL).unwrapped)


def test_sb3s_checker_passes(env):
    sb3_check_env(env.unwrapped, warn=True)


def test_episodes_are_functions_of_the_seed(env):
    first, second = episode(env, seed=4), episode(env, seed=4)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    third = episode(env, seed=5)
    assert not np.array_equal(first[0], third[0])
    following = episode(env)
    assert not np.array_equal(third[0], following[0])
    assert len(first[1]) == SMALL["num_decisions"] - 1


def test_unseeded_environments_differ():
    a, b = gymnasium.make(ID, **SMALL), gymnasium.make(ID, **SMALL)
    assert not np.array_equal(a.reset()[0], b.reset()[0])


def test_a_pickled_environment_goes_on_where_it_was(env):
    env.reset(seed=1)
    env.step(1)
    twin = pickle.loads(pickle.dumps(env))
    for action in (0, 1, 1, 0):
        ours, theirs = env.step(action), twin.step(action)
        # the copy's weights lie elsewhere in memory, and kernels may round by their alignment
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
        assert ours[1] == pytest.approx(theirs[1], abs=1e-6)
        assert ours[2:4] == theirs[2:4]


def test_the_docstring_has_the_standard_headings_and_a_row_per_entry(env):
    doc = type(env.unwrapped).__doc__
    for heading in (
        "Action Space",
        "Observation Space",
        "Rewards",
        "Starting State",
        "Episode End",
        "Arguments",
    ):
        assert f"## {heading}" in doc
    (size,) = env.observation_space.shape
    box = env.observation_space
    for i in range(size):
        row = next(line for line in doc.splitlines() if line.strip().startswith(f"| {i} |"))
        low, high = row.split("|")[3:5]
        assert float(low.replace("−", "-")) == box.low[i]
        assert float(high) == box.high[i]


def test_rendering_shows_the_sample_and_the_timeline():
    env = gymnasium.make(ID, render_mode="rgb_array", **SMALL)
    env.reset(seed=0)
    before = env.render()
    env.step(1)
    after = env.render()
    assert before.dtype == np.uint8
    assert before.shape[2] == 3
    assert not np.array_equal(before, after)


def test_the_price_can_be_fixed():
    env = gymnasium.make(ID, price=0.05, **SMALL)
    assert env.reset(seed=0)[1]["price"] == pytest.approx(0.05)


def test_rows_of_the_vector_environment_are_single_environments():
    reward = {"feature": 1.0}  # scores against a generated set look at the whole batch
    vector = gymnasium.make_vec(ID, num_envs=3, reward=reward, **SMALL)
    singles = [gymnasium.make(ID, reward=reward, **SMALL) for _ in range(3)]
    seen, _ = vector.reset(seed=10)
    alone = [single.reset(seed=10 + i)[0] for i, single in enumerate(singles)]
    # convolutions of different batch sizes round differently
    np.testing.assert_allclose(seen, np.array(alone), atol=1e-4)
    generator = np.random.default_rng(0)
    for _ in range(SMALL["num_decisions"] - 1):
        actions = generator.integers(0, 2, 3)
        seen, rewards, terminated, _, _ = vector.step(actions)
        for i, single in enumerate(singles):
            observation, reward_i, ended, _, _ = single.step(actions[i])
            np.testing.assert_allclose(seen[i], observation, atol=1e-4)
            assert rewards[i] == pytest.approx(reward_i, abs=1e-4)
            assert terminated[i] == ended


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset_as_declared(mode):
    vector = gymnasium.make_vec(ID, num_envs=2, autoreset_mode=mode.value, **SMALL)
    assert vector.metadata["autoreset_mode"] == mode
    vector.reset(seed=0)
    for _ in range(SMALL["num_decisions"] - 1):
        observation, _, terminated, _, infos = vector.step(np.array([1, 0]))
    assert terminated.all()
    if mode == AutoresetMode.SAME_STEP:
        assert infos["_final_obs"].all()
        assert infos["final_info"]["nfe"].tolist() == [8, 1]
        assert observation[:, 0] == pytest.approx(1 / 7)  # the next episode's first decision
    else:
        assert infos["nfe"].tolist() == [8, 1]
        observation, rewards, terminated, _, _ = vector.step(np.array([1, 1]))
        assert observation[:, 0] == pytest.approx(1 / 7)
        assert not rewards.any()
        assert not terminated.any()


def test_a_mask_resets_only_its_rows():
    vector = gymnasium.make_vec(ID, num_envs=3, **SMALL)
    vector.reset(seed=0)
    vector.step(np.array([1, 1, 1]))
    before, *_ = vector.step(np.array([1, 1, 1]))
    after, infos = vector.reset(options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert after[1, 0] == pytest.approx(1 / 7)
    assert infos["_nfe"].tolist() == [False, True, False]


def test_vector_rendering_gives_a_frame_per_row():
    vector = gymnasium.make_vec(ID, num_envs=2, render_mode="rgb_array", **SMALL)
    vector.reset(seed=0)
    assert len(vector.render()) == 2


def test_the_vec_env_tells_sb3_what_it_expects(world):
    env = StepDropVecEnv(world.core(4))
    env.seed(0)
    first = env.reset()
    assert len(env.reset_infos) == 4
    total = np.zeros(4)
    for _ in range(7):
        observation, rewards, dones, infos = env.step(np.array([1, 0, 1, 0]))
        total += rewards
    assert dones.all()
    for row, info in enumerate(infos):
        assert info["terminal_observation"].shape == first[row].shape
        assert info["TimeLimit.truncated"] is False
        assert info["episode"]["l"] == 7
        assert info["episode"]["r"] == pytest.approx(total[row], abs=1e-5)
    assert observation[:, 0] == pytest.approx(1 / 7)
    env.seed(0)
    np.testing.assert_array_equal(env.reset(), first)


def test_sb3_wraps_and_learns_on_it(world):
    env = VecMonitor(StepDropVecEnv(world.core(4)))
    model = PPO("MlpPolicy", env, n_steps=7, batch_size=14, n_epochs=1, gamma=1.0, seed=0, device="cpu")
    model.learn(56)
    assert model.num_timesteps == 56
