"""Plans that fork: their times, what a look decides at what cost, and that both are learned."""

import itertools
import math

import pytest
import torch

from agents.base import PlanningAgent
from agents.controls import dealt, habit, mean_schedule, shuffled
from agents.endings import Endings
from agents.fixed import SCHEDULE_SCHEMA
from agents.fork import Fork
from agents.gate import Gate
from agents.looks import Looks
from agents.planned import Mixture, mixture_record
from agents.policy import build_policy, describe
from agents.population import drawn_moments, mixed_moments
from agents.tree import Tree
from envs.dual import MovingPrice
from envs.errors import UserError
from envs.observation import ENTRIES
from envs.philox import Role
from envs.rewards import REWARDS
from envs.rewards.frechet import distance, moments, slope
from stepdrop_rl.engine import Engine
from stepdrop_rl.policies import load_policy, save_policy
from stepdrop_rl.pricing import log_spaced, settled_price
from stepdrop_rl.solvers import make_solver
from stepdrop_rl.validation import ValidationJudge
from stepdrop_rl.weights import write_json

from .conftest import BANK, N
from .test_learners import info_of, learner_of

ROUND = 16 * (N - 1)


def policy_of(problem, learner):
    return learner.policy(info_of(problem, learner, "fork"))


def engine_of(problem, policy, role=Role.EVALUATION, solver="multistep"):
    return Engine(
        denoiser=problem.denoiser, solver=make_solver(solver), times=policy.times, seed=0, role=role
    )


