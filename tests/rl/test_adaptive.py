"""Skipping by predicted error: thresholds by hand, budgets that are kept."""

import pytest
import torch

from agents import BASELINES
from agents.adaptive import Adaptive, calibrated
from agents.base import Budget
from envs.observation import ENTRIES, Grid, observe
from envs.protocols import Evidence
from stepdrop_rl.arena import make_arena
from stepdrop_rl.config import AgentChoice
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.search_ground import ModelGround
from stepdrop_rl.solvers import make_solver

COLUMN = {entry.name: number for number, entry in enumerate(ENTRIES)}


def seen(**entries):
    row = torch.zeros(1, len(ENTRIES))
    for name, value in entries.items():
        row[0, COLUMN[name]] = value
    return row


def test_it_evaluates_where_the_error_reaches_the_tolerance():
    agent = BASELINES.load("adaptive_error")(Budget(5, 960.0, 20.0, 20))
    agent.tolerance = 0.3
    for error, expected in ((0.29, 0.0), (0.3, 1.0), (0.5, 1.0)):
        assert float(agent.probabilities(seen(evaluations=2 / 20, disagreement=error))) == expected
    change = BASELINES.load("adaptive_change")(Budget(5, 960.0, 20.0, 20))
    change.tolerance = 0.3
    for rate, expected in ((0.7, 0.0), (0.8, 1.0)):
        row = seen(evaluations=2 / 20, x0_rate=rate, lam_since_anchor=0.4)
        assert float(change.probabilities(row)) == expected


def test_after_one_evaluation_it_waits_for_an_even_share():
    agent = BASELINES.load("adaptive_error")(Budget(5, 960.0, 20.0, 20))
    for since, expected in ((0.19, 0.0), (0.21, 1.0)):
        assert float(agent.probabilities(seen(evaluations=1 / 20, lam_since_anchor=since))) == expected
    once = BASELINES.load("adaptive_error")(Budget(1, 960.0, 20.0, 20))
    assert float(once.probabilities(seen(evaluations=1 / 20, lam_since_anchor=1.0))) == 0


def test_the_tolerance_keeps_to_the_budget_and_uses_it():
    agent = Adaptive("a", lambda o: o[:, 0], Budget(5, 960.0, 20.0, 20))
    asked = []

    def spent(one):  # 5 where the tolerance is 1.5
        asked.append(one.tolerance)
        return 20 / (1 + 2 * one.tolerance)

    calibrated(agent, spent)
    assert 0.995 * 5 <= 20 / (1 + 2 * agent.tolerance) <= 5
    assert len(asked) <= 10  # not all of 16
    calibrated(agent, lambda one: 6 if one.tolerance < 1.5 else 1)  # a budget that no tolerance uses
    assert agent.tolerance == pytest.approx(1.5, abs=1e-3)
    assert agent.tolerance >= 1.5


def test_the_predicted_noise_changes_as_an_order_1_jump_shows_it():
    model = load_model("digits")
    schedule, info = model.denoiser.schedule, model.info
    times = torch.linspace(info.t_start, info.t_end, 20, dtype=torch.float64)
    points = [0, 7, 11]
    seen = ModelGround(model, make_solver("ddim")).trajectory(times[points], 6)
    alpha, sigma = (part.reshape(-1, 1, 1, 1, 1) for part in schedule.alpha_sigma(times[points]))
    eps = (seen.x - alpha * seen.x0) / sigma
    lam = schedule.lam(times)
    gap = float(lam[11] - lam[7])

    def rms(images):
        return images.double().square().flatten(1).mean(1).sqrt()

    wanted = rms(eps[2] - eps[1]) / gap * float(lam[15] - lam[11])
    none = torch.zeros(6)
    evidence = Evidence(none, rms(seen.x0[2] - seen.x0[1]).float(), none + gap, none, torch.zeros(6, 0))
    at = torch.full((6,), 15)
    observation = observe(
        Grid(times, lam, schedule.alpha_sigma(times)[0]), at, at - 4, none + 3, none + 0.01, evidence
    )
    agent = BASELINES.load("adaptive_eps")(Budget(5, info.t_start, info.t_end, 20, schedule))
    torch.testing.assert_close(agent.error(observation).double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "nfe"),
    [("adaptive_error", 4), ("adaptive_error", 8), ("adaptive_change", 8), ("adaptive_eps", 4)],
)
def test_on_a_model_it_spends_its_budget_and_looks_at_the_sample(name, nfe):
    arena, contender = make_arena(AgentChoice(policy=name, target_nfe=nfe, solver="multistep"), blocks=2)
    samples = arena.engine(contender.agent).sample(contender.agent, 512)
    mean = float(samples.nfe.double().mean())
    assert 0.85 * nfe < mean < 1.05 * nfe
    assert len(samples.evaluated.unique(dim=0)) > 10  # not one schedule for all
