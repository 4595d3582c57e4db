"""Two processes under ``accelerate launch`` are one run."""

import subprocess
import sys

import pytest
import torch

from envs.errors import UserError
from stepdrop_rl.parallel import World, join
from stepdrop_rl.weights import load_tensors, read_json

TRAIN = [
    *("--unet.channels", "[8,8]", "--unet.head-dim", "8", "--unet.dropout", "0", "--batch-size", "12"),
    *("--warmup-steps", "2", "--steps", "12", "--choose-ends", "false", "--tracking", "none", "--seed", "5"),
    *("--precision", "float32", "--device", "cpu"),
]


def launch(module, *argv, processes=2, folder):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "--num_cpu_threads_per_process", "1"]
    return subprocess.run(
        [*command, "-m", module, *argv], cwd=folder, capture_output=True, text=True, timeout=300
    )


def test_two_processes_train_the_network_of_one(tmp_path):
    for processes, output in ((1, "one"), (2, "two")):
        done = launch(
            "stepdrop_rl.train_diffusion", *TRAIN, "--output", output, processes=processes, folder=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("12 of 12 steps (complete)") == 1  # one of them speaks
    one, two = (load_tensors(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_parts_are_contiguous_and_complete():
    for total, size in ((12, 2), (13, 4), (2, 3)):
        parts = [list(World(rank, size).share(total)) for rank in range(size)]
        assert [item for part in parts for item in part] == list(range(total))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_variables_that_no_launcher_set_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE"):
        join(torch.device("cpu"))


def test_alone_nothing_is_joined(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join(torch.device("cpu"))
    assert world == World()
    assert world.any(True)
    assert not world.any(False)


def test_two_processes_judge_the_images_of_one(tmp_path):
    argv = ["--policy", "uniform", "--target-nfe", "3", "--baselines", "[quadratic]", "--tuned", "false"]
    argv += [
        "--num-samples",
        "130",
        "--blocks",
        "2",
        "--tracking",
        "none",
        "--device",
        "cpu",
        "--curve",
        "[]",
    ]
    for processes, output in ((1, "one"), (2, "two")):
        done = launch(
            "stepdrop_rl.evaluate", *argv, "--json", f"{output}.json", processes=processes, folder=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("records:") == 1
    one, two = (read_json(tmp_path / f"{name}.json")["records"] for name in ("one", "two"))
    measured = (
        "fd_digits_judge",
        "kid",
        "precision",
        "recall",
        "is_mean",
        "vendi",
        "coverage",
        "teacher_ssim",
    )
    for a, b in zip(one, two, strict=True):
        assert a["num_samples"] == b["num_samples"] == 130
        for name in (*measured, "nfe_mean"):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), name
