"""Prices of realism and weights of views, as surveys move them."""

import math

import pytest
import torch

from agents.multipliers import Multipliers


def test_a_price_follows_what_lacks_and_what_lacked():
    multipliers = Multipliers(2, 1)

    def price(lacking):
        return float(multipliers.price(0, torch.tensor([lacking]).double()))

    # By hand: 200 for what lacked in all, less 5 % a survey, and five times as much for what lacks now.
    assert price(0.01) == pytest.approx(200 * 0.01 + 1000 * 0.01)
    assert price(0.02) == pytest.approx(200 * (0.95 * 0.01 + 0.02) + 1000 * 0.02)
    assert price(0.0) == pytest.approx(200 * 0.95 * (0.95 * 0.01 + 0.02))
    assert price(-0.5) == 0
    assert float(multipliers.lacked[1]) == 0, "of another budget nothing is known"
    for _ in range(500):
        found = price(0.005)
    assert found == pytest.approx(25), "a price does not climb for ever"


def test_the_view_that_is_worst_weighs_most_and_another_is_heard_soon():
    multipliers = Multipliers(1, 2)
    shares = torch.tensor([0.9, 0.6]).double()
    first = multipliers.weights(0, shares)
    assert first.tolist() == pytest.approx([1 / (1 + math.exp(-0.6)), 1 / (1 + math.exp(0.6))])
    for _ in range(500):
        weights = multipliers.weights(0, shares)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights[1]) == pytest.approx(0.01, abs=0.001)
    surveys = 0
    while float(multipliers.weights(0, shares.flip(0))[1]) < 0.5:
        surveys += 1
    assert surveys < 10


def test_another_run_goes_on_from_them():
    one, other = Multipliers(2, 2), Multipliers(2, 2)
    one.price(1, torch.tensor([0.1, 0.2]).double())
    one.weights(1, torch.tensor([0.9, 0.8]).double())
    other.load_state(one.state())
    assert torch.equal(other.lacked, one.lacked)
    assert torch.equal(other.says, one.says)
    with pytest.raises(KeyError):
        Multipliers(2, 1).load_state(one.state())
