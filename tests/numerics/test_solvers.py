"""The contract of every registered solver, and agreement with the textbook and with diffusers."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
)
from torch import Tensor

from envs.errors import UserError
from envs.mdp import Trajectories
from envs.philox import Role, Stream, normal
from stepdrop_rl.diffusion import CLEAN, SCHEDULES, NoiseSchedule
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import SOLVERS
from stepdrop_rl.solvers.base import Anchor, Solver
from stepdrop_rl.solvers.ddim import DDIM, MarkovEarly, MarkovLate
from stepdrop_rl.solvers.ddpm import DDPM, DDPMLarge
from stepdrop_rl.solvers.deis import DEIS, DEIS3
from stepdrop_rl.solvers.exponential import decaying, growing
from stepdrop_rl.solvers.ipndm import IPNDM4
from stepdrop_rl.solvers.multistep import Multistep
from stepdrop_rl.solvers.multistep3 import Multistep3

from .conftest import exact

SHAPE = (1, 2, 4)
COSINE = NoiseSchedule("cosine", 1000)
SEED = 11
TIMES = torch.tensor([950.0, 811.5, 640.25, 600.0, 333.3, 120.0, 57.1, 9.0], dtype=torch.float64)

# Every registered solver with its defaults, and settings that make another solver of one.
VARIANTS: dict[str, Callable[[], Solver]] = {"ddim-0.5": lambda: DDIM(0.5), "ddim-1": lambda: DDIM(1.0)}

every_solver = pytest.mark.parametrize("name", sorted([*SOLVERS, *VARIANTS]))


def make(name: str) -> Solver:
    solver: Solver = VARIANTS[name]() if name in VARIANTS else SOLVERS.load(name)()
    return solver


def mixture(schedule: str = "linear") -> GaussianMixture:
    """Four well separated components in eight dimensions."""
    means = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
    return GaussianMixture(NoiseSchedule(schedule, 1000), means, 0.2)


def process(solver: Solver, rows: int, **settings: object) -> DiffusionProcess:
    return DiffusionProcess(
        mixture(),
        solver,
        num_rows=rows,
        seed=SEED,
        role=Role.EVALUATION,
        **settings,  # type: ignore[arg-type]
    )


def walk(solver: Solver, times: Tensor, images: Tensor, evaluate: Tensor | None = None) -> DiffusionProcess:
    """Walk these images down ``times``; ``evaluate`` (R, N) says where each acts (None: everywhere)."""
    running = process(solver, len(images))
    trajectories = Trajectories(running, times)
    rows = torch.arange(len(images))
    trajectories.begin(rows, images, torch.zeros(len(images), dtype=torch.float64))
    for point in range(1, len(times)):
        acts = torch.ones(len(images), dtype=torch.bool) if evaluate is None else evaluate[:, point]
        trajectories.advance(rows, acts)
    return running


def anchor_of(x: Tensor, t: Tensor, x0: Tensor, schedule: NoiseSchedule = COSINE) -> Anchor:
    """An anchor after the first evaluation: room for more, but nothing in it."""
    empty = torch.zeros_like(x0)
    return Anchor(
        x,
        torch.stack((x0, empty, empty, empty), 1),
        t.unsqueeze(1).repeat(1, 4),
        torch.ones(len(t), dtype=torch.int64),
        torch.stack((eps_of(x, t, x0, schedule), empty, empty, empty), 1),
    )


def eps_of(x: Tensor, t: Tensor, x0: Tensor, schedule: NoiseSchedule = COSINE) -> Tensor:
    """The noise that goes with a clean estimate."""
    alpha, sigma = (v.to(x.dtype).reshape(-1, 1, 1, 1) for v in schedule.alpha_sigma(t))
    return (x - alpha * x0) / sigma


def anchor_with_history(x: Tensor, t: Tensor, x0: Tensor) -> Anchor:
    """An anchor after four evaluations, 50 apart, each of which saw something else."""
    seen = torch.stack([x0 * 0.8**k for k in range(4)], 1)
    times = torch.stack([t + 50.0 * k for k in range(4)], 1)
    eps = torch.stack([eps_of(x, t, x0) + 0.1 * k for k in range(4)], 1)
    return Anchor(x, seen, times, torch.full((len(t),), 4), eps)


def pairs(count: int = 64) -> tuple[Tensor, Tensor]:
    """Random real times t > s, near and far, the ends included."""
    generator = torch.Generator().manual_seed(2)
    u = torch.rand(2, count, generator=generator, dtype=torch.float64) * 999
    u[:, 0] = torch.tensor([999.0, 0.0], dtype=torch.float64)
    u[:, 1] = torch.tensor([1.0, 0.0], dtype=torch.float64)
    u[:, 2] = torch.tensor([500.0, 499.9], dtype=torch.float64)
    return u.max(0).values, u.min(0).values


def clean_and_noise(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, count, *SHAPE, generator=generator, dtype=torch.float64).unbind()  # type: ignore[return-value]


# --- the contract of every solver ---------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_declarations(name: str) -> None:
    solver = make(name)
    assert solver.order is None or (type(solver.order) is int and solver.order > 0)
    assert type(solver.history) is int
    assert solver.history >= 1
    assert isinstance(solver.stochastic, bool)
    assert (solver.order is None) == solver.stochastic  # an order is declared, or moments are tested


@every_solver
def test_skipping_equals_the_direct_jump_bit_for_bit(name: str) -> None:
    solver = make(name)
    images = torch.arange(5)
    acts = torch.zeros(5, len(TIMES), dtype=torch.bool)
    acts[:, [1, 4, 7]] = True  # evaluate, skip, skip, evaluate, skip, skip, evaluate
    skipping = walk(solver, TIMES, images, acts)
    direct = walk(solver, TIMES[[0, 1, 4, 7]], images)
    rows = torch.arange(5)
    exact(skipping.x0(rows), direct.x0(rows))
    s = torch.full((5,), 3.0, dtype=torch.float64)
    exact(skipping.jump(rows, s), direct.jump(rows, s))


@every_solver
def test_every_row_walks_its_own_way_as_if_alone(name: str) -> None:
    solver = make(name)
    images = torch.arange(100, 124)
    generator = torch.Generator().manual_seed(4)
    acts = torch.rand(len(images), len(TIMES), generator=generator) < 0.5
    acts[:, 0] = True
    together = walk(solver, TIMES, images, acts)
    for row in range(len(images)):
        alone = walk(solver, TIMES[acts[row]], images[row : row + 1])
        exact(together.x0(torch.tensor([row])), alone.x0(torch.tensor([0])))


@every_solver
def test_rows_may_stand_at_different_times_and_jump_to_different_ones(name: str) -> None:
    solver = make(name)
    batch = process(solver, 3)
    ids = torch.tensor([7, 8, 9])
    starts = torch.tensor([900.0, 700.5, 300.0], dtype=torch.float64)
    seconds = torch.tensor([500.0, 90.0, 299.5], dtype=torch.float64)
    ends = torch.tensor([1.0, 89.0, CLEAN], dtype=torch.float64)
    rows = torch.tensor([2, 0, 1])  # any order
    batch.start(rows, ids, starts)
    batch.evaluate(rows, starts)
    batch.evaluate(rows, seconds)
    for i, row in enumerate(rows):
        alone = process(solver, 1)
        zero = torch.tensor([0])
        alone.start(zero, ids[i : i + 1], starts[i : i + 1])
        alone.evaluate(zero, starts[i : i + 1])
        alone.evaluate(zero, seconds[i : i + 1])
        exact(batch.jump(row.reshape(1), ends[i : i + 1]), alone.jump(zero, ends[i : i + 1]))
        exact(batch.jump(rows, ends)[i : i + 1], alone.jump(zero, ends[i : i + 1]))


@every_solver
def test_rows_may_walk_the_grid_at_their_own_pace(name: str) -> None:
    # As parallel environments do, where one episode begins while another is half way down.
    solver = make(name)
    running = process(solver, 3)
    trajectories = Trajectories(running, TIMES)
    images = torch.tensor([21, 22, 23])
    acts = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 1, 0, 1], [1, 1, 0, 0, 0, 1, 0]]).bool()
    for row in range(3):
        one = torch.tensor([row])
        trajectories.begin(one, images[one], torch.zeros(1, dtype=torch.float64))
        for point in range(row):  # row 2 is two points ahead, row 1 is one
            trajectories.advance(one, acts[one, point])
    for step in range(len(TIMES) - 3):
        rows = torch.tensor([1, 2, 0])
        trajectories.advance(rows, acts[rows, rows + step])
    for row in range(3):
        own = acts[row].clone()
        own[row + len(TIMES) - 3 :] = False  # where it has not been yet
        taken = torch.cat((torch.tensor([True]), own))
        alone = walk(solver, TIMES[taken], images[row : row + 1])
        exact(running.x0(torch.tensor([row])), alone.x0(torch.tensor([0])))
        exact(trajectories.evaluated[row], taken)


@every_solver
def test_asking_for_a_jump_changes_nothing(name: str) -> None:
    solver = make(name)
    images = torch.arange(4)
    rows = torch.arange(4)
    asked, untouched = (walk(solver, TIMES[:3], images) for _ in range(2))
    asked.jump(rows, TIMES[3:4].expand(4))
    asked.jump(rows, TIMES[6:7].expand(4))
    for one in (asked, untouched):
        one.evaluate(rows, TIMES[5:6].expand(4))
    exact(asked.x0(rows), untouched.x0(rows))


@every_solver
def test_the_jump_to_the_clean_end_is_the_clean_estimate(name: str) -> None:
    running = walk(make(name), TIMES[:3], torch.arange(4))
    rows = torch.arange(4)
    clean = torch.full((4,), CLEAN, dtype=torch.float64)
    exact(running.jump(rows, clean), running.x0(rows))
    some = torch.tensor([CLEAN, 100.0, CLEAN, 30.0], dtype=torch.float64)
    mixed, all_noisy = running.jump(rows, some), running.jump(rows, some.clamp(min=0))
    exact(mixed[[0, 2]], running.x0(rows)[[0, 2]])
    exact(mixed[[1, 3]], all_noisy[[1, 3]])
    assert not torch.equal(mixed[[1, 3]], running.x0(rows)[[1, 3]])


@every_solver
def test_a_jump_of_no_length_stays(name: str) -> None:
    running = walk(make(name), TIMES[:4], torch.arange(4))
    rows = torch.arange(4)
    t = TIMES[3:4].expand(4)
    x = running.jump(rows, t)
    # float64 coefficients of a zero-length jump are 1 and 0 to 1e-16; a shorter jump moves less and less,
    # no faster than the square root of its length (stochastic solvers).
    far = [float((running.jump(rows, t - length) - x).abs().max()) for length in (1.0, 1e-2, 1e-4)]
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.05 * far[0]
    x_t, x0 = (v.float() for v in clean_and_noise(4))
    for anchor in (anchor_of(x_t, t, x0), anchor_with_history(x_t, t, x0)):
        still = make(name).jump(running.schedule, anchor, t, torch.ones_like(x_t))
        torch.testing.assert_close(still, x_t, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted({*SOLVERS, *VARIANTS} - {"ddpm_large"}))  # it adds noise of its own
def test_a_constant_clean_estimate_is_approached(name: str) -> None:
    # Whatever the solver, with x0_hat fixed x_s = α_s·x0 + noise of at most σ_s.
    solver = make(name)
    schedule = NoiseSchedule("cosine", 1000)
    x0, eps = clean_and_noise(32)
    t, s = torch.full((32,), 400.0, dtype=torch.float64), torch.zeros(32, dtype=torch.float64)
    alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in schedule.alpha_sigma(t))
    x = alpha * x0 + sigma * eps
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_s = solver.jump(schedule, anchor_of(x, t, x0), s, z)
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    assert float((x_s - alpha_s[0] * x0).abs().max()) < 10 * float(sigma_s[0])


@every_solver
@pytest.mark.parametrize("schedule_name", sorted(SCHEDULES))
@pytest.mark.parametrize("steps", [2, 1000, 20_000])
def test_jumps_are_finite_between_any_times(name: str, schedule_name: str, steps: int) -> None:
    solver = make(name)
    schedule = NoiseSchedule(schedule_name, steps)
    grid = torch.tensor([0.0, 1e-9, 1e-3, 0.5, 1.0], dtype=torch.float64)
    grid = torch.cat((grid, (steps - 1) - grid)).clamp(0, steps - 1).unique()
    t, s = (v.flatten() for v in torch.meshgrid(grid, grid, indexing="ij"))
    t, s = t[s < t], s[s < t]
    x, x0 = (v.float() for v in clean_and_noise(len(t)))
    x_s = solver.jump(schedule, anchor_of(x, t, x0, schedule), s, torch.ones_like(x))
    assert bool(torch.isfinite(x_s).all())


@every_solver
def test_the_jump_is_differentiable_in_its_time(name: str) -> None:
    solver = make(name)
    schedule = NoiseSchedule("cosine", 1000)
    x, x0 = clean_and_noise(2)
    t = torch.full((2,), 500.0, dtype=torch.float64)
    anchor = anchor_with_history(x, t, x0)
    s = torch.tensor([100.4, 321.5], dtype=torch.float64, requires_grad=True)
    z = torch.ones_like(x)
    assert torch.autograd.gradcheck(lambda s: solver.jump(schedule, anchor, s, z), (s,), eps=1e-4, rtol=1e-4)


@every_solver
def test_a_jump_keeps_the_type_of_its_images(name: str) -> None:
    solver = make(name)
    x, x0 = clean_and_noise(2)
    t, s = torch.full((2,), 500.0, dtype=torch.float64), torch.full((2,), 100.0, dtype=torch.float64)
    schedule = NoiseSchedule("cosine", 1000)
    wide = solver.jump(schedule, anchor_with_history(x, t, x0), s, torch.ones_like(x))
    narrow_anchor = anchor_with_history(x.float(), t, x0.float())
    narrow = solver.jump(schedule, narrow_anchor, s, torch.ones_like(x).float())
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-5)


# --- the textbook -------------------------------------------------------------------------------


def posterior(schedule: NoiseSchedule, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_s | x_t, x0), DESIGN.md, straight from interpolated ᾱ in float64."""

    def alpha_bar(time: Tensor) -> Tensor:
        # Half log-SNR, linear between integers, turned back into ᾱ.
        low = time.floor().clamp(max=len(schedule.alpha_bar) - 2)
        table = torch.log(schedule.alpha_bar / (1 - schedule.alpha_bar))
        k = low.long()
        log_snr = table[k] + (time - low) * (table[k + 1] - table[k])
        return (1 / (1 + torch.exp(-log_snr))).reshape(-1, 1, 1, 1)

    bar_t, bar_s = alpha_bar(t), alpha_bar(s)
    a = bar_t / bar_s
    mean = (torch.sqrt(a) * (1 - bar_s) * x + torch.sqrt(bar_s) * (1 - a) * x0) / (1 - bar_t)
    return mean, (1 - a) * (1 - bar_s) / (1 - bar_t)


