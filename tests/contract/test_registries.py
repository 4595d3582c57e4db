"""Every name in every registry stands for something that keeps its family's contract."""

import pytest
import torch

from agents import ALGORITHMS, BASELINES, LOOKING
from agents.adaptive import Adaptive
from agents.base import Budget
from envs.errors import UserError
from envs.observation import ENTRIES
from envs.registry import Registry
from envs.rewards import REWARDS
from stepdrop_rl.data import DATASETS
from stepdrop_rl.diffusion import SCHEDULES, NoiseSchedule
from stepdrop_rl.metrics import METRICS
from stepdrop_rl.solvers import SOLVERS

REGISTRIES = [ALGORITHMS, BASELINES, REWARDS, DATASETS, SCHEDULES, METRICS, SOLVERS]
NAMES = [(registry, name) for registry in REGISTRIES for name in registry]


@pytest.mark.parametrize("registry, name", NAMES, ids=[f"{r.kind}-{n}" for r, n in NAMES])
def test_every_name_loads_something_that_says_what_it_is(registry: Registry, name: str):
    thing = registry.load(name)
    assert callable(thing)
    assert (thing.__doc__ or "").strip()


@pytest.mark.parametrize("registry", REGISTRIES, ids=[r.kind for r in REGISTRIES])
def test_a_near_miss_is_answered_with_the_nearest_name(registry: Registry):
    name = next(iter(registry))
    with pytest.raises(UserError) as caught:
        registry.load(f"{name}x")
    line = str(caught.value)
    assert "\n" not in line
    assert registry.kind in line
    assert f"did you mean '{name}'" in line


def spent(p: torch.Tensor) -> float:
    """Mean evaluations, from P(evaluate | point, evaluations so far): the first is always made."""
    count = torch.zeros(p.shape[1], dtype=p.dtype)
    count[1] = 1
    for row in p:
        count = count * (1 - row) + torch.cat((count.new_zeros(1), (count * row)[:-1]))
    return float((count * torch.arange(len(count))).sum())


@pytest.mark.parametrize("name", list(BASELINES))
@pytest.mark.parametrize("nfe", [1, 2, 5, 7.3, 32])
def test_baselines_are_made_from_a_budget(name: str, nfe: float):
    agent = BASELINES.load(name)(Budget(nfe, 980.0, 20.0, 32, NoiseSchedule("cosine", 1000)))
    assert agent.name == name
    # a row per decision and number of evaluations so far, at its place on the grid
    observation = torch.zeros(31, 33, len(ENTRIES) if agent.observes else 0)
    if agent.observes:
        names = [entry.name for entry in ENTRIES]
        observation[:, :, names.index("position")] = torch.arange(1, 32).unsqueeze(1) / 31
        observation[:, :, names.index("evaluations")] = torch.arange(33) / 32
    p = agent.probabilities(observation.flatten(0, 1))
    assert p.shape == (31 * 33,)
    assert bool(((p >= 0) & (p <= 1)).all())
    assert isinstance(agent, Adaptive) == (name in LOOKING)
    if isinstance(agent, Adaptive):
        return  # its tolerance is found on noise
    if agent.observes:  # where on the grid, and evaluations so far; nothing that the sample shows
        known = [names.index("position"), names.index("evaluations")]
        shown = torch.rand(observation.shape, generator=torch.Generator().manual_seed(0))
        shown[:, :, known] = observation[:, :, known]
        assert torch.equal(agent.probabilities(shown.flatten(0, 1)), p)
    if agent.times is None:
        assert spent(p.reshape(31, 33).double()) == pytest.approx(nfe)
    else:
        assert len(agent.times) == -(-nfe // 1)
        last = 980 / len(agent.times) if name == "trailing" else 20.0
        first = 20 + 960 * (1 - 1 / len(agent.times)) if name == "leading" else 980.0
        assert float(agent.times[0]) == pytest.approx(first)
        assert len(agent.times) == 1 or float(agent.times[-1]) == pytest.approx(last)
        assert bool((agent.times.diff() < 0).all())


def test_log_snr_is_even_in_the_noise():
    schedule = NoiseSchedule("cosine", 1000)
    times = BASELINES.load("log_snr")(Budget(6, 980.0, 20.0, 32, schedule)).times
    steps = schedule.lam(times).diff()
    torch.testing.assert_close(steps, steps.mean().expand(5))


def test_karras_is_even_in_the_root_of_the_noise():
    schedule = NoiseSchedule("linear", 1000)
    times = BASELINES.load("karras")(Budget(6, 980.0, 20.0, 32, schedule)).times
    steps = torch.exp(-schedule.lam(times) / 7).diff()
    torch.testing.assert_close(steps, steps.mean().expand(5))


def test_leading_strides_end_at_the_grids_end():
    times = BASELINES.load("leading")(Budget(4, 1000.0, 200.0, 32)).times
    assert times.tolist() == [800.0, 600.0, 400.0, 200.0]


def test_skip_curves_protect_the_ends_and_follow_their_shape():
    n = 24
    u = torch.arange(1, n) / (n - 1)
    observation = torch.zeros(n - 1, len(ENTRIES))
    observation[:, 0] = u
    at = {
        name: BASELINES.load(name)(Budget(14, 980.0, 20.0, n)).probabilities(observation)
        for name in BASELINES
        if name.startswith("skip_")
    }
    for name, p in at.items():
        assert float(p[-1]) == 1, name  # the last point is protected
        assert float(p.sum()) == pytest.approx(13), name
    assert at["skip_early"][2] < at["skip_early"][-4]
    assert at["skip_late"][2] > at["skip_late"][-4]
    middle = (u > 0.32) & (u < 0.68)
    outside = ((u < 0.28) | (u > 0.72)) & (u < 1)
    assert float(at["skip_critical"][middle].min()) > float(at["skip_critical"][outside].max())
    assert float(at["skip_middle"][middle].max()) < float(at["skip_middle"][outside].min())
    for name in ("skip_linear", "skip_cosine2", "skip_quadratic"):
        half = at[name][:-1]  # points 1 … n − 2, symmetric
        torch.testing.assert_close(half, half.flip(0), rtol=1e-4, atol=1e-6)


def test_trailing_strides_reach_the_clean_image():
    times = BASELINES.load("trailing")(Budget(4, 1000.0, 20.0, 32)).times
    assert times.tolist() == [1000.0, 750.0, 500.0, 250.0]


def test_quadratic_is_denser_at_the_end():
    times = BASELINES.load("quadratic")(Budget(6, 900.0, 4.0, 32)).times
    roots = times.sqrt()
    torch.testing.assert_close(roots.diff(), torch.full((5,), (2.0 - 30.0) / 5, dtype=torch.float64))
