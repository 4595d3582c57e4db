"""Differentiable trajectories: whole gates are the environment's decisions, and gradients are right."""

import pytest
import torch
from torch import Tensor

from envs.mdp import Trajectories
from envs.observation import Projection, observe_from
from envs.philox import Role, Stream, normal
from stepdrop_rl.diffusion import image_scale
from stepdrop_rl.estimates import Clip
from stepdrop_rl.gated import GatedRows
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import SOLVERS, make_solver

from .conftest import MIXTURE_SHAPE, denoiser_of, mixture_process, network

# No integers: lam, linear between them, has kinks there, which finite differences would straddle.
TIMES = torch.tensor([950.5, 800.5, 611.5, 480.5, 300.25, 120.5, 31.5], dtype=torch.float64)
COUNT = 12
IMAGES = torch.arange(40, 40 + COUNT)


def coins(count: int = COUNT) -> Tensor:
    """(N − 1, R) random decisions, with rows that always and that never evaluate."""
    acts = torch.rand(len(TIMES) - 1, count, generator=torch.Generator().manual_seed(2)) < 0.5
    acts[:, 0], acts[:, 1] = True, False
    return acts


@pytest.mark.parametrize("solver", [*SOLVERS, "ddim:eta=0.5", "ddim:eta=1-0"])
def test_whole_gates_are_the_environment_bit_for_bit(solver: str) -> None:
    running = mixture_process(solver)
    rows, prices = torch.arange(COUNT), torch.full((COUNT,), 0.02, dtype=torch.float64)
    walk = Trajectories(running, TIMES)
    walk.begin(rows, IMAGES, prices)
    gated = running.gated(IMAGES, TIMES)
    for point, acts in enumerate(coins(), start=1):
        index = torch.full((COUNT,), point)
        seen = observe_from(walk.grid, index, gated.lam_anchor, gated.nfe, prices, gated.evidence())
        assert torch.equal(seen, walk.observe(rows)), point
        walk.advance(rows, acts)
        gated.advance(acts.float())
        assert torch.equal(gated.x0(), running.x0(rows)), point
    assert torch.equal(gated.nfe, walk.nfe.double())


def test_relaxed_ddim_mixes_estimates_from_point_to_point() -> None:
    # The plain way: one jump from each point to the next, D ← g·x0_hat + (1 − g)·D.
    running = mixture_process("ddim", clip="none")
    gates = torch.rand(len(TIMES) - 1, COUNT, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    gated = GatedRows(running, IMAGES, TIMES, dtype=torch.float64)
    schedule, model = running.schedule, running.denoiser
    assert isinstance(model, GaussianMixture)
    x = normal(MIXTURE_SHAPE, seed=3, role=Role.POLICY_TRAINING, stream=Stream.INITIAL, image=IMAGES).double()
    t = TIMES[0].expand(COUNT)
    data = model.x0(x, t)
    for g, time in zip(gates, TIMES[1:], strict=True):
        s = time.expand(COUNT)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        sigma_t, h = schedule.alpha_sigma(t)[1], schedule.lam(s) - schedule.lam(t)
        x = image_scale(sigma_s / sigma_t, x) * x - image_scale(alpha_s * torch.expm1(-h), x) * data
        data = image_scale(g, x) * model.x0(x, s) + image_scale(1 - g, x) * data
        t = s
        gated.advance(g)
    torch.testing.assert_close(gated.x0(), data, rtol=1e-9, atol=1e-9)


def outcome(solver: str, clip: Clip, gates: Tensor) -> Tensor:
    """All that a trajectory tells, as a function of its gates (N − 1, R)."""
    count = gates.shape[1]
    gated = GatedRows(mixture_process(solver, count, clip), IMAGES[:count], TIMES, dtype=torch.float64)
    told = []
    for g in gates:
        gated.advance(g)
        seen = gated.evidence()
        told += [gated.lam_anchor, seen.eps_rms, seen.x0_change, seen.lam_change, gated.nfe]
    return torch.cat((gated.x0().flatten(), *told))


@pytest.mark.parametrize("clip", ["none", "static", "dynamic"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "ddim:eta=0.5"])
def test_gradients_of_relaxed_gates_are_finite_differences(solver: str, clip: Clip) -> None:
    gates = torch.rand(len(TIMES) - 1, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gates = (0.1 + 0.8 * gates).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda g: outcome(solver, clip, g), (gates,), eps=1e-6, atol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize("solver", ["ddim", "multistep", "multistep3", "deis", "ipndm3"])
def test_gradients_at_whole_gates_are_finite_differences(solver: str) -> None:
    gates = coins()[:, :4].double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda g: outcome(solver, "none", g), (gates,), eps=1e-6, atol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize("solver", ["ddim", "multistep"])
def test_the_last_gates_gradient_is_what_the_decision_changes(solver: str) -> None:
    gates = coins().double()
    results = []
    for last in (0.0, 1.0):
        gates[-1] = last
        results.append(outcome(solver, "static", gates)[: COUNT * 4])
    leaf = gates.clone().requires_grad_()
    slope = torch.autograd.grad(outcome(solver, "static", leaf)[: COUNT * 4].sum(), leaf)[0][-1]
    difference = (results[1] - results[0]).reshape(COUNT, 4).sum(1)
    torch.testing.assert_close(slope, difference)


def test_a_network_called_again_gives_the_same_gradients() -> None:
    denoiser = denoiser_of(network())
    generator = torch.Generator().manual_seed(0)
    width = denoiser.feature_widths["middle"]
    projection = Projection(torch.randn(width, 2, generator=generator), torch.zeros(width))
    running = DiffusionProcess(
        denoiser,
        make_solver("ddim"),
        num_rows=1,
        seed=0,
        role=Role.POLICY_TRAINING,
        projection=projection,
    )
    found = []
    for recompute in (True, False):
        gates = torch.full((len(TIMES) - 1, 3), 0.4, requires_grad=True)
        gated = running.gated(IMAGES[:3], TIMES, recompute=recompute)
        for g in gates:
            gated.advance(g)
        loss = gated.x0().square().sum() + gated.evidence().features.sum()
        found.append(torch.autograd.grad(loss, gates)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert float(found[0].abs().min()) > 0
