"""The average of what learns."""

import pytest
import torch
from torch import nn

from agents.average import Average


def line(weight):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, weight)
    return module


def test_it_is_the_mean_of_all_steps_until_there_are_as_many_as_count():
    module = line(7.0)
    average = Average({"a": module}, horizon=4)
    for weight in (1.0, 2.0, 6.0):
        nn.init.constant_(module.weight, weight)
        average.update()
    assert average.means["a.weight"].item() == pytest.approx(3), (
        "what was there before the first step is forgotten"
    )
    for weight in (5.0, 9.0):  # 3.5, then 3.5 + (9 − 3.5)/4
        nn.init.constant_(module.weight, weight)
        average.update()
    assert average.means["a.weight"].item() == pytest.approx(4.875)


def test_it_is_given_to_modules_of_the_same_names_and_leaves_those_that_learn():
    module, other = line(7.0), line(0.0)
    average = Average({"a": module}, horizon=2)
    nn.init.constant_(module.weight, 1.0)
    average.update()
    nn.init.constant_(module.weight, 4.0)
    average.update()
    average.give({"a": other})
    assert (other.weight.item(), module.weight.item()) == (2.5, 4.0)


def test_before_the_first_step_nothing_is_given():
    other = line(3.0)
    Average({"a": line(7.0)}, horizon=2).give({"a": other})
    assert other.weight.item() == 3


def test_resumed_it_goes_on_exactly():
    module = line(1.0)
    one, two = Average({"a": module}, horizon=3), Average({"a": line(0.0)}, horizon=3)
    one.update()
    two.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    two.modules = one.modules
    for weight in (5.0, 2.0, 8.0):
        nn.init.constant_(module.weight, weight)
        one.update()
        two.update()
    assert torch.equal(one.means["a.weight"], two.means["a.weight"])
    with pytest.raises(KeyError):
        two.load_state({})
