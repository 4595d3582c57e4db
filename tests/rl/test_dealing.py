"""Chances of plans: learned to the best there is, at a cost that is kept."""

import pytest
import torch

from agents.dealing import Dealing, affordable
from agents.search.mixture import best_weights, mixture_distance
from envs.rewards.frechet import root, slope


def components(count=4, features=3):
    generator = torch.Generator().manual_seed(2)
    means = 0.6 * torch.randn(count, features, generator=generator, dtype=torch.float64)
    factors = torch.randn(count, features, features, generator=generator, dtype=torch.float64)
    covariances = 0.3 * factors @ factors.mT + 0.2 * torch.eye(features, dtype=torch.float64)
    return means, covariances + means.unsqueeze(2) * means.unsqueeze(1)


REAL = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize("nfe", [4, 5, 6])
def test_it_finds_the_mixture_of_least_distance_that_the_budget_pays_for(nfe):
    means, seconds = components()
    sizes = [3, 4, 6, 7]
    dealing = Dealing(torch.full((1, 4), 0.25), sizes, [nfe])
    for _ in range(3000):
        weights = dealing.weights[0]
        mean = weights @ means
        second = torch.einsum("p,pij->ij", weights, seconds)
        falls = slope((mean, second - torch.outer(mean, mean)), REAL)
        # E φ of each plan: φ is quadratic, so its moments tell it.
        off = seconds - torch.einsum("pi,j->pij", means, mean) - torch.einsum("i,pj->pij", mean, means)
        off = off + torch.outer(mean, mean)
        far = (means - mean) @ falls.linear + (falls.quadratic * off).sum((1, 2)) - falls.constant
        dealing.climb(0, -far, 0.3)
    cost = torch.tensor(sizes, dtype=torch.float64)
    assert float(dealing.weights[0] @ cost) <= nfe + 1e-6
    white = REAL[0], root(REAL[1], 0.5)
    best = best_weights(means, seconds, REAL, cost, nfe)
    found = [float(mixture_distance(w, means, seconds, white)) for w in (dealing.weights[0], best)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    torch.testing.assert_close(dealing.weights[0], best, rtol=0, atol=0.03)


def test_the_price_is_the_least_that_keeps_the_budget():
    logits, sizes = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([3.0, 5.0, 6.0]).double()
    assert torch.equal(affordable(logits, sizes, 6.0), logits.softmax(0))
    for nfe in (3.5, 4.0, 5.0):
        weights = affordable(logits, sizes, nfe)
        assert float(weights @ sizes) == pytest.approx(nfe, abs=1e-9)
        # One price for all: what is taken off in the logarithm is proportional to the cost.
        slopes = (logits - weights.log()).diff() / sizes.diff()
        assert float(slopes[0]) == pytest.approx(float(slopes[1]), rel=1e-6)


def test_what_is_hardly_ever_dealt_is_left_out_where_the_budget_allows_it():
    weights = torch.tensor([[0.5, 0.49, 0.01, 0.0], [0.0, 0.0, 0.01, 0.99]])
    kept = Dealing(weights, [4, 4, 4, 6], [4, 6]).kept()
    torch.testing.assert_close(kept[0], torch.tensor([0.5, 0.49, 0, 0]).double() / 0.99)
    assert kept[1].tolist() == [0, 0, 0, 1]
    # The only one that the budget pays for stays.
    kept = Dealing(torch.tensor([[0.01, 0.99]]), [3, 6], [4]).kept()
    assert float(kept[0] @ torch.tensor([3.0, 6.0]).double()) == pytest.approx(4)
