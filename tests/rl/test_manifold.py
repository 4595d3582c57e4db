"""The manifold of real features: membership agrees with precision, whose edge it softens."""

import pytest
import torch

from agents.manifold import NEIGHBOURS, Manifold
from stepdrop_rl.metrics import pairs


def test_those_of_positive_realism_are_those_that_precision_counts():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 6, generator=generator)
    drawn = 1.3 * torch.randn(2500, 6, generator=generator)
    assert NEIGHBOURS == pairs.NEIGHBOURS
    found = Manifold(real).log_realism(drawn)
    precision = pairs.precision_recall(drawn, real).precision
    assert float((found >= 0).double().mean()) == pytest.approx(precision, abs=1e-6)
    assert 0.1 < precision < 0.9


def test_membership_is_one_half_on_the_edge_and_rises_inwards():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])  # the ball of 0 reaches its third neighbour, at 3
    edge, inside, outside = Manifold(real).membership(torch.tensor([[-3.0], [-2.0], [-4.0]])).tolist()
    assert edge == pytest.approx(0.5, abs=1e-6)
    assert inside > 0.99 > 0.01 > outside


def test_a_copy_of_a_real_image_is_inside_and_none_are_none():
    manifold = Manifold(torch.zeros(3, 2))
    assert float(manifold.membership(torch.zeros(1, 2))) >= 0.5
    assert manifold.membership(torch.zeros(0, 2)).shape == (0,)
