"""Tracking loses nothing: real MLflow databases, a real server that is killed, real killed processes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import stepdrop_rl
from envs.errors import UserError
from stepdrop_rl.tracking import Run, start_run, sync
from stepdrop_rl.tracking.__main__ import main
from stepdrop_rl.tracking.events import (
    Artifact,
    End,
    Header,
    Metrics,
    Params,
    Tags,
    event_line,
    header_line,
    parse_event,
    parse_header,
)
from stepdrop_rl.tracking.mlflow_store import connect

ROOT = Path(stepdrop_rl.__file__).parents[1]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
CONFIG = {"seed": 3, "env": {"price": None, "reward": {"feature": 0.5}, "empty": {}}, "channels": (32, 64)}
EXPERIMENT = "stepdrop_rl"


# --- where the runs go ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once (it takes seconds)."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect()
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    return folder / "mlflow.db"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> Path:
    """The current folder, with an MLflow database of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copyfile(database, tmp_path / "mlflow.db")
    return tmp_path


def runs() -> list[Any]:
    """All runs of the experiment, oldest first."""
    client, _ = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    client, _ = connect()
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def artifacts(run_id: str, folder: Path) -> dict[str, bytes]:
    client, _ = connect()
    root = Path(client.download_artifacts(run_id, "", str(folder)))
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def spools() -> list[Path]:
    return sorted(Path("spool").iterdir()) if Path("spool").is_dir() else []


# --- a run is the same run by either way ------------------------------------------------------------------


def record(mode: str, folder: Path) -> None:
    """A study of a parent with two children, using all that a run can do."""
    from matplotlib.figure import Figure

    (folder / "made/deep").mkdir(parents=True, exist_ok=True)
    (folder / "made/policy.json").write_text("{}")
    (folder / "made/deep/weights.bin").write_bytes(bytes(range(256)))
    with start_run("study", mode=mode, config=CONFIG, tags={"kind": "study"}) as parent:
        for seed in range(2):
            with start_run(f"child {seed}", mode=mode, config={"seed": seed}, parent=parent) as child:
                for step in range(5):
                    child.log_metrics({"loss": 1 / (step + 1), "train/reward": -step}, step)
                scalar: Any = np.float32(0.1)
                child.log_metrics({"numpy": scalar})
                child.log_metrics({"gap": math.nan}, 1)
                child.log_metrics({"gap": -math.inf}, 2)
                child.log_metrics({"gap": math.inf}, 3)
        parent.log_metrics({f"many.{index}": index / 7 for index in range(1500)}, 4)
        parent.log_params({"long": "x" * 7000, **{f"p{index}": index for index in range(230)}})
        parent.set_tags({"kind": "finished study", "bad (name)": "kept"})
        figure = Figure(figsize=(1, 1))
        figure.add_subplot().plot([1, 2], [3, 5])
        parent.log_figure(figure, "figures/curve.png")
        parent.log_dict({"nan": math.nan, "mean": np.float64(0.25), "path": Path("a/b")}, "result.json")
        parent.log_text("# ε\n", "notes/card.md")
        parent.log_artifact(folder / "made/policy.json", "policy")
        parent.log_artifact(folder / "made")
        for step in (0, 10):
            parent.log_image(np.full((8, 12, 3), step / 10), key="samples/grid", step=step)


def described(run: Any, folder: Path) -> dict[str, Any]:
    """All that MLflow knows of a run, less what differs between any two runs."""
    client, _ = connect()

    def stable(name: str) -> str:
        return re.sub(r"timestamp\+\d+\+[0-9a-f-]{36}", "T", name)

    parent = run.data.tags.get("mlflow.parentRunId")
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "ended": run.info.end_time >= run.info.start_time,
        "params": run.data.params,
        "tags": {k: v for k, v in run.data.tags.items() if k not in ("stepdrop_rl.id", "mlflow.parentRunId")},
        "parent": client.get_run(parent).info.run_name if parent else None,
        # repr: NaN is not itself
        "metrics": {key: repr(history(run.info.run_id, key)) for key in sorted(run.data.metrics)[:20]},
        "last": {key: repr(value) for key, value in run.data.metrics.items()},
        "artifacts": {stable(name): data for name, data in artifacts(run.info.run_id, folder).items()},
    }


