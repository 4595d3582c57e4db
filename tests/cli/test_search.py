"""``python -m stepdrop_rl.search`` writes schedules that the other commands run."""

import pytest

from agents.search import blackbox, mixture, oss
from stepdrop_rl.weights import read_json, write_json

from .conftest import call

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_found_schedule_is_evaluated_unrounded(capsys, monkeypatch):
    monkeypatch.setattr(oss, "GRID", 10)
    monkeypatch.setattr(oss, "NUM_IMAGES", 8)
    assert call("search", "--method", "oss", "--nfe", "3", "--solver", "ddim", "--tracking", "offline") == 0
    out = capsys.readouterr().out
    path = "runs/digits/schedules/oss-ddim-3.json"
    assert out.startswith(f"{path}: 967.1, ")
    schedule = read_json(path)
    assert schedule["solver"] == "ddim"
    assert f"{schedule['evaluations']:,} network evaluations" in out
    common = ["--num-samples", 64, "--tracking", "none", "--blocks", 2, "--baselines", "[]", "--curve", "[]"]
    assert call("evaluate", "--policy", path, *common, "--json", "r.json") == 0
    record = read_json("r.json")["records"][0]
    assert (record["policy"], record["solver"], record["nfe_mean"]) == ("oss-ddim-3.json", "ddim", 3)


def test_a_found_mixture_is_evaluated(capsys, monkeypatch):
    monkeypatch.setattr(blackbox, "NUM_IMAGES", 32)
    for key, value in {"CANDIDATES": 8, "BEST": 2, "NUM_IMAGES": 256}.items():
        monkeypatch.setattr(mixture, key, value)
    assert call("search", "--method", "mixture", "--nfe", "3", "--tracking", "none") == 0
    path = "runs/digits/schedules/mixture-multistep-3.json"
    assert "%  967.1, " in capsys.readouterr().out
    common = ["--num-samples", 64, "--tracking", "none", "--blocks", 2, "--baselines", "[]", "--curve", "[]"]
    assert call("evaluate", "--policy", path, *common, "--json", "r.json") == 0
    record = read_json("r.json")["records"][0]
    assert (record["policy"], record["solver"]) == ("mixture-multistep-3.json", "multistep")
    assert 2 <= record["nfe_mean"] <= 3.5
    assert call("evaluate", "--policy", path, "--solver", "ddim", *common) == 2
    assert "was made for solver 'multistep'" in capsys.readouterr().err


def test_times_that_the_network_is_told_are_checked(capsys):
    schedule = {"schema": "stepdrop_rl.schedule/1", "solver": None, "times": [900, 300]}
    for told, said in (([900], "as many numbers as times"), ([900, 2000], r"must lie in [0, 999]")):
        write_json("s.json", schedule | {"network_times": told})
        assert call("sample", "--policy", "s.json", "--num-samples", 2, "--tracking", "none") == 2
        assert said in capsys.readouterr().err


def test_wrong_methods_budgets_and_solvers_are_said(capsys):
    for argv, said in (
        (["--method", "git"], "did you mean 'gits'"),
        (["--nfe", "0"], "nfe must be at least 1"),
        (["--solver", "dim"], "did you mean 'ddim'"),
    ):
        assert call("search", *argv) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
