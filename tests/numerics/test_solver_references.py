"""Solvers by reference: DDIM with any η, the same on the whole way or not, and what is refused."""

import itertools

import pytest
import torch
from torch import Tensor

from envs.errors import UserError
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.solvers import SOLVERS, make_solver
from stepdrop_rl.solvers.base import Anchor
from stepdrop_rl.solvers.ddim import DDIM
from stepdrop_rl.solvers.multistep3 import Multistep3

SCHEDULE = NoiseSchedule("cosine", 1000)
SHAPE = (1, 2, 4)


def anchors(count: int = 40) -> tuple[Anchor, Tensor, Tensor]:
    """Anchors at random times, targets, and noise, all float64."""
    generator = torch.Generator().manual_seed(1)
    t, s = (
        torch.rand(2, count, generator=generator, dtype=torch.float64).sort(0, descending=True).values * 999
    )
    x, x0, noise = torch.randn(3, count, *SHAPE, generator=generator, dtype=torch.float64).unbind()
    return Anchor(x, x0.unsqueeze(1), t.unsqueeze(1), torch.ones(count, dtype=torch.int64)), s, noise


def jump(reference: str) -> Tensor:
    anchor, s, noise = anchors()
    solver = make_solver(reference)
    return solver.jump(SCHEDULE, anchor, s, noise if solver.stochastic else None)


@pytest.mark.parametrize(
    "reference, same",
    [
        ("ddim:eta=0", "ddim"),
        ("ddim:eta=0-0", "ddim"),
        ("ddim:eta=1", "ddpm"),
        ("ddim:eta=1-1", "ddpm"),
        ("ddim:eta=1:early=0", "ddim_markov_late"),
        ("ddim:early=1", "ddim_markov_early"),
        ("ddim:early=1:eta=0", "ddim_markov_early"),
    ],
)
def test_ends_and_hybrids_are_the_named_solvers(reference: str, same: str) -> None:
    torch.testing.assert_close(jump(reference), jump(same), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_bare_name_is_the_solver_itself(name: str) -> None:
    assert type(make_solver(name)) is type(SOLVERS.load(name)())


def test_a_ramp_is_linear_in_time() -> None:
    solver = make_solver("ddim:eta=1-0.2")
    assert isinstance(solver, DDIM)
    t = torch.tensor([999.0, 499.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(solver.eta(SCHEDULE, t), torch.tensor([1.0, 0.6, 0.2], dtype=torch.float64))
    anchor, s, noise = anchors()
    found = solver.jump(SCHEDULE, anchor, s, noise)
    for i in (0, 7, 23):
        one = Anchor(*(getattr(anchor, k)[i : i + 1] for k in ("x", "x0", "times", "count")))
        eta = 0.2 + 0.8 * float(anchor.times[i, 0]) / 999
        alone = DDIM(eta).jump(SCHEDULE, one, s[i : i + 1], noise[i : i + 1])
        torch.testing.assert_close(alone, found[i : i + 1], rtol=1e-12, atol=1e-12)


def test_scientific_notation_is_a_number_and_not_a_ramp() -> None:
    solver = make_solver("ddim:eta=1e-3")
    assert isinstance(solver, DDIM)
    assert (solver.first, solver.last) == (1e-3, 1e-3)


def test_other_solvers_settings() -> None:
    solver = make_solver("multistep3:curvature=0.5")
    assert isinstance(solver, Multistep3)
    assert solver.curvature == 0.5


@pytest.mark.parametrize(
    "reference", ["ddim:eta=0.5", "ddim:eta=1-0", "ddim:eta=0-1", "ddim:eta=0.7:early=0.2"]
)
def test_moments_on_exact_data(reference: str) -> None:
    # With the exact clean images in x0_hat's place the law of x_s is N(α_s·x0, σ_s²) whatever η is.
    solver = make_solver(reference)
    count = 40_000
    generator = torch.Generator().manual_seed(3)
    for t, s in ((900.0, 500.0), (300.0, 50.0)):
        at, to = (torch.full((count,), v, dtype=torch.float64) for v in (t, s))
        x0 = torch.full((count, 1, 1, 1), 0.4, dtype=torch.float64)
        eps, z = torch.randn(2, count, 1, 1, 1, generator=generator, dtype=torch.float64).unbind()
        alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in SCHEDULE.alpha_sigma(at))
        anchor = Anchor(
            alpha * x0 + sigma * eps,
            x0.unsqueeze(1),
            at.unsqueeze(1),
            torch.ones(count, dtype=torch.int64),
        )
        x_s = solver.jump(SCHEDULE, anchor, to, z).flatten()
        alpha_s, sigma_s = (float(value[0]) for value in SCHEDULE.alpha_sigma(to))
        assert float(x_s.mean()) == pytest.approx(alpha_s * 0.4, abs=4 * sigma_s / count**0.5)
        assert float(x_s.std()) == pytest.approx(sigma_s, rel=4 / (2 * count) ** 0.5)


@pytest.mark.parametrize("reference", ["ddim:eta=0.5", "ddim:eta=1-0"])
def test_trajectories_keep_the_datas_moments(reference: str) -> None:
    # On the analytic denoiser of one Gaussian its mean and deviation come back, up to O(1 / steps).
    model = GaussianMixture(SCHEDULE, torch.full((1, 1, 1, 1), 0.3), 0.25)
    solver, count = make_solver(reference), 20_000
    generator = torch.Generator().manual_seed(5)
    times = torch.linspace(995, 2, 240, dtype=torch.float64)
    x = torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)
    one = torch.ones(count, dtype=torch.int64)
    for t, s in itertools.pairwise(times):
        at = t.expand(count)
        anchor = Anchor(x, model.x0(x, at).unsqueeze(1), at.unsqueeze(1), one)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = solver.jump(SCHEDULE, anchor, s.expand(count), noise)
    assert float(x.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(x.std()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    "reference, says",
    [
        ("ddim:eta=1.5", r"in \[0, 1\], not 1.5"),
        ("ddim:eta=-0.1", r"in \[0, 1\], not -0.1"),
        ("ddim:eta=1-2", r"in \[0, 1\], not 2"),
        ("ddim:eta=nan", r"in \[0, 1\]"),
        ("ddim:early=7", r"in \[0, 1\], not 7"),
        ("ddim:eta=much", "needs a number or two"),
        ("ddim:eta=0.5-", "needs a number or two"),
        ("ddim:early=1-0", "needs a number, not '1-0'"),
        ("ddim:etta=1", "did you mean 'eta'"),
        ("ddim:eta", "NAME=VALUE"),
        ("ddim:", "unknown setting"),
        ("ddim:eta=1:eta=0", "each once"),
        ("multistep:eta=1", "takes no settings"),
        ("ddim_markov_late:eta=1", "takes no settings"),
        ("ddin:eta=1", "did you mean 'ddim'"),
    ],
)
def test_what_is_refused(reference: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        make_solver(reference)
    assert "\n" not in str(caught.value)
