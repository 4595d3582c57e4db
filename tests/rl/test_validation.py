"""The validation judge's score by hand, and the choice of a grid's ends."""

import math

import pytest
import torch

from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.grid_ends import END_LAMS, START_LAMS, choose_ends, default_ends
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.validation import ValidationJudge

from .test_pricing import engine_of, expected_nfe, priced_policy


def test_the_score_interpolates_log_distance_between_budgets(problem):
    policy = priced_policy(problem.times)
    calls = []

    def distance(images):
        calls.append(len(images))
        return math.exp(len(calls))  # 1, 2, 3, … in the logarithm, by rising price

    judge = ValidationJudge(engine_of(problem, policy), distance, [4.0], 512)
    look = judge.look(policy)
    assert calls == [512] * len(look.table)
    spent = [nfe for _, nfe, _ in look.table]
    assert spent == sorted(spent, reverse=True)
    for price, nfe, _ in look.table:
        assert nfe == pytest.approx(expected_nfe(price), abs=0.4)
    k = next(i for i, nfe in enumerate(spent) if nfe < 4.0)  # between table rows k − 1 and k
    share = (spent[k - 1] - 4.0) / (spent[k - 1] - spent[k])
    assert look.score == pytest.approx(k + share)


def test_a_budget_out_of_reach_costs_more_than_the_nearest_one(problem):
    policy = priced_policy(problem.times, slope=0.0)  # spends about 1.4 at any price
    engine = engine_of(problem, policy)
    near = ValidationJudge(engine, lambda images: 2.0, [1.4], 64).look(policy)
    far = ValidationJudge(engine, lambda images: 2.0, [1.0, 6.0], 64).look(policy)
    assert far.score > near.score


def test_the_narrowest_of_the_best_ends_is_chosen():
    schedule = NoiseSchedule("cosine", 1000)
    denoiser = GaussianMixture(schedule, torch.zeros(1, 1, 2, 2), deviation=0.5)
    seen = []

    def distance(images):
        # the first six candidates are starts, then six ends, then starts again (those measured are kept)
        seen.append(images)
        order = {0: 2.0, 1: 1.04, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}
        return order.get(len(seen) - 1, 1.5)

    ends = choose_ends(denoiser, distance, seed=0, num_images=8)
    start = float(schedule.time_of(torch.tensor(START_LAMS[1], dtype=torch.float64)))
    assert ends.t_start == pytest.approx(start, abs=0.06)
    assert ends.t_end == pytest.approx(default_ends(schedule)[1], abs=0.06)
    assert len(seen) == len(START_LAMS) + len(END_LAMS) - 1
