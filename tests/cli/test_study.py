"""``python -m stepdrop_rl.study``: a small one from end to end, what it says and what it refuses."""

import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from agents.search import blackbox, mixture
from envs.errors import UserError
from stepdrop_rl import arena
from stepdrop_rl.config import StudyConfig
from stepdrop_rl.pricing import settled_price
from stepdrop_rl.studies.plan import Job, cost, effort, jobs, listed, training_of
from stepdrop_rl.weights import read_json, write_json

from .conftest import call

PLAN = {"schema": "stepdrop_rl.schedule/1", "solver": "multistep"}
SMALL = {
    "nfe": [3, 4],
    "policies": {
        "imitator": {
            "algo": "clone",
            "seeds": 2,
            "nfe": [4],
            "train": {
                "decisions": 7680,
                "num_envs": 64,
                "judge_every": 100000,
                "judge_samples": 32,
                "env.bank_size": 64,
                "env.teacher_steps": 8,
                "env.num_decisions": 12,
                "hyperparameters": {"experts": ["dear.json", "cheap.json"]},
            },
        }
    },
    "searches": ["xue", "mixture"],
    "controls": ["mode", "mean_schedule", "dealt", "coins", "shuffled", "shuffled_change"],
    "baselines": ["uniform", "quadratic*", "bernoulli", "cheap.json", "[967, 700.5, 300, 50]"],
    "num_samples": 128,
    "blocks": 2,
    "teacher_steps": 12,
    "tracking": "offline",
    "output": "s",
}


QUICK = {"nfe": [4], "blind": [], "searches": ["xue"], "controls": ["dealt"], "baselines": ["uniform"]}


@pytest.fixture(autouse=True)
def small_work(own_cache, small_model, monkeypatch):
    monkeypatch.setitem(SMALL, "model", small_model)
    monkeypatch.setattr(blackbox, "NUM_IMAGES", 64)
    for key, value in {"CANDIDATES": 8, "BEST": 2, "NUM_IMAGES": 256}.items():
        monkeypatch.setattr(mixture, key, value)


def options(**changes):
    write_json("dear.json", PLAN | {"times": [967, 800, 600, 400, 200, 40]})
    write_json("cheap.json", PLAN | {"times": [967, 500, 60]})
    write_json("study.json", SMALL | changes)  # JSON is YAML
    return ["--config", "study.json", "--json", "r.json"]


