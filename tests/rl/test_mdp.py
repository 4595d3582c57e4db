"""The decision problem: returns by hand, telescoping, episodes, what observations say."""

import math

import pytest
import torch

from envs.mdp import Trajectories
from envs.observation import ENTRIES
from envs.rewards import REWARDS

from .conftest import BANK, N


def rows_of(core):
    return core.rows


def walk_episode(core, actions):
    """Run one episode of every row; ``actions`` (N - 1, rows). Returns rewards (N - 1, rows)."""
    rewards = []
    for row in actions:
        step = core.step(core.rows, row)
        rewards.append(step.reward)
    assert bool(step.terminated.all())
    return torch.stack(rewards)


@pytest.mark.parametrize("name", list(REWARDS))
def test_the_return_telescopes_for_every_reward(problem, name):
    core = problem.core(6, {name: 1.0})
    core.seed(core.rows, torch.arange(6))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):  # later episodes meet a generated set that earlier ones filled
        core.begin(core.rows)
        after_first = core.phi.clone()
        actions = torch.randint(0, 2, (N - 1, 6), generator=generator)
        rewards = walk_episode(core, actions)
        nfe = 1 + actions.sum(0)
        assert torch.equal(core.walk.nfe, nfe)
        expected = core.phi - after_first - core.walk.price * (nfe - 1)
        torch.testing.assert_close(rewards.sum(0), expected, rtol=0, atol=1e-12)


def test_a_two_step_return_by_hand(problem):
    core = problem.core(1, {"pixel": 1.0}, prices=(0.25, 0.25))
    core.seed(core.rows, torch.tensor([3]))
    core.begin(core.rows)
    teacher = problem.ground.teacher[core.images]

    def phi():
        x0 = core.walk.process.x0(core.rows)
        return -float((x0 - teacher).square().mean().sqrt()) * core.quality.scale

    start = phi()
    skipped = core.step(core.rows, torch.tensor([0]))
    assert float(skipped.reward) == 0.0
    evaluated = core.step(core.rows, torch.tensor([1]))
    assert float(evaluated.reward) == pytest.approx(phi() - start - 0.25, abs=1e-6)


def test_phi_is_scaled_so_that_the_full_trajectory_gains_one(problem):
    for reward in ({"feature": 1.0}, {"pixel": 2.0}, {"feature": 0.5, "pixel": 3.0}):
        quality = problem.core(BANK, reward).quality
        rows = torch.arange(BANK)
        quality.begin(rows, rows, torch.full((BANK,), 0.05))
        gain = quality.score(rows, problem.ground.teacher) - quality.score(rows, problem.ground.first)
        assert float(gain.mean()) == pytest.approx(1.0, abs=1e-5)


def test_evaluating_everywhere_is_the_fixed_schedule_and_skipping_keeps_the_first_estimate(problem):
    core = problem.core(2)
    core.seed(core.rows, torch.tensor([5, 5]))
    core.begin(core.rows)
    first = core.walk.process.x0(core.rows).clone()
    walk_episode(core, torch.stack([torch.tensor([1, 0])] * (N - 1)))
    assert core.walk.nfe.tolist() == [N, 1]
    assert torch.equal(core.walk.process.x0(core.rows)[1], first[1])
    assert core.walk.evaluated[0].all()
    assert core.walk.evaluated[1].tolist() == [True] + [False] * (N - 1)


def test_a_row_behaves_as_a_single_environment_of_its_seed(problem):
    batch = problem.core(4, {"feature": 1.0})
    batch.seed(batch.rows, torch.tensor([7, 8, 9, 10]))
    batch.begin(batch.rows)
    alone = problem.core(1, {"feature": 1.0})
    alone.seed(alone.rows, torch.tensor([9]))
    alone.begin(alone.rows)
    generator = torch.Generator().manual_seed(2)
    for _ in range(2 * (N - 1)):
        actions = torch.randint(0, 2, (4,), generator=generator)
        many = batch.step(batch.rows, actions)
        one = alone.step(alone.rows, actions[2:3])
        # float32 sums over a batch and over one image may round differently
        torch.testing.assert_close(many.reward[2:3], one.reward, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            batch.walk.observe(batch.rows)[2], alone.walk.observe(alone.rows)[0], rtol=0, atol=1e-5
        )
        if bool(many.terminated.any()):
            batch.begin(batch.rows)
            alone.begin(alone.rows)