def shaken(learner):
    """A learner whose branches depend on the sample and whose times are not even."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in learner.cascade.first.actors.parameters():
            parameter.add_(3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        for parameter in learner.plans.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return learner


@pytest.fixture
def looked(problem):
    """A learner that has looked at all noises of the bank and learned nothing from them."""
    learner = shaken(learner_of(problem, "fork", times_share=0.0, updates=0)[0])
    learner.learn(ROUND * 8 * BANK // 16, lambda decisions: True)  # half of them look
    return learner


def test_an_untrained_tree_is_even_and_its_branches_divide_what_is_left():
    tree = Tree(3, 6, left=2, width=1)
    for row, count in enumerate(range(3, 7)):
        branches = [lam.detach() for lam in tree.lams(row)]
        assert [len(lam) for lam in branches] == [count - 1, count, count + 1]
        even = torch.arange(count, dtype=torch.float64) / count
        torch.testing.assert_close(branches[1], even, rtol=0, atol=1e-6)
        start = even[count - 3]
        for lam in branches:
            assert torch.equal(lam[: count - 2], branches[1][: count - 2])
            rest = torch.cat((lam[count - 3 :], torch.ones(1))).diff()
            torch.testing.assert_close(
                rest, torch.full_like(rest, (1 - start) / len(rest)), rtol=0, atol=1e-6
            )


def test_stretched_branches_go_on_sooner_or_later_at_the_plans_cost():
    tree = Tree(4, 6, left=2, width=1, stretches=(-0.5, 0.5))
    for row, count in enumerate(range(4, 7)):
        *_, sooner, later = [lam.detach() for lam in tree.lams(row)]
        plan = tree.lams(row, stretched=False)[1].detach()
        assert len(sooner) == len(later) == len(plan) == count
        fork = count - 2
        for lam, stretch in ((sooner, -0.5), (later, 0.5)):
            assert torch.equal(lam[:fork], plan[:fork])
            ways = [torch.cat((way[fork - 1 :], torch.ones(1))).diff() for way in (lam, plan)]
            longer = ways[0] / ways[1]
            assert float(longer[0] / longer[1]) == pytest.approx(math.exp(stretch), rel=0.01)
            assert float(longer[2] / longer[1]) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_times_stay_in_order_whatever_was_learned(scale):
    tree = Tree(4, 9, left=3, width=2, stretches=(-1.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    for row in range(6):
        for lam in tree.lams(row):
            assert float(lam[0].detach()) == 0
            assert float(torch.cat((lam.detach(), torch.ones(1))).diff().min()) > 1e-7


def test_endings_keep_the_schedule_and_stretch_the_gap_that_follows_each_look():
    schedules = [torch.tensor([0, 0.2, 0.5, 0.9]), torch.tensor([0, 0.1, 0.3, 0.6, 1.0])]
    endings = Endings([4], schedules, torch.tensor([[0.25, 0.75]]), left=2, stretches=(-0.5, 0.5), looks=2)
    assert endings.more == [0] * 9
    assert endings.first == [0] * 3
    plan, *ways = endings.lams(0)
    assert torch.equal(plan, schedules[0].double())
    assert all(torch.equal(way[:2], plan[:2]) for way in ways)
    gaps = torch.stack([torch.cat((way[1:], torch.ones(1))).diff() for way in (plan, *ways)])
    torch.testing.assert_close(gaps.sum(1), torch.full((9,), 0.8).double())
    # The first gap by its share of all that is left, the second by that of what is left then.
    first = (gaps[:, 0] / gaps[:, 1:].sum(1)) / (gaps[0, 0] / gaps[0, 1:].sum())
    second = (gaps[:, 1] / gaps[:, 2]) / (gaps[0, 1] / gaps[0, 2])
    moved = torch.stack((first, second), 1).log()
    told = list(itertools.product((0, -0.5, 0.5), repeat=2))
    torch.testing.assert_close(moved, torch.tensor(told).double())
    # Those that went the same way at the first look are evaluated at the same time.
    assert all(len({float(way[2]) for way in endings.lams(0)[k : k + 3]}) == 1 for k in (0, 3, 6))
    # One that ends where the grid does has a last gap of next to nothing, and still nine ways.
    ways = endings.lams(1)
    assert all(float(torch.cat((way, torch.ones(1))).diff().min()) >= 0 for way in ways)
    assert len({tuple(way.tolist()) for way in ways}) == 9
    once = Endings([4], schedules, torch.tensor([[0.25, 0.75]]), left=2, stretches=(-0.5, 0.5))
    assert [way.tolist() for way in once.lams(0)] == [way.tolist() for way in endings.lams(0)[::3]]


def mixture_file(path, schedules, weights):
    write_json(path, mixture_record(Mixture("m", schedules, weights, "multistep")))
    return str(path)


@pytest.fixture
def mixed(problem, tmp_path):
    """A learner that looked at plans of files: two of 3 and 5 evaluations for a budget of 4, one of 6."""
    four = mixture_file(tmp_path / "4.json", [[950, 600, 80], [950, 800, 500, 200, 60]], [0.5, 0.5])
    six = mixture_file(
        tmp_path / "6.json", [[950, 850, 700, 400, 200, 60], [950, 900, 700, 400, 200, 60]], [0.99, 0.01]
    )
    learner = shaken(
        learner_of(problem, "fork", plans=[six, four], updates=2, left=1, looks=1, first_look=True)[0]
    )
    learner.learn(ROUND * 6 * BANK // 16, lambda decisions: True)
    return learner


def test_files_give_plans_and_their_chances(problem, mixed):
    assert mixed.plans.counts == [4, 6]
    assert mixed.plans.sizes == [3, 5, 6]
    torch.testing.assert_close(mixed.plans.weights, torch.tensor([[0.5, 0.5, 0], [0, 0, 1]]).double())
    policy = policy_of(problem, mixed)
    engine = engine_of(problem, policy, Role.POLICY_TRAINING)
    for nfe, sizes in ((4, {3, 5}), (5, {3, 5, 6}), (6, {6})):
        samples = engine.sample(policy, 400, price=policy.tariff.price(nfe))
        assert set(samples.nfe.tolist()) == sizes
        assert float(samples.nfe.double().mean()) == pytest.approx(nfe, abs=0.25)
    samples = engine.sample(policy, 400, price=policy.tariff.price(4))
    first = policy.times[samples.evaluated.long().cumsum(1).eq(2).long().argmax(1)]
    assert set(first.round().tolist()) <= {600, 800, *first[samples.nfe == 3].round().tolist()}
    assert len(samples.evaluated.unique(dim=0)) > 2, "samples are told apart"


def test_a_mixtures_chances_are_kept_point_by_point(problem, mixed):
    # Asked at the points of its grid, with coins for each: the plan follows from the first that is taken.
    policy = policy_of(problem, mixed)
    asked = PointByPoint(policy)
    engine = engine_of(problem, policy, Role.POLICY_TRAINING)
    samples = engine.sample(asked, 1000, price=policy.tariff.price(4))
    assert set(samples.nfe.tolist()) == {3, 5}
    assert float((samples.nfe == 3).double().mean()) == pytest.approx(0.5, abs=0.06)
    once = engine.sample(policy, 1000, price=policy.tariff.price(4)).evaluated.unique(dim=0)
    assert {tuple(row) for row in samples.evaluated.tolist()} <= {tuple(row) for row in once.tolist()}


@pytest.mark.parametrize("asked", ["once", "at every point"])
def test_a_sample_gets_the_plan_that_its_first_evaluation_asks_for(problem, mixed, asked):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # so sure that coins decide little
        last = mixed.dealing.actor[-1]
        last.weight.copy_(300 * torch.randn(3, 64, generator=generator))
        z = mixed.dealing.logits(0, mixed.deciding.begun)[:, :2]
        last.bias[:2] -= z.median(0).values.float()
    mixed.average.steps = 0  # what was learned before counts no more
    policy = policy_of(problem, mixed)
    chances = policy.dealing.chances(0, mixed.deciding.begun)[:BANK]
    assert float((chances @ policy.dealing.sizes).mean()) <= 4
    sure = chances.max(1).values > 0.99
    assert float(sure.double().mean()) > 0.8
    agent = policy if asked == "once" else PointByPoint(policy)
    engine = engine_of(problem, policy, Role.POLICY_TRAINING)
    samples = engine.sample(agent, BANK, price=policy.tariff.price(4))
    dealt = samples.nfe[mixed._order[:BANK]]
    wanted = policy.dealing.sizes[chances.argmax(1)]
    assert len(wanted[sure].unique()) == 2, "samples are told apart"
    assert float((dealt == wanted)[sure].double().mean()) > 0.97


def test_schedules_that_meet_are_told_apart():
    alike = torch.tensor([[0, 0.3, 0.6, 1.0], [0, 0.3, 0.5, 1.0], [0, 0.3, 0.6, 0.9]])
    endings = Endings([4], list(alike), torch.ones(1, 3) / 3, 2, (0.5,))
    kept = torch.stack([endings.lams(row, stretched=False)[0] for row in range(3)])
    torch.testing.assert_close(kept, alike.double(), rtol=0, atol=1e-5)
    assert all(len(times.unique()) == 3 for times in kept.T[1:])
    grid, table = Endings([4], list(alike), torch.ones(1, 3) / 3, 2, (0.5,), looks=2).on_one_grid()
    assert float(grid.max()) == 1
    for at in (1, 2):
        where = [set(plan[:, at].tolist()) for plan in table]
        assert len(set.union(*where)) == sum(len(points) for points in where)


def test_jumps_of_different_orders_never_lead_to_the_same_point():
    one = torch.tensor([0, 0.2, 0.4, 0.6, 0.8])
    # As many evaluations later, where no two schedules are told apart.
    other = torch.tensor([0, 0.1, 0.2, 0.4, 0.6, 0.8])
    own, lower = None, torch.tensor([3, 2, 2, 1, 2, 2])
    for told, looks in itertools.product(([own, lower], [own, own]), (2, 3)):
        endings = Endings([5, 6], [one, other], torch.eye(2), looks, (0.5,), looks, orders=(1, 2), told=told)
        grid, table = endings.on_one_grid()
        orders = endings.orders_on(table, len(grid), 3)
        for row in range(2):
            for way, lam, jumps in zip(table[row], endings.lams(row), endings.orders(row), strict=True):
                way = way[: len(lam)]
                torch.testing.assert_close(grid[way], lam.double(), rtol=0, atol=1e-5)
                assert orders[way][1:].tolist() == [k or 3 for k in jumps[1:]]
            # Up to the last look where a sample was evaluated tells all that was chosen.
            for look in range(looks):
                at = endings.fork(row) + look - 1
                assert len(set(table[row, :, at].tolist())) == endings.options**look


class PointByPoint:
    """The policy as an agent that is asked at every point."""

    observes = True

    def __init__(self, policy):
        self.name, self.times, self.probabilities = policy.name, policy.times, policy.probabilities


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ([[950, 60]], "2 evaluations or fewer|1 evaluations or fewer|cannot fork"),
        ([[940, 500, 60]], "begins elsewhere than at 950"),
    ],
)
def test_files_that_cannot_fork_are_refused(problem, tmp_path, schedules, message):
    file = mixture_file(tmp_path / "m.json", schedules, [1.0])
    with pytest.raises(UserError, match=message):
        learner_of(problem, "fork", plans=[file], left=2)
    with pytest.raises(UserError, match="cannot read"):
        learner_of(problem, "fork", plans=["none.json"], left=2)
    with pytest.raises(UserError, match=r"need 1 <= looks <= left \(2\)"):
        learner_of(problem, "fork", plans=[file], left=2, looks=3)


def test_files_of_one_budget_share_it_and_what_draws_the_real_is_dealt_more_often(problem, tmp_path):
    one = mixture_file(tmp_path / "1.json", [[950, 500, 60], [950, 400, 60]], [0.75, 0.25])
    other = mixture_file(tmp_path / "2.json", [[950, 700, 60]], [1.0])
    learner = learner_of(problem, "fork", plans=[one, other], left=2)[0]
    assert learner.plans.counts == [3]
    deciding = learner.deciding
    assert deciding.dealing.weights.tolist() == [[0.375, 0.125, 0.5]]
    # The second plan draws what is real, the others beside it on both sides, the third farther away.
    size = learner.core.quality.real.shape[1]
    generator = torch.Generator().manual_seed(1)
    entries = shown_entries(400).unsqueeze(1).expand(400, 4, -1)
    for plan, off in enumerate((-1.0, 0.0, 2.0)):
        features = 0.1 * torch.randn(400, 1, size, generator=generator).expand(400, 9, size).clone()
        features[..., 0] += off
        deciding.looks[plan] = Looks(entries, features.half(), torch.zeros(400, 9, 1))
        learner.cascade.usual(plan, entries)
    deciding.begun = entries[:, 0]
    deciding.real = [(torch.zeros(size).double(), 0.01 * torch.eye(size).double())]
    before = distance(deciding.crowd(0).moments[0], deciding.real[0])
    descend(learner, 300)
    chances = deciding.dealing.chances(0, deciding.begun).mean(0).detach()
    assert float(chances[1]) > 0.9
    assert distance(deciding.crowd(0).moments[0], deciding.real[0]) < before / 10
    assert len(policy_of(problem, learner).dealing.members(0)) == 1, "what is hardly ever dealt is left out"


def test_an_end_that_is_kept_stays(problem):
    schedule = torch.tensor([0.0, 0.3, 0.5, 0.6, 0.9]).double()
    endings = Endings(
        [5], [schedule], torch.ones(1, 1), left=3, stretches=(-0.5, 0.5), looks=2, keep_end=True
    )
    ways = endings.lams(0)
    assert torch.equal(ways[0], schedule)
    for lam in ways:
        assert float(lam[-1]) == pytest.approx(0.9)
        assert torch.equal(lam[:2], schedule[:2])
        assert bool((lam.diff() > 0).all())
    assert len({tuple(lam.tolist()) for lam in ways}) == 9
    # By hand: the gap before the third, 0.2, is e^0.5 times as long beside those behind it, 0.1 and 0.3.
    longer = 0.2 * math.exp(0.5)
    torch.testing.assert_close(
        ways[6][2:4], 0.3 + 0.6 * torch.tensor([longer, longer + 0.1]).double() / (longer + 0.4)
    )
    with pytest.raises(UserError, match="need looks < left"):
        learner_of(problem, "fork", plans=["any.json"], left=2, looks=2, keep_end=True)


def test_a_run_does_not_go_on_with_other_schedules_than_it_began_with(problem, tmp_path):
    def state_of(schedules):
        file = mixture_file(tmp_path / "plans.json", schedules, [1 / len(schedules)] * len(schedules))
        learner = learner_of(problem, "fork", plans=[file], left=2)[0]
        return learner, learner.state()

    began = [[950, 500, 60], [950, 400, 60]]
    _, kept = state_of(began)
    for other in ([[950, 500, 60]], [[950, 500, 60], [950, 401, 60]], [*began, [950, 450, 60]]):
        with pytest.raises(UserError, match="other schedules or branches than that run had"):
            state_of(other)[0].load_state(kept)
    state_of(began)[0].load_state(kept)


def test_what_another_run_saw_is_learned_from_without_a_call(problem, mixed, tmp_path, monkeypatch):
    four, six = str(tmp_path / "4.json"), str(tmp_path / "6.json")

    def learner(plans=(six, four), **settings):
        settings = {"updates": 2, "left": 1, "looks": 1, **settings}
        return learner_of(problem, "fork", plans=plans, **settings)[0]

    again = learner(rival="mixture")
    again.look_again(mixed.state())
    resumed = learner(rival="mixture")
    resumed.look_again(mixed.state())

    def called(*_):
        raise AssertionError("the network was called")

    monkeypatch.setattr(type(problem.denoiser), "__call__", called)
    again.learn(ROUND * 4, lambda decisions: True)
    places = []
    for mine, other in zip(again.deciding.looks, mixed.deciding.looks, strict=True):
        same = (mine.results.unsqueeze(1) == other.results).flatten(2).all(2)
        assert same.any(0).all(), "all of them"
        places.append(same.float().argmax(1))
    assert all(torch.equal(places[0], other) for other in places), "a place is a noise"
    assert not torch.equal(places[0], torch.arange(len(places[0])).long()), "in another order"
    assert torch.equal(again.dealing.mean, mixed.dealing.mean)
    assert torch.equal(again.cascade.first.deviation, mixed.cascade.first.deviation)
    assert not torch.equal(again.actor_network[-1].bias, resumed.actor_network[-1].bias), "it learned"
    kept = again.state()
    assert not any(name.startswith("looks.") for name in kept), "the other run has them"
    resumed.load_state({name: tensor.clone() for name, tensor in kept.items()})
    for one in (again, resumed):
        one.learn(ROUND * 6, lambda decisions: True)
    monkeypatch.undo()
    assert torch.equal(resumed.actor_network[-1].weight, again.actor_network[-1].weight)
    other = mixture_file(tmp_path / "other.json", [[950, 850, 700, 400, 200, 61]], [1.0])
    for plans, state in (((other, four), mixed.state()), ((six, four), {})):  # {}: another algorithm's
        with pytest.raises(UserError, match="other schedules or branches than that run had"):
            learner(plans=plans).look_again(state)
    with pytest.raises(UserError, match="that chose as often"):
        learner().look_again(learner().state())  # it has not looked yet
    for branches in ({"stretches": (-0.25, 0.5)}, {"stretches": [0.5]}, {"left": 2}):
        with pytest.raises(UserError, match="other schedules or branches than that run had"):
            learner(**branches).look_again(mixed.state())


def test_features_that_cannot_be_kept_are_refused(problem):
    learner = learner_of(problem, "fork")[0]
    deciding = learner.deciding
    features = torch.full((4, len(learner.plans.more), 16), 7e4)
    entries = torch.zeros(4, 1, learner.entries)
    with pytest.raises(UserError, match="too large"):
        deciding.keep(0, entries[:, 0], entries, features)
    assert not len(deciding.looks[0].entries)


def gate_of(width=1, counts=3, same=0):
    gate = Gate(counts, 5, [*range(-width, width + 1), *[0] * same])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return gate


@pytest.mark.parametrize("width", [1, 2])
def test_the_price_of_a_mean(width):
    gate = gate_of(width, same=2)
    worth = gate(torch.ones(2000).long(), torch.randn(2000, 5, generator=torch.Generator().manual_seed(2)))
    price = gate.price(worth, chance=True)
    assert float((gate.chances(worth, price) @ gate.more).mean().detach()) == pytest.approx(0, abs=1e-5)
    price = gate.price(worth, chance=False)
    assert -0.002 <= float(gate.more[gate.branches(worth, torch.tensor(price))].mean()) <= 0


def test_at_equal_cost_the_gates_choice_is_the_best_of_all():
    # Everett: no other way of giving out as many evaluations is worth more.
    gate = gate_of()
    worth = torch.randn(7, 3, generator=torch.Generator().manual_seed(4)).double()
    chosen = gate.branches(worth, torch.tensor(gate.price(worth, chance=False)))
    spent = int(gate.more[chosen].sum())
    best = max(
        float(worth[torch.arange(7), ways].sum())
        for ways in torch.cartesian_prod(*[torch.arange(3)] * 7)
        if int(gate.more[ways].sum()) == spent
    )
    assert float(worth[torch.arange(7), chosen].sum()) == pytest.approx(best)


def test_the_slope_at_equal_cost_is_a_finite_difference():
    gate = gate_of().double()
    generator = torch.Generator().manual_seed(8)
    rows, entries = torch.ones(300).long(), torch.randn(300, 5, generator=generator).double()
    gain = torch.randn(300, 3, generator=generator).double() + torch.tensor([-1.0, 0.0, 2.0])

    def mean_gain():
        worth = gate(rows, entries)
        chances = gate.chances(worth, gate.price(worth, chance=True))
        return float(((chances * gain).sum(1) + gate.barrier(worth)).mean().detach())

    for parameter in (gate.layered[0][-1].bias, gate.layered[0][0].weight):
        (slope,) = torch.autograd.grad(gate.climb(gate(rows, entries), gain).mean(), parameter)
        direction = torch.randn(parameter.shape, generator=generator).double()
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-4 * direction
                found.append(mean_gain())
                parameter -= sign * 1e-4 * direction
        assert float((slope * direction).sum()) == pytest.approx(
            (found[0] - found[1]) / 2e-4, rel=1e-3, abs=1e-6
        )


def test_settled_prices_spend_their_budgets():
    gate = gate_of()
    entries = torch.randn(4000, 5, generator=torch.Generator().manual_seed(5))
    gate.usual(1, entries)
    gate.settle(1, entries)
    worth = gate(torch.ones(4000).long(), entries)
    assert float(gate.more[gate.branches(worth, gate.prices[1])].mean()) == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("solver", ["multistep", "ddim"])
@pytest.mark.parametrize("count", [3, 5, 6])
def test_the_engine_draws_what_was_learned(problem, solver, count):
    learner = shaken(learner_of(problem, "fork", solver=solver, times_share=0.0, updates=0)[0])
    learner.learn(ROUND * 16, lambda decisions: True)
    policy = policy_of(problem, learner)
    engine = engine_of(problem, policy, Role.POLICY_TRAINING, solver)
    samples = engine.sample(policy, 16, price=learner.tariff.price(count))
    with torch.no_grad():
        drawn = learner.branches.draw(torch.arange(16), count - 3)
        plans = learner.branches.times(count - 3)
    taken = set()
    for i, evaluated in enumerate(samples.evaluated):
        times = policy.times[evaluated]
        same = [b for b, plan in enumerate(plans) if len(plan) == len(times)]
        b = min(same, key=lambda b: float((plans[b] - times).abs().max()))
        torch.testing.assert_close(times, plans[b], rtol=0, atol=2e-3)
        torch.testing.assert_close(samples.images[i], drawn.results[b][i], rtol=0, atol=1e-3)
        taken.add(b)
    assert len(taken) > 1, "samples are told apart"


def test_the_engine_draws_what_was_learned_from_two_looks(problem, tmp_path):
    file = mixture_file(tmp_path / "m.json", [[950, 800, 500, 60], [950, 700, 400, 80]], [0.5, 0.5])
    learner = learner_of(problem, "fork", plans=[file], left=2, updates=0)[0]
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in learner.cascade.parameters():
            parameter.add_(3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    learner.learn(ROUND * 16, lambda decisions: True)
    policy = policy_of(problem, learner)
    samples = engine_of(problem, policy, Role.POLICY_TRAINING).sample(policy, 16, price=policy.price_at(4))
    taken = set()
    for plan in (0, 1):
        times = [way.detach() for way in learner.branches.times(plan)]
        with torch.no_grad():
            drawn = learner.branches.draw(torch.arange(16), plan)
            worths = learner.cascade.worths(torch.full((16,), plan), drawn.entries)
        first = worths[0].squeeze(1).argmax(1)
        chosen = first * 3 + worths[1][torch.arange(16), first].argmax(1)
        for i, evaluated in enumerate(samples.evaluated):
            own = policy.times[evaluated]
            if float((own[1] - times[0][1]).abs()) > 2e-3:
                continue  # it has the other plan
            b = min(range(9), key=lambda b: float((times[b] - own).abs().max()))
            torch.testing.assert_close(own, times[b], rtol=0, atol=2e-3)
            torch.testing.assert_close(samples.images[i], drawn.results[b][i], rtol=0, atol=1e-3)
            assert b == int(chosen[i])
            taken.add(b)
    assert len({b // 3 for b in taken}) > 1, "the first look tells samples apart"
    assert len({b % 3 for b in taken}) > 1, "the second look tells samples apart"


@pytest.mark.parametrize("told", [None, [3, 2, 1, 2, 1]])
@pytest.mark.parametrize(("stretches", "looks"), [((), 2), ((0.5,), 2), ((0.5,), 3)])
def test_a_look_chooses_the_order_of_the_jump_that_follows(problem, tmp_path, stretches, looks, told):
    """Of a schedule that tells the orders of its jumps, too."""
    one = mixture_file(tmp_path / "m.json", [[950, 900, 800, 500, 60]], [1.0])
    other = str(tmp_path / "s.json")
    record = {"schema": SCHEDULE_SCHEMA, "times": [950, 880, 700, 400, 60]}
    write_json(other, record if told is None else record | {"orders": told})
    homes = [[3] * 5, told or [3] * 5]
    settings = {"plans": [one, other], "left": looks, "looks": looks, "stretches": stretches}
    settings |= {"orders": [1, 2], "updates": 0}
    learner = learner_of(problem, "fork", solver="multistep3", keep_end=not stretches, **settings)[0]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in learner.cascade.parameters():
            parameter.add_(9 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    learner.learn(ROUND * 16, lambda decisions: True)
    save_policy(tmp_path / "policy", policy_of(problem, learner))
    policy = load_policy(tmp_path / "policy")
    engine = engine_of(problem, policy, Role.POLICY_TRAINING, "multistep3")
    samples = engine.sample(policy, BANK, price=policy.price_at(5))
    # What is the schedule's own already stands for the solver's.
    options = {
        k: [k] * (1 + len(stretches)) + [3 if k == other else other for other in (1, 2)] for k in (1, 2, 3)
    }
    taken = set()
    for plan, home in enumerate(homes):
        orders = list(itertools.product(*(options[own] for own in home[-looks:])))
        times = [way.detach() for way in learner.branches.times(plan)]
        with torch.no_grad():
            drawn = learner.branches.draw(torch.arange(BANK), plan)
        for i, evaluated in enumerate(samples.evaluated):
            own = policy.times[evaluated]
            if float((own[1] - times[0][1]).abs()) > 2e-3:
                continue  # it has the other plan
            assert policy.orders[evaluated][1:-looks].tolist() == home[1:-looks]
            jumps = tuple(policy.orders[evaluated][-looks:].tolist())
            near = [b for b in range(len(times)) if orders[b] == jumps]
            b = min(near, key=lambda b: float((times[b] - own).abs().max()))
            torch.testing.assert_close(own, times[b], rtol=0, atol=2e-3)
            torch.testing.assert_close(samples.images[i], drawn.results[b][i], rtol=0, atol=1e-3)
            taken.add(jumps)
    assert all(set(chosen) == {1, 2, 3} for chosen in zip(*taken, strict=True))
    for wrong in (policy.orders.float(), policy.orders[1:], torch.zeros_like(policy.orders)):
        with pytest.raises(UserError, match="damaged"):
            build_policy(describe(policy), policy.tensors() | {"orders": wrong}, tmp_path / "policy.json")
    for plan, home in zip((one, other), homes, strict=True):
        alone = learner_of(problem, "fork", solver="multistep3", **settings | {"plans": [plan]})[0]
        assert habit(policy_of(problem, alone), 5).orders[1:].tolist() == home[1:]
    # Its controls keep the orders: what is dealt is what was drawn, image by image, once all have come round.
    given = dealt(samples.times, samples.evaluated, policy.orders)
    given.shift = BANK
    again = engine_of(problem, given, Role.POLICY_TRAINING, "multistep3").sample(given, BANK)
    torch.testing.assert_close(again.images, samples.images, rtol=0, atol=1e-5)
    assert shuffled(policy).orders is policy.orders


def test_orders_that_cannot_be_chosen_are_refused(problem, tmp_path):
    file = mixture_file(tmp_path / "m.json", [[950, 800, 500, 60]], [1.0])
    for solver, orders in (
        *(("multistep3", orders) for orders in ([3], [1, 1], [1.0], [True], 2)),
        ("multistep", [2]),
    ):
        with pytest.raises(UserError, match="orders, besides the solver's own, are some of"):
            learner_of(problem, "fork", solver=solver, plans=[file], left=2, orders=orders)
    with pytest.raises(UserError, match="looks back on one evaluation"):
        learner_of(problem, "fork", solver="ddim", plans=[file], left=2, orders=[1])
    with pytest.raises(UserError, match="give 'fork' plans"):
        learner_of(problem, "fork", orders=[1])
    began = learner_of(problem, "fork", plans=[file], left=2, orders=[1])[0].state()
    for orders in ([], [2]):
        other = learner_of(problem, "fork", solver="multistep3", plans=[file], left=2, orders=orders)[0]
        with pytest.raises(UserError, match="other schedules or branches"):
            other.load_state(began)


def test_it_spends_its_budget_whatever_it_is(problem, looked):
    policy = policy_of(problem, looked)
    engine = engine_of(problem, policy, Role.POLICY_TRAINING)
    for price in log_spaced(0.01, 0.1, 25):
        nfe = engine.sample(policy, BANK, price=price).nfe
        budget = float(policy.tariff.budget(torch.tensor(math.log10(price) / 2)))
        # Between two numbers, coins deal their plans.
        assert float(nfe.double().mean()) == pytest.approx(budget, abs=0.2)
        assert int(nfe.max() - nfe.min()) <= 3
    for count in (3, 4, 5, 6):
        price = policy.price_at(count)
        assert price == pytest.approx(policy.tariff.price(count))
        spent = float(engine.sample(policy, BANK, price=price).nfe.double().mean())
        assert 0.97 * count <= spent <= count


@pytest.mark.parametrize("target", [3, 4.3, 5, 6])
def test_a_price_is_found_for_a_target(problem, looked, target):
    policy = policy_of(problem, looked)
    engine = engine_of(problem, policy, Role.POLICY_TRAINING)
    price = settled_price(policy, None, target)  # known: no engine is asked
    spent = engine.sample(policy, BANK, price=price).nfe.double().mean()
    assert float(spent) == pytest.approx(target, abs=0.15)
    for beyond in (2.2, 6.9):
        with pytest.raises(UserError, match="out of reach"):
            settled_price(policy, engine, beyond, BANK)


def test_the_validation_judge_looks_at_whole_numbers(problem, looked):
    policy = policy_of(problem, looked)
    engine = engine_of(problem, policy, Role.POLICY_TRAINING)
    look = ValidationJudge(engine, lambda images: 2.0, [3, 6], BANK).look(policy)
    assert [round(nfe) for _, nfe, _ in look.table] == [6, 5, 4, 3]
    assert [nfe for _, nfe, _ in look.table] == pytest.approx([6, 5, 4, 3], abs=0.15)
    many = learner_of(problem, "fork", min_nfe=3, max_nfe=15)[0]
    prices = [
        price
        for price, _, _ in ValidationJudge(engine, lambda images: 2.0, [3], 2)
        .look(policy_of(problem, many))
        .table
    ]
    assert prices == pytest.approx([many.tariff.price(k) for k in (15, 13, 11, 9, 7, 5, 3)])


def looks_of(learner, entries, results, variance=0.01):
    """Looks whose results, (M, B), lie along the reward's first feature; real images lie around 0.

    They have this ``variance`` in that feature, a small one in the others.
    """
    size = learner.core.quality.real.shape[1]
    features = torch.zeros(*results.shape, size)
    features[..., 0] = results
    spread = torch.eye(size).double() * 0.01
    spread[0, 0] = variance
    learner.deciding.real = [(torch.zeros(size).double(), spread)]
    learner.deciding.looks[0] = Looks(entries.unsqueeze(1), features.half(), torch.zeros(*results.shape, 1))
    learner.cascade.usual(0, entries.unsqueeze(1))
    learner.deciding.begun = entries
    return learner


def alone(problem, **hyperparameters):
    """A learner of plans of four evaluations that looks alone."""
    return learner_of(problem, "fork", times_share=0.0, min_nfe=4, max_nfe=4, **hyperparameters)[0]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_all_looks_come_before_it_learns_from_them_unless_they_are_all_there_is_time_for(problem, share):
    learner = alone(problem, looks_share=share)
    fresh = learner.actor_network[-1].weight.clone()
    seen = []

    def go_on(decisions):
        learned = not torch.equal(learner.actor_network[-1].weight, fresh)
        seen.append((len(learner.deciding.looks[0].entries), learned))
        return True

    learner.learn(ROUND * 4, go_on)
    then = [(0, False), (16, False), (32, False), (32, True)]
    assert seen == (then if share < 1 else [(0, False), (16, True), (32, True), (48, True)])


def test_the_gates_rate_falls_over_the_rounds_that_teach_them(problem):
    # Four rounds: two that look and two that learn, or four that do both.
    for share, expected in ((0.5, [1.0, 0.55]), (1.0, [1.0, 0.775, 0.55, 0.325])):
        settings = {"learning_rate": 1.0, "final_rate": 0.1, "times_share": 0.0, "looks_share": share}
        learner, logged = learner_of(problem, "fork", min_nfe=4, max_nfe=4, **settings)
        learner.learn(ROUND * 4, lambda decisions: True)
        rates = [told["train/learning_rate"] for _, told in logged if "gate/distance_at_4" in told]
        assert rates == pytest.approx(expected)


def test_a_single_row_is_looked_at_twice_before_it_is_learned_from(problem):
    settings = {"times_share": 0.0, "looks_share": 1.0, "min_nfe": 4, "max_nfe": 4, "update_size": 2}
    learner, logged = learner_of(problem, "fork", num_envs=1, **settings)
    learner.learn(3 * (N - 1), lambda decisions: True)
    assert ["gate/distance_at_4" in told for _, told in logged] == [False, True, True]


def descend(learner, steps):
    """Down the distance; the share that leaves the plan at last."""
    for _ in range(steps):
        learner.deciding.survey(0)
        learner._update([0], learner._deciders())
    return learner.deciding.crowd(0).astray


def shown_entries(count):
    entries = torch.randn(count, len(ENTRIES), generator=torch.Generator().manual_seed(7))
    entries[:, :5] = 0  # where it stands is the same for all
    return entries


def test_the_gate_finds_whom_evaluations_help(problem):
    # One more brings an image from 1 to 0 where an entry is positive, nothing elsewhere; one less costs 0.1
    # anywhere. So: one more there, one less elsewhere.
    entries = shown_entries(2000)
    helped = entries[:, 5] > 0
    far = helped.float()
    results = torch.stack((far + 0.1, far, torch.zeros(2000)), 1)
    learner = looks_of(alone(problem, stretches=()), entries, results)
    descend(learner, 300)
    gate = policy_of(problem, learner).cascade.first
    worth = gate(torch.zeros(2000).long(), entries)
    branch = gate.branches(worth, gate.prices[0])
    assert -0.05 <= float(gate.more[branch].mean()) <= -0.04  # a hundredth is kept back
    assert float((branch[helped] == 2).double().mean()) > 0.9
    assert float((branch[~helped] == 0).double().mean()) > 0.9
    blind = looks_of(alone(problem, stretches=(), sees="schedule"), entries, results)
    descend(blind, 50)
    told = blind.cascade.first(torch.zeros(2000).long(), entries).detach()
    assert float(told.std(0).max()) < 1e-5, "nobody is told apart"


def test_the_gate_sends_some_the_other_way_where_all_would_be_too_many(problem):
    # The plan draws everything at 1, a branch of the same cost at −1, and what is real lies on both sides: a
    # score of single images, with all at 1, would praise −1 for everyone.
    entries = shown_entries(1500)
    results = torch.tensor([5.0, 1.0, 5.0, -1.0]).expand(1500, 4)
    learner = looks_of(alone(problem, stretches=(0.5,), weight_decay=0.0), entries, results, 1.0)
    deciding = learner.deciding
    before = distance(deciding.crowd(0).moments[0], deciding.real[0])
    left = descend(learner, 300)
    assert left == pytest.approx(0.5, abs=0.1)
    # Half of them each have mean and variance of what is real in this feature.
    others = 0.01 * (len(deciding.real[0][0]) - 1)
    assert (
        distance(deciding.crowd(0).moments[0], deciding.real[0]) == pytest.approx(others, abs=0.05) != before
    )


def test_where_all_branches_are_alike_it_keeps_to_the_plan(problem):
    entries = shown_entries(500)
    learner = looks_of(alone(problem), entries, torch.ones(500, 5))
    descend(learner, 50)
    gate = policy_of(problem, learner).cascade.first
    worth = gate(torch.zeros(500).long(), entries)
    assert float((gate.branches(worth, gate.prices[0]) == 1).double().mean()) > 0.95


def test_a_population_has_the_moments_of_what_is_drawn():
    generator = torch.Generator().manual_seed(0)
    results = torch.randn(400, 3, 4, generator=generator)
    branch = torch.randint(3, (400,), generator=generator)
    taken = results[torch.arange(400), branch]
    chances = torch.nn.functional.one_hot(branch, 3).double()
    # In two parts, one of which has three quarters of all.
    parts = [drawn_moments(results[:300], chances[:300]), drawn_moments(results[300:], chances[300:])]
    found = mixed_moments(parts, torch.tensor([0.75, 0.25]))
    mean, covariance = moments(taken)
    torch.testing.assert_close(found[0], mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], covariance * 399 / 400, rtol=0, atol=1e-5)


def test_the_slope_at_a_population_is_that_of_its_chances():
    generator = torch.Generator().manual_seed(1)
    results = torch.randn(5, 3, 2, generator=generator)
    chances = torch.rand(5, 3, generator=generator).double().softmax(1)
    real = torch.tensor([0.5, -0.5]).double(), torch.tensor([[2.0, 0.3], [0.3, 1.0]]).double()
    falls = slope(drawn_moments(results, chances), real)
    worth = falls(results.flatten(0, 1)).reshape(5, 3)
    step = torch.zeros_like(chances)
    step[2, 1], step[2, 0] = 1e-2, -1e-2  # from one branch to another
    ahead, behind = (distance(drawn_moments(results, chances + sign * step), real) for sign in (1, -1))
    assert (ahead - behind) / 2e-2 == pytest.approx(float(worth[2, 1] - worth[2, 0]) / 5, rel=1e-2)


@pytest.mark.parametrize("solver", ["multistep", "ddim"])
def test_it_learns_times(problem, solver):
    learner, logged = learner_of(problem, "fork", reward={"pixel": 1.0}, solver=solver, times_share=1.0)

    def value(count):
        with torch.no_grad():
            drawn = learner.branches.draw(torch.arange(16), count - 3, stretched=False)
            quality, rows = learner.core.quality, learner.core.rows
            quality.begin(rows, torch.arange(16), learner.branches.prices(torch.arange(16), count - 3))
            return float(quality.score(rows, drawn.results[1]).mean())

    before = [value(count) for count in (3, 5)]
    learner.learn(ROUND * 150, lambda decisions: True)
    assert all(new > old + 0.01 for new, old in zip(map(value, (3, 5)), before, strict=True))
    rates = [learner.optimizer.param_groups[1]["lr"], learner.hyperparameters["times_rate"]]
    assert rates[0] == pytest.approx(0.1 * rates[1], rel=0.1), "their rate falls over their own part"
    assert all(numbers["train/gradient_norm"] > 0 for _, numbers in logged)


@pytest.mark.parametrize("name", list(REWARDS))
def test_every_reward_moves_times(problem, name):
    learner, logged = learner_of(problem, "fork", reward={name: 1.0}, times_share=1.0)
    learner.learn(1, lambda decisions: True)
    assert logged[0][1]["train/gradient_norm"] > 0
    assert not any(tensor.requires_grad for tensor in learner.state().values())


def test_results_of_plans_join_what_is_generated(problem):
    learner, _ = learner_of(problem, "fork", reward={"neighbour": 1.0}, times_share=1.0)
    before = learner.core.quality.state()["neighbour.added"].clone()
    learner.learn(1, lambda decisions: True)
    assert int((learner.core.quality.state()["neighbour.added"] - before).sum()) == 16


def test_a_policy_folder_gives_the_same_policy(problem, looked, tmp_path):
    policy = policy_of(problem, looked)
    save_policy(tmp_path / "p", policy)
    loaded = load_policy(tmp_path / "p")
    assert isinstance(loaded, Fork)
    assert describe(loaded) == describe(policy)
    one, other = (engine_of(problem, p).sample(p, BANK, price=0.03) for p in (policy, loaded))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.evaluated, other.evaluated)
    wrong = {
        "lam": torch.zeros(3),
        "gate.actors.0.0.weight": torch.zeros(3),
        "plans": policy.plans.flip(2),
        "left": torch.tensor(9),
    }
    for name, value in wrong.items():
        for damaged in (policy.tensors() | {name: value}, policy.tensors()):
            if damaged[name] is not value:
                if name == "plans":  # without them it is taken for another kind, which it is not either
                    continue
                damaged.pop(name)
            with pytest.raises(UserError, match="is damaged"):
                build_policy(describe(policy), damaged, tmp_path / "policy.json")


def test_its_controls(problem, looked):
    policy = policy_of(problem, looked)
    samples = engine_of(problem, policy).sample(policy, 60, price=looked.tariff.price(5))
    assert len(mean_schedule(samples.times, samples.evaluated).times) in (5, 6)
    other = engine_of(problem, policy).sample(shuffled(policy), 60, price=looked.tariff.price(5))
    assert set(other.nfe.tolist()) <= {4, 5, 6}
    assert not torch.equal(samples.evaluated, other.evaluated)
    given = dealt(samples.times, samples.evaluated)
    assert engine_of(problem, given).sample(given, 60).nfe.sum() == samples.nfe.sum()
    torch.testing.assert_close(
        habit(policy, 5).times, looked.branches.times(2)[1].detach(), rtol=0, atol=2e-3
    )


def test_every_budget_may_have_its_own_margin(problem):
    for margin, each in ((0.01, [0.01] * 4), ({4: 0.01, "6": 0.02}, [0.0, 0.01, 0.0, 0.02])):
        learner, _ = learner_of(problem, "fork", margin=margin)
        assert learner.plans.counts == [3, 4, 5, 6]
        assert learner.deciding.margins == each


def test_it_refuses_what_it_cannot_use(problem):
    for settings, says in [
        ({"min_nfes": 3}, "did you mean 'min_nfe'"),
        ({"min_nfe": 7}, "need 1 <= min_nfe <= max_nfe"),
        ({"left": 3}, "need 1 <= width <= left < min_nfe"),
        ({"width": 2}, "need 1 <= width <= left < min_nfe"),
        ({"prices": (0.02, 0.02)}, "leave env.price out"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"times_share": 1.5}, "times_share must lie between 0 and 1"),
        ({"looks": "two"}, "looks must be a whole number, not 'two'"),
        ({"looks": 2.0}, "looks must be a whole number, not 2.0"),
        ({"updates": -1}, "updates must not be negative: -1"),
        ({"stretches": 0.5}, "stretches must be a list, not 0.5"),
        ({"stretches": [0.5, "x"]}, "stretches must be a list, each of them a number, not"),
        ({"plans": "file.json"}, "plans must be a list, not 'file.json'"),
        ({"first_look": 1}, "first_look must be true or false, not 1"),
        ({"sees": 3}, "sees must be a name, not 3"),
        ({"times_share": "much"}, "times_share must be a number, not 'much'"),
        ({"looks_share": 0}, "looks_share must be more than 0, at most 1, not 0"),
        ({"sees": "samples"}, "did you mean 'sample'"),
        ({"rival": "schedules"}, "did you mean 'schedule'"),
        ({"margin": 2}, "margin must lie between -1 and 1, not 2"),
        ({"margin": {4: -2}}, "margin must lie between -1 and 1, not -2"),
        ({"margin": {4: 0.01, 9: 0.01}}, "margin: there is no budget of 9, there are"),
        ({"margin": "much"}, "margin must be a number, or numbers by budgets, not 'much'"),
        ({"averaged": 0}, "averaged must be 1 survey at least, not 0"),
        ({"moving": MovingPrice(4.0, start=0.02, step=0.1, batch=16)}, "no env.target_nfe"),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            learner_of(problem, "fork", **settings)
        assert "\n" not in str(caught.value)
    learner, _ = learner_of(problem, "fork")
    with pytest.raises(UserError, match="by look_again"):
        learner.start_from(policy_of(problem, learner), 0)
    with pytest.raises(UserError, match="whose plans were given"):
        learner.look_again(learner.state())


class Scanned:
    """A planning agent that is asked point by point."""

    observes = True

    def __init__(self, policy):
        self.name, self.times, self.policy = policy.name, policy.times, policy

    def probabilities(self, observation):
        return self.policy.probabilities(observation)


@pytest.mark.parametrize("algo", ["fork", "pathwise"])
def test_a_plan_asked_once_is_the_plan_asked_point_by_point(problem, looked, algo):
    learner = looked
    if algo == "pathwise":
        learner = learner_of(problem, "pathwise")[0]
        with torch.no_grad():
            for parameter in learner.actor_network.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    policy = learner.policy(info_of(problem, learner, algo))
    assert isinstance(policy, PlanningAgent)
    assert not isinstance(Scanned(policy), PlanningAgent)
    # Between two numbers of evaluations a fork deals plans by one coin for all points.
    for price in log_spaced(0.01, 0.1, 7) if algo == "pathwise" else map(policy.price_at, (3, 4, 5, 6)):
        one, other = (engine_of(problem, p).sample(p, 50, price=price) for p in (policy, Scanned(policy)))
        assert torch.equal(one.evaluated, other.evaluated)
        assert torch.equal(one.images, other.images)


def test_what_a_look_tells_is_what_the_policy_is_told(problem, looked):
    policy = policy_of(problem, looked)
    assert policy.cascade.first.mean.shape == (4, len(ENTRIES))
    entries = looked.deciding.looks[1].entries
    assert len(entries) == BANK
    torch.testing.assert_close(policy.cascade.first.mean[1], entries[:, 0].mean(0))


def test_without_a_first_look_dealing_knows_the_budget_alone(problem):
    seen = {}
    for first_look in (False, True):
        learner = learner_of(problem, "fork", min_nfe=4, max_nfe=6, first_look=first_look)[0]
        entries = shown_entries(50)
        learner.dealing.actor[-1].weight.data.normal_()
        z = learner.dealing.actor(torch.cat((entries, torch.ones(50, len(learner.plans.counts))), 1))
        seen[first_look] = float(z.std(0).max().detach())
    assert seen[False] < 1e-6 < 1e-2 < seen[True]


def test_schedules_that_go_on_beyond_the_decisions_are_kept(problem, tmp_path):
    schedule = [950.0, 500.0, 20.0, 10.0]  # the decisions end earlier
    assert float(problem.core(1).walk.grid.times[-1]) > 20
    file = mixture_file(tmp_path / "m.json", [schedule], [1.0])
    learner = learner_of(problem, "fork", plans=[file], left=2)[0]
    home = learner.plans.home
    wanted = torch.tensor(schedule).double()
    torch.testing.assert_close(learner.branches.times(0)[home].detach(), wanted, rtol=0, atol=0.01)
    policy = policy_of(problem, learner)
    torch.testing.assert_close(policy.times[policy.plans[0, home]], wanted, rtol=0, atol=0.01)
    assert float(policy.times[-1]) == pytest.approx(5)
    later = torch.stack([times[-1] for times in learner.branches.times(0)])
    assert float(later.min()) < 9 < 11 < float(later.max()), "the last one moves to both sides"
