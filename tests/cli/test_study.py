"""``python -m stepdrop_rl.study``: a small one from end to end, what it says and what it refuses."""

import importlib

import pytest

from agents.search import blackbox, mixture
from stepdrop_rl.weights import read_json, write_json

SMALL = {
    "nfe": [3, 4],
    "policies": {
        "ppo": {
            "algo": "ppo",
            "seeds": 2,
            "nfe": [4],
            "train": {
                "decisions": 3000,
                "num_envs": 32,
                "judge_every": 100000,
                "judge_samples": 32,
                "env.bank_size": 64,
                "env.teacher_steps": 8,
                "env.num_decisions": 12,
            },
        }
    },
    "searches": ["xue", "mixture"],
    "baselines": ["uniform", "quadratic*", "bernoulli"],
    "num_samples": 128,
    "blocks": 2,
    "teacher_steps": 12,
    "tracking": "offline",
    "output": "s",
}


def call(name, *argv):
    return importlib.import_module(f"stepdrop_rl.{name}").main([str(a) for a in argv])


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blackbox, "NUM_IMAGES", 64)
    for key, value in {"CANDIDATES": 8, "BEST": 2, "NUM_IMAGES": 256}.items():
        monkeypatch.setattr(mixture, key, value)


def options(**changes):
    write_json("study.json", SMALL | changes)  # JSON is YAML
    return ["--config", "study.json", "--json", "r.json"]


def test_a_study_is_done_told_and_not_done_again(capsys, tmp_path):
    assert call("study", *options(), "--plan") == 0
    plan = capsys.readouterr().out
    assert "train: 2 of 2 jobs left" in plan
    assert "search: 4 of 4 jobs left" in plan
    assert not (tmp_path / "s").exists()

    # Cut off at once, then taken up.
    assert call("study", *options(), "--max-minutes", 0) == 0
    assert "jobs are left: the same command goes on" in capsys.readouterr().out
    assert call("study", *options()) == 0
    out = capsys.readouterr().out
    record = read_json("r.json")
    told = {(r["name"], r["nfe"], r["seed"], r["control"]) for r in record["results"]}
    told |= {tuple(line.split(" at ")[:1]) for line in record["unreachable"]}
    assert {("full", 12, 0, None), ("uniform", 3, 0, None), ("mixture", 4, 0, None)} <= told
    policies = [r for r in record["results"] if r["name"] == "ppo"]
    assert {r["nfe"] for r in policies} <= {4}
    if ("ppo", 4, 0, None) in told:
        assert {("ppo", 4, 0, c) for c in ("mean_schedule", "shuffled", "dealt", "coins")} <= told
        assert "claim A" in out
        assert "claim B" in out
        assert all(r["nfe_mean"] <= 4.2 for r in policies if r["control"] != "mode")
        assert record["claim_a"][0]["rival"] in ("uniform", "quadratic*", "xue", "bernoulli")
    html, text = (tmp_path / "s" / f"report.{kind}" for kind in ("html", "md"))
    assert "data:image/png;base64," in html.read_text()
    assert "src=" in html.read_text()
    assert "http" not in html.read_text()
    assert "| uniform |" in text.read_text()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "results").iterdir()}
    assert call("study", *options()) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "results").iterdir()} == before
    assert call("study", *options(num_samples=64)) == 0
    assert read_json("s/results/uniform-multistep-3-0.json")["fingerprint"] not in map(str, before)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"searches": ["git"]}, "did you mean 'gits'"),
        ({"baselines": ["unifrom*"]}, "did you mean 'uniform'"),
        ({"policies": {"ppo": {"sedes": 3}}}, "knows algo, seeds, nfe and train"),
        ({"policies": {"pppo": {}}}, "did you mean 'ppo'"),
        ({"controls": ["mod"]}, "unknown control 'mod'"),
        ({"blind": ["mixtur"]}, "did you mean 'mixture'"),
        ({"num_samples": 129}, "must be a multiple of blocks"),
    ],
)
def test_wrong_settings_are_said_before_anything_is_done(capsys, tmp_path, changes, said):
    assert call("study", *options(**changes)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()
