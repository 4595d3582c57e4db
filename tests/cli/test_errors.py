"""What a person gets wrong: one line on stderr, exit code 2, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stepdrop_rl.cli import COMMANDS
from stepdrop_rl.models.unet import PRETRAINED

from .conftest import call

QUICK = ["--tracking", "none"]
SHIPPED = str(PRETRAINED / "digits" / "policies" / "ppo")
NO_ATTENTION = "[false,false,false,false,false]"


def fails_with_one_line(capsys, name, *argv):
    assert call(name, *argv) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0, error
    assert error.startswith(f"{name}: ")
    return error


@pytest.fixture(autouse=True)
def nothing_half_written(empty_folder, tmp_path):
    yield
    assert not list(tmp_path.rglob("*.tmp"))


HELP = """
import contextlib, io, sys
from stepdrop_rl import {name} as module
shown = io.StringIO()
with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
    module.main(["--help"])
slow = {{"torch", "mlflow", "diffusers", "sklearn", "stable_baselines3", "matplotlib", "scipy"}}
print(shown.getvalue(), "SLOW", sorted(slow & set(sys.modules)))
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_complete_and_loads_nothing_slow(name):
    # under a second because of what it does not import; the clock itself is no test
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(name=name)], capture_output=True, text=True, check=True
    )
    for option in ("--seed", "--device", "--data.name", "--tracking", "--json", "--config"):
        assert option in done.stdout
    assert done.stdout.rstrip().endswith("SLOW []")


