"""What the commands' tests share: how they are called, and where."""

import importlib

import pytest


def call(name, *argv):
    """The exit code of ``python -m stepdrop_rl.name``."""
    return importlib.import_module(f"stepdrop_rl.{name}").main([str(a) for a in argv])


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own_cache(empty_folder, tmp_path, monkeypatch):
    """Nothing that earlier runs have kept is used, either."""
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path / "cache"))
