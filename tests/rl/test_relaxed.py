"""Learning by gradients through the sampler: the gate, the loss's slope, resuming, and that it learns."""

import pytest
import torch
from torch import Tensor

from agents.relaxed import RelaxedLearner, gate
from envs.errors import UserError
from envs.rewards import REWARDS

from .conftest import N
from .test_learners import info_of, learner_of, mean_nfe

ROUND = 16 * (N - 1)


def test_a_gate_is_on_as_often_as_the_policy_says():
    margin = torch.tensor([-2.0, -0.3, 0.0, 1.5]).repeat_interleave(50_000)
    u = torch.rand(len(margin), generator=torch.Generator().manual_seed(0))
    for temperature in (2.0, 0.67, 0.1):
        relaxed = gate(margin, u, temperature, whole=False)
        whole = gate(margin, u, temperature, whole=True)
        assert torch.equal(whole, (relaxed > 0.5).float())
        rates = whole.reshape(4, -1).mean(1)
        torch.testing.assert_close(rates, torch.sigmoid(margin[::50_000]), rtol=0, atol=0.01)


def test_a_whole_gate_has_the_relaxed_gradient():
    u = torch.rand(64, generator=torch.Generator().manual_seed(1))
    slopes = []
    for whole in (False, True):
        margin = torch.linspace(-3, 3, 64, requires_grad=True)
        slopes.append(torch.autograd.grad(gate(margin, u, 0.5, whole=whole).sum(), margin)[0])
    torch.testing.assert_close(slopes[0], slopes[1])
    # dg/dmargin = g(1 − g)/temperature
    g = gate(torch.linspace(-3, 3, 64), u, 0.5, whole=False)
    torch.testing.assert_close(slopes[0], g * (1 - g) / 0.5)


def test_gates_at_the_edges_of_chance_are_finite():
    u = torch.tensor([0.0, 1.0, 0.5])
    for whole in (False, True):
        margin = torch.zeros(3, requires_grad=True)
        found = gate(margin, u, 0.1, whole=whole)
        (slope,) = torch.autograd.grad(found.sum(), margin)
        assert bool(torch.isfinite(found).all())
        assert bool(torch.isfinite(slope).all())


def objective(learner: RelaxedLearner, state: Tensor) -> Tensor:
    """The mean reward of one walk, its gates drawn alike every time."""
    learner.generator.set_state(state)
    return learner._walk(learner.core.rows, 0.5)[0].mean()


@pytest.mark.parametrize("sees", ["time", "schedule", "sample"])
def test_the_losss_slope_is_a_finite_difference(problem, sees):
    learner, _ = learner_of(
        problem, "relaxed", solver="ddim", sees=sees, reward={"pixel": 1.0}, prices=(0.05, 0.05)
    )
    learner.core.begin(learner.core.rows)
    state = learner.generator.get_state()
    bias = learner.actor_network[-1].bias
    (slope,) = torch.autograd.grad(objective(learner, state), bias)
    change = 2e-2  # float32 images
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            bias[1] += sign * change
            found.append(objective(learner, state))
            bias[1] -= sign * change
    expected = float(found[0] - found[1]) / (2 * change)
    assert float(slope[1]) == pytest.approx(expected, rel=2e-2, abs=1e-4)
    assert abs(expected) > 1e-3


@pytest.mark.parametrize("solver", ["ddim", "multistep"])
@pytest.mark.parametrize("sees", ["time", "sample"])
def test_it_learns_not_to_buy_what_costs_too_much(problem, solver, sees):
    learner, logged = learner_of(problem, "relaxed", prices=(5.0, 5.0), solver=solver, sees=sees)
    learner.learn(ROUND * 60, lambda decisions: True)
    assert mean_nfe(learner, problem, 5.0) < 1.3
    assert logged[-1][1]["rollout/ep_nfe_mean"] < 1.5