@pytest.mark.parametrize("solver", [DDPM(), DDIM(eta=1.0)], ids=["ddpm", "ddim-eta-1"])
@pytest.mark.parametrize("schedule_name", sorted(SCHEDULES))
def test_mean_and_variance_are_the_posteriors(solver: Solver, schedule_name: str) -> None:
    schedule = NoiseSchedule(schedule_name, 1000)
    t, s = pairs()
    x, x0 = clean_and_noise(len(t))
    anchor = anchor_of(x, t, x0)
    mean, variance = posterior(schedule, x, x0, t, s)
    # The jump is affine in its noise: zeros give the mean, ones the mean plus one deviation. The textbook
    # form cancels digits in 1 − ᾱ and 1 − a (1e-16 against 1e-4), hence 1e-10.
    centre = solver.jump(schedule, anchor, s, torch.zeros_like(x))
    deviation = solver.jump(schedule, anchor, s, torch.ones_like(x)) - centre
    torch.testing.assert_close(centre, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(deviation, variance.sqrt().expand_as(x), rtol=1e-9, atol=1e-9)


def test_ddim_with_eta_1_is_the_markovian_step() -> None:
    schedule = NoiseSchedule("cosine", 1000)
    t, s = pairs()
    x, x0 = clean_and_noise(len(t))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    anchor = anchor_of(x, t, x0)
    ours, theirs = DDIM(eta=1.0).jump(schedule, anchor, s, noise), DDPM().jump(schedule, anchor, s, noise)
    # Same algebra by another road: σ_s² − d² cancels to (ᾱ_t/ᾱ_s)·(σ_s²/σ_t)², as small as 1e-9 of σ_s² for
    # the longest jump, whose root then holds 1e-16/1e-9 = 1e-7 of its digits, and weighs 1e-5: below 1e-10.
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    narrow = Anchor(x.float(), anchor.x0.float(), anchor.times, anchor.count)
    # In float32 three products are rounded and added: a few units of 6e-8 of numbers below 5.
    torch.testing.assert_close(
        DDIM(eta=1.0).jump(schedule, narrow, s, noise.float()),
        DDPM().jump(schedule, narrow, s, noise.float()),
        rtol=0,
        atol=2e-6,
    )


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_the_papers_equation_12(eta: float) -> None:
    schedule = NoiseSchedule("linear", 1000)
    generator = torch.Generator().manual_seed(9)
    t = torch.randint(1, 1000, (40,), generator=generator)
    s = (torch.rand(40, generator=generator) * t).long()
    x, x0 = clean_and_noise(40)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    bar_t = schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
    bar_s = schedule.alpha_bar[s].reshape(-1, 1, 1, 1)
    eps = (x - bar_t.sqrt() * x0) / (1 - bar_t).sqrt()
    sigma = eta * ((1 - bar_s) / (1 - bar_t)).sqrt() * (1 - bar_t / bar_s).sqrt()  # eq. 16
    wanted = bar_s.sqrt() * x0 + (1 - bar_s - sigma**2).sqrt() * eps + sigma * noise
    ours = DDIM(eta).jump(schedule, anchor_of(x, t.double(), x0), s.double(), noise)
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_ddim_of_vanishing_eta_is_the_deterministic_jump() -> None:
    schedule = NoiseSchedule("cosine", 1000)
    t, s = pairs()
    x, x0 = clean_and_noise(len(t))
    anchor, noise = anchor_of(x, t, x0), torch.ones_like(x)
    small, none = DDIM(1e-12).jump(schedule, anchor, s, noise), DDIM(0.0).jump(schedule, anchor, s, noise)
    torch.testing.assert_close(small, none, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_the_unit_interval_is_refused(eta: float) -> None:
    with pytest.raises(UserError, match="eta"):
        DDIM(eta)


def test_multistep_with_one_evaluation_is_ddim() -> None:
    schedule = NoiseSchedule("cosine", 1000)
    t, s = pairs()
    x, x0 = clean_and_noise(len(t))
    anchor = anchor_of(x, t, x0)
    exact(Multistep().jump(schedule, anchor, s, None), DDIM().jump(schedule, anchor, s, None))


def test_multistep_by_hand() -> None:
    # DPM-Solver++(2M), algorithm 2: r = h_prev/h, D = (1 + 1/(2r))·x0 − 1/(2r)·x0_prev.
    schedule = NoiseSchedule("linear", 1000)
    lam = torch.tensor([-1.0, -0.5, 0.5], dtype=torch.float64)
    previous, t, s = schedule.time_of(lam).unbind()
    alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
    x, x0, x0_previous = 0.7, 0.4, 0.1
    h, r = 1.0, 0.5
    data = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_previous
    wanted = sigma[2] / sigma[1] * x - alpha[2] * math.expm1(-h) * data

    def image(value: float) -> Tensor:
        return torch.full((1, *SHAPE), value, dtype=torch.float64)

    anchor = Anchor(
        image(x),
        torch.stack((image(x0), image(x0_previous)), 1),
        torch.stack((t, previous)).reshape(1, 2),
        torch.tensor([2]),
    )
    torch.testing.assert_close(
        Multistep().jump(schedule, anchor, s.reshape(1), None),
        wanted.expand(1, *SHAPE),
        rtol=1e-9,
        atol=0,
    )


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_integrals_of_exponentials(k: int) -> None:
    h = torch.tensor([1e-8, 1e-3, 0.29999, 0.30001, 1.0, 5.0], dtype=torch.float64)
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 * h.unsqueeze(1)  # the midpoint rule
    width = h / 4000
    torch.testing.assert_close(decaying(h, k), (torch.exp(-u) * u**k).sum(1) * width, rtol=2e-6, atol=0)
    upward = torch.exp(u - h.unsqueeze(1)) * u**k
    torch.testing.assert_close(growing(h, k), upward.sum(1) * width, rtol=2e-6, atol=0)


def test_ipndm_by_hand() -> None:
    # y = x/α, ρ = σ/α: y_s = y_t + (ρ_s − ρ_t)·(55·e0 − 59·e1 + 37·e2 − 9·e3)/24.
    x, x0 = clean_and_noise(3)
    t, s = torch.full((3,), 500.0, dtype=torch.float64), torch.full((3,), 400.0, dtype=torch.float64)
    anchor = anchor_with_history(x, t, x0)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        tuple(v.reshape(-1, 1, 1, 1) for v in COSINE.alpha_sigma(at)) for at in (t, s)
    )
    assert anchor.eps is not None
    mixed = sum(w * anchor.eps[:, k] for k, w in enumerate((55, -59, 37, -9))) / 24
    wanted = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * mixed)
    torch.testing.assert_close(IPNDM4().jump(COSINE, anchor, s, None), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [MarkovEarly(), MarkovLate()], ids=["early", "late"])
