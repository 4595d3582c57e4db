"""Who gets how many evaluations: against all that could be done, and what is known of what."""

from itertools import product

import pytest
import torch

from stepdrop_rl.allocation import allocate, told

COUNTS = torch.tensor([3, 4, 5])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mean", [3.0, 3.5, 4.0, 4.5, 5.0])
def test_nobody_could_do_better_with_as_many(seed, mean):
    errors = torch.rand(6, 3, generator=torch.Generator().manual_seed(seed)).double()
    if seed % 2:  # more never harms
        errors = errors.sort(1, descending=True).values
    chosen = allocate(errors, COUNTS, mean)
    spent = int(COUNTS[chosen].sum())
    assert spent <= mean * 6
    assert spent >= mean * 6 - 2 or seed % 2 == 0
    total = float(errors[torch.arange(6), chosen].sum())
    every = [torch.tensor(each) for each in product(range(3), repeat=6)]
    best = min(
        float(errors[torch.arange(6), each].sum()) for each in every if int(COUNTS[each].sum()) <= spent
    )
    assert total == pytest.approx(best, abs=1e-9)


def test_images_that_are_alike_meet_the_mean_all_the_same():
    errors = torch.tensor([[3.0, 2.0, 1.0]]).expand(10, 3)
    chosen = allocate(errors, COUNTS, 4.0)
    assert int(COUNTS[chosen].sum()) == 40


def test_what_is_told_is_told_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    shown = torch.randn(1000, 3, generator=generator)
    noise = torch.randn(1000, generator=generator)
    r2, guesses = told(shown, shown[:, 0].abs() + 0.1 * noise)
    assert r2 > 0.6
    assert guesses.shape == (1000,)
    assert told(shown, noise)[0] < 0.05
