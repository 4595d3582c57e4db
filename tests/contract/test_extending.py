"""docs/extending.md is true: its files are imported under their paths, registered by their lines, and run.

Nothing is written into the repository: the files lie in a temporary folder that the packages' search paths
are extended by, and the registries forget the names afterwards.
"""

import ast
import dataclasses
import importlib
import math
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import BASELINES
from agents.base import Budget
from envs.errors import UserError
from envs.mdp import StepDropCore, Trajectories
from envs.philox import Role
from envs.registry import Registry
from envs.rewards import REWARDS
from envs.rewards.base import Candidates, Ground, WeightedQuality
from stepdrop_rl import cli, config
from stepdrop_rl.config import DataConfig
from stepdrop_rl.data import load
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.engine import Engine
from stepdrop_rl.metrics import Reference, measure
from stepdrop_rl.metrics.distances import statistics
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import SOLVERS
from stepdrop_rl.solvers.base import Anchor, Solver
from stepdrop_rl.solvers.ddim import DDIM
from stepdrop_rl.solvers.ddpm import DDPM
from stepdrop_rl.teacher import full_trajectory

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
MAX_LINES = 30
BOUND = 4.0  # standard errors; the numbers are fixed


class Line(NamedTuple):
    """A registry line of the page: where it goes, and what it says."""

    registry: str
    file: str
    name: str
    target: str


def files() -> dict[str, str]:
    """Path → code of every file on the page."""
    return dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.S | re.M))


def lines() -> list[Line]:
    found = re.findall(r'^In `(\w+)` of `([\w/]+\.py)`.*?:\n\n```python\n"(\w+)": "(.*)",\n```$', PAGE, re.M)
    return [Line(*line) for line in found]


def commands() -> list[list[str]]:
    """Every command on the page, as arguments after ``python -m stepdrop_rl.``."""
    return [shlex.split(line) for line in re.findall(r"^python -m stepdrop_rl\.(.*)$", PAGE, re.M)]


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def registry_of(line: Line) -> Registry:
    found: Registry = getattr(importlib.import_module(module_name(line.file)), line.registry)
    return found


