"""Quality scores: hand-computed values, outliers, frozen sets, price bins."""

import math

import pytest
import torch

from envs.rewards.base import Candidates, Ground
from envs.rewards.distribution import GeneratedSet, LogRatio, NeighbourRatio, Witness
from envs.rewards.realism import Realism
from envs.rewards.teacher import FeatureDistance, PixelDistance

from .conftest import flat_features


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
    import envs.rewards.distribution as module

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