def test_offline_and_sync_equals_mlflow(
    here: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    record("mlflow", here)
    assert not spools()
    direct = runs()
    record("offline", here)
    assert len(runs()) == len(direct) == 3
    assert len(spools()) == 3
    assert main(["sync", "spool"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    synced = runs()[3:]
    out = tmp_path_factory.mktemp("artifacts")
    for number, (one, other) in enumerate(zip(direct, synced, strict=True)):
        folders = [out / f"{number}{side}" for side in "ab"]
        for folder in folders:
            folder.mkdir()
        assert described(one, folders[0]) == described(other, folders[1])

    parent, child = synced[0], synced[1]
    assert parent.data.params["env.price"] == "None"
    assert parent.data.params["env.reward.feature"] == "0.5"
    assert len(parent.data.params["long"]) == 6000
    assert parent.data.metrics["many.1499"] == 1499 / 7
    assert parent.data.tags["kind"] == "finished study"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert history(child.info.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(5)]
    gaps = [value for _, value in history(child.info.run_id, "gap")]
    assert math.isnan(gaps[0])
    assert gaps[1] <= -sys.float_info.max
    assert gaps[2] >= sys.float_info.max
    files = artifacts(parent.info.run_id, out)
    assert yaml.safe_load(files["config.yaml"]) == {**CONFIG, "channels": [32, 64]}
    assert json.loads(files["result.json"]) == {"nan": None, "mean": 0.25, "path": "a/b"}
    assert files["made/deep/weights.bin"] == bytes(range(256))
    assert files["policy/policy.json"] == b"{}"
    # The times are those of the measurement, not of the sync.
    (spool,) = Path("spool").glob("*-child-0-*")
    lines = [json.loads(line) for line in (spool / "run.jsonl").read_text().splitlines()]
    client, _ = connect()
    times = [metric.timestamp for metric in client.get_metric_history(child.info.run_id, "loss")]
    assert sorted(times) == [line["time"] for line in lines if "loss" in line.get("values", {})]
    assert child.info.start_time == lines[0]["start_time"]
    assert child.info.end_time == lines[-1]["time"]


def test_images_are_named_and_scaled_as_mlflow_does(here: Path, tmp_path_factory: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with start_run("ours", mode="mlflow") as run:
        run.log_image(pixels, key="a/b c", step=7)
        client, _ = connect()
        theirs = client.create_run("0").info.run_id
        client.log_image(theirs, pixels, key="a/b c", step=7)
        seen = []
        for number, run_id in enumerate((run.id, theirs)):
            files = artifacts(run_id, tmp_path_factory.mktemp(f"images{number}"))
            seen.append({re.sub(r"\d{13}\+[0-9a-f-]{36}", "T", name): data for name, data in files.items()})
            assert client.get_run(run_id).data.tags["mlflow.loggedImages"] == "True"
        assert seen[0] == seen[1]
        assert len(seen[0]) == 2


# --- sync -------------------------------------------------------------------------------------------------


def offline_run(steps: int, name: str = "run") -> Path:
    with start_run(name, mode="offline", config={"a": 1}) as run:
        for step in range(steps):
            run.log_metrics({"loss": float(step), "other": 0.0}, step)
        run.log_text("text", "a.txt")
        run.log_metrics({"loss": -1.0}, steps)
    return Path("spool", run.id)


def test_a_spool_is_imported_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = offline_run(3)
    expected = [*((step, float(step)) for step in range(3)), (3, -1.0)]
    assert sync([spool])
    assert f"run {runs()[0].info.run_id}, FINISHED" in capsys.readouterr().out
    assert sync([Path("spool"), spool])
    assert capsys.readouterr().out == f"{spool}: is run {runs()[0].info.run_id} already\n"
    (spool / "synced.json").unlink()  # a mark that is lost does no harm either
    assert sync([spool])
    (run,) = runs()
    assert history(run.info.run_id, "loss") == expected


def test_a_sync_killed_anywhere_is_finished(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepdrop_rl.tracking import spool as spool_module

    spool = offline_run(1200)  # several batches
    write, crashes = spool_module.write_beside, 0

    def crash(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    # Every point at which something has been sent and the mark does not know it yet.
    while True:
        monkeypatch.setattr(spool_module, "write_beside", crash)
        with pytest.raises(KeyboardInterrupt):
            sync([spool])
        crashes += 1
        calls = 0

        def one_write(path: Path, text: str) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise KeyboardInterrupt
            write(path, text)

        monkeypatch.setattr(spool_module, "write_beside", one_write)
        try:
            sync([spool])
        except KeyboardInterrupt:
            continue
        break
    assert crashes > 5
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert history(run.info.run_id, "loss") == [*((step, float(step)) for step in range(1200)), (1200, -1.0)]


KILLED = """
import sys, time
from stepdrop_rl.tracking import start_run
run = start_run("victim", mode="offline", config={"a": 1})
for step in range(4):
    run.log_metrics({"loss": step}, step)
run.log_text("hello", "hello.txt")
run.log_image([[0.0, 1.0]], key="image", step=1)
print(sorted({"mlflow", "torch", "sqlalchemy"} & set(sys.modules)), flush=True)
time.sleep(60)
"""


def test_a_killed_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "[]\n"  # offline imports nothing heavy
        assert not sync([Path("spool")])
        assert "still at work" in capsys.readouterr().out
        assert not runs()
    finally:
        process.kill()
        process.communicate()
    (spool,) = spools()
    with (spool / "run.jsonl").open("a") as file:
        file.write('{"type": "metrics", "step": 4, "time": 17000')
    assert sync([spool])
    out = capsys.readouterr().out
    assert "KILLED" in out
    assert "last line cut off" in out
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert history(run.info.run_id, "loss") == [(step, float(step)) for step in range(4)]


def test_damage_costs_only_the_damaged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = offline_run(3)
    lines = (spool / "run.jsonl").read_bytes().splitlines(keepends=True)
    lines[4] = b"\xff\x00 nonsense\n"
    (spool / "run.jsonl").write_bytes(b"".join(lines))
    (spool / "artifacts/a.txt").unlink()
    assert sync([spool])
    out = capsys.readouterr().out
    assert "damaged lines skipped: 5" in out
    assert "without their file: 7" in out
    assert len(history(runs()[0].info.run_id, "loss")) == 3
    headless = offline_run(1, "headless")
    (headless / "run.jsonl").write_text("nonsense\n")
    assert main(["sync", str(headless)]) == 1
    assert "first line" in capsys.readouterr().out


def test_a_child_brings_its_parent(here: Path) -> None:
    with (
        start_run("parent", mode="offline") as parent,
        start_run("child", mode="offline", parent=parent) as child,
    ):
        pass
    assert sync([Path("spool", child.id)])
    one, other = sorted(runs(), key=lambda run: str(run.info.run_name))
    assert (one.info.run_name, other.info.run_name) == ("child", "parent")
    assert one.data.tags["mlflow.parentRunId"] == other.info.run_id


# --- MLflow goes away -------------------------------------------------------------------------------------


class Server:
    """A real ``mlflow server`` on its own database."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.start()

    def start(self) -> None:
        command = ["--backend-store-uri", "sqlite:///mlflow.db", "--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *command],
            cwd=self.folder,
            env={**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its workers too
            self.process.wait()


@pytest.fixture(scope="module", autouse=True)
def server(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Started with the module, so that it comes up while other tests run."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(database, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.kill()


def test_a_server_that_dies_loses_nothing(
    here: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.wait()
    parent = start_run("parent", mode="mlflow", config=CONFIG)
    child = start_run("child", mode="mlflow", parent=parent)
    assert server.uri in child.where()
    numbers = {"loss": 0.5, "nan": math.nan, "inf": math.inf}
    for step in range(5):
        child.log_metrics(numbers, step)
    child.log_text("before", "before.txt")
    assert capsys.readouterr() == ("", "")

    server.kill()
    started = time.monotonic()
    for step in range(5, 50):
        child.log_metrics(numbers, step)
    child.log_text("after", "after.txt")
    parent.log_metrics({"best": 1.0}, 50)
    late = start_run("late", mode="mlflow", parent=parent)  # nests under the parent that MLflow knows
    late.log_metrics({"loss": 1.0})
    for run in (late, child, parent):
        run.close()
    assert time.monotonic() - started < 3
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "stopped answering (Connection refused)" in err
    assert "tracking sync" in child.where()
    assert main(["sync", "spool"]) == 2  # still away: one line, nothing touched
    assert len(capsys.readouterr().err.splitlines()) == 1

    server.start()
    server.wait()
    assert main(["sync", "spool"]) == 0
    assert main(["sync", "spool"]) == 0
    assert sorted(run.info.run_name for run in runs()) == ["child", "late", "parent"]
    for key, value in numbers.items():
        stored = history(child.id, key)
        assert [step for step, _ in stored] == list(range(50)), key
        assert all(math.isnan(x) if math.isnan(value) else x >= min(value, 1e308) for _, x in stored), key
    files = artifacts(child.id, tmp_path_factory.mktemp("files"))
    assert files == {"before.txt": b"before", "after.txt": b"after"}
    found = {run.info.run_name: run for run in runs()}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["child"].info.run_id == child.id
    assert found["child"].data.tags["mlflow.parentRunId"] == parent.id
    assert found["late"].data.tags["mlflow.parentRunId"] == parent.id
    assert history(parent.id, "best") == [(50, 1.0)]


def test_a_server_that_hangs_is_waited_for_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # the user's own time-out is kept
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        parent = start_run("parent", mode="mlflow")
        started = time.monotonic()
        child = start_run("child", mode="mlflow", parent=parent)
        for step in range(20):
            child.log_metrics({"loss": 1.0}, step)
        child.close()
        parent.close()
        assert time.monotonic() - started < 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "timed out" in err
    assert "secret" not in err
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync([Path("spool")])
    parent_run, child_run = sorted(runs(), key=lambda run: str(run.info.run_name), reverse=True)
    assert child_run.data.tags["mlflow.parentRunId"] == parent_run.info.run_id
    assert len(history(child_run.info.run_id, "loss")) == 20


def test_a_run_deleted_under_way(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client, _ = connect()
    with start_run("deleted", mode="mlflow") as run:
        run.log_metrics({"loss": 0.0}, 0)
        client.delete_run(run.id)
        run.log_metrics({"loss": 1.0}, 1)
        run.log_metrics({"loss": 2.0}, 2)
    with start_run("another", mode="mlflow") as other:  # MLflow itself is there
        pass
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert len(spools()) == 1
    assert other.where().startswith("mlflow ui  (")
    assert main(["sync", "spool"]) == 1
    assert "has been deleted" in capsys.readouterr().out
    client.restore_run(run.id)
    assert main(["sync", "spool"]) == 0
    assert history(run.id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert len(runs()) == 2


STARTER = """
from stepdrop_rl.tracking import start_run
with start_run("first", mode="mlflow") as run:
    run.log_metrics({"loss": 1.0}, 1)
print(run.where())
"""


def test_processes_that_create_the_database_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, "mlflow.db.0badcafe.tmp").write_text("left by a process that was killed at it")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    results = [process.communicate() for process in processes]
    assert [out for out, _ in results] == ["mlflow ui  (then http://127.0.0.1:5000)\n"] * 2
    (line,) = "".join(err for _, err in results).splitlines()  # and no chatter of MLflow's
    assert "creating the MLflow database" in line
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert len(runs()) == 2
    assert {path.name for path in tmp_path.iterdir()} - {"mlruns"} == {"mlflow.db", "mlflow.db.lock"}


# --- a run's own rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (None, "FINISHED")]
)
def test_status(here: Path, error: BaseException | None, status: str) -> None:
    def body(mode: str) -> None:
        with start_run("run", mode=mode):
            if error is not None:
                raise error

    for mode in ("mlflow", "offline"):
        if error is None:
            body(mode)
        else:
            with pytest.raises(type(error)):
                body(mode)
    assert sync([Path("spool")])
    assert [run.info.status for run in runs()] == [status, status]


def test_standard_tags(here: Path) -> None:
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%H"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    with start_run("run", mode="mlflow"):
        pass
    tags = runs()[0].data.tags
    assert tags["mlflow.runName"] == "run"
    assert tags["mlflow.source.name"]
    assert tags.get("mlflow.source.git.commit", commit) == commit


def test_none_records_nothing(here: Path) -> None:
    before = sorted(here.iterdir())
    with start_run("quick", mode="none", config=CONFIG) as run:
        use_everything(run)
    assert (run.id, run.where()) == ("", "")
    with start_run("child", mode="offline", parent=run) as child:
        pass
    header = parse_header(Path("spool", child.id, "run.jsonl").read_text().splitlines()[0])
    assert header.parent_id == ""
    shutil.rmtree("spool")
    assert sorted(here.iterdir()) == before


def use_everything(run: Run) -> None:
    run.log_metrics({"a": 1.0})
    run.log_params({"b": 2})
    run.set_tags({"c": "d"})
    run.log_dict({}, "e.json")
    run.log_text("", "f.md")
    run.log_artifact(__file__)
    run.log_image(np.zeros((2, 2)), key="g", step=0)


def test_what_the_caller_does_wrong(here: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'offline'"):
        start_run("run", mode="ofline")
    run = start_run("run", mode="offline", config={"a": 1})
    run.log_params({"a": "1"})  # the same again is no news
    wrong: list[tuple[type[Exception], Callable[[], None]]] = [
        (ValueError, lambda: run.log_params({"a": 2})),
        (ValueError, lambda: run.log_text("", "../outside.txt")),
        (ValueError, lambda: run.log_text("", "/outside.txt")),
        (FileNotFoundError, lambda: run.log_artifact("nothing")),
        (ValueError, lambda: run.log_image(np.zeros((3, 4, 2)), key="x", step=0)),
    ]
    for error, call in wrong:
        with pytest.raises(error):
            call()
    run.close()
    run.close("FAILED")  # the second does nothing
    with pytest.raises(RuntimeError, match="closed"):
        run.log_metrics({"a": 1.0})
    lines = Path("spool", run.id, "run.jsonl").read_text().splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["start", "params", "artifact", "end"]


def test_a_spool_that_cannot_be_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("spool").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the run to spool"):
        start_run("run", mode="offline")
    client, _ = connect()
    with start_run("run", mode="mlflow") as run:
        client.delete_run(run.id)
        run.log_metrics({"a": 1.0})  # neither MLflow nor a spool: training goes on
        run.log_metrics({"a": 1.0})
    assert "not recorded" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "event",
    [
        Metrics({"a/b": 0.1, "c": math.inf, "d": -math.inf, "e": 1e-320}, 2**40, 1_700_000_000_000),
        Params({"ü": "\n\u2028", "": ""}),
        Tags({"a": "b"}),
        Artifact("images/x.png", Path("there/images/x.png")),
        End("KILLED", 5),
    ],
)
def test_lines_hold_events(event: Any) -> None:
    line = event_line(event)
    assert "\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parse_event(line, Path("there")) == event


def test_lines_that_are_not_events() -> None:
    header = Header(id="i", name="n", experiment="e", start_time=1, tags={"a": "b"}, parent_id="p")
    assert parse_header(header_line(header)) == header
    for line in ("", "[]", "{}", '{"type": "end", "status": "RUNNING", "time": 1}', header_line(header)):
        with pytest.raises(ValueError):
            parse_event(line, Path())
    for line in ("", '{"type": "artifact", "path": "../../etc/passwd"}'):
        with pytest.raises(ValueError):
            parse_event(line, Path())
    with pytest.raises(ValueError):
        parse_header(header_line(header).replace('"schema": 1', '"schema": 99'))


# --- the command ------------------------------------------------------------------------------------------


def test_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["sync"], ["snyc", "x"], ["sync", "nowhere"], ["sync", "."], ["sync", "--all"]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1, arguments
    command = [sys.executable, "-m", "stepdrop_rl.tracking", "--help"]
    answer = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "sync" in answer.stdout
