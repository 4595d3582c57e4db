"""What observations show of the network: which features, projected how, the same for trainer and engine."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agents.policy import LearnedPolicy, PolicyInfo, build_policy, describe
from envs.errors import UserError
from envs.mdp import Trajectories
from envs.observation import ENTRIES, FEATURE_LIMIT, Projection
from envs.philox import Role
from stepdrop_rl.config import EnvConfig, ScheduleConfig
from stepdrop_rl.engine import Engine
from stepdrop_rl.features import ProjectionKind, _table, check_features, fit_projection
from stepdrop_rl.models.denoiser import NetworkDenoiser
from stepdrop_rl.models.unet import Model, ModelInfo
from stepdrop_rl.policies import check_fit, load_policy, save_policy
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers.multistep import Multistep
from stepdrop_rl.teacher import TeacherBank

from .conftest import SHAPE, denoiser_of, network

TIMES = torch.linspace(930.0, 15.5, 10, dtype=torch.float64)
SEED = 77
NAMES = {"middle": ("middle",), "decoder": ("decoder",), "both": ("middle", "decoder")}

every_choice = pytest.mark.parametrize("names", NAMES.values(), ids=list(NAMES))
every_kind = pytest.mark.parametrize("kind", ["principal", "random", "encoder"])


@pytest.fixture(scope="module")
def denoiser() -> NetworkDenoiser:
    return denoiser_of(network())


@pytest.fixture(scope="module")
def bank() -> TeacherBank:
    teacher = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return TeacherBank(seed=5, teacher=teacher, first=teacher[:8])


def fit(
    denoiser: NetworkDenoiser, bank: TeacherBank, names: tuple[str, ...], kind: ProjectionKind
) -> Projection:
    num = 0 if kind == "encoder" else 4
    return fit_projection(denoiser, bank, TIMES, features=names, kind=kind, num=num)


@every_choice
@every_kind
def test_a_projection_is_deterministic_and_shows_numbers_of_deviation_one(
    denoiser: NetworkDenoiser, bank: TeacherBank, names: tuple[str, ...], kind: ProjectionKind
) -> None:
    wide = sum(denoiser.feature_widths[name] for name in names)
    torch.manual_seed(123)
    one = fit(denoiser, bank, names, kind)
    torch.manual_seed(4)
    other = fit(denoiser, bank, names, kind)
    assert one.features == names
    assert one.matrix.shape == (wide, wide if kind == "encoder" else 4)
    assert one.mean.shape == (wide,)
    assert torch.equal(one.matrix, other.matrix)
    assert torch.equal(one.mean, other.mean)
    shown = (_table(denoiser, bank, TIMES, names) - one.mean) @ one.matrix
    torch.testing.assert_close(shown.std(0), torch.ones(shown.shape[1]), rtol=1e-3, atol=0)
    if kind == "principal":
        torch.testing.assert_close(shown.T @ shown / (len(shown) - 1), torch.eye(4), rtol=0, atol=1e-3)
    if kind == "encoder":
        assert torch.equal(one.matrix, torch.diag(one.matrix.diagonal()))


def test_random_directions_are_those_of_the_banks_seed(denoiser: NetworkDenoiser, bank: TeacherBank) -> None:
    one = fit(denoiser, bank, ("middle",), "random").matrix
    other = fit(denoiser, replace(bank, seed=6), ("middle",), "random").matrix
    assert not torch.allclose(one, other)


class Watches:
    """Evaluates by what it sees, and keeps what it saw."""

    name, observes = "watches", True
    times: Tensor | None = None

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def probabilities(self, observation: Tensor) -> Tensor:
        self.seen.append(observation)
        return (observation[:, len(ENTRIES) :].sum(1).sin() > 0).float()


@every_choice
@every_kind
def test_engine_and_environment_see_the_same(
    denoiser: NetworkDenoiser, bank: TeacherBank, names: tuple[str, ...], kind: ProjectionKind
) -> None:
    projection = fit(denoiser, bank, names, kind)
    process = DiffusionProcess(
        denoiser, Multistep(), num_rows=6, seed=SEED, role=Role.EVALUATION, projection=projection
    )
    walk, rows, plain, at_once = Trajectories(process, TIMES), torch.arange(6), Watches(), Watches()
    walk.begin(rows, rows, torch.zeros(6, dtype=torch.float64))
    seen = set()
    for _ in range(1, len(TIMES)):
        observation = walk.observe(rows)
        assert observation.shape == (6, len(ENTRIES) + projection.matrix.shape[1])
        assert float(observation[:, len(ENTRIES) :].abs().max()) <= FEATURE_LIMIT
        seen |= {tuple(row) for row in observation.tolist()}
        walk.advance(rows, plain.probabilities(observation) > 0.5)
    engine = Engine(denoiser=denoiser, solver=Multistep(), times=TIMES, seed=SEED, projection=projection)
    samples = engine.sample(at_once, 6)
    assert torch.equal(samples.evaluated, walk.evaluated)
    assert len(set(samples.nfe.tolist())) > 1
    first = at_once.seen[0].reshape(6, -1, plain.seen[0].shape[1])[:, 0]
    assert torch.equal(first, plain.seen[0])


def policy_of(projection: Projection, model_hash: str = "0") -> LearnedPolicy:
    num = projection.matrix.shape[1]
    info = PolicyInfo(
        algo="ppo",
        activation="tanh",
        output="softmax",
        dataset="digits",
        model_hash=model_hash,
        solver="multistep",
        times=TIMES.tolist(),
        prices=[0.01, 0.1],
        num_features=num,
        features=list(projection.features),
    )
    layers = [(torch.randn(2, len(ENTRIES) + num), torch.zeros(2))]
    return LearnedPolicy(info, layers, projection)


@every_choice
@every_kind
def test_a_policy_folder_keeps_its_projection(
    denoiser: NetworkDenoiser, bank: TeacherBank, tmp_path, names: tuple[str, ...], kind: ProjectionKind
) -> None:
    policy = policy_of(fit(denoiser, bank, names, kind))
    save_policy(tmp_path / "p", policy)
    loaded = load_policy(tmp_path / "p")
    assert describe(loaded) == describe(policy)
    assert loaded.projection is not None
    assert policy.projection is not None
    assert loaded.projection.features == names
    for ours, theirs in zip(policy.projection[:2], loaded.projection[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_a_projection_of_another_shape_is_refused(
    denoiser: NetworkDenoiser, bank: TeacherBank, tmp_path
) -> None:
    policy = policy_of(fit(denoiser, bank, ("middle",), "principal"))
    tensors = policy.tensors() | {"projection.matrix": torch.zeros(3, 4)}
    with pytest.raises(UserError, match="does not fit the observation"):
        build_policy(describe(policy), tensors, tmp_path / "policy.json")


def test_features_that_the_model_has_not_are_refused(denoiser: NetworkDenoiser, bank: TeacherBank) -> None:
    schedule = ScheduleConfig()
    info = ModelInfo(
        dataset="digits", prediction="epsilon", schedule=schedule, t_start=float(TIMES[0]), t_end=15.5
    )
    model = Model(denoiser, info, "0")
    policy = policy_of(fit(denoiser, bank, ("middle",), "principal"))
    check_fit(policy, model, None)
    assert policy.projection is not None
    policy.projection = policy.projection._replace(features=("decoder",))
    with pytest.raises(UserError, match=r"observes 16 features \(decoder\), the model has 8"):
        check_fit(policy, model, None)
    with pytest.raises(UserError, match="unknown feature of this model 'middle'"):
        check_features({}, ("middle",), 4)
    with pytest.raises(UserError, match=r"features \(middle \+ decoder\) have 24 channels"):
        check_features(denoiser.feature_widths, ("middle", "decoder"), 25)


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert not EnvConfig().shows_features
    assert EnvConfig(projection="encoder").shows_features
    assert EnvConfig(num_features=4, features="both").feature_names == ("middle", "decoder")
    with pytest.raises(UserError, match=r"leave env\.num_features at 0"):
        EnvConfig(projection="encoder", num_features=4)
    for settings in ({"features": "decoder"}, {"projection": "random"}):
        with pytest.raises(UserError, match=r"need env\.num_features"):
            EnvConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "end, may_go_on, fits", [(9.0, True, True), (9.0, False, False), (20.0, True, False)]
)
def test_only_one_that_may_go_on_ends_later_than_the_model(
    denoiser: NetworkDenoiser, bank: TeacherBank, end: float, may_go_on: bool, fits: bool
) -> None:
    info = ModelInfo(
        dataset="digits", prediction="epsilon", schedule=ScheduleConfig(), t_start=float(TIMES[0]), t_end=15.5
    )
    policy = policy_of(fit(denoiser, bank, ("middle",), "principal"))
    policy.info = replace(policy.info, times=[*policy.info.times[:-1], end])
    policy.may_go_on = may_go_on
    with nullcontext() if fits else pytest.raises(UserError, match="the model's ends are now"):
        check_fit(policy, Model(denoiser, info, "0"), None)