def test_hybrids_are_markovian_on_one_side_of_lam_0(solver: DDIM) -> None:
    t, s = pairs()
    x, x0 = clean_and_noise(len(t))
    z = torch.ones_like(x)
    anchor = anchor_of(x, t, x0)
    found = solver.jump(COSINE, anchor, s, z)
    markov = (COSINE.lam(t) < 0) == isinstance(solver, MarkovEarly)
    assert 10 < int(markov.sum()) < len(t) - 10
    noisy, calm = DDPM().jump(COSINE, anchor, s, z), DDIM().jump(COSINE, anchor, s, None)
    torch.testing.assert_close(found[markov], noisy[markov], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[~markov], calm[~markov], rtol=1e-9, atol=1e-9)


# --- diffusers ----------------------------------------------------------------------------------

COUNT = 6  # images of a compared trajectory


def ours_on(solver: Solver, times: list[int], *, clip: bool, denoiser: GaussianMixture) -> Tensor:
    """A whole trajectory of images 0 … COUNT − 1 and the jump to the clean end."""
    running = DiffusionProcess(denoiser, solver, num_rows=COUNT, seed=SEED, role=Role.EVALUATION, clip=clip)
    rows = torch.arange(COUNT)
    for i, t in enumerate(times):
        at = torch.full((COUNT,), float(t), dtype=torch.float64)
        if i == 0:
            running.start(rows, rows, at)
        running.evaluate(rows, at)
    return running.jump(rows, torch.full((COUNT,), CLEAN, dtype=torch.float64))


