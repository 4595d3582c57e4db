"""Quality scores: hand-computed values, outliers, frozen sets, price bins."""

import math

import pytest
import torch

from envs.mdp import StepDropCore
from envs.rewards import REWARDS
from envs.rewards.base import Candidates, Ground
from envs.rewards.discriminator import REFRESH, SMOOTHING, Discriminator
from envs.rewards.distribution import (
    EnergyWitness,
    LaplaceWitness,
    LogRatio,
    NarrowWitness,
    NeighbourRatio,
    PolynomialWitness,
    RationalWitness,
    WideWitness,
    Witness,
)
from envs.rewards.generated import GeneratedSet
from envs.rewards.local_error import LocalError
from envs.rewards.realism import Realism
from envs.rewards.teacher import FeatureDistance, PixelDistance

from .conftest import N, flat_features


def ground_of(real, teacher, prices=(0.1, 0.1)):
    """A ground over 1x1x1 images whose features are their pixel."""
    return Ground(
        features=flat_features,
        real=real,
        teacher=teacher.reshape(-1, 1, 1, 1),
        teacher_features=teacher.reshape(-1, 1),
        first=teacher.reshape(-1, 1, 1, 1)[:2] + 1.0,
        prices=prices,
    )


@pytest.fixture
def line():
    real = torch.tensor([[0.0], [1.0], [2.0]])
    return ground_of(real, torch.tensor([0.0, 0.5, 1.0, 3.0]))


def candidates(ground, rows, images, x):
    return Candidates(ground, torch.tensor(rows), torch.tensor(images), torch.tensor(x).reshape(-1, 1, 1, 1))


def test_teacher_distances_by_hand(line):
    pixel = PixelDistance(line, 2).score(candidates(line, [0, 1], [1, 3], [0.75, 1.0]))
    torch.testing.assert_close(pixel, torch.tensor([-0.25, -2.0]))
    # mean distance of the real images 0, 1, 2: (1 + 2 + 1)/3
    feature = FeatureDistance(line, 2).score(candidates(line, [0, 1], [1, 3], [0.75, 1.0]))
    torch.testing.assert_close(feature, torch.tensor([-0.25, -2.0]) / (4 / 3))


def test_realism_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [9.0]])
    ground = ground_of(real, torch.tensor([2.0, 4.0]))  # first evaluations: 3 and 5
    realism = Realism(ground, 1)
    x = candidates(ground, [0, 0], [0, 0], [2.5, 20.0])
    # the fifth of the distances 2.5 1.5 0.5 0.5 1.5 6.5, and of 20 19 18 17 16 11
    torch.testing.assert_close(realism.score(x), -torch.log(torch.tensor([2.5, 19.0])))
    # fifth distances: of 2 and 4 they are 2 and 4, of 3 and 5 they are 3 and 4
    assert realism.gain() == pytest.approx(math.log(3 * 4 / (2 * 4)) / 2, rel=1e-5)


def test_a_nearly_empty_generated_set_gives_finite_scores(line):
    term = NeighbourRatio(line, 1)
    real = torch.tensor([[1.0, 4.0, 9.0]]).expand(2, 3)
    generated = torch.tensor([[16.0, 1.0, 25.0], [16.0, 1.0, 25.0]])
    visible = torch.tensor([[True, True, False], [False, False, False]])
    every = torch.ones(2, 3, dtype=torch.bool)
    got = term.compare(real, every, generated, visible)
    # the third real neighbour is at 3; of two visible ones the farther, at 4, stands in; with none: even
    torch.testing.assert_close(got, torch.tensor([math.log(4 / 3), 0.0]))


def kernel(d2, median2):
    return sum(math.exp(-c * d2 / median2) for c in (0.25, 1.0, 4.0))


def test_witness_and_log_ratio_by_hand_without_the_samples_own_noise(line):
    median2 = 1.0  # distances 1, 2, 1 of the real images
    x = 0.25
    real = sum(kernel((x - r) ** 2, median2) for r in (0.0, 1.0, 2.0)) / 3
    others = [0.0, 1.0, 3.0]  # the teacher's results but image 1's
    generated = sum(kernel((x - g) ** 2, median2) for g in others) / 3
    for score, wanted in ((Witness, real - generated), (LogRatio, math.log(real) - math.log(generated))):
        term = score(line, 1)
        term.begin(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.1]))
        got = float(term.score(candidates(line, [0], [1], [x])))
        assert got == pytest.approx(wanted, rel=1e-5)


