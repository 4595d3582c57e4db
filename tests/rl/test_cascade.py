"""Looks that follow one another: their chances, their slope, and where they send samples."""

import pytest
import torch

from agents.cascade import Cascade, looks_of, networks_of

D = 6


def cascade_of(looks=2, plans=3, networks=1):
    cascade = Cascade(plans, D, [0, 0, 0], looks, networks)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in cascade.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return cascade


def shown(cascade, count=40):
    generator = torch.Generator().manual_seed(2)
    entries = torch.randn(count, cascade.nodes[-1].stop, D, generator=generator)
    return torch.randint(3, (count,), generator=generator), entries


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("looks", [1, 2, 3])
def test_choices_are_where_samples_go(looks, networks):
    cascade = cascade_of(looks, networks=networks)
    plan, entries = shown(cascade)
    taken = cascade.taken(plan, entries).choices
    assert taken.sum(1).eq(1).all()
    branch = torch.zeros(40).long()
    for look, nodes in enumerate(cascade.nodes):
        way = branch // 3 ** (looks - look)
        branch = cascade.goes_on(look, plan, branch, entries[torch.arange(40), nodes.start + way])
    assert taken.argmax(1).tolist() == branch.tolist()
    assert len(branch.unique()) > looks


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_chances_are_those_of_all_looks_on_the_way(looks):
    cascade = cascade_of(looks)
    plan, entries = shown(cascade)
    chances = cascade.taken(plan, entries).chances
    assert chances.shape == (40, 3**looks)
    torch.testing.assert_close(chances.sum(1), torch.ones(40).double())
    worths = cascade.worths(plan, entries)
    branch = 3**looks - 2  # the last option everywhere but at the last look: the second there
    expected = torch.ones(40).double()
    for look, worth in enumerate(worths):
        way, option = branch // 3 ** (looks - look), branch // 3 ** (looks - look - 1) % 3
        expected = expected * worth[:, way].double().softmax(1)[:, option]
    torch.testing.assert_close(chances[:, branch], expected)


def test_its_slope_is_that_of_the_mean_gain_and_of_the_barrier():
    # The barrier, 0.01 Σ u log π of a look's options, counts for those who come to the look.
    cascade = cascade_of().double()
    plan, entries = shown(cascade)
    gain = torch.randn(40, 9, generator=torch.Generator().manual_seed(3)).double()
    climbed = torch.autograd.grad(
        cascade.climb(plan, entries.double(), gain).mean(), list(cascade.parameters())
    )
    chances = cascade.taken(plan, entries.double()).chances
    first, second = (
        worth.log_softmax(2) @ torch.tensor([0.8, 0.1, 0.1]).double()
        for worth in cascade.worths(plan, entries.double())
    )
    come = chances.detach().reshape(40, 3, 3).sum(2)
    kept = 0.01 * (first.squeeze(1) + (come * second).sum(1))
    mean = ((chances * gain).sum(1) + kept).mean()
    for one, other in zip(climbed, torch.autograd.grad(mean, list(cascade.parameters())), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_step_by_step_it_goes_where_every_look_sends_it(looks):
    cascade = cascade_of(looks)
    plan, entries = shown(cascade)
    worths = cascade.worths(plan, entries)
    rows = torch.arange(40)
    branch, way = torch.zeros(40).long(), torch.zeros(40).long()
    for look, worth in enumerate(worths):
        node = cascade.nodes[look].start + way
        branch = cascade.goes_on(look, plan, branch, entries[rows, node])
        way = way * 3 + worth[rows, way].argmax(1)
        assert torch.equal(branch // 3 ** (looks - look - 1), way)
    assert len(branch.unique()) > 2


def test_its_tensors_make_it_again():
    for looks, networks in ((1, 1), (2, 1), (1, 3), (2, 3)):
        cascade = cascade_of(looks, networks=networks)
        plan, entries = shown(cascade)
        cascade.usual(1, entries)
        stored = cascade.tensors()
        assert (looks_of(stored), networks_of(stored)) == (looks, networks)
        other = Cascade(3, D, [0, 0, 0], looks, networks)
        other.load(stored)
        assert torch.equal(other.taken(plan, entries).chances, cascade.taken(plan, entries).chances)


def test_older_ones_called_their_only_network_otherwise():
    cascade = cascade_of()
    stored = {name.replace("actors.0.", "actor."): value for name, value in cascade.tensors().items()}
    assert {"gate.actor.0.weight", "gate1.actor.0.weight"} < set(stored)
    assert networks_of(stored) == 1
    other = Cascade(3, D, [0, 0, 0], 2)
    other.load(stored)
    assert torch.equal(other.taken(*shown(cascade)).chances, cascade.taken(*shown(cascade)).chances)


def test_a_plan_of_its_own_networks_learns_alone():
    cascade = cascade_of(networks=3)
    _, entries = shown(cascade)
    plan = torch.ones(40).long()
    before = cascade.taken(plan, entries).chances
    gain = torch.randn(40, 9, generator=torch.Generator().manual_seed(3)).double()
    for other in (0, 2):
        loss = cascade.climb(torch.full_like(plan, other), entries, gain).mean()
        for parameter, slope in zip(
            cascade.parameters(),
            torch.autograd.grad(loss, list(cascade.parameters()), allow_unused=True),
            strict=True,
        ):
            parameter.data += 0.0 if slope is None else slope
    assert torch.equal(cascade.taken(plan, entries).chances, before)
    shared = cascade_of()
    loss = shared.climb(torch.zeros_like(plan), entries, gain).mean()
    before = shared.taken(plan, entries).chances
    for parameter, slope in zip(
        shared.parameters(), torch.autograd.grad(loss, list(shared.parameters())), strict=True
    ):
        parameter.data += slope
    assert not torch.equal(shared.taken(plan, entries).chances, before)