@pytest.mark.parametrize(
    "name, argv, expected",
    [
        ("train_policy", ["--env.prise", "1"], "did you mean '--env.price'?"),
        ("train_policy", ["--seed", "x"], "--seed: expected a whole number, got x"),
        ("train_policy", ["--hyperparameters", "abc"], "expected settings, {name: value}, got abc"),
        ("evaluate", ["--target-nfe", "abc"], "--target-nfe: expected a number or null, got abc"),
        ("evaluate", ["--ladder", "{ddim: 1000}"], "--ladder: expected a list, [a, b], got 1000"),
        (
            "evaluate",
            ["--tracking", "foo"],
            "--tracking: expected one of 'mlflow', 'offline', 'none', got foo",
        ),
        ("benchmark", ["--parts", "[speed]", "--contenders", "[ppo2, log_snr]"], "did you mean 'ppo'?"),
        ("train_policy", ["--env.price", "-1"], "must not be negative"),
        ("train_policy", ["--env.num-decisions", "5000"], "larger than the model's T = 1000"),
        ("train_policy", ["--env.solver", "multistp"], "did you mean 'multistep'?"),
        ("train_policy", ["--env.reward", "{witnes: 1}"], "did you mean 'witness'?"),
        ("train_policy", ["--env.reward", "{pixel: -1}"], "give it positive weights"),
        ("train_policy", ["--algo", "pppo"], "did you mean 'ppo'?"),
        ("train_policy", ["--hyperparameters", "{n_epoch: 3}"], "did you mean 'n_epochs'?"),
        ("train_policy", ["--env.num_features", "4000"], "64 channels"),
        ("train_policy", ["--env.features", "decoder"], "need env.num_features"),
        (
            "train_policy",
            ["--env.projection", "encoder", "--env.num_features", "4"],
            "leave env.num_features at 0",
        ),
        ("train_policy", ["--env.target_nfe", "1"], "must lie between 1 and env.num_decisions"),
        (
            "train_policy",
            ["--algo", "qrdqn", "--hyperparameters", "{initial_nfe: 3}"],
            "unknown hyperparameter 'initial_nfe'",
        ),
        ("train_policy", ["--seed", "-1"], "seed must be in"),
        ("train_policy", ["--judge-every", "0"], "judge_every must be positive"),
        ("train_policy", ["--judge-samples", "0"], "judge_samples must be at least 32"),
        ("train_policy", ["--target-nfe", "[]"], "needs budgets"),
        ("train_policy", ["--env.bank-size", "3"], "bank_size must be at least 32"),
        ("train_policy", ["--max-minutes", "-1"], "must not be negative"),
        ("train_policy", ["--hyperparameters", "{n_steps: -1}"], "set env.num_decisions instead"),
        ("train_policy", ["--hyperparameters", "{batch_size: 0}"], "hyperparameters do not fit PPO"),
        ("train_diffusion", ["--checkpoint-every", "0"], "checkpoint_every must be positive"),
        ("train_diffusion", ["--sample-every", "0"], "sample_every must be positive"),
        ("train_diffusion", ["--unet.channels", "[33,64]"], "no network can be made"),
        ("train_diffusion", ["--loss.name", "s2md"], "did you mean 's2dm'?"),
        (
            "train_diffusion",
            ["--data.name", "cifar10", "--data.root", ".", "--data.download", "false"],
            "--data.root",
        ),
        ("train_extractor", ["--batch-size", "0"], "batch_size must be at least 2"),
        ("benchmark", ["--repeats", "0"], "repeats must be positive"),
        ("evaluate", ["--policy", "bernoulli", "--target-nfe", "40"], "can spend at most 24"),
        ("evaluate", ["--policy", "uniform", "--target-nfe", "5000"], "can spend at most 1000"),
        ("evaluate", ["--policy", SHIPPED, "--price", "5"], "knows prices from 0.0004 to 0.12"),
        (
            "evaluate",
            ["--policy", "uniform", "--metrics.extractor", "efficientnet_lite"],
            "did you mean 'efficientnet_lite0' or 'efficientnet_lite2'?",
        ),
        ("train_policy", ["--seed", "one"], "seed"),
        ("train_policy", ["--resume"], "nothing to resume"),
        ("train_policy", ["--data.name", "digit"], "did you mean 'digits'?"),
        ("train_policy", ["--model", "nowhere"], "no model 'nowhere'"),
        ("evaluate", ["--policy", "unifrm"], "did you mean 'uniform'?"),
        ("evaluate", ["--solver", "dimm", "--policy", "uniform"], "did you mean 'ddim'?"),
        ("evaluate", ["--baselines", "[quadratik]"], "did you mean 'quadratic'?"),
        ("evaluate", ["--target-nfe", "0.5"], "target_nfe must be at least 1"),
        ("evaluate", ["--price", "-0.1"], "price must not be negative"),
        ("evaluate", ["--price", "0.1", "--policy", "uniform"], "--price is for learned policies"),
        ("evaluate", ["--num-samples", "7"], "multiple of blocks"),
        ("evaluate", ["--num-samples", "10", "--blocks", "2"], "at least 6 for each of 2 blocks"),
        ("evaluate", ["--policy", "ppo", "--solver", "ddim"], "was trained with solver 'multistep'"),
        ("evaluate", ["--policy", SHIPPED, "--target-nfe", "90"], "out of reach"),
        ("evaluate", ["--policy", "dqn"], "run python -m stepdrop_rl.train_policy --algo dqn"),
        ("train_diffusion", ["--schedule.name", "cosin"], "did you mean 'cosine'?"),
        ("train_diffusion", ["--steps", "0"], "steps must be positive"),
        ("train_diffusion", ["--unet.channels", "[8,8,8,8,8]", "--unet.attention", NO_ATTENTION], "halved"),
        ("train_extractor", ["--role", "critic"], "role"),
        ("sample", ["--num-samples", "0"], "num_samples must be positive"),
        ("benchmark", ["--parts", "[engin]"], "did you mean 'engine'?"),
        ("evaluate", ["nonsense"], "unexpected argument 'nonsense'"),
        ("evaluate", ["--policy"], "--policy needs a value"),
        ("evaluate", ["--config", "absent.yaml"], "cannot read config absent.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(capsys, name, argv, expected):
    assert expected in fails_with_one_line(capsys, name, *argv, *QUICK)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_gpu_is_said(capsys, name):
    import torch

    if torch.cuda.is_available():
        argv = ["--device", f"cuda:{torch.cuda.device_count()}"]
    else:
        argv = ["--device", "cuda"]
    assert "no GPU for --device cuda" in fails_with_one_line(capsys, name, *argv, *QUICK)


def test_config_keys_are_checked(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("evaluate: {num_sample: 5}\n")
    assert "did you mean 'num_samples'?" in fails_with_one_line(capsys, "evaluate", "--config", "c.yaml")
    (tmp_path / "d.yaml").write_text("evaluate: [")
    assert "is not YAML" in fails_with_one_line(capsys, "evaluate", "--config", "d.yaml")


def test_a_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    error = fails_with_one_line(capsys, "train_policy", "--output", "file/below", *QUICK)
    assert "cannot write" in error


def copy_of(folder, to):
    to.mkdir(parents=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("file", ["policy.safetensors", "policy.json"])
def test_a_damaged_policy(capsys, tmp_path, file):
    folder = copy_of(PRETRAINED / "digits" / "policies" / "ppo", tmp_path / "p")
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])
    assert "damaged" in fails_with_one_line(capsys, "evaluate", "--policy", "p", *QUICK)


def test_a_policy_for_another_model(capsys, tmp_path):
    folder = copy_of(PRETRAINED / "digits" / "policies" / "ppo", tmp_path / "p")
    raw = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(raw | {"model_hash": "0" * 16}))
    assert "trained for another model" in fails_with_one_line(capsys, "evaluate", "--policy", "p", *QUICK)


def test_a_damaged_model(capsys, tmp_path):
    folder = copy_of(PRETRAINED / "digits" / "unet", tmp_path / "m")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    error = fails_with_one_line(capsys, "sample", "--model", "m", "--policy", "uniform", *QUICK)
    assert "cannot load the network" in error
    assert not Path("samples.png").exists()


@pytest.mark.parametrize("name, file", [("train_policy", "state"), ("train_diffusion", "checkpoint")])
def test_a_damaged_checkpoint(capsys, tmp_path, name, file):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{file}.json").write_text('{"content_hash": "0"}')
    (tmp_path / "run" / f"{file}.safetensors").write_bytes(b"\x10")
    error = fails_with_one_line(capsys, name, "--output", "run", "--resume", *QUICK)
    assert "damaged" in error
    assert f"{file}.safetensors" in error


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "damaged"),
        ('{"schema": "stepdrop_rl.schedule/1", "times": [10, 20]}', "must descend"),
        ('{"schema": "stepdrop_rl.schedule/1", "times": [2000, 20]}', "must lie in"),
        ('{"schema": "other", "times": [20, 10]}', "schema"),
    ],
)
def test_a_wrong_schedule_file(capsys, tmp_path, text, expected):
    (tmp_path / "s.json").write_text(text)
    assert expected in fails_with_one_line(capsys, "sample", "--policy", "s.json", *QUICK)
