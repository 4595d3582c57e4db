"""Plans of real times: how many, where, the same on a grid; and that gradients through them teach."""

import pytest
import torch

from agents.actor import SIGHTS
from agents.controls import Shuffled, mean_schedule
from agents.pathwise import Minds
from agents.planning import Shown, Usual, Worth
from agents.policy import build_policy, describe
from agents.stepper import Stepper
from envs.dual import MovingPrice
from envs.errors import UserError
from envs.observation import ENTRIES, Grid, observe_from
from envs.philox import Role
from envs.protocols import Evidence
from envs.rewards import REWARDS
from stepdrop_rl.engine import Engine
from stepdrop_rl.policies import load_policy, save_policy
from stepdrop_rl.pricing import log_spaced, price_for
from stepdrop_rl.solvers import make_solver

from .conftest import BANK, N
from .test_learners import info_of, learner_of

ROUND = 16 * (N - 1)
FINE = 400
NAMES = [entry.name for entry in ENTRIES]


def shaken(learner, scale=3.0):
    """A learner whose plans differ from sample to sample."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in learner.actor_network.parameters():
            parameter.add_(
                scale * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            )
    return learner


def on_a_grid(problem, learner, count):
    """What has been learned, on a grid of ``count`` points between the same ends."""
    times = torch.linspace(950, 30, count, dtype=torch.float64)
    lam = problem.denoiser.schedule.lam(times)
    policy = learner.policy(info_of(problem, learner, "pathwise"))
    info = {**describe(policy), "times": times.tolist()}
    tensors = policy.tensors() | {"lam": (lam - lam[0]) / (lam[-1] - lam[0])}
    return build_policy(info, tensors, "policy.json")


def wanting(policy, count):
    """The policy, to which that many evaluations are worth the most, at any price."""
    policy.worth.table.zero_()
    policy.worth.table[:, count - policy.worth.least] = 1e6
    return policy


def determined(count, rows):
    return Minds(torch.full((rows,), count), torch.ones(rows, dtype=torch.int64), count)


def engine_of(problem, policy, role=Role.EVALUATION, **settings):
    return Engine(
        denoiser=problem.denoiser,
        solver=make_solver("multistep"),
        times=policy.times,
        seed=0,
        role=role,
        **settings,
    )


def test_what_is_usual_is_what_was_seen():
    generator = torch.Generator().manual_seed(0)
    usual, seen = Usual((2, 3), 4), []
    for _ in range(40):
        row, column = (torch.randint(0, high, (64,), generator=generator) for high in (2, 3))
        entries = torch.randn(64, 4, generator=generator) * (1 + column.unsqueeze(1)) + row.unsqueeze(1)
        usual.meet(row, column, entries)
        seen.append(entries[(row == 1) & (column == 2)])
    here = torch.cat(seen)
    torch.testing.assert_close(usual.mean[1, 2], here.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(usual.variance[1, 2].sqrt(), here.std(0), rtol=0.05, atol=0)
    told = usual(torch.ones(len(here)).long(), torch.full((len(here),), 2), here)
    torch.testing.assert_close(told.std(0), torch.ones(4), rtol=0.05, atol=0)
    assert float(usual(torch.tensor([0]), torch.tensor([0]), torch.full((1, 4), 1e9)).max()) == 5


def test_it_is_to_have_as_many_as_are_worth_their_price():
    worth = Worth(3, 6, 10)
    with torch.no_grad():
        worth.network[-1].weight.zero_()
        worth.table[2] = torch.tensor([0.0, 0.5, 0.9, 1.0])
        worth.table[5] = torch.tensor([9.0, 9.0, 0.0, 0.2])
        worth.table[6] = torch.tensor([9.0, 9.0, 9.0, 0.0])
    for spent, price, wanted in [
        (2, 0.05, 6),
        (2, 0.2, 5),
        (2, 0.45, 4),
        (2, 0.51, 3),
        (5, 0.1, 6),
        (5, 0.3, 5),
        (6, 0.3, 6),
    ]:
        seen = Shown(torch.zeros(1), torch.tensor([spent]), torch.tensor([price]), torch.zeros(1, 10))
        assert worth.count(seen).tolist() == [wanted], (spent, price)


@pytest.mark.parametrize("count", [8, 9, 24, 128])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_it_spends_what_it_plans(problem, count, scale):
    learner = shaken(learner_of(problem, "pathwise", min_nfe=1, max_nfe=8)[0], scale)
    policy = on_a_grid(problem, learner, count)
    for wanted in range(1, 9):
        samples = engine_of(problem, wanting(policy, wanted)).sample(policy, 40, price=0.03)
        assert set(samples.nfe.tolist()) == {wanted}


def test_it_changes_its_mind_where_ends_turn_out_to_be_worth_less(problem):
    policy = on_a_grid(problem, learner_of(problem, "pathwise")[0], 128)
    policy.worth.table[1] = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0])  # 2 to 6: six
    policy.worth.table[2:] = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0])  # no, three
    assert set(engine_of(problem, policy).sample(policy, 9, price=0.03).nfe.tolist()) == {3}
    policy.worth.table[3:] = torch.tensor([0.0, 0.0, 0.0, 9.0, 0.0])  # and then, five
    assert set(engine_of(problem, policy).sample(policy, 9, price=0.03).nfe.tolist()) == {5}


def test_an_untrained_one_spaces_evenly_in_half_log_snr(problem):
    learner, _ = learner_of(problem, "pathwise")
    with torch.no_grad():
        learner.actor_network[-1].weight.zero_()
    policy = on_a_grid(problem, learner, FINE)
    samples = engine_of(problem, wanting(policy, 5)).sample(policy, 4, price=0.03)
    lam = policy.lam[samples.evaluated[0]]
    torch.testing.assert_close(lam, torch.arange(5, dtype=torch.float64) / 5, rtol=0, atol=0.02)


@pytest.mark.parametrize("solver", ["multistep", "ddim"])
@pytest.mark.parametrize("count", [2, 4, 6])
def test_the_engine_takes_the_times_that_were_trained(problem, solver, count):
    # A grid so fine that what is seen at its points is what was seen at the real times.
    learner = shaken(learner_of(problem, "pathwise", solver=solver)[0])
    policy = wanting(on_a_grid(problem, learner, 20_000), count)
    engine = Engine(
        denoiser=problem.denoiser,
        solver=make_solver(solver),
        times=policy.times,
        seed=0,
        role=Role.POLICY_TRAINING,
    )
    samples = engine.sample(policy, 12, price=0.03)
    with torch.no_grad():
        times, x0, seen = learner._walk(torch.arange(12), determined(count, 12))
    assert [set(situation.spent.tolist()) for situation in seen] == [{n} for n in range(1, count + 1)]
    taken = torch.stack([policy.times[row] for row in samples.evaluated])
    torch.testing.assert_close(taken, times, rtol=0, atol=1.0)
    torch.testing.assert_close(samples.images, x0, rtol=0, atol=0.02)
    assert float(times[:, 1:].std(0).min()) > 2, "samples differ"


@pytest.mark.parametrize("anchor", [0, 7, 100])
def test_it_lands_within_half_a_step_of_what_it_plans_wherever_it_is_asked(problem, anchor):
    policy = wanting(on_a_grid(problem, shaken(learner_of(problem, "pathwise")[0]), FINE), 6)
    lam = problem.denoiser.schedule.lam(policy.times)
    grid = Grid(policy.times, lam, torch.ones_like(lam))
    generator = torch.Generator().manual_seed(5)
    count = 50
    shown = [torch.rand(count, generator=generator) for _ in range(4)]
    evidence = Evidence(*shown, features=torch.zeros(count, 0))
    price = torch.full((count,), 0.03, dtype=torch.float64)
    nfe = torch.full((count,), 3)
    plans, first = [], torch.full((count,), FINE)
    for point in range(anchor + 1, FINE):
        index = torch.full((count,), point)
        seen = observe_from(grid, index, lam[anchor].expand(count), nfe, price, evidence)
        plans.append(policy.plan(seen).lam)
        first = torch.where((policy.probabilities(seen) > 0) & (first == FINE), point, first)
    torch.testing.assert_close(torch.stack(plans), plans[0].expand(len(plans), -1), rtol=0, atol=1e-5)
    assert len(set(first.tolist())) > 5
    gaps = policy.lam.diff()
    half = torch.maximum(gaps[first - 1], gaps[first.clamp(max=FINE - 2)]) / 2
    planned = torch.maximum(plans[0].double(), policy.lam[anchor + 1])
    assert bool(((policy.lam[first] - planned).abs() <= half + 1e-5).all())


def test_plans_depend_on_what_the_evaluation_showed_and_not_on_where_they_are_asked(problem):
    learner = shaken(learner_of(problem, "pathwise")[0])
    policy = wanting(learner.policy(info_of(problem, learner, "pathwise")), 5)
    base = torch.rand(60, len(ENTRIES), generator=torch.Generator().manual_seed(1))
    base[:, NAMES.index("lam")] = 0.6
    base[:, NAMES.index("lam_since_anchor")] = 0.2
    base[:, NAMES.index("evaluations")] = 1 / N
    base[:, NAMES.index("log_price")] = -1.0
    for name in ("position", "disagreement", "eps_rms", "x0_change", "x0_rate", "clipped"):
        other = base.clone()
        other[:, NAMES.index(name)] = torch.rand(60)
        same = torch.equal(policy.plan(base).lam, policy.plan(other).lam)
        assert same == (name in ("position", "disagreement")), name


@pytest.mark.parametrize("sees", [name for name, names in SIGHTS.items() if names is not None])
def test_a_blind_one_gives_every_sample_the_same_times(problem, sees):
    learner = shaken(learner_of(problem, "pathwise", sees=sees)[0], scale=0.0)
    learner.learn(ROUND * 10, lambda decisions: True)
    policy = on_a_grid(problem, learner, 128)
    spent = set()
    for price in log_spaced(1e-6, 10, 5):
        samples = engine_of(problem, policy).sample(policy, 30, price=price)
        assert bool((samples.evaluated == samples.evaluated[0]).all())
        spent.add(int(samples.nfe[0]))
    assert {2, 6} <= spent


def objective(learner, count):
    """Φ of one walk of the bank's first images."""
    rows = learner.core.rows
    learner.core.quality.begin(rows, rows, torch.full((len(rows),), 0.03, dtype=torch.float64))
    return (
        learner.core.quality.score(rows, learner._walk(rows, determined(count, len(rows)))[1]).double().mean()
    )