def test_an_outlier_pays_in_the_log_ratios_and_not_in_the_witness():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 4, generator=generator)
    teacher = torch.randn(200, 4, generator=generator)
    ground = Ground(
        features=flat_features,
        real=real,
        teacher=teacher.reshape(-1, 4, 1, 1),
        teacher_features=teacher,
        first=3 * teacher.reshape(-1, 4, 1, 1),
        prices=(0.1, 0.1),
    )
    # generated: a copy of the real distribution, pushed out a little on one side
    far = torch.full((1, 4, 1, 1), 12.0)
    typical = torch.zeros(1, 4, 1, 1) - 0.1
    scores = {}
    for score in (Witness, LogRatio, NeighbourRatio):
        term = score(ground, 1)
        term.generated._features[0, :200, 0] += 0.5
        term.begin(torch.tensor([0]), torch.tensor([0]), torch.tensor([0.1]))
        one = torch.tensor([0])
        scores[score] = [float(term.score(Candidates(ground, one, one, x))) for x in (far, typical)]
    assert abs(scores[Witness][0]) < 1e-3, "a bounded kernel sees nothing out there"
    assert scores[NeighbourRatio][0] < scores[NeighbourRatio][1] + 1.0


def test_the_generated_set_is_frozen_within_an_episode_and_moves_on_after(line):
    generated = GeneratedSet(line, 2)
    rows, images = torch.tensor([0, 1]), torch.tensor([0, 1])
    generated.begin(rows, torch.tensor([0.1, 0.1]))
    before = [v.sum().item() for _, _, v in generated.views(rows, images)]
    generated.end(candidates(line, [0], [0], [0.3]))
    after = [v.sum().item() for _, _, v in generated.views(rows, images)]
    assert before == after
    generated.begin(torch.tensor([1]), torch.tensor([0.1]))
    ((_, features, visible),) = generated.views(torch.tensor([1]), torch.tensor([3]))
    assert int(visible.sum()) == 4  # 4 of the teacher's and 1 result, without its own image 3
    assert 0.3 in [round(f, 4) for f in features[visible[0]].flatten().tolist()]


def test_the_window_slides_and_never_shows_what_was_overwritten(line, monkeypatch):
    import envs.rewards.generated as module

    monkeypatch.setattr(module, "WINDOW", 4)
    generated = module.GeneratedSet(line, 1)
    for k in range(40):
        generated.begin(torch.tensor([0]), torch.tensor([0.1]))
        ((_, features, visible),) = generated.views(torch.tensor([0]), torch.tensor([99]))
        shown = sorted(features[visible[0]].flatten().tolist())
        expected = sorted(
            [0.0, 0.5, 1.0, 3.0, *(10.0 + i for i in range(k))][-4:]
            if k < 4
            else [10.0 + i for i in range(k - 4, k)]
        )
        if k < 4:
            expected = sorted([0.0, 0.5, 1.0, 3.0][k:] + [10.0 + i for i in range(k)])
        assert shown == pytest.approx(expected)
        generated.end(candidates(line, [0], [50], [10.0 + k]))


def test_price_bins_are_kept_apart():
    ground = ground_of(
        torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.0, 0.5, 1.0, 3.0]), prices=(0.01, 1.0)
    )
    generated = GeneratedSet(ground, 2)
    rows = torch.tensor([0, 1])
    generated.begin(rows, torch.tensor([0.01, 1.0]))
    generated.end(candidates(ground, [0], [0], [7.0]))
    generated.begin(rows, torch.tensor([0.01, 1.0]))
    counts = {int(p[0]): int(v.sum()) for p, _, v in generated.views(rows, torch.tensor([99, 99]))}
    assert counts == {0: 5, 1: 4}


def test_reset_by_a_seed_forgets(line):
    term = LogRatio(line, 1)
    row, image, price = torch.tensor([0]), torch.tensor([1]), torch.tensor([0.1])
    term.begin(row, image, price)
    fresh = term.score(candidates(line, [0], [1], [0.2]))
    for _ in range(5):
        term.end(candidates(line, [0], [1], [9.0]))
    term.reset(0)
    term.begin(row, image, price)
    assert torch.equal(term.score(candidates(line, [0], [1], [0.2])), fresh)


# --- kernels ------------------------------------------------------------------------------------

