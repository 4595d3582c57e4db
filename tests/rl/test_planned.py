"""Whole schedules dealt to images, the controls of a policy, and the searched mixture."""

import json
from types import SimpleNamespace

import pytest
import torch

from agents.actor import SIGHTS
from agents.controls import SHOWN, Shuffled, coins, dealt, mean_schedule
from agents.fixed import FixedSchedule
from agents.planned import Mixture, mixture_record, read_plan
from agents.policy import LearnedPolicy, PolicyInfo
from agents.search import blackbox
from agents.search import mixture as mixture_search
from envs.errors import UserError
from envs.observation import ENTRIES
from envs.rewards.frechet import distance, moments, root
from stepdrop_rl.config.study import CONTROLS
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.engine import Engine
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.search_ground import ModelGround
from stepdrop_rl.solvers import SOLVERS
from stepdrop_rl.studies.work import packed, unpacked

A, B = [960.0, 500.5, 80.0], [900.0, 40.0]
GRID = torch.linspace(960, 40, 12, dtype=torch.float64)


def model():
    means = torch.randn(4, 1, 2, 4, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
    return GaussianMixture(NoiseSchedule("cosine", 1000), means, 0.2)


def engine(times=GRID, **settings):
    return Engine(denoiser=model(), solver=SOLVERS.load("multistep")(), times=times, seed=3, **settings)


def policy(weight):
    info = PolicyInfo(
        algo="ppo",
        activation="tanh",
        output="softmax",
        dataset="digits",
        model_hash="",
        solver="multistep",
        times=GRID.tolist(),
        prices=[0.01, 0.1],
    )
    return LearnedPolicy(info, [(weight, torch.zeros(2))])


# --- mixtures -----------------------------------------------------------------------------------


def test_an_image_of_a_mixture_is_that_of_its_schedule():
    mixture = Mixture("m", [A, B], [0.7, 0.3])
    drawn = engine(batch_size=32).sample(mixture, 200)
    alone = {
        len(times): engine(torch.tensor(times)).sample(FixedSchedule("s", torch.tensor(times)), 200).images
        for times in (A, B)
    }
    assert set(drawn.nfe.tolist()) == {2, 3}
    for count, images in alone.items():
        here = drawn.nfe == count
        torch.testing.assert_close(drawn.images[here], images[here], rtol=0, atol=2e-6)
    assert float((drawn.nfe == 3).double().mean()) == pytest.approx(0.7, abs=4 * (0.21 / 200) ** 0.5)
    assert mixture.nfe == pytest.approx(2.7)


def test_packing_changes_nothing():
    mixture = Mixture("m", [A, B], [1, 1])
    one, two = (engine(batch_size=size).sample(mixture, 60) for size in (60, 7))
    assert torch.equal(one.evaluated, two.evaluated)
    torch.testing.assert_close(one.images, two.images, rtol=0, atol=2e-6)


def test_a_mixture_of_one_is_its_schedule_and_files_keep_it(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(mixture_record(Mixture("m", [A, B], [3, 1], "ddim"))))
    read = read_plan(path)
    assert isinstance(read, Mixture)
    assert (read.solver, read.schedules, read.weights.tolist()) == ("ddim", [A, B], [0.75, 0.25])
    one = engine().sample(Mixture("m", [A], [1.0]), 20).images
    torch.testing.assert_close(one, engine().sample(FixedSchedule("s", torch.tensor(A)), 20).images)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": [1]}, "as many weights as schedules"),
        ({"weights": [0, 0]}, "nor all of them 0"),
        ({"weights": [-1, 2]}, "must not be negative"),
        ({"weights": [float("nan"), 2]}, "must not be negative"),
        ({"schedules": [A, [5, 10]]}, "must descend"),
        ({"schedules": [A, []]}, "must descend"),
        ({"schedules": "A"}, "damaged"),
    ],
)
def test_damaged_mixtures_are_said(tmp_path, change, said):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(mixture_record(Mixture("m", [A, B], [3, 1])) | change))
    with pytest.raises(UserError, match=said):
        read_plan(path)


