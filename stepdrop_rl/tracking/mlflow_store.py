"""Reaching MLflow: the environment of its client, its database, an experiment and a run.

MLflow's own rules say where that is: ``MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db`` in the current
folder, with artifacts in ``./mlruns/``.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from stepdrop_rl.tracking.events import Header
from stepdrop_rl.tracking.spool import lock

ID_TAG = "stepdrop_rl.id"  # names our run even where the answer to its creation was lost
PARENT_ID_TAG = "stepdrop_rl.parent_id"  # names the parent where MLflow does not have it
PARENT_TAG = "mlflow.parentRunId"

# Defaults for this process; what the user has set stays. MLflow's own time-out and retries would hold up
# training for minutes. One retry, made at once, covers a connection that the server had closed while idle.
# Failures reach us as exceptions and are told in one line, so that its log of them is not wanted.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
}

# MLflow answered, and the answer is no: it is there, and asking again would not help.
_REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
    "PERMISSION_DENIED",
}


def _client(uri: str | None = None) -> tuple[Any, str]:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # else a line per retry
    if uri is None:
        uri = str(mlflow.get_tracking_uri())
        _create_database(uri)
    return mlflow.MlflowClient(tracking_uri=uri), uri


def connect() -> tuple[Any, str]:
    """Return an ``MlflowClient`` and its tracking URI. Whatever MLflow raises passes through."""
    return _client()


def target() -> str:
    """Return a name of the MLflow that :func:`connect` would reach, without importing it."""
    return os.environ.get("MLFLOW_TRACKING_URI") or str(Path("mlflow.db").absolute())


def _create_database(uri: str) -> None:
    """Create the database of a SQLite URI where it is missing, whole or not at all.

    MLflow's migrations take seconds, crash where two processes run them at once, and leave an unusable file
    where they are killed. So one process makes the database beside its place while the others wait.
    """
    place = uri.partition("?")[0]
    path = _sqlite_path(place)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        lock(file, wait=True)
        if path.exists():
            return
        print(f"tracking: creating the MLflow database {path} (some seconds, only once)", file=sys.stderr)
        for left in path.parent.glob(f"{path.name}.*.tmp"):  # by a process that was killed at it
            left.unlink()
        ending = f".{secrets.token_hex(4)}.tmp"
        beside = path.with_name(path.name + ending)
        try:
            client, _ = _client(place + ending)
            client.get_experiment("0")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite URI; None for another URI or a database in memory."""
    name = urllib.parse.unquote(uri.removeprefix("sqlite:///"))
    return Path(name) if uri.startswith("sqlite:///") and name not in ("", ":memory:") else None


def public(uri: str) -> str:
    """Return ``uri`` without user name and password, fit for files and screens."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def experiment_id(client: Any, name: str) -> str:
    """Return the id of the experiment called ``name``, made if there is none."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except Exception:  # another process may just have made it
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def create_run(client: Any, header: Header) -> str:
    """Start the MLflow run of ``header`` and return its id."""
    tags = {**header.tags, ID_TAG: header.id}
    if header.parent_run_id:
        tags[PARENT_TAG] = header.parent_run_id
    elif header.parent_id:
        tags[PARENT_ID_TAG] = header.parent_id
    run = client.create_run(
        experiment_id(client, header.experiment),
        start_time=header.start_time,
        tags=tags,
        run_name=header.name,
    )
    return str(run.info.run_id)


def find_run(client: Any, header: Header) -> str:
    """Return the id of the MLflow run that has been started for ``header``, "" if there is none."""
    runs = client.search_runs(
        [experiment_id(client, header.experiment)],
        filter_string=f"tags.`{ID_TAG}` = '{header.id}'",
        max_results=1,
    )
    return str(runs[0].info.run_id) if runs else ""


def refused(error: Exception) -> bool:
    """Whether MLflow is there and said no."""
    status = getattr(getattr(error, "response", None), "status_code", None)  # artifacts fail with HTTP's own
    return getattr(error, "error_code", None) in _REFUSALS or status in (400, 403, 404, 413)


def reason(error: BaseException) -> str:
    """Return in a few words why: the innermost system error, since the outer ones wrap it in pages."""
    inner: BaseException = error
    link: BaseException | None = error
    while link is not None:
        inner = link if isinstance(link, OSError) else inner
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    words = " ".join((getattr(inner, "strerror", None) or str(inner)).split())
    return (words if len(words) <= 160 else words[:157] + "...") or type(inner).__name__