def test_a_study_is_done_told_and_not_done_again(capsys, tmp_path):
    assert call("study", *options(), "--plan") == 0
    plan = capsys.readouterr().out
    assert "train: 2 of 2 jobs left" in plan
    assert "  imitator: 2" in plan
    assert "search: 4 of 4 jobs left" in plan
    assert not (tmp_path / "s").exists()

    # Cut off at once, then taken up.
    assert call("study", *options(), "--max-minutes", 0) == 0
    assert "jobs are left: the same command goes on" in capsys.readouterr().out
    # A clone may hold the metadata alone of a training that was cut: it begins anew.
    write_json("s/policies/imitator-multistep-0/state.json", {"settings": {}, "history": []})
    assert call("study", *options()) == 0
    out = capsys.readouterr().out
    record = read_json("r.json")
    told = {(r["name"], r["nfe"], r["seed"], r["control"]) for r in record["results"]}
    assert {("full", 12, 0, None), ("uniform", 3, 0, None), ("mixture", 4, 0, None)} <= told
    assert {("imitator", 4, seed, None) for seed in (0, 1)} <= told
    given = {(name, nfe) for name, nfe, *_ in told if name.endswith("json") or name.startswith("[")}
    assert given == {("cheap.json", 3), ("[967,700.5,300,50]", 4)}  # each at the budget that it spends
    controls = ("mean_schedule", "shuffled", "shuffled_change", "dealt", "coins")
    assert {("imitator", 4, 0, control) for control in controls} <= told
    policies = [r for r in record["results"] if r["name"] == "imitator"]
    assert all(r["nfe"] == 4 for r in policies)
    assert all(3 < r["nfe_mean"] <= 4.2 for r in policies if r["control"] in (None, "dealt", "coins"))
    (a,), (b,) = record["claim_a"], record["claim_b"]
    fixed = {"uniform", "quadratic*", "xue", "bernoulli", "[967,700.5,300,50]", "imitator, mean schedule"}
    mixture = next(r for r in record["results"] if (r["name"], r["nfe"]) == ("mixture", 4))
    assert a["rival"] in fixed | ({"mixture"} if set(mixture["rates"]) <= {0, 1} else set())
    assert b["rival"] in fixed | {"mixture", "imitator, dealt"}
    # Its schedules dealt to others: the same evaluations, and nothing else the same.
    own, dealt = (next(r for r in policies if (r["seed"], r["control"]) == (0, c)) for c in (None, "dealt"))
    assert own["rates"] == dealt["rates"]
    assert own["judges"] != dealt["judges"]
    for letter, claim in (("A", a), ("B", b)):
        assert f"claim {letter} {'holds' if claim['holds'] else 'does not hold'}: imitator at 4" in out
        assert claim["left"] == 0
    spooled = "".join(file.read_text() for file in (tmp_path / "spool").rglob("*.jsonl"))
    assert "claim_a/imitator-multistep/minus_nearest" in spooled
    html, text = (tmp_path / "s" / f"report.{kind}" for kind in ("html", "md"))
    assert "data:image/png;base64," in html.read_text()
    assert "src=" in html.read_text()
    assert "http" not in html.read_text()
    assert "| uniform |" in text.read_text()
    assert "What the policy looks at" in text.read_text()
    assert re.search(r"\| imitator \| multistep \| 4 \| mixture \| [+-]\d+\.\d\d ± ", text.read_text())
    assert "![given imitator-multistep-4-0](given_imitator-multistep-4-0.png)" in text.read_text()
    assert (tmp_path / "s" / "given_imitator-multistep-4-0.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"\| imitator \| multistep \| shuffled change \| – \| [+−-]\d", text.read_text())

    fingerprint = read_json("s/results/uniform-multistep-4-0.json")["fingerprint"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "results").iterdir()}
    assert call("study", *options()) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "results").iterdir()} == before

    # What it made is judged on other noise: nothing is trained or searched, and nothing of it changes.
    again = {"made": "s", "output": "again", "seed": 5, "only": ["imitator", "xue"]}
    assert call("study", *options(**again)) == 0
    assert sorted(path.name for path in (tmp_path / "again").iterdir() if path.is_dir()) == ["results"]
    told = read_json("r.json")["results"]
    assert {r["name"] for r in told} == {"imitator", "xue"}
    assert {r["control"] for r in told if r["name"] == "imitator"} == {None, *SMALL["controls"]}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "results").iterdir()} == before
    first = next(r for r in policies if (r["seed"], r["control"]) == (0, None))
    other = next(r for r in told if (r["name"], r["seed"], r["control"]) == ("imitator", 0, None))
    assert other["judges"] != first["judges"]
    capsys.readouterr()
    for flags in ([], ["--plan"]):
        assert call("study", *options(**again | {"made": "elsewhere"}), *flags) == 2
        assert "elsewhere does not hold what was to be made there: train imitator" in capsys.readouterr().err

    assert call("study", *options(**QUICK, num_samples=64)) == 0
    assert read_json("s/results/uniform-multistep-4-0.json")["fingerprint"] != fingerprint
    capsys.readouterr()

    # What looked through another extractor is to be done anew.
    assert call("study", *options(extractor="joined"), "--plan") == 0
    plan = capsys.readouterr().out
    assert "train: 2 of 2 jobs left" in plan
    assert "search: 4 of 4 jobs left" in plan

    # So is a policy that learned by other hyperparameters; the run that is there is not overwritten.
    learned = {"experts": ["dear.json", "cheap.json"], "n_epochs": 3}
    train = SMALL["policies"]["imitator"]["train"] | {"hyperparameters": learned}
    other = options(policies={"imitator": SMALL["policies"]["imitator"] | {"train": train}})
    assert call("study", *other, "--plan") == 0
    plan = capsys.readouterr().out
    assert "train: 2 of 2 jobs left" in plan
    assert "search: 4 of 4 jobs left" not in plan
    assert call("study", *other) == 2
    said = "s/policies/imitator-multistep-0 holds a run of other settings (hyperparameters differ): remove it"
    assert said in capsys.readouterr().err


