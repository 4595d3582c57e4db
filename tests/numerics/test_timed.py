"""Trajectories at real times: on equal times the process's own, and gradients in them are right."""

import pytest
import torch
from torch import Tensor

from agents.fixed import FixedSchedule
from envs.mdp import Trajectories
from envs.observation import Projection, observe_from
from envs.philox import Role
from stepdrop_rl.engine import Engine
from stepdrop_rl.estimates import Clip
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import SOLVERS, make_solver
from stepdrop_rl.timed import TimedRows

from .conftest import denoiser_of, mixture_process, network

# No integers: lam, linear between them, has kinks there, which finite differences would straddle.
TIMES = torch.tensor([950.5, 800.5, 611.5, 480.5, 300.25, 120.5, 31.5], dtype=torch.float64)
COUNT = 12
IMAGES = torch.arange(40, 40 + COUNT)
EVERY = [*SOLVERS, "ddim:eta=0.5", "ddim:eta=1-0"]


def network_process(solver: str) -> DiffusionProcess:
    denoiser = denoiser_of(network())
    width = sum(denoiser.feature_widths.values())
    matrix = torch.randn(width, 2, generator=torch.Generator().manual_seed(0))
    return DiffusionProcess(
        denoiser,
        make_solver(solver),
        num_rows=COUNT,
        seed=3,
        role=Role.POLICY_TRAINING,
        projection=Projection(matrix, torch.zeros(width), ("middle", "decoder")),
    )


def own_points() -> Tensor:
    """(4, R) points of the grid, falling, that each row evaluates after the first."""
    u = torch.rand(COUNT, len(TIMES) - 1, generator=torch.Generator().manual_seed(2))
    return (u.argsort(1)[:, :4].sort(1).values + 1).T


@pytest.mark.parametrize("make", [mixture_process, network_process])
@pytest.mark.parametrize("solver", EVERY)
def test_on_equal_times_it_is_the_process_bit_for_bit(solver: str, make) -> None:
    running, rows = make(solver), torch.arange(COUNT)
    prices = torch.full((COUNT,), 0.02, dtype=torch.float64)
    walk = Trajectories(running, TIMES)
    walk.begin(rows, IMAGES, prices)
    timed = running.timed(IMAGES, TIMES[:1].expand(COUNT))
    last = torch.full((COUNT,), len(TIMES) - 1)
    for points in own_points():
        running.evaluate(rows, TIMES[points])
        timed.advance(TIMES[points])
        walk.anchor[rows], walk.index[rows] = points, last
        walk.nfe += 1
        seen = observe_from(walk.grid, last, timed.lam_anchor, timed.nfe, prices, timed.evidence())
        assert torch.equal(seen, walk.observe(rows))
        assert torch.equal(timed.x0(), running.x0(rows))


@pytest.mark.parametrize("solver", EVERY)
def test_on_a_schedules_times_it_draws_the_engines_images(solver: str) -> None:
    running = network_process(solver)
    engine = Engine(
        denoiser=running.denoiser,
        solver=running.solver,
        times=TIMES,
        seed=3,
        role=Role.POLICY_TRAINING,
        batch_size=COUNT,
    )
    drawn = engine.sample(FixedSchedule("fixed", TIMES), COUNT, first_image=40)
    timed = running.timed(IMAGES, TIMES[:1].expand(COUNT))
    for t in TIMES[1:]:
        timed.advance(t.expand(COUNT))
    torch.testing.assert_close(timed.x0(), drawn.images, rtol=1e-5, atol=1e-5)


DETERMINISTIC = [name for name in SOLVERS if not make_solver(name).stochastic]


@pytest.mark.parametrize("clip", ["none", "static", "dynamic"])
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_gradients_in_times_are_finite_differences(solver: str, clip: Clip) -> None:
    running = mixture_process(solver, COUNT, clip)

    def told(times: Tensor) -> Tensor:
        timed = TimedRows(running, IMAGES[:3], TIMES[:1].expand(3), dtype=torch.float64)
        found = []
        for s in times:
            timed.advance(s)
            seen = timed.evidence()
            found += [timed.lam_anchor, seen.eps_rms, seen.x0_change, seen.lam_change]
        return torch.cat((timed.x0().flatten(), *found))

    shifts = 20 * torch.rand(3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    times = (TIMES[1:].unsqueeze(1) - shifts).requires_grad_()
    assert torch.autograd.gradcheck(told, (times,), eps=1e-5, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("recompute", [True, False])
def test_a_networks_gradient_passes_through_its_time(recompute: bool) -> None:
    # float32: a difference over a tenth of a unit of time, between integers
    running = network_process("multistep")

    def end(shift: Tensor) -> Tensor:
        timed = running.timed(IMAGES, TIMES[:1].expand(COUNT), recompute=recompute)
        for t in (700.5, 400.5, 150.5):
            timed.advance(t + shift * torch.linspace(0.5, 1, COUNT, dtype=torch.float64))
        return timed.x0().square().sum() + timed.evidence().features.square().sum()

    shift = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(shift), shift)
    with torch.no_grad():
        found = float(end(shift + 0.1) - end(shift - 0.1)) / 0.2
    assert float(slope) == pytest.approx(found, rel=2e-2)
    assert abs(found) > 1e-4


@pytest.mark.parametrize("kind", ["timed", "gated"])
def test_it_disturbs_no_row_of_its_process(kind: str) -> None:
    running, alone = mixture_process("multistep"), mixture_process("multistep")
    rows = torch.arange(COUNT)
    for one in (running, alone):
        one.start(rows, IMAGES, TIMES[:1].expand(COUNT))
        one.evaluate(rows, TIMES[:1].expand(COUNT))
    if kind == "timed":
        running.timed(IMAGES + 7, TIMES[:1].expand(COUNT)).advance(TIMES[1:2].expand(COUNT))
    else:
        running.gated(IMAGES + 7, TIMES).advance(torch.ones(COUNT))
    for one in (running, alone):
        one.evaluate(rows, TIMES[2:3].expand(COUNT))
    assert torch.equal(running.x0(rows), alone.x0(rows))
