"""MLflow while it answers, a spool from then on: no event is lost between the two, and training goes on.

The event at which MLflow fails is the first in the spool. It may have arrived all the same: events carry
their times, and MLflow stores the same one once.
"""

from __future__ import annotations

import dataclasses
import sys

from envs.errors import UserError
from stepdrop_rl.tracking.events import Event, Header, Sink
from stepdrop_rl.tracking.mlflow_run import MlflowSink
from stepdrop_rl.tracking.mlflow_store import connect, create_run, public, reason, refused, target
from stepdrop_rl.tracking.spool import ROOT, SpoolSink

# The MLflows that stopped answering this process. Nothing is sent to them again, so that a study of many runs
# waits for a time-out once, and is told once.
_away: set[str] = set()


class Recorder:
    """Passes events to the sink in charge. A failure never reaches the caller: it is one line on stderr.

    Args:
        header: The run.
        live: Whether to try MLflow; else a spool from the beginning.

    Raises:
        UserError: No spool can be written, when one is needed at the start.
    """

    def __init__(self, header: Header, *, live: bool) -> None:
        self._header = header
        self._target = target() if live else ""
        self._sink: Sink | None = self._start_live() if live and self._target not in _away else None
        if self._sink is None:
            try:
                self._sink = SpoolSink(self._header)
            except OSError as error:
                raise UserError(f"cannot write the run to {ROOT / header.id}: {reason(error)}") from None

    @property
    def run_id(self) -> str:
        """Id of the MLflow run that has been started, "" if none has."""
        return self._header.run_id

    def record(self, event: Event) -> None:
        """Store an event, in MLflow or else in the spool."""
        if isinstance(self._sink, MlflowSink):
            if self._target not in _away:
                try:
                    self._sink.record(event)
                except Exception as error:
                    self._leave_live("stopped answering", error)
                else:
                    return
            self._sink = self._open_spool()
        if self._sink is not None:
            try:
                self._sink.record(event)
            except OSError as error:
                self._give_up(error)

    def where(self) -> str:
        """Return a sentence that says how to look at the run."""
        return self._sink.where() if self._sink is not None else ""

    def _start_live(self) -> MlflowSink | None:
        try:
            client, uri = connect()
            run_id = create_run(client, self._header)
        except Exception as error:
            self._leave_live("cannot be used", error)
            return None
        self._header = dataclasses.replace(self._header, run_id=run_id, tracking_uri=public(uri))
        return MlflowSink(client, uri, run_id)

    def _leave_live(self, what: str, error: Exception) -> None:
        if refused(error):
            what = "refused what was sent to it"  # this run's trouble, not that of others
        else:
            _away.add(self._target)
        print(
            f"tracking: MLflow at {public(self._target)} {what} ({reason(error)}); the run goes on in "
            f"{ROOT / self._header.id}; later: python -m stepdrop_rl.tracking sync {ROOT}",
            file=sys.stderr,
        )

    def _open_spool(self) -> SpoolSink | None:
        try:
            return SpoolSink(self._header)
        except OSError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: OSError) -> None:
        self._sink = None
        print(
            f"tracking: cannot write {ROOT / self._header.id} ({reason(error)}); "
            "the rest of this run is not recorded",
            file=sys.stderr,
        )