KERNELS = {
    NarrowWitness: lambda d2: math.exp(-4 * d2) + math.exp(-16 * d2),
    WideWitness: lambda d2: math.exp(-d2 / 16) + math.exp(-d2 / 4),
    LaplaceWitness: lambda d2: math.exp(-math.sqrt(d2)),
    EnergyWitness: lambda d2: -math.sqrt(d2),
    RationalWitness: lambda d2: sum((1 + d2 / (2 * a)) ** -a for a in (0.2, 0.5, 1, 2, 5)),
}


@pytest.mark.parametrize("score", KERNELS)
def test_witnesses_of_other_kernels_by_hand(line, score):
    x, k = 0.25, KERNELS[score]  # the real images' median distance is 1
    wanted = sum(k((x - r) ** 2) for r in (0.0, 1.0, 2.0)) / 3 - sum(k((x - g) ** 2) for g in (0, 1, 3)) / 3
    term = score(line, 1)
    term.begin(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.1]))
    assert float(term.score(candidates(line, [0], [1], [x]))) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_the_energy_witness_has_a_slope_where_a_distance_is_0_and_is_bounded_far_off(line):
    term, rows = EnergyWitness(line, 2), torch.tensor([0, 1])
    images = torch.tensor([1, 1])
    term.begin(rows, images, torch.tensor([0.1, 0.1]))
    x0 = torch.tensor([1.0, -1e4]).reshape(-1, 1, 1, 1).requires_grad_()
    scores = term.score(Candidates(line, rows, images, x0))
    (slope,) = torch.autograd.grad(scores.sum(), x0)
    # Around 1 lie real 0, (1), 2 and generated 0, (1), 3; far below all, w = mean generated − mean real.
    torch.testing.assert_close(slope.flatten(), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.detach(), torch.tensor([-2 / 3 + 3 / 3, 1 / 3]), rtol=0, atol=5e-3)


def test_the_polynomial_witness_by_hand():
    generator = torch.Generator().manual_seed(0)
    real, teacher = torch.randn(50, 3, generator=generator), torch.randn(40, 3, generator=generator) + 0.5
    images = teacher.reshape(-1, 3, 1, 1)
    ground = Ground(flat_features, real, images, teacher, images[:2] + 1, (0.1, 0.1))
    term = PolynomialWitness(ground, 40)
    rows = torch.arange(40)
    term.begin(rows, rows, torch.full((40,), 0.1))
    got = float(term.score(Candidates(ground, rows, rows, images)).mean())

    def k(a, b):
        return (a @ b.T / 3 + 1) ** 3

    own = k(teacher, teacher)
    wanted = k(teacher, real).mean() - (own.sum() - own.trace()) / (40 * 39)
    assert got == pytest.approx(float(wanted), rel=1e-5)


# --- every distribution score -------------------------------------------------------------------

DISTRIBUTION = [
    name for name in REWARDS if REWARDS.load(name).needs_features and name not in ("feature", "local_error")
]


@pytest.mark.parametrize("name", DISTRIBUTION)
def test_real_is_worth_more_than_the_noise_that_is_generated(name):
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 4, generator=generator)
    teacher = torch.randn(300, 4, generator=generator)
    images = teacher.reshape(-1, 4, 1, 1)
    noise = 0.7 * torch.randn(300, 4, 1, 1, generator=generator) + 1.5
    ground = Ground(flat_features, real, images, teacher, noise, (0.1, 0.1))
    term = REWARDS.load(name)(ground, 300)
    assert term.gain() > 0
    rows, prices = torch.arange(300), torch.full((300,), 0.1)
    for _ in range(12):  # noise fills the generated set
        term.begin(rows, rows, prices)
        term.end(Candidates(ground, rows, rows, noise))
    term.begin(rows, rows, prices)
    fresh = torch.randn(300, 4, 1, 1, generator=generator)
    others = 0.7 * torch.randn(300, 4, 1, 1, generator=generator) + 1.5
    good, bad = (float(term.score(Candidates(ground, rows, rows, x)).mean()) for x in (fresh, others))
    assert good > bad


def play(core: StepDropCore, episodes: int, seed: int, begun: bool = False) -> torch.Tensor:
    """Rewards of episodes whose actions the seed draws; ``begun``: the first one is running."""
    generator = torch.Generator().manual_seed(seed)
    rewards = []
    for k in range(episodes):
        if k or not begun:
            core.begin(core.rows)
        for _ in range(N - 1):
            actions = torch.randint(0, 2, (len(core.rows),), generator=generator)
            rewards.append(core.step(core.rows, actions).reward)
    return torch.stack(rewards)