def test_several_workers_do_what_one_does(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(arena, "settled_price", settled_price)  # as workers, who are other processes, do
    assert call("study", *options(**QUICK, output="one")) == 0
    one = read_json("r.json")
    assert call("study", *options(**QUICK, output="two"), "--workers", 2) == 0
    err = capsys.readouterr().err
    assert "/10] train imitator, multistep, seed 0" in err
    two = read_json("r.json")
    assert two["claim_a"] == one["claim_a"]
    for ours, theirs in zip(one["results"], two["results"], strict=True):
        for key in ("name", "nfe", "seed", "control", "nfe_mean", "judges"):
            assert ours[key] == theirs[key]
    assert "imitator" in (tmp_path / "two" / "workers.log").read_text()


def test_what_cannot_be_read_is_no_result(capsys, tmp_path, monkeypatch):
    def missing(*_):
        raise UserError("the validation images are not here")

    monkeypatch.setattr(arena.Arena, "tuned", missing)
    quick = QUICK | {"policies": {}, "searches": [], "baselines": ["uniform*"]}
    assert call("study", *options(**quick)) == 2
    assert "the validation images are not here" in capsys.readouterr().err
    assert not list((tmp_path / "s" / "results").glob("uniform*"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_workers_stop_in_good_order_and_go_on(tmp_path):
    policy = SMALL["policies"]["imitator"]
    long = policy | {"train": policy["train"] | {"decisions": 10**8, "judge_every": 1536}}
    argv = options(**QUICK, policies={"imitator": long})
    command = [sys.executable, "-m", "stepdrop_rl.study", *argv, "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for _ in range(2):
            assert "train imitator" in process.stderr.readline()
        folder = tmp_path / "s"
        states = [folder / "policies" / f"imitator-multistep-{seed}" / "state.json" for seed in (0, 1)]
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not all(state.is_file() for state in states):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert all(read_json(state)["history"][-1]["decisions"] < 10**8 for state in states)
    assert (folder / "workers.log").read_text().count("SIGTERM: finishing this step and saving") == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"searches": ["git"]}, "did you mean 'gits'"),
        ({"baselines": ["unifrom*"]}, "did you mean 'uniform'"),
        (
            {"policies": {"ppo": {"sedes": 3}}},
            "nfe, controls, plans, start_from, train and again, not",
        ),
        ({"policies": {"fork": {"plans": "mixtur"}}}, "plans must be of the searches"),
        ({"policies": {"fork": {"plans": 3}}}, "plans must be names of searches"),
        ({"policies": {"fork": {"plans": {4: 3}}}}, "plans must be names of searches"),
        ({"policies": {"fork": {"plans": {"few": "xue"}}}}, "plans must be names of searches"),
        ({"policies": {"fork": {"plans": {4: "mixtur"}}}}, "plans must be of the searches"),
        ({"policies": {"a": {"start_from": "b"}, "b": {}}}, "must be one of those before it: none"),
        ({"policies": {"b": {}, "a": {"start_from": "b", "seeds": 2}}}, "policies.a has more seeds than b"),
        ({"policies": {"pppo": {}}}, "did you mean 'ppo'"),
        ({"controls": ["mod"]}, "unknown control 'mod'"),
        ({"policies": {"ppo": {"controls": ["mod"]}}}, "unknown control 'mod'"),
        ({"policies": {"ppo": {"controls": "mode"}}}, "policies.ppo: controls must be a list of names"),
        ({"policies": {"ppo": {"controls": [3]}}}, "policies.ppo: controls must be a list of names"),
        ({"policies": {"ppo": {"nfe": [4.5]}}}, "policies.ppo: nfe must be some of the study's budgets"),
        ({"policies": {"ppo": {"nfe": 4}}}, "policies.ppo: nfe must be some of the study's budgets"),
        ({"policies": {"ppo": {"train": {"decision": 3}}}}, "decision"),
        ({"policies": {"ppo": {"train": 3}}}, "policies.ppo: train must hold options of train_policy"),
        ({"policies": {"ppo": {"seeds": 2, "again": 3}}}, "policies.ppo: again must hold options of"),
        ({"policies": {"ppo": {"seeds": 2, "again": {"decision": 3}}}}, "decision"),
        ({"policies": {"a b": {"algo": "ppo"}, "a-b": {"algo": "ppo"}}}, "rename one of them"),
        ({"blind": ["mixtur"]}, "did you mean 'mixture'"),
        ({"baselines": ["dear.json"]}, "dear.json spends 6 evaluations, which is none of the budgets"),
        ({"baselines": ["cheap.json*"]}, "a * is for spacings"),
        ({"baselines": ["cheap.json"], "solvers": ["ddim"]}, "was made for solver 'multistep'"),
        ({"searches": ["oss_oracle"]}, "experts to clone"),
        ({"searches": ["energy:order=2"]}, "multistep has order 2: a search's order must be lower"),
        ({"only": ["uniforn"]}, "unknown contender 'uniforn'; did you mean 'uniform'?"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"policies": {"ppo": {"algo": 3}}}, "policies.ppo: algo must be a name"),
        ({"policies": {"ppo": {"seeds": True}}}, "policies.ppo.seeds must be a positive number"),
        ({"policies": {"ppo": {"train": {"seed": 3}}}}, "train may not hold seed: the study sets it"),
        ({"policies": {"ppo": {"again": {"output": "x"}}}}, "again may not hold output: the study sets it"),
        ({"policies": {"ppo": {"train": {"hyperparameters": 3}}}}, "train.hyperparameters must hold names"),
        (
            {"policies": {"fork": {"train": {"hyperparameters": {"plans": ["cheap.json"], "looks": "x"}}}}},
            "looks must be a whole number, not 'x'",
        ),
        (
            {"policies": {"fork": {"train": {"hyperparameters": {"plans": ["cheap.json"], "stretches": 3}}}}},
            "stretches must be a list, not 3",
        ),
        ({"num_samples": 129}, "must be a multiple of blocks"),
    ],
)
def test_wrong_settings_are_said_before_anything_is_done(capsys, tmp_path, changes, said):
    assert call("study", *options(**changes)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_plans_of_a_search_come_before_who_begins_with_them(tmp_path):
    config = StudyConfig(
        policies={"fork": {"plans": "mixture", "nfe": [4, 5.5, 6]}, "ppo": {}},
        searches=["mixture"],
        nfe=[4.0, 5.5, 6.0],
        baselines=[],
        controls=[],
    )
    order = [(job.kind, job.name) for job in jobs(config) if job.kind != "judge"]
    assert order == [("train", "ppo"), ("search", "mixture"), ("search", "mixture"), ("train", "fork")]
    training = training_of(config, Job("train", "fork", "multistep"), tmp_path)
    files = [str(tmp_path / "schedules" / f"mixture-multistep-{nfe}.json") for nfe in (4, 6)]
    assert training.hyperparameters == {"plans": files}


def test_a_policy_may_begin_with_another_search_at_each_budget(tmp_path):
    config = StudyConfig(
        policies={"fork": {"plans": {4: "energy", "6": ["xue", "energy"]}}},
        searches=["energy", "xue"],
        nfe=[4.0, 6.0],
    )
    training = training_of(config, Job("train", "fork", "multistep"), tmp_path)
    files = [
        f"schedules/{name}.json" for name in ("energy-multistep-4", "xue-multistep-6", "energy-multistep-6")
    ]
    assert training.hyperparameters == {"plans": [str(tmp_path / file) for file in files]}


def test_seeds_may_learn_from_what_the_first_one_looked_at(tmp_path):
    entry = {"seeds": 3, "train": {"decisions": 4000}, "again": {"decisions": 2000}}
    config = StudyConfig(policies={"fork": entry}, searches=[], baselines=[], controls=[], nfe=[4.0])
    trainings = [job for job in jobs(config) if job.kind == "train"]
    assert [job.seed for job in trainings] == [0, 1, 2]
    first, *others = [training_of(config, job, tmp_path) for job in trainings]
    assert (first.decisions, first.start_from) == (4000, None)
    for training in others:
        assert training.decisions == 2000
        assert training.start_from == str(tmp_path / "policies" / "fork-multistep-0")

    # Where the first one starts from another policy, the others still start from the first one.
    other = {"algo": "fork", "seeds": 2, "start_from": "fork", "again": {}}
    config = replace(config, policies={"fork": {}, "other": other})
    first, second = (
        training_of(config, Job("train", "other", "multistep", seed=k), tmp_path) for k in (0, 1)
    )
    assert first.start_from == str(tmp_path / "policies" / "fork-multistep-0")
    assert second.start_from == str(tmp_path / "policies" / "other-multistep-0")


def test_contenders_asked_for_alone_bring_what_they_need():
    config = StudyConfig(
        policies={
            "fork": {"plans": "energy", "controls": ["dealt"]},
            "ppo": {},
            "other": {"algo": "fork", "start_from": "fork", "controls": []},
        },
        searches=["energy", "xue"],
        baselines=["uniform", "quadratic"],
        nfe=[4.0],
        only=["other", "quadratic"],
    )
    asked = [(job.kind, job.name) for job in jobs(config)]
    assert asked == [
        ("search", "energy"),
        ("train", "fork"),
        ("train", "other"),
        ("judge", "other"),
        ("judge", "quadratic"),
    ]


def test_jobs_are_listed_by_contender():
    some = [Job("judge", "ppo", "ddim", 4.0, seed) for seed in (0, 1)] + [Job("judge", "ppo", "ddim", 5.5)]
    some += [Job("judge", "ppo", "ddim", 4.0, 0, "mean_schedule"), Job("judge", "xue", "multistep", 6.0)]
    told = ["ppo at 4, 5.5, ddim, seeds 0, 1", "ppo, mean schedule at 4, ddim", "xue at 6, multistep"]
    assert listed(some) == told


def test_a_policy_may_have_controls_of_its_own():
    config = StudyConfig(
        policies={"ppo": {}, "dqn": {"controls": ["mode"]}, "rloo": {"controls": ["shuffled", "coins"]}},
        controls=["dealt"],
        searches=[],
        blind=["rloo"],
        nfe=[4.0],
    )
    judged = [(job.name, job.control) for job in jobs(config) if job.control is not None]
    assert judged == [("ppo", "dealt"), ("dqn", "mode"), ("rloo", "coins")]


def test_a_policy_comes_after_the_one_whose_run_it_starts_from(tmp_path):
    config = StudyConfig(
        policies={
            "fork": {"plans": "energy", "seeds": 2},
            "other": {"algo": "fork", "plans": "energy", "start_from": "fork", "seeds": 2},
        },
        searches=["energy"],
        nfe=[4.0],
        baselines=[],
        controls=[],
    )
    order = [(job.name, job.seed) for job in jobs(config) if job.kind == "train"]
    assert order == [("fork", 0), ("fork", 1), ("other", 0), ("other", 1)]
    training = training_of(config, Job("train", "other", "multistep", seed=1), tmp_path)
    assert training.start_from == str(tmp_path / "policies" / "fork-multistep-1")
    assert training.hyperparameters == {"plans": [str(tmp_path / "schedules" / "energy-multistep-4.json")]}
    searched = cost(config, Job("search", "energy", "multistep", 4.0), tmp_path)
    first, other = (cost(config, Job("train", name, "multistep"), tmp_path) for name in ("fork", "other"))
    assert effort(config, "energy", "multistep", 4.0) == searched
    assert effort(config, "fork", "multistep", 4.0) == first + searched
    assert effort(config, "other", "multistep", 4.0) == other + first + searched
    judged = 7 * training.judge_samples * 6 * (training.decisions // training.judge_every + 1)
    assert cost(config, Job("train", "other", "multistep"), tmp_path) == judged, "what is drawn is drawn once"
    drawn = training.decisions / (training.env.num_decisions - 1) / 2  # the other half learns from them
    calls = 4 + 3 + 9  # as far as the first look, along three ways, along nine
    assert cost(config, Job("train", "fork", "multistep"), tmp_path) == judged + drawn * calls
