"""Threads are as many as were measured to be best, and never more than there are."""

import pytest
import torch

from stepdrop_rl.benchmarks.cpu import measure_cpu
from stepdrop_rl.config import BenchmarkConfig
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.threads import keep_threads
from stepdrop_rl.weights import read_json


@pytest.fixture
def four_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("kept", "used"), [(1, 1), (3, 3), (8, 4), (0, 4), ("many", 4)])
def test_a_model_is_called_with_as_many_as_were_best(four_threads, kept, used):
    load_model("digits")
    assert torch.get_num_threads() == 4
    keep_threads(load_model("digits").hash, kept)
    load_model("digits")
    assert torch.get_num_threads() == used


def test_the_benchmark_keeps_the_best(four_threads, tmp_path):
    torch.set_num_threads(2)
    rows = measure_cpu(BenchmarkConfig(repeats=1, batch_size=8, device="cpu"))
    mine = {row["what"]: row["ratio"] for row in rows if row["what"].startswith("float32")}
    best = max(mine, key=lambda what: mine[what])
    (file,) = (tmp_path / "threads").iterdir()
    assert read_json(file)["threads"] == int(best.split()[1])
