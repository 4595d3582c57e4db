"""What happens in a run, as values, and their lines in a spool (one JSON object each).

Times are milliseconds since 1970, as in MLflow. Every event carries its own time, so that one that is played
twice (sent, but its answer lost; a sync that was cut off) is stored once: MLflow keeps one metric of the same
key, step, time and value.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from stepdrop_rl.tracking.values import artifact_path

SCHEMA = 1
Status = Literal["FINISHED", "FAILED", "KILLED"]
STATUSES: tuple[Status, ...] = get_args(Status)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first line of a spool: which run this is.

    ``id`` names the run for ever: it is the spool's folder name and a tag of the MLflow run. ``run_id`` is
    the MLflow run that had been started when the spool took over ("": none), at ``tracking_uri``.
    ``parent_id`` and ``parent_run_id`` are those of the parent.
    """

    id: str
    name: str
    experiment: str
    start_time: int
    tags: dict[str, str] = field(default_factory=dict)
    parent_id: str = ""
    parent_run_id: str = ""
    run_id: str = ""
    tracking_uri: str = ""


@dataclass(frozen=True)
class Metrics:
    """Numbers at a step."""

    values: dict[str, float]
    step: int
    time: int


@dataclass(frozen=True)
class Params:
    """Settings; one that is set stays."""

    values: dict[str, str]


@dataclass(frozen=True)
class Tags:
    """Words that may change."""

    values: dict[str, str]


@dataclass(frozen=True)
class Artifact:
    """A file: its place among the run's artifacts, and where its bytes are while the event is recorded."""

    path: str
    source: Path


@dataclass(frozen=True)
class End:
    """The run is over."""

    status: Status
    time: int


Event = Metrics | Params | Tags | Artifact | End


class Sink(Protocol):
    """Takes the events of one run. ``record`` raises when an event could not be stored."""

    def record(self, event: Event) -> None: ...

    def where(self) -> str:
        """Return a sentence that says how to look at the run."""
        ...


def header_line(header: Header) -> str:
    """Return the first line of a spool."""
    return json.dumps({"type": "start", "schema": SCHEMA, **asdict(header)})


def parse_header(line: str) -> Header:
    """Inverse of :func:`header_line`; ``ValueError`` for anything else."""
    record = _object(line)
    if record.pop("type", None) != "start" or record.pop("schema", None) != SCHEMA:
        raise ValueError(f"not the first line of a spool of schema {SCHEMA}")
    try:
        return Header(**record)
    except TypeError as error:
        raise ValueError(str(error)) from None


def event_line(event: Event) -> str:
    """Return the spool's line for an event. Numbers that JSON lacks become "nan", "inf" and "-inf"."""
    match event:
        case Metrics(values, step, time_):
            numbers = {key: value if math.isfinite(value) else str(value) for key, value in values.items()}
            return json.dumps({"type": "metrics", "step": step, "time": time_, "values": numbers})
        case Params(values):
            return json.dumps({"type": "params", "values": values})
        case Tags(values):
            return json.dumps({"type": "tags", "values": values})
        case Artifact(path, _):
            return json.dumps({"type": "artifact", "path": path})
        case End(status, time_):
            return json.dumps({"type": "end", "status": status, "time": time_})


def parse_event(line: str, artifacts: Path) -> Event:
    """Inverse of :func:`event_line`; ``artifacts`` holds the files. ``ValueError`` for anything else."""
    record = _object(line)
    try:
        match record["type"]:
            case "metrics":
                numbers = {str(key): float(value) for key, value in record["values"].items()}
                return Metrics(numbers, int(record["step"]), int(record["time"]))
            case "params":
                return Params({str(key): str(value) for key, value in record["values"].items()})
            case "tags":
                return Tags({str(key): str(value) for key, value in record["values"].items()})
            case "artifact":
                path = artifact_path(record["path"])
                return Artifact(path, artifacts / path)
            case "end" if record["status"] in STATUSES:
                return End(record["status"], int(record["time"]))
            case _:
                raise ValueError("unknown event")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"incomplete event: {error!r}") from None


def _object(line: str) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record
