"""Chances of plans: learned to the best there is, at a cost that is kept."""

import pytest
import torch

from agents.dealing import Dealing, price_of
from agents.search.mixture import best_weights, mixture_distance
from envs.rewards.frechet import root, slope


def components(count=4, features=3):
    generator = torch.Generator().manual_seed(2)
    means = 0.6 * torch.randn(count, features, generator=generator, dtype=torch.float64)
    factors = torch.randn(count, features, features, generator=generator, dtype=torch.float64)
    covariances = 0.3 * factors @ factors.mT + 0.2 * torch.eye(features, dtype=torch.float64)
    return means, covariances + means.unsqueeze(2) * means.unsqueeze(1)


D = 5
REAL = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize("nfe", [4, 5, 6])
def test_it_finds_the_mixture_of_least_distance_that_the_budget_pays_for(nfe):
    means, seconds = components()
    sizes = [3, 4, 6, 7]
    dealing = Dealing(torch.full((1, 4), 0.25), sizes, [nfe], D)
    anyone = torch.zeros(1, D)
    optimizer = torch.optim.Adam([dealing.actor[-1].bias], 0.05)
    for _ in range(1000):
        dealing.afford(0, anyone)
        weights = dealing.chances(0, anyone)[0].detach()
        mean = weights @ means
        second = torch.einsum("p,pij->ij", weights, seconds)
        falls = slope((mean, second - torch.outer(mean, mean)), REAL)
        # E φ of each plan: φ is quadratic, so its moments tell it.
        off = seconds - torch.einsum("pi,j->pij", means, mean) - torch.einsum("i,pj->pij", mean, means)
        off = off + torch.outer(mean, mean)
        far = (means - mean) @ falls.linear + (falls.quadratic * off).sum((1, 2)) - falls.constant
        optimizer.zero_grad()
        (-dealing.climb(0, anyone, -far.unsqueeze(0))).backward()
        optimizer.step()
    cost = torch.tensor(sizes, dtype=torch.float64)
    assert float(weights @ cost) <= nfe + 1e-6
    white = REAL[0], root(REAL[1], 0.5)
    best = best_weights(means, seconds, REAL, cost, 0.999 * nfe)  # it keeps a little back
    found = [float(mixture_distance(w, means, seconds, white)) for w in (weights, best)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    torch.testing.assert_close(weights, best, rtol=0, atol=0.03)


def test_the_price_is_the_least_that_keeps_the_budget():
    generator = torch.Generator().manual_seed(1)
    logits, sizes = torch.randn(50, 3, generator=generator).double(), torch.tensor([3.0, 5.0, 6.0]).double()
    assert price_of(logits, sizes, 6.0) == 0
    for nfe in (3.5, 4.0, 5.0):
        spent = torch.softmax(logits - price_of(logits, sizes, nfe) * sizes, 1) @ sizes
        assert float(spent.mean()) == pytest.approx(min(nfe, float((logits.softmax(1) @ sizes).mean())))


def chances_of(dealing, budget, count=1):
    return dealing.chances(budget, torch.zeros(count, D)).detach()


def test_what_is_hardly_ever_dealt_is_left_out_where_the_budget_allows_it():
    weights = torch.tensor([[0.5, 0.49, 0.01, 0.0], [0.0, 0.0, 0.01, 0.99]])
    dealing = Dealing(weights, [4, 4, 4, 6], [4, 6], D)
    for budget in (0, 1):
        dealing.settle(budget, torch.zeros(3, D))
    torch.testing.assert_close(dealing.weights[0], torch.tensor([0.5, 0.49, 0, 0]).double() / 0.99)
    assert dealing.weights[1].tolist() == [0, 0, 0, 1]
    # The only one that the budget pays for stays.
    dealing = Dealing(torch.tensor([[0.01, 0.99]]), [3, 6], [4], D)
    dealing.settle(0, torch.zeros(3, D))
    assert float(chances_of(dealing, 0)[0] @ torch.tensor([3.0, 6.0]).double()) == pytest.approx(0.999 * 4)


@pytest.mark.parametrize("sizes", [[4, 4], [3, 5]])
def test_samples_learn_which_plan_is_theirs_at_what_it_costs(sizes):
    # The second plan is worth 1 more to every other sample, 5 more to a tenth of these, less to the rest.
    torch.manual_seed(0)
    dealing = Dealing(torch.tensor([[0.5, 0.5]]), sizes, [4], D)
    entries, worth = torch.zeros(400, D), torch.zeros(400, 2)
    entries[::2, 0] = 1.0
    entries[::20, 1] = 1.0
    worth[::2, 1], worth[::20, 1] = 1.0, 5.0
    worth[1::2, 1] = -1.0
    dealing.usual(entries)
    torch.testing.assert_close(chances_of(dealing, 0)[0], torch.tensor([0.5, 0.5]).double())
    optimizer = torch.optim.Adam(dealing.parameters(), 1e-2)
    for _ in range(200):
        dealing.afford(0, entries)
        loss = -dealing.climb(0, entries, worth).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dealing.settle(0, entries)
    chances = dealing.chances(0, entries).detach()
    assert float((chances @ dealing.sizes).mean()) <= 4
    assert float(chances[::20, 1].min()) > 0.98
    assert float(chances[::2, 1].mean()) > 0.95
    assert float(chances[1::2, 1].mean()) < 0.05


def test_its_slope_is_that_of_what_is_worth_at_equal_cost():
    # By finite differences: the network moves a little, the price follows, and so does the mean worth.
    torch.manual_seed(0)
    dealing = Dealing(torch.tensor([[0.4, 0.3, 0.3]]), [3, 4, 6], [4], D).double()
    generator = torch.Generator().manual_seed(1)
    entries = torch.randn(60, D, generator=generator).double()
    worth = torch.randn(60, 3, generator=generator).double() + torch.tensor([0.0, 1, 3])  # more is worth more
    bias = dealing.actor[-1].bias

    def mean_worth():
        dealing.afford(0, entries)
        return float((dealing.chances(0, entries).detach() * worth).sum(1).mean())

    mean_worth()
    (slope_,) = torch.autograd.grad(dealing.climb(0, entries, worth), [bias])
    step = 1e-4
    # Upwards in cost, where the price must give way at once.
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            bias.add_(torch.tensor([-sign * step, 0, sign * step]).double())
            logits = dealing.logits(0, entries)
            low, high = -1.0, 1.0
            for _ in range(60):
                m = (low + high) / 2
                spent = float((torch.softmax(logits - m * dealing.sizes, 1) @ dealing.sizes).mean())
                low, high = (m, high) if spent > 0.999 * 4 else (low, m)
            found.append(float((torch.softmax(logits - m * dealing.sizes, 1) * worth).sum(1).mean()))
            bias.sub_(torch.tensor([-sign * step, 0, sign * step]).double())
    measured = (found[0] - found[1]) / (2 * step)
    assert float(slope_ @ torch.tensor([-1.0, 0, 1]).double()) == pytest.approx(measured, rel=1e-4)


def test_a_budget_is_not_spent_where_less_is_worth_more():
    torch.manual_seed(0)
    dealing = Dealing(torch.tensor([[0.1, 0.1, 0.8]]), [3, 4, 6], [4], D)
    entries = torch.randn(200, D, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(dealing.parameters(), 1e-2)
    dealing.afford(0, entries)
    assert float(chances_of(dealing, 0)[0] @ dealing.sizes) == pytest.approx(0.999 * 4)
    for _ in range(100):
        optimizer.zero_grad()
        (-dealing.climb(0, entries, torch.tensor([2.0, 1, 0]).double().expand(200, 3))).backward()
        optimizer.step()
        dealing.afford(0, entries)
    assert float((dealing.chances(0, entries) @ dealing.sizes).mean().detach()) < 3.2
