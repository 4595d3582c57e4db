"""``python -m stepdrop_rl.train_extractor``: what it writes, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stepdrop_rl.cli import command
from stepdrop_rl.config import DataConfig, TrainExtractorConfig
from stepdrop_rl.data import load
from stepdrop_rl.metrics import load_extractor, training
from stepdrop_rl.train_extractor import run


def _train(*arguments: str) -> int:
    quick = ["--epochs", "2", "--tracking", "none", "--device", "cpu"]
    return command(TrainExtractorConfig, run, "train_extractor", [*quick, *arguments])


pytestmark = pytest.mark.usefixtures("empty_folder")


def test_it_trains_saves_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train("--epochs", "8", "--role", "judge", "--seed", "3", "--json", "out/result.json") == 0
    folder = Path("runs/digits/extractor-judge")
    extractor = load_extractor(folder)
    (record,) = json.loads(Path("out/result.json").read_text())["records"]
    assert record["content_hash"] == extractor.content_hash
    other = load(DataConfig(), "train")
    assert record["accuracy_on_other_split"] == training.accuracy(extractor, other) > 0.5
    assert (record["role"], record["split"], record["seed"]) == ("judge", "judge", 3)
    said = capsys.readouterr().out
    assert "digits_judge" in said
    assert "of the 1,198 images of the other split" in said
    assert sorted(path.name for path in folder.iterdir()) == ["extractor.json", "extractor.safetensors"]


def test_the_seed_and_the_role_decide_everything() -> None:
    torch.manual_seed(0)
    assert _train("--role", "judge", "--output", "a") == 0
    global_state = torch.get_rng_state()
    torch.manual_seed(99)
    assert _train("--role", "judge", "--output", "b") == 0
    assert _train("--role", "judge", "--output", "c", "--seed", "1") == 0
    a, b, c = (load_extractor(f"./{name}") for name in "abc")
    assert a.content_hash == b.content_hash != c.content_hash
    torch.manual_seed(0)
    assert torch.equal(global_state, torch.get_rng_state())  # leaves the caller's random numbers alone


def test_an_earlier_extractor_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert _train("--seed", "0") == 0
    earlier = load_extractor("runs/digits/extractor-judge").content_hash
    assert _train("--seed", "1") == 0
    assert load_extractor("runs/digits/extractor-judge-1").content_hash == earlier
    capsys.readouterr()
    assert _train("--output", "runs/digits/extractor-judge") == 2
    assert "already holds an extractor; choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output", "file/below"], "cannot write into file/below"),
        (["--json", "file/below.json"], "cannot write into file"),
        (["--role", "judges"], "role"),
        (["--data.name", "digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["--epochs", "0"], "epochs must be positive"),
        (["--batch-size", "1"], "batch_size must be at least 2"),
        (["--device", "quantum"], "quantum"),
        (["--widths", "3"], "unknown option '--widths'"),
    ],
)
def test_refusals_are_one_line_before_any_work(
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("file").touch()
    monkeypatch.setattr(training, "augment", lambda *_: pytest.fail("training began"))
    assert _train(*arguments) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if "train_extractor:" in line]
    assert complaint in line
    assert not shown.out
    assert not list(Path().rglob("extractor*.*"))


def test_a_run_is_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert _train("--tracking", "offline") == 0
    (spool,) = Path().rglob("run.jsonl")
    text = spool.read_text()
    assert "accuracy_on_other_split" in text
    assert "extractor.safetensors" in text
    assert "loss" in text


def test_help_is_quick() -> None:
    began = time.perf_counter()
    root = Path(__file__).parents[2]
    words = [sys.executable, "-m", "stepdrop_rl.train_extractor", "--help"]
    shown = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    assert "--role {reward,second,validation,judge}" in shown.stdout
    assert time.perf_counter() - began < 3  # 0.3 s where nothing else runs; torch alone would take as long
    light = "assert not {'torch', 'sklearn', 'mlflow'} & set(sys.modules)"
    code = f"import sys, stepdrop_rl.train_extractor; {light}"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
