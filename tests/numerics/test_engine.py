"""The sampling engine: image i whatever its batch, calls of those who evaluate, budgets that are kept."""

import errno
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agents import BASELINES
from agents.base import Agent, Budget
from agents.fixed import FixedSchedule
from agents.stochastic import Bernoulli
from envs.errors import UserError
from envs.mdp import Trajectories
from envs.observation import ENTRIES
from envs.philox import Role, Stream, normal, uniform
from stepdrop_rl.data import to_uint8
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.engine import Engine, Samples
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.models.denoiser import Denoiser
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.room import room_for
from stepdrop_rl.solvers import SOLVERS

from .conftest import denoiser_of, exact, network

T_START, T_END = 930.0, 15.5
GRID = torch.linspace(T_START, T_END, 10, dtype=torch.float64)
SEED = 77

every_solver = pytest.mark.parametrize("solver", sorted(SOLVERS))


def mixture() -> GaussianMixture:
    means = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
    return GaussianMixture(NoiseSchedule("cosine", 1000), means, 0.3)


def engine(denoiser: Denoiser, solver: str = "multistep", **settings: object) -> Engine:
    usual: dict[str, object] = {"times": GRID, "seed": SEED, "role": Role.EVALUATION}
    return Engine(denoiser=denoiser, solver=SOLVERS.load(solver)(), **(usual | settings))  # type: ignore[arg-type]


def budget(nfe: float, num_decisions: int = len(GRID)) -> Budget:
    return Budget(nfe=nfe, t_start=T_START, t_end=T_END, num_decisions=num_decisions)


class Looks:
    """An agent that observes: what it sees of a sample makes it likelier to evaluate, or less so."""

    name = "looks"
    times: Tensor | None = None
    observes = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def probabilities(self, observation: Tensor) -> Tensor:
        self.seen.append(observation)
        return 0.5 + 0.4 * torch.sin(40 * observation[:, 5] + 20 * observation[:, 6])