def jump_noise(s: int) -> Tensor:
    """The noise of a jump to ``s``, as the process draws it."""
    time = torch.full((COUNT,), float(s), dtype=torch.float64)
    images = torch.arange(COUNT)
    return normal(SHAPE, seed=SEED, role=Role.EVALUATION, stream=Stream.JUMP, image=images, time=time)


def theirs_on(
    step: Callable[[Tensor, int, Tensor], Tensor], times: list[int], denoiser: GaussianMixture
) -> Tensor:
    x = normal(SHAPE, seed=SEED, role=Role.EVALUATION, stream=Stream.INITIAL, image=torch.arange(COUNT))
    for t in times:
        eps, _ = denoiser(x, torch.full((COUNT,), float(t), dtype=torch.float64))
        x = step(eps, t, x)
    return x


def settings(schedule: str) -> dict[str, object]:
    return {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule],
    }


def assert_near(actual: Tensor, expected: Tensor) -> None:
    # float32 trajectories, and float32 tables on their side: errors of 1e-7 relative, magnified by
    # 1/α_t <= 160 in the first x0_hat and partly forgotten afterwards. Measured: below 3e-5.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


both_clips = pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])


@both_clips
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_agrees_with_diffusers_ddim(eta: float, clip: bool) -> None:
    scheduler = DDIMScheduler(
        **settings("linear"), clip_sample=clip, timestep_spacing="leading", steps_offset=7
    )
    scheduler.set_timesteps(20)
    times = scheduler.timesteps.tolist()
    stride = 1000 // 20

    def step(eps: Tensor, t: int, x: Tensor) -> Tensor:
        noise = jump_noise(t - stride) if t >= stride else torch.zeros_like(x)
        return scheduler.step(
            eps, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise
        ).prev_sample

    denoiser = mixture("linear")
    ours = ours_on(DDIM(eta), times, clip=clip, denoiser=denoiser)
    assert_near(ours, theirs_on(step, times, denoiser))


