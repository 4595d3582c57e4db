"""What is learned from looks: by whom, from which of them, and at what price of realism."""

import torch

from agents.cascade import Cascade
from agents.deciding import Deciding
from agents.endings import Endings

D = 6


def deciding_of(realism=0.0, count=500):
    real = 0.1 * torch.randn(count, 4, generator=torch.Generator().manual_seed(4))
    plans = Endings([4], [torch.tensor([0, 0.2, 0.5, 0.9])], torch.ones(1, 1), 2, (-0.5, 0.5), looks=2)
    cascade = Cascade(1, D, plans.first, plans.looks)
    return Deciding(plans, cascade, real, realism=realism, deal_rate=1.0)


def learn(deciding, steps=60):
    optimizer = torch.optim.Adam(deciding.cascade.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        told = deciding.survey()
        loss = -deciding.climb(0, 256, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return told


def chances_of(deciding, entries):
    """(M, 3, 3) of the options of both looks."""
    found = deciding.cascade.chances(torch.zeros(len(entries)).long(), entries).detach()
    return found.reshape(-1, 3, 3)


def test_the_second_look_learns_what_the_first_cannot_see():
    # At the first look nobody can be told apart. At the second an entry says which option hits what is real.
    deciding = deciding_of()
    generator = torch.Generator().manual_seed(6)
    helped = torch.arange(1000) % 2 == 0
    entries = torch.zeros(1000, 4, D)
    entries[helped, 1:, 0] = 1.0
    results = 0.1 * torch.randn(1000, 1, 4, generator=generator).repeat(1, 9, 1)
    right = torch.where(helped, 1, 0)  # the second option for those, the plan for the others
    results += 2.0 * (torch.arange(9) % 3 != right.unsqueeze(1)).unsqueeze(2)
    deciding.keep(0, entries, results)
    told = learn(deciding)
    chances = chances_of(deciding, entries).sum(1)
    assert float(chances[helped, 1].mean()) > 0.95
    assert float(chances[~helped, 0].mean()) > 0.95
    assert told["gate/distance"] < 0.2


def test_membership_has_a_price_while_there_is_too_little_of_it():
    # The plan draws what is real, all other branches what is far away.
    deciding = deciding_of()
    generator = torch.Generator().manual_seed(7)
    results = 9 + torch.randn(400, 9, 4, generator=generator)
    results[:, 0] = 0.1 * torch.randn(400, 4, generator=generator)
    deciding.keep(0, torch.randn(400, 4, D, generator=generator), results)
    crowd = deciding.crowd(0)
    assert crowd.most > 0.8
    assert crowd.inside < crowd.most, "some leave the plan"
    before = float(deciding.care[0])
    deciding.survey()
    assert float(deciding.care[0]) > before
    deciding.realism = -1.0
    for _ in range(3):
        deciding.survey()
    assert float(deciding.care[0]) == 0
