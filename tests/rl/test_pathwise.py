"""Plans of real times: how many, where, the same on a grid; and that gradients through them teach."""

import math

import pytest
import torch

from agents.actor import SIGHTS
from agents.controls import habit, mean_schedule, shuffled
from agents.planning import Tariff, Usual
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
PRICES = (0.01, 0.1)
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


def engine_of(problem, policy, role=Role.EVALUATION, **settings):
    return Engine(
        denoiser=problem.denoiser,
        solver=make_solver("multistep"),
        times=policy.times,
        seed=0,
        role=role,
        **settings,
    )


def test_prices_pay_for_all_numbers_of_evaluations_from_the_least_to_the_most():
    tariff = Tariff(3, 12, (0.004, 0.1))
    for count in range(3, 13):
        price = torch.tensor(tariff.price(count))
        assert float(tariff.count(torch.log10(price) / 2)) == count
    assert tariff.price(3) == pytest.approx(0.1)
    assert tariff.price(12) == pytest.approx(0.004)
    seen = torch.linspace(-3, 1, 500)
    counts = tariff.count(seen)
    assert bool((counts.diff() <= 0).all())
    assert (float(counts[0]), float(counts[-1])) == (12, 3)
    assert float(Tariff(5, 5, (0.02, 0.02)).count(torch.tensor(-0.85))) == 5


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


@pytest.mark.parametrize("count", [8, 9, 24, 128])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_it_spends_what_the_price_pays_for(problem, count, scale):
    learner = shaken(learner_of(problem, "pathwise", min_nfe=1, max_nfe=8)[0], scale)
    policy = on_a_grid(problem, learner, count)
    for price in log_spaced(*PRICES, 9):
        samples = engine_of(problem, policy).sample(policy, 40, price=price)
        wanted = int(policy.tariff.count(torch.tensor(math.log10(price) / 2)))
        assert set(samples.nfe.tolist()) == {wanted}


def test_an_untrained_one_spaces_evenly_in_half_log_snr(problem):
    learner, _ = learner_of(problem, "pathwise")
    with torch.no_grad():
        learner.actor_network[-1].weight.zero_()
    policy = on_a_grid(problem, learner, FINE)
    samples = engine_of(problem, policy).sample(policy, 4, price=learner.tariff.price(5))
    lam = policy.lam[samples.evaluated[0]]
    torch.testing.assert_close(lam, torch.arange(5, dtype=torch.float64) / 5, rtol=0, atol=0.02)


@pytest.mark.parametrize("solver", ["multistep", "ddim"])
@pytest.mark.parametrize("count", [2, 4, 6])
def test_the_engine_takes_the_times_that_were_trained(problem, solver, count):
    # A grid so fine that what is seen at its points is what was seen at the real times.
    learner = shaken(learner_of(problem, "pathwise", solver=solver)[0])
    policy = on_a_grid(problem, learner, 20_000)
    price = learner.tariff.price(count)
    engine = Engine(
        denoiser=problem.denoiser,
        solver=make_solver(solver),
        times=policy.times,
        seed=0,
        role=Role.POLICY_TRAINING,
    )
    samples = engine.sample(policy, 12, price=price)
    with torch.no_grad():
        times, x0 = learner._walk(torch.arange(12), torch.full((12,), price, dtype=torch.float64), count)
    taken = torch.stack([policy.times[row] for row in samples.evaluated])
    torch.testing.assert_close(taken, times, rtol=0, atol=1.0)
    torch.testing.assert_close(samples.images, x0, rtol=0, atol=0.02)
    assert float(times[:, 1:].std(0).min()) > 2, "samples differ"


