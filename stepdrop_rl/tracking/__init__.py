"""Where runs are recorded: MLflow, a spool of files, or nowhere. Nothing else in the project talks to MLflow.

A :class:`Run` turns every call into an event; a sink takes events. The MLflow sink sends them off; the spool
appends them to a file; a run whose MLflow stops answering goes on in a spool, and
``python -m stepdrop_rl.tracking sync DIR`` plays spools into MLflow through that same MLflow sink. Importing
this package imports neither MLflow nor torch; a run that is not sent to MLflow never does.

    events.py       what happens in a run; its JSON line
    values.py       names, parameters, images in the form that every MLflow takes
    run.py          Run, start_run
    recorder.py     from MLflow to the spool when MLflow fails, with one warning
    spool.py        the folder: run.jsonl, artifacts/, lock
    mlflow_run.py   events to MLflow calls
    mlflow_store.py reaching MLflow: environment, database, experiment, run
    sync.py         spools to MLflow
"""

from stepdrop_rl.tracking.run import MODES, Run, start_run
from stepdrop_rl.tracking.sync import sync

__all__ = ["MODES", "Run", "start_run", "sync"]