def test_prices_are_log_uniform_and_images_cover_the_bank(problem):
    core = problem.core(512, prices=(0.001, 1.0))
    core.seed(core.rows, torch.arange(512))
    core.begin(core.rows)
    u = torch.log10(core.walk.price) / 3 + 1
    assert float(u.min()) >= 0
    assert float(u.max()) <= 1
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 512))
    assert core.images.unique().numel() > BANK * 0.9


def test_observation_entries_by_hand(problem):
    core = problem.core(1, prices=(0.1, 0.1))
    core.seed(core.rows, torch.tensor([0]))
    core.begin(core.rows)
    names = [entry.name for entry in ENTRIES]
    lam = problem.denoiser.schedule.lam(problem.times)

    def seen():
        return dict(zip(names, core.walk.observe(core.rows)[0].tolist(), strict=True))

    at_one = seen()
    assert at_one["position"] == pytest.approx(1 / (N - 1))
    assert at_one["lam"] == pytest.approx(float((lam[1] - lam[0]) / (lam[-1] - lam[0])), abs=1e-6)
    assert at_one["lam_since_anchor"] == pytest.approx(at_one["lam"])
    assert at_one["evaluations"] == pytest.approx(1 / N)
    assert at_one["log_price"] == pytest.approx(-0.5)
    assert at_one["x0_change"] == at_one["x0_rate"] == at_one["disagreement"] == 0.0
    before = core.walk.process.x0(core.rows).clone()
    core.step(core.rows, torch.tensor([1]))
    at_two = seen()
    change = float((core.walk.process.x0(core.rows) - before).square().mean().sqrt())
    assert at_two["x0_change"] == pytest.approx(change, rel=1e-5)
    assert at_two["x0_rate"] == pytest.approx(min(change / float(lam[1] - lam[0]), 4.0), rel=1e-5)
    # the order-1 and order-2 jumps from the anchor to here, really made
    x0 = core.walk.process._x0[core.rows]
    process = core.walk.process
    second = process.jump(core.rows, problem.times[2:3])
    process._x0[core.rows, 1] = process._x0[core.rows, 0]  # no change: the jump has order 1
    first = process.jump(core.rows, problem.times[2:3])
    process._x0[core.rows] = x0
    assert at_two["disagreement"] == pytest.approx(float((first - second).square().mean().sqrt()), rel=1e-4)


def test_observations_stay_in_their_ranges_and_say_so(problem):
    core = problem.core(32, prices=(1e-6, 10.0))
    core.seed(core.rows, torch.arange(32))
    core.begin(core.rows)
    low = torch.tensor([entry.low for entry in ENTRIES])
    high = torch.tensor([entry.high for entry in ENTRIES])
    generator = torch.Generator().manual_seed(3)
    for _ in range(N - 1):
        observation = core.walk.observe(core.rows)
        assert bool(((observation >= low) & (observation <= high)).all())
        core.step(core.rows, torch.randint(0, 2, (32,), generator=generator))


def test_the_reward_of_a_skip_is_exactly_zero(problem):
    core = problem.core(4, {"feature": 0.5, "log_ratio": 1.0})
    core.seed(core.rows, torch.arange(4))
    core.begin(core.rows)
    rewards = walk_episode(core, torch.zeros(N - 1, 4, dtype=torch.int64))
    assert bool((rewards == 0).all())


def test_trajectories_hold_only_what_they_evaluate(problem):
    core = problem.core(3)
    walk: Trajectories = core.walk
    core.seed(core.rows, torch.arange(3))
    core.begin(core.rows)
    evaluated = walk.advance(core.rows, torch.tensor([0, 1, 0]))
    assert evaluated.tolist() == [1]
    assert walk.nfe.tolist() == [1, 2, 1]
    assert walk.index.tolist() == [2, 2, 2]