class Counting:
    """A denoiser that keeps the images and the times of every call."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.schedule = inner.schedule
        self.shape = inner.shape
        self.feature_widths = inner.feature_widths
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(
        self, x: Tensor, t: Tensor, *, features: Sequence[str] = (), told: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        self.calls.append((x, t))
        return self.inner(x, t, features=features, told=told)


def agents() -> list[Agent]:
    return [Bernoulli(0.6), Looks(), FixedSchedule("mine", GRID[[0, 3, 9]])]


# --- one image is one image ---------------------------------------------------------------------


@every_solver
def test_image_i_is_bit_equal_whatever_the_batch_at_a_padded_shape(solver: str) -> None:
    for agent in agents():
        runs = [
            engine(denoiser_of(network(), pad_to=8), solver, batch_size=size).sample(agent, 19)
            for size in (1, 7, 19)
        ]
        for run in runs[1:]:
            exact(run.evaluated, runs[0].evaluated)
            exact(run.images, runs[0].images)


@every_solver
def test_image_i_is_the_same_to_rounding_whatever_the_batch(solver: str) -> None:
    for agent in agents():
        one, many = (
            engine(denoiser_of(network()), solver, batch_size=size).sample(agent, 19) for size in (1, 19)
        )
        exact(many.evaluated, one.evaluated)  # decisions are identical
        # Convolutions sum in another order at another batch shape: up to 1e-6 of float32 numbers of order 1.
        # The first x0_hat divides that by alpha = 0.1. Measured: 6e-6.
        torch.testing.assert_close(many.images, one.images, rtol=0, atol=2e-5)


def test_a_run_can_be_cut_anywhere() -> None:
    for agent in agents():
        sampler = engine(denoiser_of(network(), pad_to=16), "ddpm", batch_size=16)
        whole = sampler.sample(agent, 200)
        parts = [sampler.sample(agent, 100, first_image=first) for first in (0, 100)]
        exact(torch.cat([part.images for part in parts]), whole.images)
        exact(torch.cat([part.evaluated for part in parts]), whole.evaluated)
        exact(torch.cat([part.nfe for part in parts]), whole.nfe)


def test_images_follow_from_seed_and_role() -> None:
    agent = Bernoulli(0.5)
    base = engine(mixture(), "ddpm").sample(agent, 30)
    exact(engine(mixture(), "ddpm").sample(agent, 30).images, base.images)
    for changes in ({"seed": SEED + 1}, {"role": Role.VALIDATION}):
        other = engine(mixture(), "ddpm", **changes).sample(agent, 30)
        assert not torch.equal(other.evaluated, base.evaluated)
        assert bool((other.images != base.images).flatten(1).any(1).all())


def test_the_first_image_is_the_initial_noise_of_its_id() -> None:
    # One evaluation at a single time: x0_hat of the noise that (seed, role, id) name.
    denoiser = mixture()
    start = FixedSchedule("start", GRID[:1])
    images = engine(denoiser).sample(start, 5, first_image=40).images
    x = normal((1, 2, 2), seed=SEED, role=Role.EVALUATION, stream=Stream.INITIAL, image=torch.arange(40, 45))
    wanted = denoiser.x0(x, GRID[:1].expand(5)).clamp(-1, 1)
    # x0 by way of eps: (x − sigma·eps)/alpha loses a factor 1/alpha = 9 of float32's digits.
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-5)


# --- network calls ------------------------------------------------------------------------------


def test_every_call_is_full_while_there_are_images_and_holds_only_rows_that_evaluate() -> None:
    for agent in (*agents(), Bernoulli(1.0)):
        counting = Counting(mixture())
        samples = engine(counting, batch_size=16).sample(agent, 50)
        rows = [len(x) for x, _ in counting.calls]
        assert sum(rows) == int(samples.nfe.sum())
        assert rows == sorted(rows, reverse=True)
        assert rows[0] == 16
        exact(samples.nfe, samples.evaluated.sum(1))
        # Every call holds each sample at a time of its own; all times together are what was evaluated.
        times = torch.cat([t for _, t in counting.calls])
        for point, time in enumerate(samples.times):
            assert int((times == time).sum()) == int(samples.evaluated[:, point].sum())
        assert samples.occupancy == pytest.approx(sum(rows) / (16 * len(rows)))


def test_slots_are_in_use() -> None:
    # Bernoulli: from 1 to 10 evaluations an image. Only the last images leave slots empty.
    samples = engine(mixture(), batch_size=32).sample(Bernoulli(0.5), 2000)
    assert samples.occupancy > 0.98


def test_evaluated_says_what_was_done() -> None:
    counting = Counting(mixture())
    agent = Bernoulli(0.5)
    samples = engine(counting, "ddim", batch_size=64).sample(agent, 40)
    row = 7
    own = FixedSchedule("own", samples.times[samples.evaluated[row]])
    alone = engine(mixture(), "ddim").sample(own, 1, first_image=row)
    exact(alone.images[0], samples.images[row])


def test_the_first_point_is_always_evaluated() -> None:
    samples = engine(mixture()).sample(Bernoulli(1.0), 9)
    exact(samples.nfe, torch.ones(9, dtype=torch.int64))
    exact(samples.evaluated[:, 0], torch.ones(9, dtype=torch.bool))


# --- decisions ----------------------------------------------------------------------------------


def coin(images: Sequence[int], time: float, seed: int = SEED) -> Tensor:
    ids = torch.tensor(images)
    u = uniform(
        1,
        seed=seed,
        role=Role.EVALUATION,
        stream=Stream.DECISION,
        image=ids,
        time=torch.full((len(ids),), time, dtype=torch.float64),
    )
    return u[:, 0]


def test_decisions_are_coins_of_seed_image_and_time() -> None:
    samples = engine(mixture(), batch_size=13).sample(Bernoulli(0.7), 40, first_image=5)
    for point in range(1, len(GRID)):
        exact(samples.evaluated[:, point], coin(range(5, 45), float(GRID[point])) < 1 - 0.7)


def walked(agent: Agent, count: int, mode: bool = False) -> tuple[Tensor, Tensor]:
    """The plain way: point by point, one observation at a time; evaluated (count, N) and images."""
    process = DiffusionProcess(
        denoiser_of(network()), SOLVERS.load("multistep")(), num_rows=count, seed=SEED, role=Role.EVALUATION
    )
    walk = Trajectories(process, GRID)
    rows = torch.arange(count)
    walk.begin(rows, rows, torch.zeros(count, dtype=torch.float64))
    for point in range(1, len(GRID)):
        p = agent.probabilities(walk.observe(rows))
        walk.advance(rows, p > 0.5 if mode else coin(range(count), float(GRID[point])) < p)
    return walk.evaluated, process.x0(rows)


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("slots", [64, 7])
def test_decisions_made_at_once_are_those_made_point_by_point(mode: bool, slots: int) -> None:
    evaluated, images = walked(Looks(), 40, mode)
    samples = engine(denoiser_of(network()), batch_size=slots, mode=mode).sample(Looks(), 40)
    exact(samples.evaluated, evaluated)
    torch.testing.assert_close(samples.images, images, rtol=0, atol=2e-5)
    assert 0.1 < float(samples.evaluated[:, 1:].float().mean()) < 0.9


def test_finished_images_stream_out_in_bounded_memory() -> None:
    sampler = engine(mixture(), batch_size=8)
    whole = sampler.sample(Bernoulli(0.5), 50, first_image=3)
    seen = torch.zeros(50, dtype=torch.int64)
    for finished in sampler.stream(Bernoulli(0.5), 50, first_image=3):
        if finished is not None:
            assert 0 < len(finished.ids) <= 8
            seen[finished.ids - 3] += 1
            torch.testing.assert_close(finished.images, whole.images[finished.ids - 3], rtol=0, atol=2e-5)
    exact(seen, torch.ones(50, dtype=torch.int64))


def single(shape: tuple[int, int, int], mean: float = 0.0) -> GaussianMixture:
    return GaussianMixture(NoiseSchedule("cosine", 1000), torch.full((1, *shape), mean), 0.3)


def anonymous_memory() -> int:
    """Bytes that this process has written and that no file holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells what memory is a file's")
