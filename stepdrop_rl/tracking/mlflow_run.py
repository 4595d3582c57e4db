"""Events to MLflow calls: one call per event, through a client of our own and no global active run.

So parent and children are open side by side. MLflow's SQL stores keep NaN and turn infinities into ±1.8e308.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from stepdrop_rl.tracking.events import Artifact, End, Event, Metrics, Params, Tags
from stepdrop_rl.tracking.mlflow_store import public

MAX_METRICS = 1000  # in one log_batch
MAX_WORDS = 100  # params or tags in one log_batch


class MlflowSink:
    """Sends events to an MLflow run that exists. Whatever MLflow raises passes through."""

    def __init__(self, client: Any, uri: str, run_id: str) -> None:
        self._client = client
        self.uri = public(uri)
        self.run_id = run_id

    def record(self, event: Event) -> None:
        from mlflow.entities import Param, RunTag

        match event:
            case Metrics():
                self.record_metrics([event])
            case Params(values):
                for some in _chunks((Param(key, value) for key, value in values.items()), MAX_WORDS):
                    self._client.log_batch(self.run_id, params=some, synchronous=True)
            case Tags(values):
                for some in _chunks((RunTag(key, value) for key, value in values.items()), MAX_WORDS):
                    self._client.log_batch(self.run_id, tags=some, synchronous=True)
            case Artifact(path, source):
                # MLflow names the file after its source; both end alike.
                folder = str(PurePosixPath(path).parent)
                self._client.log_artifact(self.run_id, str(source), None if folder == "." else folder)
            case End(status, time):
                self._client.set_terminated(self.run_id, status=status, end_time=time)

    def record_metrics(self, events: Sequence[Metrics]) -> None:
        """Send several at once."""
        from mlflow.entities import Metric

        numbers = (
            Metric(key, value, event.time, event.step)
            for event in events
            for key, value in event.values.items()
        )
        for some in _chunks(numbers, MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=some, synchronous=True)

    def where(self) -> str:
        if self.uri.startswith(("http://", "https://")):
            return f"{self.uri}  (run {self.run_id})"
        # mlflow ui looks at ./mlflow.db, whatever MLFLOW_TRACKING_URI says.
        elsewhere = f" --backend-store-uri {self.uri}" if os.environ.get("MLFLOW_TRACKING_URI") else ""
        return f"mlflow ui{elsewhere}  (then http://127.0.0.1:5000)"


def _chunks(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
