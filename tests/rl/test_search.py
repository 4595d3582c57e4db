"""Searches: exact dynamic programmes against brute force, gradients that lead down, and what they ask."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.fixed import FixedSchedule
from agents.search import (
    LENGTHENED,
    SEARCHES,
    blackbox,
    energy,
    gits,
    ld3,
    make_search,
    mixture,
    oss,
    read_search,
    xue,
)
from envs.errors import UserError
from envs.philox import Role
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.engine import Engine
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.search_ground import ModelGround
from stepdrop_rl.solvers import SOLVERS
from stepdrop_rl.teacher import BANK_SEED

START, END = 960.0, 40.0


def analytic_ground(solver="ddim"):
    means = torch.randn(4, 1, 2, 4, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
    mixture = GaussianMixture(NoiseSchedule("cosine", 1000), means, 0.2)
    info = SimpleNamespace(t_start=START, t_end=END, dataset="digits")
    return ModelGround(SimpleNamespace(denoiser=mixture, info=info), SOLVERS.load(solver)())


# --- the ground ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("retimed", [False, True])
def test_the_ground_draws_what_the_engine_draws(name, retimed):
    ground = analytic_ground(name)
    times = torch.tensor([960.0, 700.5, 480.0, 200.0, 55.5], dtype=torch.float64)
    told = times * 0.97 + 3 if retimed else None
    ours = ground.draw(times, range(3, 9), network_times=told)
    schedule = FixedSchedule("s", times, network_times=told)
    engine = Engine(
        denoiser=ground.model.denoiser,
        solver=SOLVERS.load(name)(),
        times=times,
        seed=BANK_SEED,
        role=Role.POLICY_TRAINING,
    )
    theirs = engine.sample(schedule, 6, first_image=3).images
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ground.evaluations == 5 * 6
    if retimed:
        plain = engine.sample(FixedSchedule("s", times), 6, first_image=3).images
        assert float((plain - theirs).abs().max()) > 1e-3


def test_the_distance_is_in_the_rewards_features():
    ground = ModelGround(load_model("digits"), SOLVERS.load("ddim")())
    good, bad = (torch.linspace(960, end, 6, dtype=torch.float64) for end in (90, 700))
    assert ground.distance(good, 64) < 0.5 * ground.distance(bad, 64)
    assert ground.extractor.name == "digits_reward"


# --- Xue ----------------------------------------------------------------------------------------


def test_weights_integrate_constants_and_what_their_order_allows():
    lams, end = np.array([-3.0, -2.2, -1.0, 0.1, 0.7]), 1.5
    w = xue.weights(lams, end)
    assert w.sum() == pytest.approx(np.exp(end) - np.exp(lams[0]))
    # By quadrature, step by step, with the Lagrange polynomials of its nodes.
    expected = np.zeros(5)
    for i, (a, b) in enumerate(itertools.pairwise([*lams, end])):
        order = min(i + 1, 5 - i, 3)
        nodes = lams[i - order + 1 : i + 1]
        grid = a + (np.arange(20_000) + 0.5) / 20_000 * (b - a)
        for j, node in enumerate(nodes):
            others = np.delete(nodes, j)
            ell = np.prod([(grid - o) / (node - o) for o in others], axis=0) if len(others) else 1.0
            expected[i - order + 1 + j] += (np.exp(grid) * ell).mean() * (b - a)
    np.testing.assert_allclose(w, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("nfe", [1, 2, 5, 8, 12])
def test_xue_makes_its_bound_smaller_than_even_steps(nfe):
    ground = analytic_ground()
    found = xue.search(nfe, ground, 0)
    first, last = ground.scale.lam(torch.tensor([START, END], dtype=torch.float64)).tolist()
    even = xue.bound(np.linspace(first, last, nfe + 1)[:-1], last)
    assert found.objective <= even * (1 + 1e-9)
    assert nfe <= 2 or found.objective < 0.999 * even
    assert len(found.times) == nfe
    assert found.times[0] == pytest.approx(START)
    assert min(found.times) >= END
    assert ground.evaluations == 0


# --- dynamic programmes -------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_the_cheapest_path_is_the_cheapest_of_all(nodes):
    table = torch.rand(8, 8, generator=torch.Generator().manual_seed(nodes), dtype=torch.float64)
    table = torch.where(torch.ones(8, 8).triu(1).bool(), table, torch.inf)

    def cost(path):
        total = 0.0
        for i, j in reversed(list(itertools.pairwise(path))):
            total = float(table[i, j]) + 1.15 * total
        return total

    every = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), nodes - 2)]
    best = min(every, key=cost)
    path, found = gits.cheapest_path(table, nodes)
    assert tuple(path) == best
    assert found == pytest.approx(cost(best))


def test_a_straight_trajectory_costs_nothing():
    rho = torch.tensor([5.0, 3.0, 1.0, 0.2], dtype=torch.float64)
    eps = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(
        4, -1, -1
    )
    x = 0.3 + rho.reshape(-1, 1, 1) * eps
    table = gits.costs(x, eps, rho)
    later = torch.ones(4, 4).triu(1).bool()
    torch.testing.assert_close(table[later], torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)
    assert bool(torch.isinf(table[~later]).all())


@pytest.mark.parametrize("shared", [True, False])
def test_two_optimal_steps_are_the_best_of_all(monkeypatch, shared):
    monkeypatch.setattr(oss, "GRID", 9)
    ground = analytic_ground()
    times = torch.linspace(START, END, 9, dtype=torch.float64)
    teacher = ground.trajectory(times, 5)
    errors = []
    for j in range(1, 9):
        drawn = ground.draw(times[[0, j]], range(5))
        errors.append((drawn - teacher.end).double().flatten(1).square().mean(1))
    table = torch.stack(errors)  # (8, 5)
    if shared:
        monkeypatch.setattr(oss, "NUM_IMAGES", 5)
        found = oss.search(2, ground, 0)
        best = int(table.mean(1).argmin())
        assert found.times == pytest.approx(times[[0, best + 1]].tolist())
        assert found.objective == pytest.approx(float(table.mean(1).min()), rel=1e-5)
    else:
        paths, error = oss.per_sample_paths(2, ground, oss.teacher_of(ground, 5))
        assert paths[:, 1].tolist() == (table.argmin(0) + 1).tolist()
        torch.testing.assert_close(error, table.min(0).values, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("nfe", [3, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_optimal_steps_are_those_of_the_recursion_on_whole_passes(monkeypatch, nfe, shared):
    """The way to j in k evaluations is the best of those to r in k − 1, and each is drawn anew from noise."""
    size, images = 8, 4
    monkeypatch.setattr(oss, "GRID", size)
    monkeypatch.setattr(oss, "NUM_IMAGES", images)
    ground = analytic_ground()
    teacher = oss.teacher_of(ground, images)

    def missed(path, wanted, final):
        drawn = ground.trajectory(teacher.times[list(path)], images)
        at = drawn.end if final else drawn.x[-1]
        return (at - wanted).double().flatten(1).square().mean(1)  # (B,)

    def best(ways, errors):
        """Of several ways for each image, (W,) lists of B, by errors (W, B)."""
        table = torch.stack(errors)
        table = table.mean(1, keepdim=True).expand(-1, images) if shared else table
        return [ways[int(w)][b] for b, w in enumerate(table.argmin(0))], table.min(0).values

    def error_of(way, wanted, final):
        return torch.stack([missed(path, wanted, final)[b] for b, path in enumerate(way)])

    reached = {0: [(0,)] * images}
    for _ in range(nfe - 1):
        following = {}
        for j in range(1, size):
            ways = [[(*path, j) for path in way] for r, way in reached.items() if r < j]
            if ways:
                errors = [error_of(way, teacher.x[j], False) for way in ways]
                following[j], _ = best(ways, errors)
        reached = following
    ways = list(reached.values())
    wanted, errors = best(ways, [error_of(way, teacher.end, True) for way in ways])
    if shared:
        found = oss.search(nfe, ground, 0)
        assert found.times == pytest.approx(teacher.times[list(wanted[0])].tolist())
        assert found.objective == pytest.approx(float(errors[0]), rel=1e-5)
    else:
        paths, error = oss.per_sample_paths(nfe, ground, teacher)
        assert [tuple(path) for path in paths.tolist()] == wanted
        torch.testing.assert_close(error, errors, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["gits", "oss", "oss_oracle", "ld3"])
def test_evaluations_are_the_networks_calls(monkeypatch, name):
    for module in (oss, gits):
        monkeypatch.setattr(module, "GRID", 8)
        monkeypatch.setattr(module, "NUM_IMAGES", 5)
    monkeypatch.setattr(oss, "ORACLE_IMAGES", 6)
    monkeypatch.setattr(ld3, "EPOCHS", 2)
    ground = analytic_ground_with_pixels()
    called = []
    asked = GaussianMixture.__call__
    monkeypatch.setattr(
        GaussianMixture,
        "__call__",
        lambda self, x, *a, **k: called.append(len(x)) or asked(self, x, *a, **k),
    )
    SEARCHES.load(name)(4, ground, 0)
    assert ground.evaluations == sum(called) > 30


def test_the_oracle_is_told_beside_the_shared_schedule_on_the_same_noises(monkeypatch):
    for key, value in {"GRID": 10, "NUM_IMAGES": 4, "ORACLE_IMAGES": 9}.items():
        monkeypatch.setattr(oss, key, value)
    ground = analytic_ground()
    found = oss.search_per_sample(3, ground, 0)
    fine = torch.linspace(START, END, 10, dtype=torch.float64)
    wanted = ground.draw(fine, range(9))
    alone = [
        float(
            (ground.draw(torch.tensor(times, dtype=torch.float64), [b]) - wanted[b]).double().square().mean()
        )
        for b, times in enumerate(found.per_image)
    ]
    assert found.objective == pytest.approx(sum(alone) / 9, rel=1e-4)
    alike = ground.draw(torch.tensor(oss.search(3, ground, 0).times, dtype=torch.float64), range(9))
    assert found.shared == pytest.approx(float((alike - wanted).double().square().mean()), rel=1e-4)
    assert found.objective < found.shared


@pytest.mark.parametrize("clip", ["dynamic", "none"])
def test_the_ground_clips_as_it_is_told(clip):
    model = load_model("digits")
    times = torch.tensor([960.0, 500.0, 100.0], dtype=torch.float64)
    ground = ModelGround(model, SOLVERS.load("ddim")(), clip=clip)
    engine = Engine(
        denoiser=model.denoiser,
        solver=SOLVERS.load("ddim")(),
        times=times,
        seed=BANK_SEED,
        role=Role.POLICY_TRAINING,
        clip=clip,
    )
    theirs = engine.sample(FixedSchedule("s", times), 6).images
    for ours in (ground.draw(times, range(6)), ground.trajectory(times, 6).end):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    static = ModelGround(model, SOLVERS.load("ddim")()).draw(times, range(6))
    assert float((static - theirs).abs().max()) > 1e-3


def test_every_samples_own_steps_are_no_worse_than_shared_ones(monkeypatch):
    monkeypatch.setattr(oss, "GRID", 12)
    monkeypatch.setattr(oss, "NUM_IMAGES", 8)
    ground = analytic_ground()
    shared = oss.search(4, ground, 0)
    _, own = oss.per_sample_paths(4, ground, oss.teacher_of(ground, 8))
    assert float(own.mean()) < shared.objective


# --- gradients and chance -----------------------------------------------------------------------


def test_ld3_learns_a_better_schedule_than_it_began_with(monkeypatch):
    monkeypatch.setattr(ld3, "EPOCHS", 4)
    ground = analytic_ground()
    ground.features = lambda images: images.flatten(1)
    found = ld3.search(5, ground, 0)
    assert found.objective < found.trace[0]
    assert len(found.times) == len(found.network_times) == 5
    assert (found.times[0], found.times[-1]) == pytest.approx((START, END))
    assert found == ld3.search(5, analytic_ground_with_pixels(), 0)


def analytic_ground_with_pixels():
    ground = analytic_ground()
    ground.features = lambda images: images.flatten(1)
    return ground


def test_energy_is_least_where_distributions_agree():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4000, 3, generator=generator, dtype=torch.float64)
    # E|x − y| of two standard normal vectors in three dimensions is 4/√π.
    assert float(energy.energy(a, b)) == pytest.approx(4 / math.sqrt(math.pi), rel=0.01)
    for other in (b + 0.3, 1.2 * b, 0.8 * b):
        assert float(energy.energy(a, other)) - float(energy.energy(b, other)) == pytest.approx(0, abs=0.02)
        assert float(energy.energy(other, b)) > float(energy.energy(a, b)) + 0.01


def test_energy_finds_a_better_schedule_than_even_times(monkeypatch):
    monkeypatch.setattr(energy, "STEPS", 40)
    ground = analytic_ground_with_pixels()
    fine = torch.linspace(START, END, energy.TEACHER_POINTS, dtype=torch.float64)
    real = ground.draw(fine, range(2000, 4048)).flatten(1)
    ground.real_features = lambda count: real[:count]
    found = energy.search(4, ground, 0)
    assert found.times[0] == START
    teacher = ground.draw(fine, range(4096, 5120))
    even = torch.linspace(START, END, 4, dtype=torch.float64)
    lost = [
        float((ground.draw(times, range(4096, 5120)) - teacher).square().flatten(1).sum(1).sqrt().mean())
        for times in (torch.tensor(found.times, dtype=torch.float64), even)
    ]
    assert lost[0] < 0.9 * lost[1]
    assert found == energy.search(4, ground, 0)


def test_the_teachers_weight_is_that_of_its_part_of_the_loss(monkeypatch):
    monkeypatch.setattr(energy, "STEPS", 1)
    ground = analytic_ground_with_pixels()
    real = ground.draw(torch.linspace(START, END, 20, dtype=torch.float64), range(2000, 4048)).flatten(1)
    ground.real_features = lambda count: real[:count]
    names = ("energy:teacher=0", "energy", "energy:teacher=1")
    none, usual, all_of_it = (make_search(name)(4, ground, 0).trace[0] for name in names)
    assert usual - none == pytest.approx(energy.TEACHER_WEIGHT * (all_of_it - none), rel=1e-6)
    assert all_of_it > none + 0.01
    spent = ground.evaluations
    make_search("energy:teacher=0")(4, ground, 0)
    assert ground.evaluations - spent == 4 * energy.BATCH  # who is not asked is not drawn


def test_blackbox_finds_the_minimum_of_a_known_distance():
    ground = analytic_ground()
    wanted = torch.tensor([START, 800.0, 500.0, 333.0, 150.0], dtype=torch.float64)
    ground.distance = lambda times, count: float((times - wanted).abs().mean())
    found = blackbox.search(5, ground, 3)
    start = torch.linspace(START, 90, 5, dtype=torch.float64)
    assert found.objective < 0.25 * float((start - wanted).abs().mean())
    assert list(found.trace) == sorted(found.trace, reverse=True)
    assert found == blackbox.search(5, ground, 3)


@pytest.mark.parametrize("name", list(SEARCHES))
@pytest.mark.parametrize("nfe", [1, 2, 3])
def test_small_budgets_are_served_too(monkeypatch, name, nfe):
    for module, changes in ((oss, {"GRID": 8, "NUM_IMAGES": 4}), (gits, {"GRID": 8, "NUM_IMAGES": 4})):
        for key, value in changes.items():
            monkeypatch.setattr(module, key, value)
    monkeypatch.setattr(ld3, "EPOCHS", 1)
    for key, value in {"STEPS": 2, "NUM_TRAINING": 8, "BATCH": 4}.items():
        monkeypatch.setattr(energy, key, value)
    monkeypatch.setattr(blackbox, "CANDIDATES", 16)
    for key, value in {"CANDIDATES": 8, "BEST": 2, "NUM_IMAGES": 64}.items():
        monkeypatch.setattr(mixture, key, value)
    ground = analytic_ground_with_pixels()
    ground.distance = lambda times, count: float(times.sum())
    ground.real_features = lambda count: torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    ground.real = lambda: (torch.zeros(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64))
    found = SEARCHES.load(name)(nfe, ground, 0)
    parts = found.components or ((1.0, found.times),)
    assert sum(share * len(times) for share, times in parts) <= nfe + 1e-9
    for _, times in parts:
        ground.model.denoiser.schedule.check_times(torch.tensor(times, dtype=torch.float64))
    assert found.components or len(found.times) == nfe


def test_unknown_methods_are_said():
    with pytest.raises(UserError, match="did you mean 'gits'"):
        SEARCHES.load("git")


# --- effort ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(LENGTHENED))
def test_effort_multiplies_a_searchs_evaluations(method, monkeypatch):
    for module, name, value in [
        (ld3, "EPOCHS", 1),
        (ld3, "NUM_TRAINING", 4),
        (ld3, "NUM_HELD_BACK", 4),
        (ld3, "TEACHER_POINTS", 4),
        (energy, "STEPS", 2),
        (energy, "NUM_TRAINING", 4),
        (energy, "BATCH", 8),
        (energy, "TEACHER_POINTS", 4),
        (blackbox, "NUM_IMAGES", 8),
        (blackbox, "CANDIDATES", 16),
        (mixture, "CANDIDATES", 16),
        (mixture, "BEST", 1),
        (mixture, "NUM_IMAGES", 8),
        (mixture, "STEPS", 1),
    ]:
        monkeypatch.setattr(module, name, value)
    spent = []
    for reference in (method, f"{method}:effort=3"):
        ground = ModelGround(load_model("digits"), SOLVERS.load("ddim")())
        found = make_search(reference)(3, ground, 0)
        spent.append(ground.evaluations)
        assert len(found.times) <= 4
    assert 2.5 * spent[0] < spent[1] <= 6 * spent[0]


def test_an_effort_that_makes_no_sense_is_refused():
    assert read_search("oss") == ("oss", 1.0, None, None)
    assert read_search("energy:effort=8") == ("energy", 8.0, None, None)
    assert read_search("energy:order=2:effort=8") == ("energy", 8.0, 2, None)
    for reference, said in [
        ("energi", "did you mean 'energy'"),
        ("energy:effort=0", "must be positive"),
        ("energy:effort=much", "needs a number"),
        ("energy:steps=8", "unknown setting"),
        ("xue:effort=2", "takes no settings"),
        ("energy:order=1.5", "must be a whole number"),
        ("energy:order=0", "must be a whole number"),
        ("energy:order=inf", "must be a whole number"),
        ("energy:order=nan", "must be a whole number"),
        ("mixture:order=2", "unknown setting"),
        ("energy:teacher=-1", "must be finite and 0 at least"),
        ("energy:teacher=nan", "must be finite and 0 at least"),
        ("ld3:teacher=1", "unknown setting 'teacher' of search method 'ld3'"),
    ]:
        with pytest.raises(UserError, match=said):
            read_search(reference)
