"""What the commands' tests share: how they are called, and where."""

import importlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from stepdrop_rl import arena
from stepdrop_rl.config import ScheduleConfig, UNetConfig
from stepdrop_rl.models.unet import ModelInfo, make_network, save_model
from stepdrop_rl.pricing import settled_price


def call(name, *argv):
    """The exit code of ``python -m stepdrop_rl.name``."""
    return importlib.import_module(f"stepdrop_rl.{name}").main([str(a) for a in argv])


def spooled(folder="spool"):
    """Of runs tracked offline here: each one's header and the values of its last metrics, by name."""
    runs = {}
    for file in Path(folder).glob("*/run.jsonl"):
        header, *events = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        metrics = [event["values"] for event in events if event["type"] == "metrics"]
        runs[header["name"]] = (header, metrics[-1] if metrics else {})
    return runs


@pytest.fixture(autouse=True)
def settled_on_few_images(monkeypatch):
    """Prices, tolerances and last times are sought on few images; how well is the subject of tests/rl."""
    monkeypatch.setattr(arena, "TUNING_IMAGES", 64)
    monkeypatch.setattr(arena, "settled_price", partial(settled_price, num_images=128))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A model of digits a quarter as dear as the shipped one, for what asks many images of no quality.

    It has learned nothing; predicting v, its clean images are near x all the same.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "unet"
    network = make_network(UNetConfig(channels=[8, 16], attention=[False, True], head_dim=8), (1, 8, 8))
    info = ModelInfo(
        dataset="digits", prediction="v_prediction", schedule=ScheduleConfig(), t_start=967.1, t_end=23.9
    )
    save_model(folder, network, info)
    return str(folder)


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own_cache(empty_folder, tmp_path, monkeypatch):
    """Nothing that earlier runs have kept is used, either."""
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path / "cache"))
