"""Cloning schedules, oracles found in hindsight, and beginning where another policy ended."""

import json
from types import SimpleNamespace

import pytest
import torch

from agents.clone import Experts, marks
from agents.fixed import FixedSchedule
from agents.planned import Mixture, Oracle, oracle_record, read_plan
from agents.search import oss
from agents.start import experience
from envs.errors import UserError

from .conftest import N
from .test_learners import info_of, learner_of

GRID = torch.linspace(950, 30, N, dtype=torch.float64)  # 115 apart


def schedule(*times):
    return FixedSchedule("s", torch.tensor(times, dtype=torch.float64))


def points(mask):
    return mask.nonzero().squeeze(1).tolist()


def test_marks_are_the_nearest_points_each_another_one():
    assert points(marks(torch.tensor([950.0, 600.0, 300.0, 60.0]), GRID)) == [0, 3, 6, 8]
    assert points(marks(torch.tensor([940.0, 930.0, 600.0, 590.0]), GRID)) in ([0, 1, 2, 3], [0, 1, 3, 4])


def test_the_dearest_serve_the_lowest_prices():
    dear, cheap = schedule(950, 720, 490, 260, 30), schedule(950, 30)
    experts = Experts([cheap, dear], GRID)
    place = torch.tensor([0.0, 0.49, 0.51, 1.0], dtype=torch.float64)
    plan, meant = experts.plan(place, torch.arange(4), torch.zeros(4, dtype=torch.float64))
    assert plan.sum(1).tolist() == [5, 5, 2, 2]
    assert bool(meant.all())


def test_mixtures_are_dealt_and_oracles_meant_for_their_images_only():
    mixture = Mixture("m", [[950.0, 260.0], [950.0, 720.0, 30.0]], [0.25, 0.75])
    coins = torch.tensor([0.1, 0.3, 0.9], dtype=torch.float64)
    plan, _ = Experts([mixture], GRID).plan(torch.full((3,), 0.5), torch.arange(3), coins)
    assert plan.sum(1).tolist() == [2, 3, 3]
    oracle = Oracle("o", [[950.0, 260.0], [950.0, 720.0, 30.0]])
    plan, meant = Experts([oracle], GRID).plan(torch.full((3,), 0.5), torch.arange(3), coins)
    assert plan.sum(1)[:2].tolist() == [2, 3]
    assert meant.tolist() == [True, True, False]


def evaluated(learner, problem, algo, price):
    """What the exported policy evaluates at a price, (256, N)."""
    core = problem.core(256, {"feature": 1.0}, prices=(price, price))
    core.seed(core.rows, torch.arange(256))
    core.begin(core.rows)
    policy = learner.policy(info_of(problem, learner, algo))
    for _ in range(N - 1):
        p = policy.probabilities(core.walk.observe(core.rows))
        core.step(core.rows, (p > 0.5).long())
    return core.walk.evaluated


def test_a_clone_does_what_its_experts_do(problem, tmp_path):
    files = []
    for number, times in enumerate(([950, 605, 260, 30], [950, 375])):
        path = tmp_path / f"{number}.json"
        path.write_text(
            json.dumps({"schema": "stepdrop_rl.schedule/1", "solver": "multistep", "times": times})
        )
        files.append(str(path))
    learner, logged = learner_of(problem, "clone", num_envs=64, experts=files)
    learner.learn(64 * (N - 1) * 40, lambda decisions: True)
    losses = [row["train/imitation_loss"] for _, row in logged]
    assert losses[-1] < 0.5 * losses[0]
    for price, wanted in ((0.012, [0, 3, 6, 8]), (0.09, [0, 5])):
        mask = torch.zeros(N, dtype=torch.bool)
        mask[wanted] = True
        assert float((evaluated(learner, problem, "clone", price) == mask).all(1).double().mean()) > 0.95


def test_cloning_needs_experts(problem):
    with pytest.raises(UserError, match="needs experts"):
        learner_of(problem, "clone", experts=[])


@pytest.mark.parametrize("algo", ["ppo", "a2c", "trpo", "rloo", "relaxed", "clone"])
def test_a_learner_begins_where_another_ended(problem, algo):
    first, _ = learner_of(problem, "clone", num_envs=64)
    first.learn(64 * (N - 1) * 4, lambda decisions: True)
    policy = first.policy(info_of(problem, first, "clone"))
    learner, _ = learner_of(problem, algo)
    learner.start_from(policy, 3)
    observation = torch.rand(64, 10)
    started = learner.policy(info_of(problem, learner, algo))
    torch.testing.assert_close(started.probabilities(observation), policy.probabilities(observation))
    learner.learn(64, lambda decisions: True)


@pytest.mark.parametrize("algo", ["ppo", "rloo"])
def test_its_critic_knows_what_the_policy_earns(problem, algo):
    first, _ = learner_of(problem, "clone", num_envs=64)
    first.learn(64 * (N - 1) * 10, lambda decisions: True)
    policy = first.policy(info_of(problem, first, "clone"))
    learner, _ = learner_of(problem, algo, num_envs=64)
    learner.start_from(policy, 3)
    core = problem.core(64, {"feature": 1.0})
    seen, gained = experience(core, policy.probabilities, torch.Generator().manual_seed(9))
    with torch.no_grad():
        values = (
            learner.model.policy.predict_values(seen) if algo == "ppo" else learner.critic(seen)
        ).squeeze(1)
    assert float((values - gained).var() / gained.var()) < 0.7


@pytest.mark.parametrize("algo", ["dqn", "qrdqn", "recurrent_ppo"])
def test_some_cannot_and_say_so(problem, algo):
    first, _ = learner_of(problem, "clone")
    learner, _ = learner_of(problem, algo)
    with pytest.raises(UserError, match="cannot start from another policy"):
        learner.start_from(first.policy(info_of(problem, first, "clone")), 0)


def test_an_oracle_keeps_its_schedules_and_beats_the_shared_one(problem, tmp_path, monkeypatch):
    from stepdrop_rl.search_ground import ModelGround
    from stepdrop_rl.solvers import make_solver

    for key, value in {"GRID": 12, "NUM_IMAGES": 16, "ORACLE_IMAGES": 16}.items():
        monkeypatch.setattr(oss, key, value)
    info = SimpleNamespace(t_start=950.0, t_end=30.0, dataset="digits")
    model = SimpleNamespace(denoiser=problem.denoiser, info=info)
    ground = ModelGround(model, make_solver("ddim"))
    shared, own = oss.search(3, ground, 0), oss.search_per_sample(3, ground, 0)
    assert len(own.per_image) == 16
    assert own.objective < shared.objective
    path = tmp_path / "o.json"
    path.write_text(json.dumps(oracle_record(Oracle("o", own.per_image, "ddim"))))
    read = read_plan(path)
    assert isinstance(read, Oracle)
    assert read.schedules == [list(times) for times in own.per_image]
    images = torch.tensor([3, 19])
    plan = read.plan(images, torch.zeros(2))
    assert torch.equal(plan[0], plan[1])
