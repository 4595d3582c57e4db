"""A run as a folder of files: ``spool/<time>-<name>-<random>/`` with ``run.jsonl`` and ``artifacts/``.

``run.jsonl`` holds the header, then one event a line, each written out at once, so that a killed run loses at
most the line it was writing. It is locked while its run lives: a sync can tell a run that was killed from one
that is still at work. ``artifacts/`` is the run's artifact tree.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stepdrop_rl.tracking.events import (
    Artifact,
    End,
    Event,
    Header,
    event_line,
    header_line,
    parse_event,
    parse_header,
)

ROOT = Path("spool")
LINES = "run.jsonl"
ARTIFACTS = "artifacts"


def lock(file: IO[str] | IO[bytes], *, wait: bool = False) -> bool:
    """Take the lock of an open file until it is closed or its process ends; False if another has it."""
    if sys.platform == "win32":
        return True  # no such locks: two writers at once are not noticed
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def write_beside(path: Path, text: str) -> None:
    """Write a small file atomically."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class SpoolSink:
    """Writes a run's events to a new folder under ``root``. Raises ``OSError`` where that fails."""

    def __init__(self, header: Header, root: Path = ROOT) -> None:
        self.root = root
        self.folder = root / header.id
        self._artifacts = (self.folder / ARTIFACTS).absolute()  # the current folder may change
        self._artifacts.mkdir(parents=True)
        beside = self.folder / f".{LINES}.tmp"
        self._file = beside.open("x", encoding="utf-8")
        lock(self._file)  # before anyone can see the file
        self._write(header_line(header))
        beside.replace(self.folder / LINES)  # whoever finds run.jsonl finds its header in it

    def record(self, event: Event) -> None:
        if isinstance(event, Artifact):
            self._keep(event)  # first the file, then the line that speaks of it
        self._write(event_line(event))
        if isinstance(event, End):
            self._file.close()

    def where(self) -> str:
        return f"python -m stepdrop_rl.tracking sync {self.folder}"

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def _keep(self, artifact: Artifact) -> None:
        target = self._artifacts / artifact.path
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{secrets.token_hex(4)}.tmp")
        try:
            shutil.copyfile(artifact.source, beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Spool:
    """A spool as read. ``events`` carry their line numbers (the header is line 1)."""

    events: list[tuple[int, Event]]
    damaged: list[int]  # lines that could not be read
    cut_off: bool  # the last of them is a line that was being written when its run was killed


def find(path: Path) -> list[Path]:
    """Return the spools at ``path``: itself, or those in it, by name."""
    if (path / LINES).is_file():
        return [path]
    return sorted(folder.parent for folder in path.glob(f"*/{LINES}"))


def read_header(folder: Path) -> Header:
    """Return the header of a spool; ``ValueError`` if its first line is damaged."""
    with (folder / LINES).open("rb") as file:
        return parse_header(file.readline().decode())


def read(folder: Path) -> Spool:
    """Read a spool, damaged or not."""
    lines = (folder / LINES).read_bytes().split(b"\n")
    ended = lines[-1] == b""  # every whole line ends with a newline
    if ended:
        lines.pop()
    events: list[tuple[int, Event]] = []
    damaged: list[int] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            events.append((number, parse_event(line.decode(), folder / ARTIFACTS)))
        except ValueError:  # not UTF-8 and not JSON are ValueErrors too
            damaged.append(number)
    return Spool(events, damaged, not ended and damaged[-1:] == [len(lines)])


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold the lock of a spool; yields False if its run, or another sync, has it."""
    with (folder / LINES).open("rb") as file:
        yield lock(file)


def last_change(folder: Path) -> int:
    """Milliseconds since 1970 when the spool was last written: the end of a run that was killed."""
    return (folder / LINES).stat().st_mtime_ns // 1_000_000