# --- controls -----------------------------------------------------------------------------------


def test_dealt_keeps_the_schedules_and_moves_them():
    drawn = engine().sample(coins(GRID, torch.rand(50, len(GRID)) < 0.4), 40)
    moved = engine(batch_size=16).sample(dealt(drawn.times, drawn.evaluated), 40)
    assert torch.equal(moved.evaluated, drawn.evaluated.roll(-1, 0))


def test_coins_keep_the_rates():
    evaluated = torch.zeros(100, len(GRID), dtype=torch.bool)
    evaluated[:, 0] = True
    evaluated[:25, 4] = True
    drawn = engine(batch_size=256).sample(coins(GRID, evaluated), 2000).evaluated.double().mean(0)
    assert float(drawn[4]) == pytest.approx(0.25, abs=4 * (0.19 / 2000) ** 0.5)
    assert float(drawn.sum()) == pytest.approx(1.25, abs=0.05)


def test_the_mean_schedule_of_a_fixed_one_is_itself():
    evaluated = torch.zeros(30, len(GRID), dtype=torch.bool)
    evaluated[:, [0, 3, 7, 10]] = True
    torch.testing.assert_close(mean_schedule(GRID, evaluated).times, GRID[[0, 3, 7, 10]])


def test_the_mean_schedule_spends_the_mean_and_lies_between():
    evaluated = torch.zeros(30, len(GRID), dtype=torch.bool)
    evaluated[:, [0, 8]] = True
    evaluated[:10, 4] = True
    evaluated[10:, 5] = True
    found = mean_schedule(GRID, evaluated).times
    assert len(found) == 3
    assert GRID[0] == found[0]
    assert GRID[6] < found[1] < GRID[3]
    assert bool((found.diff() < 0).all())


def test_the_mean_schedule_jumps_as_most_do():
    evaluated = torch.zeros(30, len(GRID), dtype=torch.bool)
    evaluated[:, [0, 8]] = True
    evaluated[:10, 3] = True
    evaluated[10:16, 4] = True
    evaluated[16:, 5] = True
    orders = torch.full((len(GRID),), 3)
    orders[[3, 5]] = 2
    # Jumps of order 2 lead to 24 of the 30 second evaluations, one of order 3 to the middle one.
    found = mean_schedule(GRID, evaluated, orders)
    assert found.orders.tolist() == [3, 2, 3]
    assert mean_schedule(GRID, evaluated).orders is None


def test_shuffled_passes_what_samples_show_among_those_that_stand_alike():
    names = [entry.name for entry in ENTRIES]
    weight = torch.zeros(2, len(ENTRIES))
    weight[1, names.index("eps_rms")] = 1.0
    observation = torch.zeros(5, len(ENTRIES))
    observation[:, names.index("position")] = torch.tensor([0.5, 0.25, 0.5, 0.5, 1.0])
    observation[:, names.index("eps_rms")] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    one = policy(weight)
    seen = torch.logit(Shuffled(one).probabilities(observation))
    torch.testing.assert_close(seen, torch.tensor([3.0, 2.0, 4.0, 1.0, 5.0]), rtol=1e-4, atol=1e-4)


def test_shuffled_by_group_passes_that_group_alone():
    names = [entry.name for entry in ENTRIES]
    weight = torch.zeros(2, len(ENTRIES))
    weight[1, names.index("eps_rms")] = 1.0
    weight[1, names.index("clipped")] = 0.1
    observation = torch.zeros(2, len(ENTRIES))
    observation[:, names.index("eps_rms")] = torch.tensor([1.0, 2.0])
    observation[:, names.index("clipped")] = torch.tensor([1.0, 0.0])
    one = policy(weight)
    for group, said in {"noise": [2.1, 1.0], "clipping": [1.0, 2.1], "change": [1.1, 2.0]}.items():
        seen = torch.logit(Shuffled(one, group).probabilities(observation))
        torch.testing.assert_close(seen, torch.tensor(said), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="not shown features"):
        Shuffled(one, "features")


