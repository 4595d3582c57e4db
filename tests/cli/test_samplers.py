"""Solver references and clipping on the command line: taken everywhere, recorded, refused in one line."""

import json
from pathlib import Path

import pytest
import torch

from stepdrop_rl.interrupt import StopRequest
from stepdrop_rl.weights import load_tensors, load_weights, read_json, save_weights

from .conftest import call

QUICK = ["--tracking", "none", "--data.name", "digits"]


pytestmark = pytest.mark.usefixtures("empty_folder")


def quick(name, *argv):
    return call(name, *argv, *QUICK)


@pytest.mark.parametrize(
    "policy, solver, clip",
    [
        ("target_stochastic", "ddim:eta=1-0", "dynamic"),
        ("target_importance", "ddim:eta=0.5", "none"),
        ("uniform", "ddim:eta=0:early=1", "static"),
    ],
)
def test_samples_record_solver_and_clipping(policy, solver, clip):
    argv = ["--policy", policy, "--solver", solver, "--clip", clip, "--target-nfe", "4", "--num-samples", "8"]
    assert quick("sample", *argv, "--json", "sample.json") == 0
    record = json.loads(Path("sample.json").read_text())
    assert (record["policy"], record["solver"], record["clip"]) == (policy, solver, clip)
    assert record["nfe_mean"] == 4


def test_a_search_and_its_schedule_carry_the_reference(capsys):
    argv = ["--method", "xue", "--nfe", "4", "--solver", "ddim:eta=0.3"]
    assert quick("search", *argv) == 0
    path = Path("runs/digits/schedules/xue-ddim-eta=0.3-4.json")
    assert json.loads(path.read_text())["solver"] == "ddim:eta=0.3"
    assert quick("sample", "--policy", str(path), "--num-samples", "4", "--json", "s.json") == 0
    assert json.loads(Path("s.json").read_text())["solver"] == "ddim:eta=0.3"
    assert quick("sample", "--policy", str(path), "--solver", "ddim", "--num-samples", "4") == 2
    assert "made for solver 'ddim:eta=0.3'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, argv, says",
    [
        ("sample", ["--policy", "uniform", "--solver", "ddim:eta=2"], "not 2"),
        ("evaluate", ["--policy", "uniform", "--solver", "ddim:ata=0.5"], "did you mean 'eta'"),
        ("evaluate", ["--ladder", "{ddim:eta=x: [2]}"], "needs a number or two"),
        ("train_policy", ["--env.solver", "multistep:eta=1"], "takes no settings"),
        ("search", ["--solver", "dim:eta=1"], "did you mean 'ddim'"),
        ("sampler_table", ["--solvers", "[ddim:eta=7]"], "not 7"),
        ("study_training", ["--solver", "ddim:eta=7"], "not 7"),
        ("sample", ["--policy", "uniform", "--clip", "hard"], "clip"),
    ],
)
def test_what_is_refused_ends_with_one_line_and_exit_code_2(capsys, name, argv, says):
    assert quick(name, *argv) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"{name}: ")
    assert "\n" not in error
    assert says in error


TINY = [
    *("--env.bank-size", "64", "--env.teacher-steps", "8", "--env.num-decisions", "6"),
    *("--num-envs", "16", "--decisions", "320", "--judge-every", "160", "--judge-samples", "32"),
]


