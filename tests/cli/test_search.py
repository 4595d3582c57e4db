"""``python -m stepdrop_rl.search`` writes schedules that the other commands run."""

import pytest

from agents.search import blackbox, energy, gits, mixture, oss
from stepdrop_rl.weights import read_json, write_json

from .conftest import call, spooled

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
    _, logged = spooled()["search-oss-ddim-3"]
    assert {key: logged[key] for key in ("objective", "evaluations")} == {
        key: schedule[key] for key in ("objective", "evaluations")
    }
    assert logged["seconds"] > 0
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


LIST = "[967.1, 500, 24]"
FILE = {"schema": "stepdrop_rl.schedule/1", "solver": "multistep", "times": [967, 700, 400, 100]}
QUICK = ["--num-samples", 64, "--tracking", "none"]


def test_files_and_lists_are_baselines_at_their_own_cost():
    write_json("s.json", FILE)
    argv = [
        "--policy",
        LIST,
        "--baselines",
        f'[s.json, "{LIST}", uniform]',
        "--blocks",
        2,
        "--teacher",
        "false",
    ]
    argv += ["--solver", "multistep", "--curve", "[]", "--json", "r.json", *QUICK]
    assert call("evaluate", *argv) == 0
    found = [(record["policy"], record["nfe_mean"]) for record in read_json("r.json")["records"]]
    # No file gets a last time of its own, and the policy is not its own baseline.
    assert found == [("3 given times", 3), ("s.json", 4), ("uniform", 3), ("uniform*", 3)]


def test_a_star_asks_for_the_better_end_alone_and_no_teacher_is_drawn_unasked(capsys):
    argv = ["--policy", "uniform", "--target-nfe", 3, "--baselines", "[uniform*]", "--blocks", 2]
    argv += ["--curve", "[]", "--teacher", "false", "--json", "r.json", *QUICK]
    assert call("evaluate", *argv) == 0
    found = read_json("r.json")["records"]
    assert [record["policy"] for record in found] == ["uniform", "uniform*"]
    assert not any(key.startswith("teacher_") for record in found for key in record)
    assert call("evaluate", "--policy", "uniform", "--baselines", "[ppo*]", "--blocks", 2, *QUICK) == 2
    assert "a * is for spacings" in capsys.readouterr().err


def test_the_figure_shows_a_given_baseline_once():
    from stepdrop_rl.arena import make_arena
    from stepdrop_rl.config import EvaluateConfig
    from stepdrop_rl.evaluate import compare, draw_curves

    write_json("s.json", FILE)
    config = EvaluateConfig(
        policy="uniform",
        solver="multistep",
        baselines=["s.json", "log_snr"],
        num_samples=64,
        blocks=2,
        curve=[2, 4],
        tuned=False,
    )
    arena, requested = make_arena(config, blocks=2)
    curves = draw_curves(config, arena, requested, compare(config, arena, requested), 32)
    spent = {name: [nfe for nfe, _ in points] for name, points in curves.items()}
    assert spent["s.json"] == [4]
    assert spent["uniform"] == spent["log_snr"] == [2, 4]


def test_an_oracle_is_refused_by_those_who_draw_and_tells_its_bound(capsys, monkeypatch):
    for key, value in {"GRID": 10, "NUM_IMAGES": 8, "ORACLE_IMAGES": 16}.items():
        monkeypatch.setattr(oss, key, value)
    argv = ["--method", "oss_oracle", "--nfe", 3, "--tracking", "offline", "--output", "o.json"]
    assert call("search", *argv) == 0
    out = capsys.readouterr().out
    found = read_json("o.json")
    assert f"{found['objective']:.6g}, each noise by its own schedule" in out
    assert f"against {found['objective_shared']:.6g}, all of them by the one of oss" in out
    assert "order-1 jumps, for multistep too" in out
    assert 0 < found["objective"] < found["objective_shared"]
    _, logged = spooled()["search-oss_oracle-multistep-3"]
    assert all(logged[key] == found[key] for key in ("objective", "objective_shared", "evaluations"))
    for name, option in (("evaluate", "--policy"), ("sample", "--policy"), ("sampler_table", "--schedules")):
        given = "[o.json]" if option == "--schedules" else "o.json"
        assert call(name, option, given, *QUICK, *(["--blocks", 2] if name == "evaluate" else [])) == 2
        err = capsys.readouterr().err
        assert "a schedule for each of 16 training noises" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "module", "most"), [("oss", oss, 50), ("oss_oracle", oss, 50), ("gits", gits, 61)]
)
def test_more_evaluations_than_points_are_said_before_any_work(capsys, monkeypatch, method, module, most):
    def drawn(*_, **__):
        raise AssertionError("nothing is to be drawn")

    monkeypatch.setattr("stepdrop_rl.search_ground.ModelGround.trajectory", drawn)
    assert call("search", "--method", method, "--nfe", most + 1, "--tracking", "none") == 2
    assert f"nfe must be at most {most}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "setting", "values"),
    [("gits", "clip", ("static", "none")), ("energy", "extractor", ("reward", "joined"))],
)
def test_searches_clip_and_look_as_they_are_told(monkeypatch, capsys, method, setting, values):
    for module, name, small in (
        (gits, "GRID", 12),
        (gits, "NUM_IMAGES", 16),
        (energy, "NUM_TRAINING", 64),
        (energy, "NUM_REAL", 64),
        (energy, "STEPS", 3),
    ):
        monkeypatch.setattr(module, name, small)
    argv = ["--method", method, "--nfe", 3, "--solver", "ddim", "--tracking", "none"]
    objectives = set()
    for value in values:
        assert call("search", *argv, f"--{setting}", value, "--output", f"{value}.json") == 0
        found = read_json(f"{value}.json")
        assert found[setting] == value
        objectives.add(found["objective"])
    assert len(objectives) == len(values)
    assert call("search", *argv, f"--{setting}", "wrong") == 2
    assert values[0] in capsys.readouterr().err


def test_a_search_with_jumps_of_a_lower_order_finds_what_that_orders_own_solver_does(monkeypatch):
    for name, small in (("NUM_TRAINING", 32), ("NUM_REAL", 64), ("STEPS", 2)):
        monkeypatch.setattr(energy, name, small)
    found = {}
    for method, solver in (
        ("energy:order=2", "multistep3"),
        ("energy", "multistep"),
        ("energy", "multistep3"),
    ):
        argv = ["--method", method, "--solver", solver, "--nfe", 4, "--tracking", "none"]
        assert call("search", *argv, "--output", "s.json") == 0
        found[method, solver] = read_json("s.json")
    lower = found["energy:order=2", "multistep3"]
    assert lower["times"] == pytest.approx(found["energy", "multistep"]["times"], rel=1e-5)
    assert lower["times"] != pytest.approx(found["energy", "multistep3"]["times"], rel=1e-5)
    assert (lower["solver"], lower["orders"]) == ("multistep3", [2] * 4)
    assert "orders" not in found["energy", "multistep3"]


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
        (["--method", "energy:order=2"], "multistep has order 2: a search's order must be lower, not 2"),
    ):
        assert call("search", *argv) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