@pytest.fixture(scope="module", autouse=True)
def added(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's files and lines, as if they had been added."""
    folder = tmp_path_factory.mktemp("added")
    with pytest.MonkeyPatch.context() as patch:
        for path, code in files().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(code, encoding="utf-8")
            package = importlib.import_module(module_name(str(Path(path).parent)))
            patch.setattr(package, "__path__", [*package.__path__, str((folder / path).parent)])
            patch.setattr(
                package, Path(path).stem, None, raising=False
            )  # importing sets it: undone at the end
        for line in lines():
            patch.setitem(registry_of(line)._entries, line.name, line.target)
        importlib.invalidate_caches()
        yield
        for path in files():
            sys.modules.pop(module_name(path), None)


# --- the page -----------------------------------------------------------------------------------


def test_every_file_is_short_new_and_named_by_one_line() -> None:
    root = Path(__file__).parents[2]
    assert len(files()) == len(lines()) == 6
    for (path, code), line in zip(files().items(), lines(), strict=True):
        assert code.count("\n") <= MAX_LINES, path
        assert not (root / path).exists(), f"{path} would be overwritten"
        assert (root / line.file).is_file()
        assert line.target.split(":")[0] == module_name(path)
        assert f'"{line.name}"' not in (root / line.file).read_text(encoding="utf-8")
        registry = registry_of(line)
        assert list(registry)[-1] == line.name
        thing = registry.load(line.name)
        assert callable(thing)
        assert (thing.__doc__ or "").strip()


@pytest.mark.parametrize("path", files())
def test_imports_go_one_way(path: str) -> None:
    forbidden = {"envs": {"agents", "stepdrop_rl"}, "agents": {"stepdrop_rl"}, "stepdrop_rl": set()}
    libraries = {"diffusers", "torchvision", "mlflow", "sklearn", "torch_fidelity", "stable_baselines3"}
    package = path.split("/")[0]
    imported = set()
    for node in ast.walk(ast.parse(files()[path])):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            imported.add(node.module.split(".")[0])
    assert not imported & forbidden[package]
    assert not imported & libraries


def test_every_command_is_understood() -> None:
    used = set()
    for command, *argv in commands():
        settings = getattr(config, "".join(word.title() for word in command.split("_")) + "Config")
        cli.parse(settings, command, argv)
        used |= set(re.findall(r"\w+", " ".join(argv)))
    # A metric has no option: every evaluation measures it.
    assert {line.name for line in lines()} - used == {"classes"}


def test_files_that_the_page_speaks_of_exist() -> None:
    root = Path(__file__).parents[2]
    for path in set(re.findall(r"`([\w/]+\.py)`", PAGE)) - files().keys():
        assert (root / path).is_file() or (root / "tests" / "numerics" / path).is_file(), path


# --- the solver ---------------------------------------------------------------------------------

TIMES = torch.tensor([950.0, 700.5, 560.0, 320.0, 100.0, 30.0], dtype=torch.float64)
NOISY = 3  # of these, in the cosine schedule, hold more noise than signal


def early_noise() -> Solver:
    solver: Solver = SOLVERS.load("early_noise")()
    return solver


def mixture() -> GaussianMixture:
    """A model whose answers are exact: three components of 1x4x4 images."""
    means = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
    return GaussianMixture(NoiseSchedule("cosine", 1000), means, 0.2)


def walk(evaluated: list[int], times: Tensor, count: int = 4) -> DiffusionProcess:
    """Walk ``count`` images down ``times``, evaluating at these points."""
    process = DiffusionProcess(mixture(), early_noise(), num_rows=count, seed=3, role=Role.VALIDATION)
    trajectories, rows = Trajectories(process, times), torch.arange(count)
    trajectories.begin(rows, rows, torch.zeros(count, dtype=torch.float64))
    for point in range(1, len(times)):
        trajectories.advance(rows, torch.full((count,), point in evaluated))
    return process


@pytest.mark.parametrize("evaluated", [[0, 1, 4], [0, 3], [0, 2, 3, 5]])
def test_skipping_equals_the_direct_jump(evaluated: list[int]) -> None:
    rows, s = torch.arange(4), torch.full((4,), 3.0, dtype=torch.float64)
    skipping = walk(evaluated, TIMES)
    direct = walk(list(range(len(evaluated))), TIMES[evaluated])
    for a, b in ((skipping.x0(rows), direct.x0(rows)), (skipping.jump(rows, s), direct.jump(rows, s))):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_each_sample_gets_noise_by_its_own_anchor() -> None:
    schedule = NoiseSchedule("cosine", 1000)
    assert int((schedule.lam(TIMES) < 0).sum()) == NOISY
    x, x0, noise = torch.randn(3, len(TIMES), 1, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    times = torch.stack((TIMES, TIMES), 1)
    anchor = Anchor(x, torch.stack((x0, x0), 1), times, torch.ones(len(TIMES), dtype=torch.int64))
    got, markovian, straight = (
        solver.jump(schedule, anchor, TIMES - 20, noise) for solver in (early_noise(), DDPM(), DDIM())
    )
    torch.testing.assert_close(got[:NOISY], markovian[:NOISY], rtol=0, atol=0)
    torch.testing.assert_close(got[NOISY:], straight[NOISY:], rtol=0, atol=0)
    assert bool((markovian != straight).flatten(1).any(1).all())


def test_a_whole_trajectory_has_the_moments_of_its_recursion() -> None:
    # Gaussian data: x0_hat is affine in x, so every jump is, and mean and variance follow by hand.
    mu, deviation, count = 0.4, 0.3, 4000
    solver = early_noise()
    assert solver.order is None
    assert solver.stochastic
    schedule = NoiseSchedule("cosine", 1000)
    model = GaussianMixture(schedule, torch.full((1, 1, 2, 4), mu), deviation)
    process = DiffusionProcess(model, solver, num_rows=count, seed=2, role=Role.VALIDATION, clip=False)
    rows = torch.arange(count)
    process.start(rows, rows, TIMES[:1].expand(count))
    for t in TIMES:
        process.evaluate(rows, t.expand(count))
    mean, variance = 0.0, 1.0
    bars = [float(alpha) ** 2 for alpha in schedule.alpha_sigma(TIMES)[0]]
    for bar_t, bar_s in zip(bars, [*bars[1:], 1.0], strict=True):
        of_x = math.sqrt(bar_t) * deviation**2 / (bar_t * deviation**2 + 1 - bar_t)
        offset = mu * (1 - of_x * math.sqrt(bar_t))  # x0_hat = of_x·x + offset
        eta = 1.0 if bar_t < 0.5 else 0.0  # more noise than signal
        spread = eta * (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
        share = math.sqrt((1 - bar_s - spread) / (1 - bar_t))  # of x_t − α_t·x0_hat
        of_x0 = math.sqrt(bar_s) - share * math.sqrt(bar_t)
        mean = (share + of_x0 * of_x) * mean + of_x0 * offset
        variance = (share + of_x0 * of_x) ** 2 * variance + spread
    values = process.x0(rows).double().flatten()
    assert abs(float(values.mean()) - mean) < BOUND * math.sqrt(variance / len(values))
    found = float((values - mean).square().mean())
    assert abs(found - variance) < BOUND * variance * math.sqrt(2 / len(values))


# --- the reward ---------------------------------------------------------------------------------

N, BANK, PRICES = 9, 64, (0.01, 0.1)
GRID = torch.linspace(950, 30, N, dtype=torch.float64)


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


@pytest.fixture(scope="module")
def ground() -> Ground:
    """What the mixture's full trajectories make of 64 noises."""

    def drawn(steps: int) -> Tensor:
        full = full_trajectory(950.0, 30.0, steps)
        engine = Engine(denoiser=mixture(), solver=DDIM(), times=GRID, seed=0, role=Role.POLICY_TRAINING)
        return engine.sample(full, BANK).images

    teacher, real = drawn(40), mixture().draw(100, torch.Generator().manual_seed(1))
    return Ground(pixels, pixels(real), teacher, pixels(teacher), drawn(1), PRICES)


def core_of(ground: Ground, num_rows: int, reward: dict[str, float]) -> StepDropCore:
    process = DiffusionProcess(mixture(), DDIM(), num_rows=num_rows, seed=0, role=Role.POLICY_TRAINING)
    quality = WeightedQuality(reward, ground, num_rows)
    return StepDropCore(process, GRID, quality, num_images=BANK, prices=PRICES)


def test_the_reward_telescopes_alone_and_mixed(ground: Ground) -> None:
    generator = torch.Generator().manual_seed(0)
    for reward in ({"structure": 1.0}, {"structure": 0.5, "log_ratio": 1.0}):
        core = core_of(ground, 6, reward)
        core.seed(core.rows, torch.arange(6))
        for _ in range(2):
            core.begin(core.rows)
            first = core.phi.clone()
            actions = torch.randint(0, 2, (N - 1, 6), generator=generator)
            total = torch.stack([core.step(core.rows, row).reward for row in actions]).sum(0)
            expected = core.phi - first - core.walk.price * actions.sum(0)
            torch.testing.assert_close(total, expected, rtol=0, atol=1e-12)


def test_the_full_trajectory_gains_one(ground: Ground) -> None:
    quality, rows = WeightedQuality({"structure": 1.0}, ground, BANK), torch.arange(BANK)
    quality.begin(rows, rows, torch.full((BANK,), 0.05))
    start, end = quality.score(rows, ground.first), quality.score(rows, ground.teacher)
    torch.testing.assert_close(end, torch.zeros(BANK), rtol=0, atol=1e-5)
    assert float((end - start).mean()) == pytest.approx(1.0, abs=1e-5)


def ssim(x: np.ndarray, y: np.ndarray, side: int) -> float:
    """The textbook's: window by window, in float64."""
    x, y = (x + 1) / 2, (y + 1) / 2
    values = []
    for image_x, image_y in zip(x, y, strict=True):  # channels
        for i in range(x.shape[1] - side + 1):
            for j in range(x.shape[2] - side + 1):
                a, b = (image[i : i + side, j : j + side].ravel() for image in (image_x, image_y))
                ((vaa, vab), (_, vbb)) = np.cov(a, b, bias=True)
                luminance = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
                values.append(luminance * (2 * vab + 9e-4) / (vaa + vbb + 9e-4))
    return float(np.mean(values))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 9, 8)], ids=["one window", "windows"])