def test_the_losss_slope_is_a_finite_difference(problem):
    # Blind: what evaluations show is taken as given, so with sight the two would differ.
    learner, _ = learner_of(problem, "pathwise", reward={"pixel": 1.0}, sees="schedule")
    bias = learner.actor_network[-1].bias
    (slope,) = torch.autograd.grad(objective(learner, 4), bias)
    change, found = 2e-2, []  # float32 images
    for sign in (1, -1):
        with torch.no_grad():
            bias += sign * change
            found.append(objective(learner, 4))
            bias -= sign * change
    expected = float(found[0] - found[1]) / (2 * change)
    assert float(slope) == pytest.approx(expected, rel=2e-2, abs=1e-4)
    assert abs(expected) > 1e-3


@pytest.mark.parametrize("solver", ["multistep", "ddim"])
@pytest.mark.parametrize("sees", ["sample", "time"])
def test_it_learns_when_to_evaluate(problem, solver, sees):
    learner, logged = learner_of(problem, "pathwise", reward={"pixel": 1.0}, solver=solver, sees=sees)
    with torch.no_grad():
        before = [float(objective(learner, count)) for count in (3, 5)]
    learner.learn(ROUND * 150, lambda decisions: True)
    with torch.no_grad():
        after = [float(objective(learner, count)) for count in (3, 5)]
    assert all(new > old + 0.01 for new, old in zip(after, before, strict=True)), (before, after)
    assert all(numbers["train/gradient_norm"] > 0 for _, numbers in logged)