def test_many_images_are_on_disk_as_files_would_hold_them() -> None:
    """4,000 colour images of 64×64 are 197 MB as they are drawn, and 49 MB as files."""
    shape, count = (3, 64, 64), 4000
    sampler = replace(engine(mixture(), batch_size=16), denoiser=single(shape))
    agent = FixedSchedule("one", GRID[:1])
    few = sampler.sample(agent, 70)  # what a batch takes is taken before
    before, most = anonymous_memory(), [0]
    room = room_for((count, *shape))

    def watch(_: int) -> None:
        most[0] = max(most[0], anonymous_memory() - before)

    samples = sampler.sample(agent, count, room=room, progress=watch)
    assert most[0] < 24e6
    exact(samples.images[:70], to_uint8(few.images))


def test_images_that_diverged_are_no_files() -> None:
    sampler = replace(engine(mixture()), denoiser=single((1, 2, 2), math.nan))
    with pytest.raises(UserError, match="3 of 3 images hold NaN: their sampler diverged"):
        sampler.sample(FixedSchedule("one", GRID[:1]), 3, room=room_for((3, 1, 2, 2)))


def test_a_disk_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for 1 MB of images in .*No space left on device"):
        room_for((1000, 1000), most_in_memory=10)


def test_the_same_time_on_another_grid_decides_alike() -> None:
    coarse = engine(mixture(), times=GRID[::3]).sample(Bernoulli(0.5), 60)
    fine = engine(mixture()).sample(Bernoulli(0.5), 60)
    exact(coarse.evaluated, fine.evaluated[:, ::3])


def test_mode_takes_the_likelier_action() -> None:
    for p_skip, nfe in [(0.49, len(GRID)), (0.5, 1), (0.51, 1), (0.0, len(GRID))]:
        samples = engine(mixture(), mode=True).sample(Bernoulli(p_skip), 20)
        exact(samples.nfe, torch.full((20,), nfe))


def test_certainty_needs_no_coin() -> None:
    everywhere = engine(mixture()).sample(Bernoulli(0.0), 20)
    fixed = engine(mixture()).sample(FixedSchedule("full", GRID), 20)
    # A fixed schedule runs in step, with plain numbers for weights: rounding differs, nothing else.
    torch.testing.assert_close(everywhere.images, fixed.images, rtol=0, atol=2e-6)
    assert bool(everywhere.evaluated.all())


def test_the_price_reaches_the_observation() -> None:
    cheap, dear = Looks(), Looks()
    engine(mixture()).sample(cheap, 3, price=0.01)
    engine(mixture()).sample(dear, 3, price=0.1)
    column = [entry.name for entry in ENTRIES].index("log_price")
    assert {float(v) for seen in cheap.seen for v in seen[:, column]} == {-1.0}
    assert {float(v) for seen in dear.seen for v in seen[:, column]} == {-0.5}


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniform", "quadratic"])
@pytest.mark.parametrize("nfe", [1, 2, 4.2, 5, 7.9])
def test_fixed_schedules_spend_their_budget_rounded_up(name: str, nfe: float) -> None:
    agent: Agent = BASELINES.load(name)(budget(nfe))
    assert agent.times is not None
    assert len(agent.times) == math.ceil(nfe)
    assert float(agent.times[0]) == T_START
    if nfe > 1:
        assert float(agent.times[-1]) == pytest.approx(T_END, abs=1e-9)
    samples = engine(mixture()).sample(agent, 6)
    exact(samples.nfe, torch.full((6,), math.ceil(nfe)))
    exact(samples.times, agent.times)