@pytest.mark.parametrize("solver", ["ddim", "multistep"])
def test_it_learns_to_buy_what_is_free(problem, solver):
    learner, _ = learner_of(
        problem, "relaxed", num_envs=32, prices=(0.0, 0.0), ent_coef=0.0, initial_nfe=3.0, solver=solver
    )
    before = mean_nfe(learner, problem, 0.0)
    learner.learn(2 * ROUND * 60, lambda decisions: True)
    assert mean_nfe(learner, problem, 0.0) > before + 1


def test_it_learns_when_to_evaluate(problem):
    # At the same price and about the same evaluations it is worth more than coins of one rate.
    learner, _ = learner_of(
        problem, "relaxed", num_envs=32, prices=(0.03, 0.03), solver="ddim", sees="time", final_rate=1.0
    )
    learner.learn(2 * ROUND * 120, lambda decisions: True)
    policy = learner.policy(info_of(problem, learner, "relaxed"))

    def worth(probabilities):
        core = problem.core(512, prices=(0.03, 0.03), solver="ddim")
        core.seed(core.rows, torch.arange(512))
        core.begin(core.rows)
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros(512, dtype=torch.float64)
        for _ in range(N - 1):
            p = probabilities(core.walk.observe(core.rows))
            total += core.step(core.rows, (torch.rand(512, generator=generator) < p).long()).reward
        return float(total.mean()), float(core.walk.nfe.double().mean())

    learned, nfe = worth(policy.probabilities)
    rate = (nfe - 1) / (N - 1)
    coins, _ = worth(lambda observation: torch.full((len(observation),), rate))
    assert learned > coins + 0.02


@pytest.mark.parametrize("solver", ["ddim", "multistep"])
def test_it_resumes_exactly(problem, solver):
    settings = {"reward": {"neighbour": 1.0}, "solver": solver}
    one, _ = learner_of(problem, "relaxed", **settings)
    one.learn(ROUND * 6, lambda decisions: True)
    other, _ = learner_of(problem, "relaxed", **settings)
    other.learn(ROUND * 6, lambda decisions: decisions < ROUND * 3)
    resumed, _ = learner_of(problem, "relaxed", **settings, seed=5)
    resumed.load_state(other.state())
    assert resumed.num_decisions == ROUND * 3
    resumed.learn(ROUND * 6, lambda decisions: True)
    states = (learner.actor_network.state_dict() for learner in (one, resumed))
    for (name, a), b in zip(next(states).items(), next(states).values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", list(REWARDS))
def test_every_reward_has_a_slope(problem, name):
    learner, logged = learner_of(problem, "relaxed", reward={name: 1.0}, solver="ddim")
    learner.learn(1, lambda decisions: True)
    assert logged[0][1]["train/gradient_norm"] > 0


def test_rewards_outside_learning_carry_no_graph(problem):
    learner, _ = learner_of(problem, "relaxed", reward={"neighbour": 1.0}, solver="ddim")
    learner.learn(1, lambda decisions: True)
    core = learner.core
    core.step(core.rows, torch.ones_like(core.rows))
    assert not core.phi.requires_grad
    assert not any(tensor.requires_grad for tensor in learner.state().values())


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"gatez": "auto"}, "did you mean 'gates'"),
        ({"gates": "relaxd"}, "did you mean 'relaxed'"),
        ({"gates": "relaxed"}, "solve by ddim"),
        ({"sees": "samples"}, "did you mean 'sample'"),
        ({"temperature": 0.1}, "temperatures must be positive and fall"),
        ({"final_temperature": 0.0}, "temperatures must be positive and fall"),
        ({"batch_size": 0}, "batch_size must be positive"),
    ],
)
def test_it_refuses_what_it_cannot_use(problem, settings, says):
    with pytest.raises(UserError, match=says) as caught:
        learner_of(problem, "relaxed", **settings)
    assert "\n" not in str(caught.value)