def test_it_learns_what_ends_are_worth_and_for_whom(problem):
    learner, logged = learner_of(problem, "pathwise", reward={"pixel": 1.0}, batch_size=8, habit_rate=0.01)
    learner.learn(ROUND * 400, lambda decisions: True)
    assert logged[-1][1]["train/worth_loss"] < 0.9
    images = torch.arange(len(learner.core.rows))
    wrong, usual = [], []
    for count in range(2, 7):
        learner.core.quality.begin(images, images, torch.full((len(images),), 0.03, dtype=torch.float64))
        with torch.no_grad():
            _, x0, seen = learner._walk(images, determined(count, len(images)))
            worth = learner.core.quality.score(images, x0)
            guess = learner.worth(seen[-1].spent, seen[-1].entries)[:, count - 2]
        assert float(guess.mean()) == pytest.approx(float(worth.mean()), abs=0.05)
        wrong.append(guess - worth)
        usual.append(worth - worth.mean())
    assert float(torch.cat(wrong).square().mean()) < 0.8 * float(torch.cat(usual).square().mean())


def test_minds_change_once_and_end_with_as_many(problem):
    learner, _ = learner_of(problem, "pathwise")  # 2 to 6
    for count in range(2, 7):
        minds = learner._minds(count, 400)
        plans = torch.stack([minds.at(spent) for spent in range(1, count + 1)])
        assert bool((plans[-1] == count).all())
        assert bool(((plans - count).abs() <= 1).all())
        assert bool(((plans >= 2) & (plans <= 6)).all())
        # Whoever is not there yet goes on: a plan that is spent is not kept.
        assert bool((plans > torch.arange(1, count + 1).unsqueeze(1))[:-1].all())
        assert bool(((plans[1:] != plans[:-1]).sum(0) <= 1).all())
        assert 0.3 < float((minds.first == count).float().mean()) < 0.8