@pytest.mark.parametrize("name", list(REWARDS))
def test_what_a_score_has_learned_goes_on_elsewhere(problem, name):
    one = problem.core(100, {name: 1.0})
    one.seed(one.rows, torch.arange(100))
    one.quality.reset(3)
    play(one, 4, seed=0)  # more results than a discriminator waits for
    one.begin(one.rows)
    state = {key: value.clone() for key, value in one.state().items()}
    other = problem.core(100, {name: 1.0})
    other.load_state(state)
    assert torch.equal(play(one, 4, seed=1, begun=True), play(other, 4, seed=1))


# --- the discriminator --------------------------------------------------------------------------


def test_the_discriminator_learns_the_log_ratio_per_price_and_stays_bounded():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2000, 1, generator=generator)
    images = real.reshape(-1, 1, 1, 1)
    ground = Ground(flat_features, real, images, real, images[:400] + 4, (0.01, 1.0))
    term = Discriminator(ground, 512)
    rows = torch.arange(512)
    prices = torch.where(rows % 2 == 0, 0.01, 1.0)
    for _ in range(60):  # cheap results are the real ones' equals, dear ones lie two too high
        term.begin(rows, rows, prices)
        shift = (prices > 0.1).float() * 2
        results = torch.randn(512, generator=generator) + shift
        term.end(Candidates(ground, rows, rows, results.reshape(-1, 1, 1, 1)))
    term.begin(rows, rows, prices)
    x = torch.linspace(-1, 3, 256).repeat_interleave(2)
    said = term.score(Candidates(ground, rows, rows, x.reshape(-1, 1, 1, 1)))
    cheap, dear = said[0::2], said[1::2]
    assert float(cheap.abs().mean()) < 0.3
    # log p(x)/p(x − 2) = 2 − 2x, as it is with smoothed labels
    p = (1 - SMOOTHING) * torch.sigmoid(2 - 2 * x[::2]) + SMOOTHING * torch.sigmoid(2 * x[::2] - 2)
    assert float((dear - torch.logit(p)).abs().mean()) < 0.4
    far = Candidates(ground, rows, rows, torch.full((512, 1, 1, 1), 1e4))
    assert float(term.score(far).abs().max()) < 10


def test_an_episode_keeps_the_discriminator_that_it_began_with(line):
    term = Discriminator(line, 2)
    rows, images, prices = torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([0.1, 0.1])
    term.begin(rows, images, prices)
    before = term.score(candidates(line, [0, 1], [0, 1], [0.3, 0.3]))
    for _ in range(REFRESH):
        term.end(candidates(line, [1], [1], [7.0]))
    term.begin(rows[1:], images[1:], prices[1:])
    after = term.score(candidates(line, [0, 1], [0, 1], [0.3, 0.3]))
    assert after[0] == before[0]
    assert after[1] != before[1]


# --- local error --------------------------------------------------------------------------------


def test_local_error_by_hand():
    ground = ground_of(torch.zeros(2, 1), torch.tensor([1.0, 0.5]))
    term = LocalError(ground, 2)
    row = torch.tensor([0])
    term.begin(row, row, torch.tensor([0.1]))

    def score(x, lam):
        at = torch.tensor([lam], dtype=torch.float64)
        return float(term.score(Candidates(ground, row, row, torch.full((1, 1, 1, 1), x), at)))

    assert score(0.2, -1.0) == pytest.approx(-0.8)  # no jump yet: the teacher's result is 1
    first = 0.5 * (1 - math.exp(-0.5)) * 0.3  # order 1 over 0.5
    assert score(0.5, -0.5) == pytest.approx(-0.5 - first)
    assert score(0.5, -0.5) == pytest.approx(-0.5 - first)  # asked again, the same
    second = 0.5 * (1 - math.exp(-1.0)) * abs(0.9 - (0.5 + 2 * 0.3))  # twice as far as the last, 0.6 expected
    assert score(0.9, 0.5) == pytest.approx(-0.1 - first - second)
    term.begin(row, row, torch.tensor([0.1]))
    assert score(0.9, 0.5) == pytest.approx(-0.1)