@pytest.mark.parametrize("anchor", [0, 7, 100])
def test_it_lands_within_half_a_step_of_what_it_plans_wherever_it_is_asked(problem, anchor):
    policy = on_a_grid(problem, shaken(learner_of(problem, "pathwise")[0]), FINE)
    lam = problem.denoiser.schedule.lam(policy.times)
    grid = Grid(policy.times, lam, torch.ones_like(lam))
    generator = torch.Generator().manual_seed(5)
    count = 50
    shown = [torch.rand(count, generator=generator) for _ in range(4)]
    evidence = Evidence(*shown, features=torch.zeros(count, 0))
    price = torch.full((count,), policy.tariff.price(6), dtype=torch.float64)
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
    policy = learner.policy(info_of(problem, learner, "pathwise"))
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
    for price in log_spaced(*PRICES, 5):
        evaluated = engine_of(problem, policy).sample(policy, 30, price=price).evaluated
        assert bool((evaluated == evaluated[0]).all())


def objective(learner, count):
    """Φ of one walk of the bank's first images."""
    rows = learner.core.rows
    prices = torch.full((len(rows),), learner.tariff.price(count), dtype=torch.float64)
    learner.core.quality.begin(rows, rows, prices)
    return learner.core.quality.score(rows, learner._walk(rows, prices, count)[1]).double().mean()


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
    for name in ("lam", "timing.habit", "timing.actor.0.weight"):
        for damaged in (policy.tensors() | {name: torch.zeros(3)}, policy.tensors()):
            if damaged[name].shape != (3,):
                damaged.pop(name)
            with pytest.raises(UserError, match="is damaged"):
                build_policy(describe(policy), damaged, tmp_path / "policy.json")


@pytest.mark.parametrize("target", [2, 3, 5, 6])
def test_a_price_is_found_for_a_target(problem, target):
    policy = on_a_grid(problem, shaken(learner_of(problem, "pathwise")[0]), 64)
    engine = engine_of(problem, policy, Role.VALIDATION)
    assert price_for(policy, engine, target, 16).mean == target
    if target < 6:
        assert price_for(policy, engine, target + 0.5, 16).mean == target
    for beyond in (1.5, 6.5):
        with pytest.raises(UserError, match="out of reach"):
            price_for(policy, engine, beyond, 16)


def test_its_controls(problem):
    policy = on_a_grid(problem, shaken(learner_of(problem, "pathwise")[0]), 128)
    price = policy.tariff.price(4)
    samples = engine_of(problem, policy).sample(policy, 60, price=price)
    assert len(mean_schedule(samples.times, samples.evaluated).times) == 4
    other = engine_of(problem, policy).sample(shuffled(policy), 60, price=price)
    assert set(other.nfe.tolist()) == {4}
    assert not torch.equal(samples.evaluated, other.evaluated)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_a_habit_is_what_samples_get_that_show_nothing_unusual(problem, count):
    learner = learner_of(problem, "pathwise")[0]
    with torch.no_grad():
        learner.timing.habit.add_(torch.randn(learner.timing.habit.shape, generator=torch.Generator()))
        for parameter in learner.actor_network.parameters():
            parameter.zero_()  # nothing is unusual
    policy = on_a_grid(problem, learner, 128)
    evaluated = engine_of(problem, policy).sample(policy, 20, price=policy.tariff.price(count)).evaluated
    assert bool((evaluated == evaluated[0]).all())
    assert torch.equal(habit(policy, count).times, policy.times[evaluated[0]])


def test_it_refuses_what_it_cannot_use(problem):
    for settings, says in [
        ({"min_nfes": 3}, "did you mean 'min_nfe'"),
        ({"min_nfe": 7}, "need 1 <= min_nfe <= max_nfe"),
        ({"max_nfe": N + 1}, "need 1 <= min_nfe <= max_nfe"),
        ({"min_nfe": 1, "max_nfe": 1}, "nothing to plan"),
        ({"prices": (0.02, 0.02)}, "leave env.price out"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"sees": "samples"}, "did you mean 'sample'"),
        ({"moving": MovingPrice(4.0, start=0.02, step=0.1, batch=16)}, "no env.target_nfe"),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            learner_of(problem, "pathwise", **settings)
        assert "\n" not in str(caught.value)