@both_clips
@pytest.mark.parametrize("times", [list(range(999, -1, -37)), [990, 700, 333, 60, 2]], ids=["even", "uneven"])
def test_agrees_with_diffusers_ddpm(monkeypatch: pytest.MonkeyPatch, times: list[int], clip: bool) -> None:
    scheduler = DDPMScheduler(**settings("linear"), clip_sample=clip, variance_type="fixed_small")
    scheduler.set_timesteps(timesteps=times)
    after = dict(zip(times, [*times[1:], None], strict=True))
    now: list[int] = []

    def same_noise(shape: torch.Size, **_: object) -> Tensor:
        s = after[now[-1]]
        return torch.zeros(shape) if s is None else jump_noise(s)

    # The scheduler takes a generator only; this is where it would ask it.
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", same_noise)

    def step(eps: Tensor, t: int, x: Tensor) -> Tensor:
        now.append(t)
        return scheduler.step(eps, t, x).prev_sample

    denoiser = mixture("linear")
    ours = ours_on(DDPM(), times, clip=clip, denoiser=denoiser)
    assert_near(ours, theirs_on(step, times, denoiser))


@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
@pytest.mark.parametrize("t", [999, 500, 20, 1])
@pytest.mark.parametrize("solver", [DDPM(), DDPMLarge()], ids=["small", "large"])
def test_a_ddpm_step_of_one_is_diffusers(schedule_name: str, t: int, solver: DDPM) -> None:
    variance_type = "fixed_large" if isinstance(solver, DDPMLarge) else "fixed_small"
    scheduler = DDPMScheduler(**settings(schedule_name), clip_sample=False, variance_type=variance_type)
    schedule = NoiseSchedule(schedule_name, 1000)
    scheduler.alphas_cumprod = schedule.alpha_bar  # float64: the formula is compared, not the table
    scheduler.one = scheduler.one.double()
    x0, eps = clean_and_noise(4)
    at = torch.full((4,), float(t), dtype=torch.float64)
    alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in schedule.alpha_sigma(at))
    x = alpha * x0 + sigma * eps
    theirs = scheduler.step(eps, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = solver.jump(schedule, anchor_of(x, at, x0), at - 1, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    variance = float(scheduler._get_variance(torch.tensor(t)))
    spread = solver.jump(schedule, anchor_of(x, at, x0), at - 1, noise + 1) - ours
    torch.testing.assert_close(spread, torch.full_like(x, math.sqrt(variance)), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule_name", ["linear", "cosine"])
@pytest.mark.parametrize(
    "times", [list(range(960, -1, -80)), [940, 800, 500, 450, 120, 15]], ids=["even", "uneven"]
)
def test_agrees_with_diffusers_dpm_solver(schedule_name: str, times: list[int]) -> None:
    scheduler = DPMSolverMultistepScheduler(
        **settings(schedule_name),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(timesteps=times)
    denoiser = mixture(schedule_name)
    ours = ours_on(Multistep(), times, clip=False, denoiser=denoiser)
    theirs = theirs_on(lambda eps, t, x: scheduler.step(eps, t, x).prev_sample, times, denoiser)
    assert_near(ours, theirs)


@pytest.mark.parametrize(
    "times", [list(range(960, -1, -80)), [940, 800, 500, 450, 120, 15]], ids=["even", "uneven"]
)
def test_half_the_curvature_is_diffusers_third_order(times: list[int]) -> None:
    scheduler = DPMSolverMultistepScheduler(
        **settings("linear"),
        algorithm_type="dpmsolver++",
        solver_order=3,
        final_sigmas_type="zero",
        lower_order_final=False,
        euler_at_final=True,
    )
    scheduler.set_timesteps(timesteps=times)
    denoiser = mixture("linear")
    theirs = theirs_on(lambda eps, t, x: scheduler.step(eps, t, x).prev_sample, times, denoiser)
    half, whole = (ours_on(Multistep3(c), times, clip=False, denoiser=denoiser) for c in (0.5, 1.0))
    torch.testing.assert_close(half, theirs, rtol=0, atol=2e-4)  # differences of differences in float32
    assert float((whole - theirs).abs().max()) > 2e-3


@pytest.mark.parametrize("solver", [DEIS(), DEIS3()], ids=["order-2", "order-3"])
def test_agrees_with_diffusers_deis(solver: DEIS) -> None:
    scheduler = DEISMultistepScheduler(
        **settings("linear"), solver_order=solver.order, lower_order_final=False, timestep_spacing="leading"
    )
    scheduler.set_timesteps(25)
    times = scheduler.timesteps.tolist()
    denoiser = mixture("linear")
    seen: list[Tensor] = []

    def step(eps: Tensor, t: int, x: Tensor) -> Tensor:
        seen.append(x)
        return scheduler.step(eps, t, x).prev_sample

    theirs_on(step, times, denoiser)
    running = DiffusionProcess(denoiser, solver, num_rows=COUNT, seed=SEED, role=Role.EVALUATION, clip=False)
    rows = torch.arange(COUNT)
    for i, t in enumerate(times):
        at = torch.full((COUNT,), float(t), dtype=torch.float64)
        if i == 0:
            running.start(rows, rows, at)
        else:
            assert_near(running.jump(rows, at), seen[i])
        running.evaluate(rows, at)
