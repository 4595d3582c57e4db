"""The order of every deterministic solver, the moments of every stochastic one, and the exact denoiser.

The order is measured as DESIGN.md says: exact starting values, a regular grid in lam, no clipping, float64,
and without the jump to the clean end (which has order 1).
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from envs.philox import Role, Stream, normal
from stepdrop_rl.diffusion import NoiseSchedule, q_sample
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import SOLVERS
from stepdrop_rl.solvers.base import Anchor, Solver
from stepdrop_rl.solvers.ddim import DDIM
from stepdrop_rl.solvers.multistep3 import Multistep3

LAM_START, LAM_END = -1.5, 1.5
REFERENCE_STEPS = 1536  # of RK4: errors of 1e-10 where the compared solvers make 1e-4 to 1e-8
REFINEMENTS = (96, 192, 384)

ALL: dict[str, Solver] = {name: SOLVERS.load(name)() for name in SOLVERS}
ALL |= {"ddim-0.5": DDIM(0.5), "ddim-1": DDIM(1.0), "multistep3-half": Multistep3(0.5)}
IN_RHO = ("ipndm2", "ipndm3", "ipndm")  # regular grids of these are even in σ/α, of the others in lam
ORDERS = {"multistep3-half": 2}  # where it is not what the class declares
LARGER = ("ddpm_large",)  # variance than the data's: it keeps no marginal
DETERMINISTIC = sorted(name for name, solver in ALL.items() if not solver.stochastic)


def mixture(schedule: str = "cosine") -> GaussianMixture:
    """Three overlapping components: the answer bends, but on the scale of the coarsest grid."""
    means = torch.tensor([[0.8, -0.3], [-0.6, 0.5], [0.1, 0.9]], dtype=torch.float64).reshape(3, 1, 1, 2)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return GaussianMixture(NoiseSchedule(schedule, 1000), means, 0.5, weights)


def starting_noise() -> Tensor:
    return torch.randn(16, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def grid(steps: int, in_rho: bool) -> Tensor:
    """(steps + 1,) lams from LAM_START to LAM_END: even in lam, or in σ/α = e^−lam."""
    if in_rho:
        return -torch.linspace(math.exp(-LAM_START), math.exp(-LAM_END), steps + 1, dtype=torch.float64).log()
    return torch.linspace(LAM_START, LAM_END, steps + 1, dtype=torch.float64)


def exact_path(model: GaussianMixture, steps: int, in_rho: bool = False) -> Tensor:
    """(steps + 1, B, C, H, W): x on a regular grid, by RK4 on y' = e^lam·x0_hat(σy, lam), y = x/σ."""

    def slope(lam: float, y: Tensor) -> Tensor:
        t = model.schedule.time_of(torch.full((len(y),), lam, dtype=torch.float64))
        return math.exp(lam) * model.x0(y / math.sqrt(1 + math.exp(2 * lam)), t)

    lams = grid(steps, in_rho).tolist()
    y = starting_noise() * math.sqrt(1 + math.exp(2 * LAM_START))  # 1/σ = √(1 + e^{2·lam})
    path = [y]
    for lam, after in itertools.pairwise(lams):
        h = after - lam
        k1 = slope(lam, y)
        k2 = slope(lam + h / 2, y + h / 2 * k1)
        k3 = slope(lam + h / 2, y + h / 2 * k2)
        k4 = slope(lam + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(y)
    sigmas = torch.sigmoid(-2 * grid(steps, in_rho)).sqrt()
    return torch.stack(path) * sigmas.reshape(-1, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def references() -> dict[bool, Tensor]:
    return {in_rho: exact_path(mixture(), REFERENCE_STEPS, in_rho) for in_rho in (False, True)}


def final_error(
    solver: Solver, model: GaussianMixture, reference: Tensor, steps: int, in_rho: bool = False
) -> float:
    """Largest RMS error over the samples at LAM_END, starting from exact values of its whole history."""
    exact = reference[:: REFERENCE_STEPS // steps]
    times = model.schedule.time_of(grid(steps, in_rho)).unsqueeze(1).expand(-1, exact.shape[1])
    depth = max(2, solver.history)
    seen = [model.x0(exact[i], times[i]) for i in range(solver.history)]
    noise = [model(exact[i], times[i])[0] for i in range(solver.history)]
    x = exact[solver.history - 1]
    for i in range(solver.history - 1, steps):
        if i >= solver.history:
            seen.append(model.x0(x, times[i]))
            noise.append(model(x, times[i])[0])
        newest = [max(i - k, 0) for k in range(depth)]
        anchor = Anchor(
            x,
            torch.stack([seen[j] for j in newest], 1),
            torch.stack([times[j] for j in newest], 1),
            torch.full((len(x),), i + 1),
            torch.stack([noise[j] for j in newest], 1),
        )
        x = solver.jump(model.schedule, anchor, times[i + 1], None)
    return float((x - exact[-1]).flatten(1).square().mean(1).sqrt().max())


@pytest.mark.parametrize("in_rho", [False, True])
def test_the_reference_is_converged(references: dict[bool, Tensor], in_rho: bool) -> None:
    half = exact_path(mixture(), REFERENCE_STEPS // 2, in_rho)
    torch.testing.assert_close(half[-1], references[in_rho][-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_error_falls_with_the_declared_order(name: str, references: dict[bool, Tensor]) -> None:
    solver, model, in_rho = ALL[name], mixture(), name in IN_RHO
    order = ORDERS.get(name, solver.order)
    assert order is not None
    errors = [final_error(solver, model, references[in_rho], steps, in_rho) for steps in REFINEMENTS]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    # Adams and Bashforth of order 4 is still on its way there: 4.23, 4.18, …
    assert slopes == pytest.approx([order] * len(slopes), abs=0.25 if order == 4 else 0.15), errors


# --- moments -------------------------------------------------------------------------------------

MANY = 40_000
BOUND = 4.0  # standard errors: a right solver fails one comparison in 16,000, and the numbers are fixed


def assert_moments(sample: Tensor, mean: float, variance: float) -> None:
    """z-tests of the mean and the variance of Gaussian numbers."""
    values = sample.double().flatten()
    n = len(values)
    z_mean = (float(values.mean()) - mean) / math.sqrt(variance / n)
    z_variance = (float((values - mean).square().mean()) - variance) / (variance * math.sqrt(2 / n))
    assert abs(z_mean) < BOUND, f"mean {float(values.mean())}, expected {mean}"
    assert abs(z_variance) < BOUND, f"variance {float(values.var())}, expected {variance}"


def gaussian(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)


def after_one(x: Tensor, t: Tensor, x0: Tensor) -> Anchor:
    """The anchor of samples that were evaluated once."""
    alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in NoiseSchedule("cosine", 1000).alpha_sigma(t))
    eps = (x - alpha * x0) / sigma
    count = torch.ones(len(t), dtype=torch.int64)
    return Anchor(x, torch.stack([x0] * 4, 1), torch.stack([t] * 4, 1), count, torch.stack([eps] * 4, 1))


@pytest.mark.parametrize("name", sorted(set(ALL) - set(LARGER)))
@pytest.mark.parametrize(("t", "s"), [(900.0, 850.0), (700.5, 200.25), (300.0, 0.0)])
def test_the_marginal_of_given_data_is_kept(name: str, t: float, s: float) -> None:
    # x_t ~ q(x_t | x0) and a denoiser that knows x0: then x_s ~ q(x_s | x0), whatever the jump between.
    schedule = NoiseSchedule("cosine", 1000)
    at, to = (torch.full((MANY,), time, dtype=torch.float64) for time in (t, s))
    x0 = torch.full((MANY, 1, 1, 1), 0.7, dtype=torch.float64)
    x = q_sample(schedule, x0, at, gaussian(MANY, 1))
    x_s = ALL[name].jump(schedule, after_one(x, at, x0), to, gaussian(MANY, 2))
    alpha, sigma = (float(v[0]) for v in schedule.alpha_sigma(to))
    assert_moments(x_s, alpha * 0.7, sigma**2)


@pytest.mark.parametrize("name", ["ddpm", "ddim-1"])
@pytest.mark.parametrize(("t", "s"), [(900.0, 850.0), (700.5, 200.25), (300.0, 0.0)])
def test_the_posterior_of_given_data_and_image(name: str, t: float, s: float) -> None:
    schedule = NoiseSchedule("linear", 1000)
    at, to = (torch.full((MANY,), time, dtype=torch.float64) for time in (t, s))
    x, x0 = torch.full((2, MANY, 1, 1, 1), 1.3, dtype=torch.float64) * torch.tensor(
        [[[[[1.0]]]], [[[[-0.4]]]]]
    )
    x_s = ALL[name].jump(schedule, after_one(x, at, x0), to, gaussian(MANY, 3))
    # Bayes' rule with precisions: prior x_s ~ N(α_s·x0, σ_s²), likelihood x_t ~ N(r·x_s, σ_t² − r²σ_s²).
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (
        v.tolist() for v in schedule.alpha_sigma(torch.tensor([t, s], dtype=torch.float64))
    )
    r = alpha_t / alpha_s
    noise = sigma_t**2 - r**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + r**2 / noise)
    mean = variance * (alpha_s * float(x0[0]) / sigma_s**2 + r * float(x[0]) / noise)
    assert_moments(x_s, mean, variance)


@pytest.mark.parametrize("name", ["ddpm", "ddim-1"])
def test_exact_draws_of_the_data_make_the_forward_process_run_backwards(name: str) -> None:
    # Data N(μ, v); x_t from its marginal, x0 from its exact posterior: then (x_s, x_t) has the joint law of
    # the forward process, so that x_s has the marginal of s and the covariance α_t/α_s·var(x_s) with x_t.
    mu, v = 0.3, 0.25
    schedule = NoiseSchedule("cosine", 1000)
    times = torch.tensor([600.0, 350.0], dtype=torch.float64)
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (part.tolist() for part in schedule.alpha_sigma(times))
    variance_t, variance_s = alpha_t**2 * v + sigma_t**2, alpha_s**2 * v + sigma_s**2
    x = alpha_t * mu + math.sqrt(variance_t) * gaussian(MANY, 4)
    posterior_mean = mu + alpha_t * v / variance_t * (x - alpha_t * mu)
    x0 = posterior_mean + math.sqrt(v * sigma_t**2 / variance_t) * gaussian(MANY, 5)
    at, to = (time.expand(MANY) for time in times)
    x_s = ALL[name].jump(schedule, after_one(x, at, x0), to, gaussian(MANY, 6))
    assert_moments(x_s, alpha_s * mu, variance_s)
    product = ((x_s - alpha_s * mu) * (x - alpha_t * mu)).flatten()
    covariance = alpha_t / alpha_s * variance_s
    error = math.sqrt((variance_s * variance_t + covariance**2) / MANY)
    assert abs(float(product.mean()) - covariance) < BOUND * error


@pytest.mark.parametrize("name", ["ddim", "ddim-0.5", "ddim-1", "ddpm"])
def test_a_whole_trajectory_has_the_moments_of_its_recursion(name: str) -> None:
    # Gaussian data: x0_hat is affine in x, so every jump is, and mean and variance follow by hand.
    mu, deviation = 0.4, 0.3
    solver = ALL[name]
    schedule = NoiseSchedule("cosine", 1000)
    model = GaussianMixture(schedule, torch.full((1, 1, 2, 4), mu), deviation)
    times = torch.tensor([950.0, 700.5, 500.0, 320.0, 100.0, 30.0], dtype=torch.float64)
    rows, count = torch.arange(5000), 5000
    running = DiffusionProcess(model, solver, num_rows=count, seed=2, role=Role.VALIDATION, clip=False)
    running.start(rows, rows, times[:1].expand(count))
    for time in times:
        running.evaluate(rows, time.expand(count))
    mean, variance = 0.0, 1.0
    eta = {"ddim": 0.0, "ddim-0.5": 0.5}.get(name, 1.0)
    bars = [float(alpha) ** 2 for alpha in schedule.alpha_sigma(times)[0]]
    for bar_t, bar_s in zip(bars, [*bars[1:], 1.0], strict=True):
        of_x = math.sqrt(bar_t) * deviation**2 / (bar_t * deviation**2 + 1 - bar_t)
        offset = mu * (1 - of_x * math.sqrt(bar_t))  # x0_hat = of_x·x + offset
        spread = eta**2 * (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
        share = math.sqrt((1 - bar_s - spread) / (1 - bar_t))  # of x_t − α_t·x0_hat
        of_x0 = math.sqrt(bar_s) - share * math.sqrt(bar_t)
        mean = (share + of_x0 * of_x) * mean + of_x0 * offset
        variance = (share + of_x0 * of_x) ** 2 * variance + spread
    assert_moments(running.x0(rows), mean, variance)


# --- the exact denoiser --------------------------------------------------------------------------


def log_density(model: GaussianMixture, x: Tensor, t: Tensor) -> Tensor:
    """log p_t(x), (B,): the mixture, shrunk by α and widened by σ."""
    alpha, sigma = (v.reshape(-1, 1) for v in model.schedule.alpha_sigma(t))
    variance = alpha**2 * model.deviation**2 + sigma**2
    means = model.means.flatten(1)  # (K, D)
    squared = (x.flatten(1).unsqueeze(1) - alpha.unsqueeze(2) * means).square().sum(2)
    dimension = means.shape[1]
    log_normal = -squared / (2 * variance) - dimension / 2 * torch.log(2 * math.pi * variance)
    return torch.logsumexp(torch.log(model.weights) + log_normal, 1)


def test_epsilon_is_the_score() -> None:
    # ∇ log p_t(x) = −eps/σ_t.
    model = mixture()
    x = starting_noise().requires_grad_()
    t = torch.linspace(0.5, 999, len(x), dtype=torch.float64)
    (score,) = torch.autograd.grad(log_density(model, x, t).sum(), x)
    eps, features = model(x.detach(), t)
    sigma = model.schedule.alpha_sigma(t)[1].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(eps, -sigma * score, rtol=1e-9, atol=1e-9)
    assert features is None


@pytest.mark.parametrize("t", [0.0, 55.5, 400.0, 800.0, 999.0])
def test_the_posterior_mean_by_numerical_integration(t: float) -> None:
    schedule = NoiseSchedule("linear", 1000)
    means = torch.tensor([-0.7, 0.1, 0.9], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    model = GaussianMixture(schedule, means.reshape(3, 1, 1, 1), 0.15, weights)
    at = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = (float(v) for v in schedule.alpha_sigma(at))
    grid = torch.linspace(-3, 3, 200_001, dtype=torch.float64)  # steps of 3e-5, below the smallest σ of 1e-2
    prior = (weights * torch.exp(-0.5 * ((grid.unsqueeze(1) - means) / 0.15) ** 2)).sum(1)
    for x in (-1.1, -0.2, 0.45, 1.6):
        mass = prior * torch.exp(-0.5 * ((x - alpha * grid) / sigma) ** 2)
        wanted = float((mass * grid).sum() / mass.sum())
        ours = float(model.x0(torch.full((1, 1, 1, 1), x, dtype=torch.float64), at))
        assert ours == pytest.approx(wanted, abs=1e-9)


def test_the_posterior_mean_by_simulation() -> None:
    # Among simulated pairs (x0, x_t), those in a thin slice of x_t have x0_hat as their mean.
    model = GaussianMixture(NoiseSchedule("cosine", 1000), torch.tensor([-0.6, 0.6]).reshape(2, 1, 1, 1), 0.2)
    count = 400_000
    x0 = model.draw(count, torch.Generator().manual_seed(1))
    t = torch.full((count,), 500.0, dtype=torch.float64)
    noise = normal((1, 1, 1), seed=1, role=Role.VALIDATION, stream=Stream.INITIAL, image=torch.arange(count))
    x = q_sample(model.schedule, x0, t, noise)
    answer = model.x0(x, t)
    for centre in (-0.8, 0.0, 0.5):
        near = ((x - centre).abs() < 0.05).flatten()
        found, wanted = x0[near].flatten().double(), answer[near].flatten().double()
        error = float((found - wanted).std()) / math.sqrt(len(found))
        assert len(found) > 5000
        assert abs(float((found - wanted).mean())) < BOUND * error


def test_draws_have_the_moments_of_the_mixture() -> None:
    model = mixture()
    x = model.draw(MANY, torch.Generator().manual_seed(0)).flatten(1).double()
    means, weights = model.means.flatten(1), model.weights
    mean = (weights.unsqueeze(1) * means).sum(0)
    spread = (weights.unsqueeze(1) * (means - mean) ** 2).sum(0) + model.deviation**2
    assert bool(((x.mean(0) - mean).abs() < BOUND * (spread / MANY).sqrt()).all())
    assert bool(((x.var(0) - spread).abs() < BOUND * spread * math.sqrt(3 / MANY)).all())


def test_the_exact_denoiser_answers_each_sample_at_its_own_time_and_in_its_own_type() -> None:
    model = mixture()
    x, t = starting_noise(), torch.linspace(3, 990, 16, dtype=torch.float64)
    together = model.x0(x, t)
    for i in range(len(x)):
        torch.testing.assert_close(
            together[i : i + 1], model.x0(x[i : i + 1], t[i : i + 1]), rtol=1e-14, atol=0
        )
    narrow = model.x0(x.float(), t)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), together, rtol=0, atol=1e-5)