def test_the_groups_are_all_that_tells_of_the_sample():
    groups = [name for group in SHOWN.values() for name in group]
    schedule = SIGHTS["schedule"]
    assert schedule is not None
    assert sorted([*groups, *schedule]) == sorted(entry.name for entry in ENTRIES)
    assert {f"shuffled_{name}" for name in SHOWN} < set(CONTROLS)


# --- the search ---------------------------------------------------------------------------------


def test_the_distance_of_a_mixture_is_that_of_its_pooled_features():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 4000, 5, generator=generator, dtype=torch.float64) * torch.tensor(
        [[[1.0]], [[2.0]], [[0.5]]], dtype=torch.float64
    ) + torch.arange(3, dtype=torch.float64).reshape(3, 1, 1)
    real = torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    seconds = torch.stack([f.T @ f / len(f) for f in features])
    found = mixture_search.mixture_distance(weights, features.mean(1), seconds, (real[0], root(real[1], 0.5)))
    pooled = torch.cat((features[0], features[0], features[1], features[2]))
    assert float(found) == pytest.approx(distance(moments(pooled), real), rel=1e-3)


def test_two_opposite_errors_are_mixed_and_the_dear_component_is_rationed():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    spread = torch.diag(torch.tensor([0.1, 1.0], dtype=torch.float64))
    seconds = torch.stack([spread + torch.outer(m, m) for m in means])
    real = torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([1.1, 1.0], dtype=torch.float64))
    cost = torch.tensor([4.0, 4.0, 6.0], dtype=torch.float64)
    weights = mixture_search.best_weights(means, seconds, real, cost, 4.0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64), rtol=0, atol=0.02)
    # A target that only the dear one fits: it is given what the budget allows.
    real = torch.zeros(2, dtype=torch.float64), spread
    weights = mixture_search.best_weights(means, seconds, real, cost, 5.0)
    assert float(weights @ cost) <= 5 + 1e-9
    assert float(weights[2]) == pytest.approx(0.5, abs=0.02)


def test_components_that_all_cost_what_there_is_are_affordable():
    weights = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(0)
    weights = weights * (1 + 1e-15)  # rounding may ask for a hair more than there is
    cost = torch.full((7,), 5.0, dtype=torch.float64)
    assert torch.equal(mixture_search._affordable(weights, cost, 5.0), weights)


def test_a_search_finds_an_affordable_mixture_no_worse_than_its_best_part(monkeypatch):
    monkeypatch.setattr(mixture_search, "CANDIDATES", 8)
    monkeypatch.setattr(mixture_search, "BEST", 3)
    monkeypatch.setattr(mixture_search, "NUM_IMAGES", 128)
    monkeypatch.setattr(blackbox, "NUM_IMAGES", 64)
    info = SimpleNamespace(t_start=960.0, t_end=40.0, dataset="digits")
    ground = ModelGround(SimpleNamespace(denoiser=model(), info=info), SOLVERS.load("ddim")())
    monkeypatch.setattr(ModelGround, "features", lambda self, images: images.flatten(1))
    real = torch.zeros(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    monkeypatch.setattr(ModelGround, "real", lambda self: real)
    monkeypatch.setattr(
        ModelGround, "distance", lambda self, t, n: distance(moments(self.draw(t, range(n)).flatten(1)), real)
    )
    found = mixture_search.search(3, ground, 0)
    weights, schedules = zip(*found.components, strict=True)
    assert sum(weights) == pytest.approx(1)
    assert Mixture("m", schedules, weights).nfe <= 3 + 1e-9
    assert found.objective <= found.trace[0] + 1e-9


@pytest.mark.parametrize("points", [1, 8, 13])
def test_what_was_evaluated_is_kept_as_bits(points):
    evaluated = torch.rand(7, points, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(unpacked(packed(evaluated), points), evaluated)