def test_structure_is_the_textbooks_ssim(ground: Ground, shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(4)
    teacher, x0 = (torch.rand(2, 5, *shape, generator=generator) * 2 - 1).unbind()
    other = dataclasses.replace(ground, teacher=teacher, first=x0)
    images = torch.tensor([3, 0, 4])
    got = REWARDS.load("structure")(other, 3).score(Candidates(other, torch.arange(3), images, x0[:3]))
    wanted = [ssim(x0[i].numpy(), teacher[images[i]].numpy(), min(7, shape[1])) - 1 for i in range(3)]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float32), rtol=0, atol=1e-5)


# --- the agent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", [1, 2, 5, 7.3])
def test_the_agent_spends_its_budget_in_the_engine(nfe: float) -> None:
    agent = BASELINES.load("chebyshev")(Budget(nfe, 950.0, 30.0, N))
    engine = Engine(denoiser=mixture(), solver=early_noise(), times=GRID, seed=1)
    samples = engine.sample(agent, 20)
    assert samples.nfe.tolist() == [math.ceil(nfe)] * 20
    assert float(samples.times[0]) == 950.0
    assert len(samples.times) == 1 or float(samples.times[-1]) == pytest.approx(30.0)
    assert agent.name == "chebyshev"


@pytest.mark.parametrize("ends", [(950.0, 30.0), (985.3, 99.7), (999.0, 3.0)])
@pytest.mark.parametrize("nfe", [4, 6, 20])
def test_the_agents_longest_jump_is_the_shortest(ends: tuple[float, float], nfe: int) -> None:
    schedule = NoiseSchedule("cosine", 1000)
    longest = {}
    for name in ("chebyshev", "uniform", "quadratic"):
        agent = BASELINES.load(name)(Budget(nfe, *ends, N))
        schedule.check_times(agent.times)
        longest[name] = float(schedule.lam(agent.times).diff().max())
    assert min(longest, key=longest.__getitem__) == "chebyshev"


