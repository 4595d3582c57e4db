"""The commands, end to end and for real, in small sizes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepdrop_rl import arena, comparison, policy_training
from stepdrop_rl.benchmarks import pipeline
from stepdrop_rl.interrupt import StopRequest
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.pricing import settled_price
from stepdrop_rl.weights import load_tensors, read_json, write_json

from .conftest import call

TINY_ENV = ["--env.bank-size", "64", "--env.teacher-steps", "8", "--env.num-decisions", "6"]
TINY_POLICY = [
    *TINY_ENV,
    "--num-envs", "16", "--decisions", "240", "--judge-every", "160", "--judge-samples", "32",
    "--hyperparameters", "{batch_size: 40, n_epochs: 2}", "--tracking", "none",
]  # fmt: skip
TINY_DIFFUSION = [
    "--unet.channels", "[8,8]", "--unet.head-dim", "8", "--batch-size", "8", "--warmup-steps", "2",
    "--choose-ends", "false", "--tracking", "none",
]  # fmt: skip

RECORD_FIELDS = {
    *("solver", "dataset", "num_samples", "seed", "nfe_mean", "nfe_std", "fd_digits_judge", "is_mean"),
    *(
        "is_std",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
        "vendi",
        "teacher_mse",
        "teacher_psnr",
        "teacher_ssim",
        "teacher_perceptual",
        "images_per_second",
        "latency_ms_p50",
        "peak_memory_mb",
    ),
    *("gflops_per_image", "device", "git_commit", "mlflow_run_id"),
}


pytestmark = pytest.mark.usefixtures("own_cache")


def equal_tensors(a, b):
    first, second = load_tensors(a), load_tensors(b)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_policy_that_remembers_sees_more_and_is_held_to_a_target(capsys):
    argv = [*TINY_POLICY, "--algo", "recurrent_ppo", "--env.projection", "encoder", "--env.features", "both"]
    assert call("train_policy", *argv, "--env.target-nfe", "3", "--env.reward", "{discriminator: 1}") == 0
    policy = read_json("runs/digits/recurrent_ppo/policy.json")
    assert policy["memory"] > 0
    assert policy["features"] == ["middle", "decoder"]
    assert policy["num_features"] == sum(load_model("digits").denoiser.feature_widths.values())
    assert policy["target_nfe"] == 3
    low, high = policy["prices"]
    assert low == high
    assert "recurrent_ppo: 240 of 240" in capsys.readouterr().out
    argv = ["--policy", "recurrent_ppo", "--num-samples", "8", "--tracking", "none"]
    assert call("sample", *argv, "--price", low) == 0
    assert Path("samples.png").is_file()
    assert call("sample", *argv, "--target-nfe", "4") == 2
    assert "was held to 3 evaluations per image, not 4" in capsys.readouterr().err


@pytest.mark.parametrize("algo", ["trpo", "qrdqn"])
def test_other_algorithms_train_and_draw(algo):
    few = "{n_critic_updates: 2}" if algo == "trpo" else "{learning_starts: 32, batch_size: 16}"
    assert call("train_policy", *TINY_POLICY, "--algo", algo, "--hyperparameters", few) == 0
    argv = ["--policy", algo, "--num-samples", "8", "--tracking", "none", "--price", "0.05"]
    assert call("sample", *argv) == 0


def test_a_schedule_is_cloned_and_learning_goes_on_from_there(capsys):
    times = {"schema": "stepdrop_rl.schedule/1", "solver": "multistep", "times": [960, 600, 300, 60]}
    Path("s.json").write_text(json.dumps(times))
    argv = [*TINY_POLICY, "--tracking", "none"]
    none = ["--algo", "clone", "--hyperparameters", "{experts: []}"]
    assert call("train_policy", *argv, *none) == 2
    assert "cloning needs experts" in capsys.readouterr().err
    few = ["--algo", "clone", "--hyperparameters", "{experts: [s.json]}"]
    assert call("train_policy", *argv, *few) == 0
    assert call("train_policy", *argv, "--start-from", "runs/digits/clone") == 0
    assert call("train_policy", *argv, "--start-from", "runs/digits/clone", "--env.num-decisions", "7") == 2
    assert "on another grid of decisions" in capsys.readouterr().err
    assert call("train_policy", *argv, "--start-from", "nowhere") == 2


def test_train_policy_then_evaluate_then_resume(capsys):
    assert call("train_policy", *TINY_POLICY) == 0
    assert "price → evaluations per image" in capsys.readouterr().out
    folder = Path("runs/digits/ppo")
    policy = read_json(folder / "policy.json")
    for field in ("observation_version", "times", "solver", "model_hash", "price_table", "num_features"):
        assert field in policy
    argv = [
        "--policy",
        "ppo",
        "--price",
        "0.05",
        "--num-samples",
        "60",
        "--blocks",
        "2",
        "--batch-size",
        "32",
    ]
    argv += ["--curve", "[]", "--tracking", "none", "--json", "r.json"]
    assert call("evaluate", *argv) == 0
    table = capsys.readouterr().out
    records = json.loads(Path("r.json").read_text())["records"]
    assert [r["policy"] for r in records] == [
        "ppo",
        "uniform",
        "uniform*",
        "quadratic",
        "quadratic*",
        "log_snr",
        "log_snr*",
        "bernoulli",
        "full",
    ]
    for record in records:
        assert record["policy"] in table
        for field in RECORD_FIELDS:
            assert field in record, field
    assert records[-1]["teacher_mse"] == 0
    # a complete run has nothing left to do, and says what it has
    policy = Path("runs/digits/ppo/policy.safetensors").read_bytes()
    assert call("train_policy", *TINY_POLICY, "--resume") == 0
    assert "240 of 240 decisions" in capsys.readouterr().out
    assert Path("runs/digits/ppo/policy.safetensors").read_bytes() == policy
    assert call("train_policy", *TINY_POLICY, "--decisions", "400", "--resume") == 2
    assert "decisions differ" in capsys.readouterr().err


def test_evaluate_tells_first_and_then_draws_what_it_kept(capsys, monkeypatch):
    monkeypatch.setattr(comparison, "KEPT", 48)  # of a large set the first images alone are held
    argv = ["--policy", "ppo", "--num-samples", "128", "--blocks", "2", "--baselines", "[uniform]"]
    argv += ["--tuned", "false", "--curve", "[4]", "--curve-samples", "32", "--tracking", "offline"]
    assert call("evaluate", *argv) == 0
    out = capsys.readouterr().out
    assert out.index("uniform") < out.index("figures and runs: ")
    drawn = {path.name for path in Path().rglob("*.png")}
    figures = ("evaluation_rates", "samples", "images_by_evaluations", "quality_against_nfe")
    assert drawn >= {f"{name}.png" for name in figures}


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_a_resumed_policy_run_goes_through_the_same_numbers(algo, monkeypatch, capsys):
    argv = [*TINY_POLICY, "--algo", algo, "--judge-every", "80"]
    if algo == "a2c":
        argv += ["--hyperparameters", "{}"]
    assert call("train_policy", *argv, "--output", "whole") == 0
    looks = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "__bool__", lambda self: next(looks))
        assert call("train_policy", *argv, "--output", "parts") == 0
    assert read_json("parts/state.json")["history"][-1]["decisions"] == 80
    assert call("train_policy", *argv, "--output", "parts", "--resume") == 0
    assert equal_tensors("whole/state.safetensors", "parts/state.safetensors")
    assert equal_tensors("whole/policy.safetensors", "parts/policy.safetensors")


def test_a_policy_run_whose_machine_goes_away_goes_on(monkeypatch, capsys):
    argv = [*TINY_POLICY, "--judge-every", "240"]
    assert call("train_policy", *argv, "--output", "whole") == 0
    asked = iter([False, False])
    with monkeypatch.context() as patch:
        patch.setattr(policy_training, "_SAFE", 0.0)
        patch.setattr(StopRequest, "__bool__", lambda self: next(asked))  # and then the machine is gone
        with pytest.raises(StopIteration):
            call("train_policy", *argv, "--output", "parts")
    assert call("train_policy", *argv, "--output", "parts", "--resume") == 0
    assert equal_tensors("whole/policy.safetensors", "parts/policy.safetensors")


def test_dqn_learns_and_acts(capsys):
    argv = [*TINY_POLICY, "--algo", "dqn", "--hyperparameters", "{learning_starts: 32, batch_size: 16}"]
    assert call("train_policy", *argv) == 0
    argv = ["--policy", "dqn", "--price", "0.1", "--num-samples", "16", "--tracking", "none"]
    assert call("sample", *argv) == 0
    assert Path("samples.png").stat().st_size > 0


def test_an_earlier_default_run_is_moved_aside(capsys):
    assert call("train_policy", *TINY_POLICY) == 0
    first = Path("runs/digits/ppo/policy.safetensors").read_bytes()
    assert call("train_policy", *TINY_POLICY, "--seed", "1") == 0
    assert Path("runs/digits/ppo-1/policy.safetensors").read_bytes() == first
    assert call("train_policy", *TINY_POLICY, "--output", "runs/digits/ppo") == 2
    assert "already holds a run" in capsys.readouterr().err


def test_training_diffusion_resumes_to_the_same_weights():
    argv = [*TINY_DIFFUSION, "--steps", "8"]
    assert call("train_diffusion", *argv, "--output", "whole") == 0
    assert (
        call("train_diffusion", *argv, "--output", "parts", "--max-minutes", "0", "--checkpoint-every", "3")
        == 0
    )
    assert read_json("parts/checkpoint.json")["step"] < 8
    assert call("train_diffusion", *argv, "--output", "parts", "--resume") == 0
    assert equal_tensors("whole/checkpoint.safetensors", "parts/checkpoint.safetensors")
    assert call("sample", "--model", "whole/unet", "--policy", "quadratic", "--tracking", "none") == 0


def test_weights_are_written_in_half_precision_and_read_in_full():
    argv = [*TINY_DIFFUSION, "--steps", "3"]
    for name in ("float32", "float16"):
        assert call("train_diffusion", *argv, "--output", name, "--weights", name) == 0
    sizes = [
        Path(n, "unet/diffusion_pytorch_model.safetensors").stat().st_size for n in ("float32", "float16")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    full, half = (load_model(f"{name}/unet").denoiser.network for name in ("float32", "float16"))
    for a, b in zip(full.parameters(), half.parameters(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-6)


def test_ctrl_c_keeps_the_last_step():
    argv = [sys.executable, "-m", "stepdrop_rl.train_diffusion", *TINY_DIFFUSION, "--steps", "100000"]
    process = subprocess.Popen([*argv, "--output", "run", "--checkpoint-every", "5"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not Path("run/checkpoint.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0
    assert "SIGINT" in error
    assert "Traceback" not in error
    assert read_json("run/checkpoint.json")["step"] > 5
    assert Path("run/unet/stepdrop.json").exists()


def test_a_config_file_lies_below_the_command_line(capsys):
    Path("c.yaml").write_text("seed: 3\nsample: {num_samples: 4, target_nfe: 3, output: from_file.png}\n")
    argv = ["--config", "c.yaml", "--policy", "uniform", "--tracking", "none", "--json", "r.json"]
    assert call("sample", *argv, "--target-nfe", "2") == 0
    record = json.loads(Path("r.json").read_text())
    assert record["output"] == "from_file.png"
    assert record["num_samples"] == 4
    assert record["nfe_mean"] == 2


def test_a_folder_takes_as_many_images_as_are_asked_for():
    argv = ["--policy", "bernoulli", "--num-samples", "70", "--tracking", "none", "--json", "r.json"]
    assert call("sample", *argv, "--output", "images") == 0
    assert call("sample", *argv, "--output", "grid.png") == 0
    files = sorted(Path("images").iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(70)]
    record = json.loads(Path("r.json").read_text())
    assert 1 < record["nfe_mean"] < 8
    # The same images, laid out: 9 in a row, each pixel as large as the grid makes it, 2 pixels between them.
    grid = np.asarray(Image.open("grid.png"))[..., 0]
    side = (grid.shape[1] - 2) // 9 - 2
    alone = np.asarray(Image.open(files[10])).repeat(side // 8, 0).repeat(side // 8, 1)
    top, left = 2 + 1 * (side + 2), 2 + 1 * (side + 2)
    assert (grid[top : top + side, left : left + side] == alone).all()
    assert call("sample", *argv, "--output", "grid.jpg") == 2


def test_a_schedule_file_runs_unrounded(capsys):
    times = [900.25, 500.5, 30.125]
    Path("mine.json").write_text(json.dumps({"schema": "stepdrop_rl.schedule/1", "times": times}))
    argv = ["--policy", "mine.json", "--num-samples", "4", "--tracking", "none", "--json", "r.json"]
    assert call("sample", *argv) == 0
    assert json.loads(Path("r.json").read_text())["nfe_mean"] == 3
    assert call("sample", *argv, "--target-nfe", "3") == 0
    assert call("sample", *argv, "--target-nfe", "4") == 2
    assert "mine.json spends 3 evaluations, not 4" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(p.name for p in Path(__file__).parents[2].glob("configs/*.yaml")))
def test_shipped_configs_hold_only_known_keys(name):
    from stepdrop_rl import cli

    path = str(Path(__file__).parents[2] / "configs" / name)
    for command, settings in cli.COMMANDS.items():
        cli.parse(settings, command, ["--config", path])


def test_a_ladder_judges_every_rung_in_a_process_of_its_own(capsys):
    argv = ["--ladder", "{ddim: [2], multistep: [4]}", "--num-samples", "64", "--blocks", "2"]
    assert call("evaluate", *argv, "--json", "ladder.json", "--tracking", "offline") == 0
    records = read_json("ladder.json")["records"]
    assert [(r["solver"], r["nfe_mean"]) for r in records] == [("ddim", 2), ("multistep", 4)]
    assert records[1]["fd_digits_judge"] < records[0]["fd_digits_judge"]
    for record in records:
        assert record["peak_memory_mb"] > 0
        assert record["mlflow_run_id"]
    out = capsys.readouterr().out
    assert "evenly spaced from t = 967.1 to 23.9; 599 real images" in out
    # What the file holds is not drawn again; with other settings it is.
    argv[1] = "{ddim: [2, 3]}"
    assert call("evaluate", *argv, "--json", "ladder.json", "--tracking", "none") == 0
    again = {(r["solver"], r["nfe_mean"]): r for r in read_json("ladder.json")["records"]}
    assert set(again) == {("ddim", 2), ("ddim", 3), ("multistep", 4)}
    assert again["ddim", 2]["images_per_second"] == records[0]["images_per_second"]
    argv[1] = "{ddim: [2]}"
    assert call("evaluate", *argv, "--seed", "1", "--json", "ladder.json", "--tracking", "none") == 0
    held = read_json("ladder.json")
    assert len(held["records"]) == 1
    held["records"][0] |= {"device": "another", "images_per_second": -1.0}
    write_json("ladder.json", held)
    assert call("evaluate", *argv, "--seed", "1", "--json", "ladder.json", "--tracking", "none") == 0
    assert read_json("ladder.json")["records"][0]["images_per_second"] > 0
    assert call("evaluate", "--ladder", "{ddim: [2.5]}") == 2
    assert call("evaluate", "--ladder", "{nobody: [2]}") == 2


def test_the_benchmark_measures_its_parts(capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "PIPELINE_STEPS", 5)  # bfloat16 is slow where a CPU has none
    monkeypatch.setattr(arena, "settled_price", settled_price)  # on as many images as ever: it meets 4.9
    argv = ["--parts", "[cpu, engine, pipeline, training, environment, speed]", "--repeats", "1"]
    argv += ["--num-envs", "4", "--contenders", '["[967.1, 400, 60]", log_snr]']
    argv += ["--batch-size", "8", "--num-samples", "320", "--tracking", "none", "--json", "b.json"]
    assert call("benchmark", *argv) == 0
    parts = json.loads(Path("b.json").read_text())
    assert list(parts) == ["cpu", "engine", "pipeline", "training", "environment", "speed"]
    for rows in parts.values():
        assert all(row["ratio"] > 0 for row in rows)
    assert {row["what"] for row in parts["cpu"]} >= {"float32, 1 thread", "bfloat16, 1 thread"}
    differs = re.fullmatch(
        r"[\d.]+ \(([-+][\d.]+) ± ([\d.]+)\)", parts["pipeline"][1]["distance (bfloat16 − float32, 95 %)"]
    )
    assert differs
    assert abs(float(differs[1])) < 1
    assert parts["engine"][-1]["what"].startswith("ppo, 4.9")
    assert parts["engine"][-1]["slots in use"] > 0.9
    fast, slow = parts["speed"]
    assert (fast["NFE"], fast["ratio"], slow["NFE"]) == (3, 1, 5)
    assert fast["fd_digits_judge"] > slow["fd_digits_judge"] + slow["± fd_digits_judge"]
    assert call("benchmark", "--parts", "[speed]") == 2
    assert "give it contenders" in capsys.readouterr().err
    assert call("benchmark", "--parts", "[engin]") == 2
    assert "did you mean 'engine'" in capsys.readouterr().err
