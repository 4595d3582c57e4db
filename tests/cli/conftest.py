"""What the commands' tests share: how they are called, and where."""

import importlib
import json
from pathlib import Path

import pytest


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


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own_cache(empty_folder, tmp_path, monkeypatch):
    """Nothing that earlier runs have kept is used, either."""
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path / "cache"))