# --- data set, noise schedule, metric -----------------------------------------------------------


def test_the_data_set_is_read_and_split(tmp_path: Path) -> None:
    images = np.arange(10 * 3 * 2 * 2, dtype=np.uint8).reshape(10, 3, 2, 2)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(10, dtype=np.int32) % 4)
    train, judge = (load(DataConfig(name="own", root=str(tmp_path)), split) for split in ("train", "judge"))
    assert (len(train), len(judge), train.shape, train.num_classes) == (7, 3, (3, 2, 2), 4)
    assert judge.labels.tolist() == [2, 1, 0]
    both = {image.tobytes() for image in torch.cat((train.images, judge.images)).numpy()}
    assert both == {image.tobytes() for image in images}


def test_a_data_set_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for damaged in (None, b"", b"PK\x03\x04 not really", b"text"):
        if damaged is not None:
            (tmp_path / "own.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot read") as caught:
            load(DataConfig(name="own", root=str(tmp_path)), "train")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_the_noise_schedule_is_linear_in_half_log_snr(steps: int) -> None:
    schedule = NoiseSchedule("log_linear", steps)
    t = torch.linspace(0, steps - 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.lam(t), 5 - 10 * t / (steps - 1), rtol=0, atol=1e-9)
    alpha, sigma = (value[[-1, 0]].tolist() for value in schedule.alpha_sigma(t))
    assert alpha[0] == pytest.approx(0.0067, abs=1e-4)  # as little signal at the end …
    assert sigma[1] == pytest.approx(0.0067, abs=1e-4)  # … as noise at the start: 0.7 %


def test_the_metric_counts_classes_among_the_others() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    reference = Reference("hand", features, statistics(features))
    logits = torch.full((40, 10), -30.0)
    logits[torch.arange(40), torch.arange(40) % 4] = 30.0  # four of ten classes, evenly
    values = measure(features, logits, reference)
    assert values["classes"] == pytest.approx(4.0)
    assert {"fd_hand", "kid", "precision", "recall"} < values.keys()
    assert measure(features, torch.zeros(40, 10), reference)["classes"] == pytest.approx(10.0)
