"""Spools into MLflow: parents first, each once, an interrupted one finished.

``synced.json`` in a spool says which MLflow run it is and how many of its lines have arrived. A line that
arrives twice changes nothing (:mod:`stepdrop_rl.tracking.events`), and a run whose creation was cut off is
found again by its tag, so a sync may be killed anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from envs.errors import UserError
from stepdrop_rl.tracking import spool
from stepdrop_rl.tracking.events import Artifact, End, Event, Header, Metrics
from stepdrop_rl.tracking.mlflow_run import MAX_METRICS, MlflowSink
from stepdrop_rl.tracking.mlflow_store import connect, create_run, find_run, public, reason, refused, target

MARK = "synced.json"


@dataclass(frozen=True)
class _Mark:
    """How far a spool has come."""

    run_id: str
    tracking_uri: str
    lines: int = 1  # those that are done with, the header included
    done: bool = False
    skipped: list[int] = field(default_factory=list)  # lines that MLflow refused or whose file is gone

    def write(self, folder: Path) -> None:
        spool.write_beside(folder / MARK, json.dumps(asdict(self), indent=2) + "\n")


class _LeftError(Exception):
    """A spool cannot be brought in (yet); the message says why."""


def sync(paths: Iterable[Path], report: Callable[[str], None] = print) -> bool:
    """Bring spools into MLflow, telling of each in one line; False if any was left behind.

    Args:
        paths: Spools, or folders of spools.
        report: Takes the lines.

    Raises:
        UserError: A path holds no spool, or MLflow cannot be reached (any more).
    """
    folders: dict[Path, None] = {}
    for path in paths:
        found = spool.find(path)
        if not found:
            raise UserError(f"{path} is not a spool and holds none" if path.is_dir() else f"no folder {path}")
        folders |= dict.fromkeys(found)
    try:
        client, uri = connect()
    except Exception as error:
        raise _unreachable(error) from error
    _probe(client)
    complete = True
    for folder in _parents_first(folders):
        try:
            report(f"{folder}: {_sync_one(folder, client, uri)}")
        except _LeftError as why:
            complete = False
            report(f"{folder}: left: {why}")
        except Exception as error:
            complete = False
            report(f"{folder}: left: {reason(error)}")
            _probe(client)  # is it this spool, or is MLflow gone?
    return complete


def _probe(client: Any) -> None:
    """Raise :class:`UserError` unless MLflow answers."""
    try:
        client.get_experiment("0")
    except Exception as error:
        if not refused(error):
            raise _unreachable(error) from error


def _unreachable(error: Exception) -> UserError:
    return UserError(f"MLflow at {public(target())} cannot be used ({reason(error)}); sync again later")


def _parents_first(folders: Iterable[Path]) -> Iterator[Path]:
    """Every folder once, a parent (which lies beside its child) before its children."""
    seen: set[Path] = set()
    for folder in folders:
        chain: list[Path] = []
        while folder.resolve() not in seen and (folder / spool.LINES).is_file():
            seen.add(folder.resolve())
            chain.append(folder)
            header = _header(folder)
            if header is None or not header.parent_id:
                break
            folder = folder.parent / header.parent_id
        yield from reversed(chain)


def _header(folder: Path) -> Header | None:
    try:
        return spool.read_header(folder)
    except ValueError:
        return None


def _mark(folder: Path) -> _Mark | None:
    try:
        return _Mark(**json.loads((folder / MARK).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise _LeftError(f"{MARK} is damaged; remove it and sync again") from None


def _sync_one(folder: Path, client: Any, uri: str) -> str:
    """Bring in one spool and return what to say of it."""
    header = _header(folder)
    if header is None:
        raise _LeftError(f"the first line of {spool.LINES} is damaged")
    with spool.held(folder) as free:
        if not free:
            raise _LeftError("its run, or another sync, is still at work; sync again later")
        mark = _mark(folder)
        if mark is not None and mark.done:
            return f"is run {mark.run_id} already"
        notes: list[str] = []
        if mark is None:
            mark = _Mark(_run_of(folder, header, client, notes), public(uri))
            mark.write(folder)
        else:
            _check_run(mark.run_id, mark.tracking_uri, client)
        return _play(folder, MlflowSink(client, uri, mark.run_id), mark, notes)


def _run_of(folder: Path, header: Header, client: Any, notes: list[str]) -> str:
    """Return the id of the MLflow run that the spool goes into, started if need be."""
    if header.run_id:
        _check_run(header.run_id, header.tracking_uri, client)
        return header.run_id
    if run_id := find_run(client, header):
        return run_id
    if header.parent_id and not header.parent_run_id:
        beside = folder.parent / header.parent_id
        parent = _mark(beside)
        if parent is not None:
            header = replace(header, parent_run_id=parent.run_id)
        elif (beside / spool.LINES).is_file():
            raise _LeftError(f"its parent {beside} is not in MLflow yet")
        else:
            notes.append(f"its parent {header.parent_id} is not beside it: it stands alone")
    return create_run(client, header)


def _check_run(run_id: str, tracking_uri: str, client: Any) -> None:
    """Raise unless the run is there and may be written to."""
    try:
        stage = client.get_run(run_id).info.lifecycle_stage
    except Exception as error:
        if not refused(error):
            raise
        raise _LeftError(f"it continues run {run_id} of {tracking_uri}, which is not here") from None
    if stage != "active":
        raise _LeftError(f"it continues run {run_id}, which has been deleted; restore it in MLflow first")


def _play(folder: Path, sink: MlflowSink, mark: _Mark, notes: list[str]) -> str:
    """Send what has not arrived; return what to say."""
    content = spool.read(folder)
    end = next((event for _, event in content.events if isinstance(event, End)), None)
    for batch in _batches((number, event) for number, event in content.events if number > mark.lines):
        bad = _send(batch, sink)
        mark = replace(mark, lines=batch[-1][0], skipped=mark.skipped + bad)
        mark.write(folder)
    if end is None:
        sink.record(End("KILLED", spool.last_change(folder)))
        notes.append("it was killed" + (", its last line cut off" if content.cut_off else ""))
    damaged = content.damaged[: -1 if content.cut_off else None]
    if damaged:
        notes.append(f"damaged lines skipped: {', '.join(map(str, damaged))}")
    if mark.skipped:
        notes.append(f"lines refused by MLflow, or without their file: {', '.join(map(str, mark.skipped))}")
    replace(mark, done=True).write(folder)
    status = end.status if end else "KILLED"
    return f"run {mark.run_id}, {status}, {len(content.events)} events" + "".join(
        f"; {note}" for note in notes
    )


def _batches(events: Iterable[tuple[int, Event]]) -> Iterator[list[tuple[int, Event]]]:
    """Neighbouring metrics together, as many as MLflow takes in one call; all else alone."""
    batch: list[tuple[int, Event]] = []
    size = 0
    for number, event in events:
        weight = max(1, len(event.values)) if isinstance(event, Metrics) else MAX_METRICS
        if batch and size + weight > MAX_METRICS:
            yield batch
            batch, size = [], 0
        batch.append((number, event))
        size += weight
    if batch:
        yield batch


def _send(batch: list[tuple[int, Event]], sink: MlflowSink) -> list[int]:
    """Send a batch; return the lines that MLflow refused, or whose file is gone."""
    first = batch[0][1]
    if isinstance(first, Artifact) and not first.source.is_file():
        return [batch[0][0]]
    try:
        metrics = [event for _, event in batch if isinstance(event, Metrics)]
        if metrics:
            sink.record_metrics(metrics)
        else:
            sink.record(first)
    except Exception as error:
        if not refused(error):
            raise
        if len(batch) > 1:
            return [number for item in batch for number in _send([item], sink)]
        return [batch[0][0]]
    return []