@pytest.mark.parametrize("name", ["uniform", "quadratic"])
@pytest.mark.parametrize("ends", [(999.0, 0.0), (985.3, 99.7), (640.1, 3.3)])
@pytest.mark.parametrize("nfe", [2, 3, 50])
def test_fixed_schedules_stay_within_their_ends(name: str, ends: tuple[float, float], nfe: int) -> None:
    agent: Agent = BASELINES.load(name)(Budget(nfe=nfe, t_start=ends[0], t_end=ends[1], num_decisions=32))
    assert agent.times is not None
    NoiseSchedule("linear", 1000).check_times(agent.times)
    assert float(agent.times.max()) <= ends[0]
    assert float(agent.times.min()) >= ends[1] - 1e-9
    spread = agent.times if name == "uniform" else agent.times.sqrt()
    torch.testing.assert_close(spread.diff(), spread.diff()[:1].expand(nfe - 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nfe", [1.0, 2.5, 5.0, 10.0])
def test_bernoulli_spends_its_budget_on_average(nfe: float) -> None:
    count = 2000
    samples = engine(mixture(), batch_size=1000).sample(BASELINES.load("bernoulli")(budget(nfe)), count)
    coins = len(GRID) - 1
    p = (nfe - 1) / coins
    error = math.sqrt(coins * p * (1 - p) / count)
    assert abs(float(samples.nfe.double().mean()) - nfe) <= 4 * error
    spread = float(samples.nfe.double().var())  # independent coins: the variance is binomial too
    assert spread == pytest.approx(coins * p * (1 - p), rel=4 * math.sqrt(2 / count), abs=1e-12)
    per_point = samples.evaluated[:, 1:].double().mean(0)
    assert bool(((per_point - p).abs() <= 4 * math.sqrt(p * (1 - p) / count)).all())


@pytest.mark.parametrize("nfe", [0.5, 100.0])
def test_a_budget_beyond_the_grid_is_spent_as_far_as_it_goes(nfe: float) -> None:
    samples = engine(mixture()).sample(BASELINES.load("bernoulli")(budget(nfe)), 10)
    exact(samples.nfe, torch.full((10,), 1 if nfe < 1 else len(GRID)))


# --- the rest -----------------------------------------------------------------------------------


def test_progress_and_timing_are_told() -> None:
    told: list[int] = []
    samples: Samples = engine(mixture(), batch_size=8).sample(Bernoulli(0.5), 20, progress=told.append)
    assert sum(told) == 20
    assert max(told) <= 8
    assert samples.images_per_second == pytest.approx(20 / samples.seconds)
    assert samples.images.shape == (20, 1, 2, 2)
    assert samples.images.dtype == torch.float32
    assert float(samples.images.abs().max()) <= 1  # clipped estimates


@pytest.mark.parametrize("times", [[], [5.0, 6.0], [1000.0, 5.0], [5.0, -1.0], [float("nan")]])
def test_impossible_schedules_are_refused(times: list[float]) -> None:
    schedule = FixedSchedule("bad", torch.tensor(times, dtype=torch.float64))
    with pytest.raises(UserError):
        engine(mixture()).sample(schedule, 2)


def test_full_trajectories_draw_from_the_data() -> None:
    # The whole engine on a model whose answers are exact: 60 steps of a stochastic solver bring back the
    # mixture's mean and variance. The grid's end leaves a bias of sigma(t_end)² at most: allowed for.
    denoiser = GaussianMixture(
        NoiseSchedule("cosine", 1000), torch.tensor([-0.5, 0.3]).reshape(2, 1, 1, 1), 0.1
    )
    times = torch.linspace(999, 1, 60, dtype=torch.float64)
    images = engine(denoiser, "ddpm", times=times, batch_size=4000).sample(FixedSchedule("full", times), 4000)
    values = images.images.double().flatten()
    variance = 0.4**2 + 0.1**2
    assert float(values.mean()) == pytest.approx(-0.1, abs=4 * math.sqrt(variance / 4000) + 0.01)
    assert float(values.var()) == pytest.approx(variance, abs=0.012)
    assert float((values > 0).double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000) + 0.01)