@pytest.mark.parametrize("name", list(REWARDS))
def test_every_reward_has_a_slope(problem, name):
    learner, logged = learner_of(problem, "pathwise", reward={name: 1.0})
    learner.learn(1, lambda decisions: True)
    assert logged[0][1]["train/gradient_norm"] > 0
    assert not any(tensor.requires_grad for tensor in learner.state().values())


def test_its_results_join_what_is_generated(problem):
    learner, _ = learner_of(problem, "pathwise", reward={"neighbour": 1.0})
    before = learner.core.quality.state()["neighbour.added"].clone()
    learner.learn(1, lambda decisions: True)
    assert int((learner.core.quality.state()["neighbour.added"] - before).sum()) == 16


def test_a_policy_folder_gives_the_same_policy(problem, tmp_path):
    learner = shaken(learner_of(problem, "pathwise")[0])
    policy = learner.policy(info_of(problem, learner, "pathwise"))
    save_policy(tmp_path / "p", policy)
    loaded = load_policy(tmp_path / "p")
    assert isinstance(loaded, Stepper)
    assert describe(loaded) == describe(policy)
    one, other = (engine_of(problem, p).sample(p, BANK, price=0.03) for p in (policy, loaded))
    assert torch.equal(one.images, other.images)
    for name in ("lam", "timing.habit", "worth.network.0.weight"):
        for damaged in (policy.tensors() | {name: torch.zeros(3)}, policy.tensors()):
            if damaged[name].shape != (3,):
                damaged.pop(name)
            with pytest.raises(UserError, match="is damaged"):
                build_policy(describe(policy), damaged, tmp_path / "policy.json")


def test_a_price_is_found_for_a_target(problem):
    learner, _ = learner_of(problem, "pathwise", reward={"pixel": 1.0}, prices=(1e-5, 1.0))
    learner.learn(ROUND * 100, lambda decisions: True)
    policy = on_a_grid(problem, learner, 64)
    policy.info.prices[:] = [1e-5, 1.0]
    engine = engine_of(problem, policy, Role.VALIDATION)
    for target in (3, 4, 5):
        assert 0.9 * target < price_for(policy, engine, target, 32).mean <= target
    for beyond in (1.5, 6.5):
        with pytest.raises(UserError, match="out of reach"):
            price_for(policy, engine, beyond, 16)


def test_its_controls(problem):
    policy = wanting(on_a_grid(problem, shaken(learner_of(problem, "pathwise")[0]), 128), 4)
    samples = engine_of(problem, policy).sample(policy, 60, price=0.03)
    assert len(mean_schedule(samples.times, samples.evaluated).times) == 4
    other = engine_of(problem, policy).sample(Shuffled(policy), 60, price=0.03)
    assert set(other.nfe.tolist()) == {4}
    assert not torch.equal(samples.evaluated, other.evaluated)


def test_it_refuses_what_it_cannot_use(problem):
    for settings, says in [
        ({"min_nfes": 3}, "did you mean 'min_nfe'"),
        ({"min_nfe": 7}, "need 1 <= min_nfe <= max_nfe"),
        ({"max_nfe": N + 1}, "need 1 <= min_nfe <= max_nfe"),
        ({"min_nfe": 1, "max_nfe": 1}, "nothing to plan"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"sees": "samples"}, "did you mean 'sample'"),
        ({"moving": MovingPrice(4.0, start=0.02, step=0.1, batch=16)}, "no env.target_nfe"),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            learner_of(problem, "pathwise", **settings)
        assert "\n" not in str(caught.value)
