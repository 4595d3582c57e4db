"""Orders of jumps: one that looks back on fewer evaluations is the solver of that order."""

import pytest
import torch
from matplotlib.text import Text
from torch import Tensor

from agents.base import orders_of
from agents.fixed import FixedSchedule
from agents.planned import Dealt
from stepdrop_rl.engine import Engine
from stepdrop_rl.report.figures import images_by_schedule
from stepdrop_rl.solvers import make_solver

from .conftest import exact, mixture_process

TIMES = torch.tensor([950.5, 800.5, 611.5, 480.5, 300.25, 31.5], dtype=torch.float64)
COUNT = 12


def engine(solver: str, times: Tensor = TIMES, batch_size: int = 256) -> Engine:
    denoiser = mixture_process(solver).denoiser
    return Engine(denoiser=denoiser, solver=make_solver(solver), times=times, seed=3, batch_size=batch_size)


@pytest.mark.parametrize(
    ("solver", "order", "simpler"),
    [
        ("multistep", 1, "ddim"),
        ("multistep3", 1, "ddim"),
        ("multistep3", 2, "multistep"),
        ("multistep3", 3, "multistep3"),
        ("multistep3", 9, "multistep3"),
    ],
)
def test_a_jump_of_lower_order_is_the_simpler_solvers(solver: str, order: int, simpler: str) -> None:
    orders = torch.full((len(TIMES),), order)
    one = engine(solver).sample(FixedSchedule("one", TIMES, orders=orders), COUNT).images
    other = engine(simpler).sample(FixedSchedule("other", TIMES), COUNT).images
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    if solver != simpler:
        own = engine(solver).sample(FixedSchedule("own", TIMES), COUNT).images
        assert float((own - one).abs().max()) > 1e-3


@pytest.mark.parametrize("solver", ["multistep3", "ipndm", "deis"])
def test_in_step_in_slots_and_differentiable_it_is_the_same(solver: str) -> None:
    orders = torch.tensor([1, 1, 2, 1, 3, 2])
    fixed = FixedSchedule("fixed", TIMES, orders=orders)
    in_step = engine(solver).sample(fixed, COUNT).images
    all_points = torch.ones(1, len(TIMES), dtype=torch.bool)
    planned = Dealt("planned", TIMES, all_points, orders)
    torch.testing.assert_close(engine(solver).sample(planned, COUNT).images, in_step, rtol=0, atol=1e-5)
    process = mixture_process(solver)
    process.role = engine(solver).role
    timed = process.timed(torch.arange(COUNT), TIMES[:1].expand(COUNT))
    for t, order in zip(TIMES[1:], orders[1:].tolist(), strict=True):
        timed.advance(t.expand(COUNT), order)
    torch.testing.assert_close(timed.x0(), in_step, rtol=0, atol=1e-5)
    assert (
        float((engine(solver).sample(FixedSchedule("own", TIMES), COUNT).images - in_step).abs().max()) > 1e-3
    )


def test_samples_of_a_batch_have_orders_of_their_own() -> None:
    # Two points next to each other: the first is reached by order 1, the second by order 3.
    times = torch.tensor([950.5, 700.5, 400.5, 150.502, 150.5, 31.5], dtype=torch.float64)
    orders = torch.tensor([3, 3, 3, 1, 3, 3])
    masks = torch.ones(2, len(times), dtype=torch.bool)
    masks[0, 4] = masks[1, 3] = False
    both = Dealt("both", times, masks, orders)
    assert orders_of(both) is orders
    drawn = engine("multistep3", times).sample(both, COUNT)
    exact(engine("multistep3", times, batch_size=5).sample(both, COUNT).evaluated, drawn.evaluated)
    for mask in masks:
        alone = FixedSchedule("alone", times[mask], orders=orders[mask])
        images = engine("multistep3", times[mask]).sample(alone, COUNT).images
        here = (drawn.evaluated == mask).all(1)
        assert int(here.sum()) == COUNT // 2
        torch.testing.assert_close(drawn.images[here], images[here], rtol=0, atol=1e-5)
    one, other = (
        engine("multistep3", times[mask]).sample(FixedSchedule("x", times[mask], orders=orders[mask]), COUNT)
        for mask in masks
    )
    assert float((one.images - other.images).abs().max()) > 1e-3


def test_the_picture_of_who_gets_what_tells_lower_orders() -> None:
    times = torch.tensor([950.5, 150.502, 150.5, 31.5], dtype=torch.float64)
    orders = torch.tensor([3, 1, 3, 3])
    masks = torch.ones(2, len(times), dtype=torch.bool)
    masks[0, 2] = masks[1, 1] = False
    samples = engine("multistep3", times).sample(Dealt("both", times, masks, orders), COUNT)
    samples.images.clamp_(-1, 1)
    told = {}
    for name, given in (("with", orders), ("without", None)):
        figure = images_by_schedule(samples, given)
        assert figure is not None
        words = " ".join(text.get_text() for text in figure.findobj(Text))
        told[name] = [words.count("151 (order 1)"), words.count("(order"), words.count("50% of images")]
    assert told == {"with": [1, 1, 2], "without": [0, 0, 2]}