@pytest.mark.parametrize(
    "algo, solver, hyperparameters",
    [
        ("relaxed", "ddim:eta=0.2", "{batch_size: 8}"),
        ("relaxed", "multistep", "{batch_size: 8}"),
        ("pathwise", "multistep", "{batch_size: 8, min_nfe: 2, max_nfe: 4}"),
        (
            "fork",
            "multistep",
            "{batch_size: 8, min_nfe: 3, max_nfe: 4, left: 1, times_share: 0.4, margin: {4: 0.01}}",
        ),
    ],
)
def test_a_policy_by_gradients_is_learned_resumed_and_drawn_with(algo, solver, hyperparameters, monkeypatch):
    argv = [*TINY, "--algo", algo, "--env.solver", solver, "--env.num-features", "2"]
    argv += ["--hyperparameters", hyperparameters]
    assert quick("train_policy", *argv, "--output", "whole") == 0
    info = json.loads(Path("whole/policy.json").read_text())
    assert (info["algo"], info["solver"]) == (algo, solver)
    looks = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "__bool__", lambda self: next(looks))
        assert quick("train_policy", *argv, "--output", "parts") == 0
    assert read_json(Path("parts/state.json"))["history"][-1]["decisions"] == 160
    assert quick("train_policy", *argv, "--output", "parts", "--resume") == 0
    whole, parts = (load_tensors(Path(folder, "state.safetensors")) for folder in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    argv = ["--policy", "whole", "--num-samples", "64", "--price", "0.02", "--json", "e.json"]
    argv += ["--baselines", "[target_stochastic]", "--blocks", "2", "--curve", "[]", "--tuned", "false"]
    assert quick("evaluate", *argv, "--teacher", "false", "--clip", "dynamic") == 0
    records = json.loads(Path("e.json").read_text())["records"]
    assert [record["policy"] for record in records] == [algo, "target_stochastic"]
    assert {(record["solver"], record["clip"]) for record in records} == {(solver, "dynamic")}


def test_looks_are_kept_by_the_run_that_drew_them_alone(monkeypatch, capsys):
    argv = [*TINY, "--algo", "fork", "--env.solver", "multistep"]
    learned = "{plans: [plan.json], left: 1, looks: 1, updates: 1, margin: %g}"
    plan = ["--method", "xue", "--nfe", "3", "--solver", "multistep", "--output", "plan.json"]
    assert quick("search", *plan) == 0
    assert quick("train_policy", *argv, "--hyperparameters", learned % 0, "--output", "first") == 0
    again = [*argv, "--hyperparameters", learned % 0.1, "--start-from", "first"]
    assert quick("train_policy", *again, "--output", "whole") == 0
    with monkeypatch.context() as patch:
        looks = iter([False, False, True])
        patch.setattr(StopRequest, "__bool__", lambda self: next(looks))
        assert quick("train_policy", *again, "--output", "parts") == 0
    assert quick("train_policy", *again, "--output", "parts", "--resume") == 0
    states = (load_tensors(Path(folder, "state.safetensors")) for folder in ("first", "whole", "parts"))
    first, whole, parts = states
    looks = {name for name in first if name.startswith("looks.")} | {"begun", "inside", "alone"}
    assert whole.keys() == parts.keys() == first.keys() - looks
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    third = [*again, "--start-from", "whole", "--output"]
    assert quick("train_policy", *third, "third") == 0, "from the looks that 'whole' learned from"
    shown = load_tensors(Path("third/state.safetensors"))
    assert torch.equal(shown["dealing.mean"], first["dealing.mean"])
    Path("first/state.safetensors").unlink()
    assert quick("train_policy", *third, "fourth") == 2
    assert "first/state" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_state_of_an_older_version_is_refused(capsys):
    argv = [*TINY, "--algo", "fork", "--hyperparameters", "{min_nfe: 3, max_nfe: 4, left: 1, updates: 2}"]
    argv += ["--env.solver", "multistep", "--output", "old"]
    assert quick("train_policy", *argv) == 0
    tensors, metadata = load_weights(Path("old"), "state")
    del tensors["dealing.mean"]
    save_weights(Path("old"), "state", tensors, metadata)
    assert quick("train_policy", *argv, "--resume") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == "train_policy: cannot resume old: an older version of 'fork' wrote its state"


def test_relaxed_gates_need_a_solver_of_order_1(capsys):
    assert quick("train_policy", *TINY, "--algo", "relaxed", "--hyperparameters", "{gates: relaxed}") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train_policy: ")
    assert "solve by ddim" in error
