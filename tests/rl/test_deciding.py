"""What is learned from looks: by whom, from which of them, and how much of it must be realistic."""

import pytest
import torch

from agents.cascade import Cascade
from agents.dealing import Dealing
from agents.deciding import Deciding
from agents.endings import Endings
from agents.population import drawn_moments

D = 6


def deciding_of(margin=0.01, rival="schedule", count=500, schedules=((0, 0.2, 0.5, 0.9),), views=(4,)):
    real = 0.1 * torch.randn(count, sum(views), generator=torch.Generator().manual_seed(4))
    lams = [torch.tensor(lam) for lam in schedules]
    plans = Endings([4], lams, torch.full((1, len(lams)), 1 / len(lams)), 2, (-0.5, 0.5), looks=2)
    torch.manual_seed(0)
    dealing = Dealing(plans.weights, plans.sizes, plans.counts, D)
    cascade = Cascade(len(lams), D, plans.first, plans.looks)
    return Deciding(plans, dealing, cascade, real, views, rival, [margin])


def learn(deciding, steps=60, rate=1e-2):
    parameters = [*deciding.dealing.parameters(), *deciding.cascade.parameters()]
    optimizer = torch.optim.Adam(parameters, rate)
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        if step % 8 == 0:
            deciding.survey(0)
        loss = -deciding.climb(0, 256, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return deciding.survey(0)


def is_inside(deciding, inside):
    """What each branch (B, V) of the only plan brings lies so much among the real, whatever the image."""
    deciding.inside[0] = inside
    looks = deciding.looks[0]
    deciding.looks[0] = looks._replace(inside=deciding.inside[0].expand_as(looks.inside))


def chances_of(deciding, entries):
    """(M, 3, 3) of the options of both looks."""
    found = deciding.cascade.taken(torch.zeros(len(entries)).long(), entries).chances.detach()
    return found.reshape(-1, 3, 3)


def test_the_second_look_learns_what_the_first_cannot_see():
    # At the first look nobody can be told apart. At the second an entry says which option hits what is real.
    deciding = deciding_of()
    generator = torch.Generator().manual_seed(6)
    helped = torch.rand(1000, generator=generator) < 0.5
    entries = torch.zeros(1000, 4, D)
    entries[helped, 1:, 0] = 1.0
    results = 0.1 * torch.randn(1000, 1, 4, generator=generator).repeat(1, 9, 1)
    right = torch.where(helped, 1, 0)  # the second option for those, the plan for the others
    results += 2.0 * (torch.arange(9) % 3 != right.unsqueeze(1)).unsqueeze(2)
    deciding.keep(0, entries[:, 0], entries, results)
    told = learn(deciding)
    chances = chances_of(deciding, entries).sum(1)
    assert float(chances[helped, 1].mean()) > 0.95
    assert float(chances[~helped, 0].mean()) > 0.95
    assert told["gate/distance_at_4"] < 0.2


@pytest.mark.parametrize("margin", [-0.005, 0.0, 0.01])
def test_what_is_asked_lies_among_the_real(margin):
    # The last look's second option is what is real itself, its third is farther away than the plan, but
    # membership says the opposite: all of the second would be too few, all of the third too many.
    deciding = deciding_of(margin)
    generator = torch.Generator().manual_seed(7)
    entries = torch.randn(150, 4, D, generator=generator)
    results = 0.1 * torch.randn(150, 1, 4, generator=generator).repeat(1, 9, 1)
    option = torch.arange(9) % 3
    results += torch.tensor([0.4, 0.0, 0.8])[option].unsqueeze(1)
    deciding.keep(0, entries[:, 0], entries, results)
    is_inside(deciding, torch.tensor([0.5, 0.46, 0.54])[option].unsqueeze(1))
    told = learn(deciding, 960, 2e-3)
    assert float(deciding.asked(0)) == pytest.approx(0.5 + margin)
    # What is lacking pays for its price: 200 for what is, twenty times and, at once, five times.
    lacking = 0.5 + margin - told["gate/realism_at_4"]
    assert 0 < lacking < 0.01
    assert told["gate/price_at_4"] == pytest.approx(200 * 25 * lacking, rel=0.15)


def test_realism_that_is_not_lacking_costs_nothing():
    deciding = deciding_of()
    generator = torch.Generator().manual_seed(7)
    entries = torch.randn(400, 4, D, generator=generator)
    results = 0.1 * torch.randn(400, 1, 4, generator=generator).repeat(1, 9, 1)
    results += (torch.arange(9) % 3 != 1).unsqueeze(1)
    deciding.keep(0, entries[:, 0], entries, results)
    is_inside(deciding, 0.5 + 0.3 * (torch.arange(9) % 3 == 1).unsqueeze(1))
    told = learn(deciding, 100)
    assert told["gate/price_at_4"] == 0
    assert told["gate/realism_at_4"] > 0.75


def test_the_best_plan_that_a_budget_pays_for_says_what_is_asked():
    # Budget 4: the dearest is the best, but not paid for; the third is the most realistic, but far away.
    schedules = ((0, 0.5, 0.9), (0, 0.2, 0.5, 0.9), (0, 0.3, 0.5, 0.9), (0, 0.2, 0.4, 0.6, 0.9))
    deciding = deciding_of(schedules=schedules)
    generator = torch.Generator().manual_seed(7)
    entries = torch.randn(50, 4, D, generator=generator)
    for plan, off in enumerate((3.0, 1.0, 2.0, 0.0)):
        results = off + 0.1 * torch.randn(50, 9, 4, generator=generator)
        results[:, 1:] = 0  # the plan itself is the first branch
        deciding.keep(plan, entries[:, 0], entries, results)
    deciding.inside = torch.tensor([0.5, 0.6, 0.9, 0.95]).double().reshape(4, 1, 1).expand(4, 9, 1)
    for plan, looks in enumerate(deciding.looks):
        deciding.looks[plan] = looks._replace(inside=torch.zeros_like(looks.inside))
    assert deciding.alone.flatten().argsort().tolist() == [3, 1, 2, 0]
    assert float(deciding.asked(0)) == pytest.approx(0.61)
    # Had it been as good as the second, the third would say it.
    deciding.alone[2] = 1.09 * deciding.alone[1]
    assert float(deciding.asked(0)) == pytest.approx(0.91)
    # What is lacking has a price: for itself at once, and for having lacked.
    deciding.dealing.afford(0, deciding.begun)
    lacking = 0.91 - float(deciding.crowd(0).inside)
    assert lacking > 0.1
    for lacked in (1, 1 + 0.95, 1 + 0.95 + 0.95**2):
        assert deciding.survey(0)["gate/price_at_4"] == pytest.approx(200 * (5 + lacked) * lacking)


def test_a_mixture_is_as_realistic_as_it_was_given():
    deciding = deciding_of(margin=0.02, rival="mixture", schedules=((0, 0.2, 0.5, 0.9), (0, 0.3, 0.6, 0.9)))
    deciding.inside[:, 0] = torch.tensor([[0.7], [0.8]]).double()
    with torch.no_grad():
        deciding.dealing.actor[-1].bias[0] = 5.0  # what is learned changes nothing of what was given
    assert float(deciding.asked(0)) == pytest.approx(0.77), "half of each"


def test_membership_is_the_mean_of_what_a_branch_brought():
    deciding = deciding_of()
    generator = torch.Generator().manual_seed(7)
    features = 0.1 * torch.randn(600, 9, 4, generator=generator)
    features[200:, 3] += 1.0
    entries = torch.zeros(600, 4, D)
    for part in (slice(0, 100), slice(100, 600)):
        deciding.keep(0, entries[part, 0], entries[part], features[part])
    membership = deciding.manifolds[0].membership(features.flatten(0, 1)).reshape(600, 9).double()
    torch.testing.assert_close(deciding.inside[0, :, 0], membership.mean(0))
    assert float(deciding.inside[0, 3, 0]) < 0.4 < 0.8 < float(deciding.inside[0, 4, 0])


def test_the_first_evaluation_tells_whose_plan_is_whose():
    # What each of two plans draws is real for those that show it, and far away for the others.
    deciding = deciding_of(schedules=((0, 0.2, 0.5, 0.9), (0, 0.3, 0.6, 0.9)))
    generator = torch.Generator().manual_seed(8)
    entries = torch.zeros(1000, 4, D)
    begun = torch.zeros(1000, D)
    first = torch.rand(1000, generator=generator) < 0.5
    begun[first, 0] = 1.0
    for plan in (0, 1):
        results = 0.1 * torch.randn(1000, 1, 4, generator=generator).repeat(1, 9, 1)
        results[first == (plan == 1)] += 2.0
        deciding.keep(plan, begun, entries, results)
    told = learn(deciding)
    chances = deciding.dealing.chances(0, begun).detach()
    assert float(chances[first, 0].mean()) > 0.95
    assert float(chances[~first, 1].mean()) > 0.95
    assert told["gate/distance_at_4"] < 0.2


def test_a_crowd_is_what_its_plans_bring_to_those_who_get_them():
    # The moments of a large set, dealt by the chances and sent along branches by theirs.
    deciding = deciding_of(schedules=((0, 0.2, 0.5, 0.9), (0, 0.3, 0.6, 0.9)))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in (*deciding.dealing.parameters(), *deciding.cascade.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    begun = torch.randn(300, D, generator=generator)
    entries = torch.randn(300, 4, D, generator=generator)
    results = torch.randn(2, 300, 9, 4, generator=generator)
    for plan in (0, 1):  # one look in four is surveyed: every image is kept four times
        deciding.keep(plan, *(part.repeat_interleave(4, 0) for part in (begun, entries, results[plan])))
    (crowd,) = deciding.crowd(0).moments
    begins = deciding.dealing.chances(0, begun).detach()
    drawn = []
    for _ in range(300):
        plan = torch.multinomial(begins, 1, generator=generator).flatten()
        branch = torch.multinomial(
            deciding.cascade.taken(plan, entries).chances.detach(), 1, generator=generator
        )
        drawn.append(results[plan, torch.arange(300), branch.flatten()])
    set_ = torch.cat(drawn).double()
    torch.testing.assert_close(crowd[0], set_.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(crowd[1], torch.cov(set_.T), rtol=0, atol=0.02)


def test_what_nobody_looks_for_all_looks_tell():
    # Gates that tell nobody apart: the crowd is that of all images, and not of the surveyed quarter.
    deciding = deciding_of()
    generator = torch.Generator().manual_seed(10)
    with torch.no_grad():
        for network in deciding.cascade.layered:
            for parameter in network.parameters():
                parameter.zero_()
            network[-1].bias.copy_(torch.randn(3, generator=generator))
    entries, results = (
        torch.randn(200, 4, D, generator=generator),
        torch.randn(200, 9, 4, generator=generator),
    )
    deciding.keep(0, entries[:, 0], entries, results)
    deciding.dealing.afford(0, deciding.begun)
    (crowd,) = deciding.crowd(0).moments
    chances = deciding.cascade.taken(torch.zeros(200).long(), entries).chances.detach()
    assert torch.equal(chances, chances[:1].expand_as(chances))
    everyone, surveyed = (drawn_moments(results[::n].half(), chances[::n]) for n in (1, 4))
    for found, of_all, of_some in zip(crowd, everyone, surveyed, strict=True):
        torch.testing.assert_close(found, of_all, rtol=0, atol=1e-6)
        assert float((found - of_some).abs().max()) > 0.02


def test_a_crowd_is_as_real_as_the_branches_that_its_images_take():
    # A branch's mean says too much where those take it whom it suits less.
    deciding = deciding_of(views=(2, 2))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in deciding.cascade.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    entries = torch.randn(300, 4, D, generator=generator)
    deciding.cascade.usual(0, entries)
    taken = deciding.cascade.taken(torch.zeros(300).long(), entries).choices
    # Whoever takes a branch lies farther off on it than on others.
    results = 0.3 * torch.randn(300, 9, 4, generator=generator) + 0.4 * taken.unsqueeze(2).float()
    deciding.keep(0, *(part.repeat_interleave(4, 0) for part in (entries[:, 0], entries, results)))
    deciding.dealing.afford(0, deciding.begun)
    crowd = deciding.crowd(0)
    inside = deciding.looks[0].inside[::4].double()  # one look in four is surveyed
    torch.testing.assert_close(crowd.inside, inside[taken.bool()].mean(0), rtol=0, atol=1e-6)
    means = taken.mean(0) @ deciding.inside[0]
    assert float((means - crowd.inside).min()) > 0.1
    assert crowd.astray == pytest.approx(1 - float(taken[:, 0].mean()))


def test_what_one_network_sees_is_not_paid_for_by_another():
    # The second option is all that the first network wants, and worse than the plan to the second network;
    # the third is a little better to both. The distance of both together would take the second.
    deciding = deciding_of(0.0, views=(2, 2))
    generator = torch.Generator().manual_seed(7)
    entries = torch.randn(400, 4, D, generator=generator)
    results = 0.1 * torch.randn(400, 1, 4, generator=generator).repeat(1, 9, 1)
    option = torch.arange(9) % 3
    off = torch.tensor([[1.0, 1.0], [0.0, 1.1], [0.8, 0.8]])[option]
    results += off.repeat_interleave(2, 1)
    assert float(off[1].square().sum()) < float(off[2].square().sum()) < float(off[0].square().sum())
    deciding.keep(0, entries[:, 0], entries, results)
    is_inside(deciding, 0.5)
    told = learn(deciding, 400)
    shares = [told[f"gate/distance_{view}_at_4"] / float(deciding.alone[0, view]) for view in (0, 1)]
    assert shares == pytest.approx([0.64, 0.64], abs=0.05)
    assert float(chances_of(deciding, entries).sum(1)[:, 2].mean()) > 0.85
    assert sum(told[f"gate/weight_{view}_at_4"] for view in (0, 1)) == pytest.approx(1)


def test_every_network_asks_for_its_own_realism():
    deciding = deciding_of(0.0, views=(2, 2))
    entries = torch.randn(50, 4, D, generator=torch.Generator().manual_seed(7))
    deciding.keep(0, entries[:, 0], entries, torch.zeros(50, 9, 4))
    inside = torch.tensor([[0.5, 0.5], [0.6, 0.4]])[(torch.arange(9) > 0).long()]  # at home, and elsewhere
    is_inside(deciding, inside)
    with torch.no_grad():
        deciding.cascade.first.layered[0][-1].bias[1] = 9.0  # everybody leaves
    deciding.dealing.afford(0, deciding.begun)
    told = deciding.survey(0)
    assert told["gate/realism_0_at_4"] > 0.5 > told["gate/realism_1_at_4"]
    assert told["gate/price_0_at_4"] == 0 < told["gate/price_1_at_4"]


def test_what_lacked_is_forgotten_where_nothing_lacks():
    # Everyone is at home: without forgetting, a price that has run up would keep them there for good.
    deciding = deciding_of(0.0)
    entries = torch.randn(50, 4, D, generator=torch.Generator().manual_seed(7))
    deciding.keep(0, entries[:, 0], entries, torch.zeros(50, 9, 4))
    is_inside(deciding, 0.5)
    deciding.multipliers.lacked[0] = 0.2
    deciding.dealing.afford(0, deciding.begun)
    told = [deciding.survey(0)["gate/price_at_4"] for _ in range(3)]
    assert told == pytest.approx([200 * 0.2 * 0.95**surveys for surveys in (1, 2, 3)])
