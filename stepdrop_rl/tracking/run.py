"""A run and its start."""

from __future__ import annotations

import json
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

import yaml

from envs.registry import unknown_name
from stepdrop_rl.tracking import values
from stepdrop_rl.tracking.context import standard_tags
from stepdrop_rl.tracking.events import Artifact, End, Event, Header, Metrics, Params, Status, Tags, now
from stepdrop_rl.tracking.recorder import Recorder

if TYPE_CHECKING:
    import os

    from matplotlib.figure import Figure

MODES = ("mlflow", "offline", "none")
EXPERIMENT = "stepdrop_rl"


class Run:
    """One run: what was set, what was measured, what was made. Made by :func:`start_run`.

    As a context manager it closes itself: FINISHED, KILLED after Ctrl-C, FAILED after any other exception.
    Its methods raise only for what the caller did (a file that is not there, a param given two values);
    trouble with MLflow or the spool is one line on stderr.
    """

    def __init__(self, header: Header | None, recorder: Recorder | None) -> None:
        self._header = header
        self._recorder = recorder  # None: nothing is recorded
        self._params: dict[str, str] = {}
        self._closed = False

    @property
    def id(self) -> str:
        """Id of the MLflow run, else of the spool, else ""."""
        return self.mlflow_run_id or self.spool_id

    @property
    def mlflow_run_id(self) -> str:
        """Id of the MLflow run that has been started, "" if none has."""
        return self._recorder.run_id if self._recorder else ""

    @property
    def spool_id(self) -> str:
        """Our own id of the run: the name that its spool has, or would have."""
        return self._header.id if self._header else ""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Store numbers at a step, in one call. NaN and infinity are numbers."""
        if metrics:
            numbers = {values.clean_name(key): float(value) for key, value in metrics.items()}
            self._record(Metrics(numbers, int(step), now()))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Store settings; nested ones get dotted names. ``ValueError`` if one is already something else."""
        cleaned = values.clean_params(params)
        for key, value in cleaned.items():
            if self._params.get(key, value) != value:
                raise ValueError(f"param {key} is {self._params[key]!r} already, it cannot become {value!r}")
        new = {key: value for key, value in cleaned.items() if key not in self._params}
        self._params |= new
        if new:
            self._record(Params(new))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or change tags."""
        if tags:
            self._record(Tags(values.clean_tags(tags)))

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a matplotlib figure as the artifact ``name``, whose ending says the format."""
        self._store(name, lambda path: figure.savefig(path))

    def log_image(self, image: Any, key: str, step: int) -> None:
        """Store an image that MLflow's UI shows over its steps.

        Args:
            image: A PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): integers 0..255, other
                numbers 0..1.
            key: What it shows.
            step: When.
        """
        if self._recorder is None:
            return
        picture = values.to_image(image)
        stem = values.image_stem(key, int(step), now())
        self._store(f"{stem}.png", lambda path: picture.save(path))
        self._store(f"{stem}+compressed.webp", lambda path: values.thumbnail(picture).save(path))
        self.set_tags({values.IMAGES_TAG: "True"})

    def log_artifact(self, path: str | os.PathLike[str], folder: str = "") -> None:
        """Store a file, or a folder with all that is in it, in the artifact folder ``folder``."""
        source = Path(path)
        place = PurePosixPath(folder, source.absolute().name)
        if source.is_dir():
            for file in sorted(item for item in source.rglob("*") if item.is_file()):
                self._record(_artifact(place / file.relative_to(source).as_posix(), file))
        elif source.is_file():
            self._record(_artifact(place, source))
        else:
            raise FileNotFoundError(f"no file {source} to log")

    def log_dict(self, tree: Any, name: str) -> None:
        """Store a nested object as the artifact ``name``: YAML where it ends so, else JSON."""
        if name.endswith((".yaml", ".yml")):
            text = yaml.safe_dump(values.plain(tree), sort_keys=False, allow_unicode=True)
        else:
            text = json.dumps(values.plain(tree), indent=2, ensure_ascii=False) + "\n"
        self.log_text(text, name)

    def log_text(self, text: str, name: str) -> None:
        """Store text (UTF-8) as the artifact ``name``."""
        self._store(name, lambda path: path.write_bytes(text.encode()))

    def close(self, status: Status = "FINISHED") -> None:
        """End the run. A second call does nothing."""
        if not self._closed:
            self._record(End(status, now()))
            self._closed = True

    def where(self) -> str:
        """Return a sentence that says how to look at the run, "" if it is not recorded."""
        return self._recorder.where() if self._recorder else ""

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _record(self, event: Event) -> None:
        if self._closed:
            raise RuntimeError("the run is closed")
        if self._recorder is not None:
            self._recorder.record(event)

    def _store(self, name: str, write: Callable[[Path], object]) -> None:
        """Let ``write`` make a file, and store it as the artifact ``name``."""
        if self._recorder is None:
            return
        with tempfile.TemporaryDirectory(prefix="stepdrop-") as folder:
            source = Path(folder, PurePosixPath(name).name)
            write(source)
            self._record(_artifact(PurePosixPath(name), source))


def _artifact(place: PurePosixPath, source: Path) -> Artifact:
    return Artifact(values.artifact_path(str(place)), source)


def start_run(
    name: str,
    *,
    mode: str,
    config: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    experiment: str = EXPERIMENT,
    parent: Run | None = None,
) -> Run:
    """Start a run.

    Args:
        name: What people call it; it need not be unique.
        mode: mlflow, offline (a spool) or none.
        config: Nested settings: params with dotted names, and whole in the artifact ``config.yaml``.
        tags: Beside the standard ones (who, which command, which commit).
        experiment: MLflow's group of runs that are compared.
        parent: The run that this one is a part of.

    Raises:
        UserError: Unknown mode, or a spool is needed and cannot be written.
    """
    if mode not in MODES:
        raise unknown_name("tracking", mode, MODES)
    if mode == "none":
        return Run(None, None)
    header = Header(
        id=f"{time.strftime('%Y%m%d-%H%M%S')}-{_slug(name)}-{secrets.token_hex(4)}",
        name=name[: values.MAX_NAME],
        experiment=experiment,
        start_time=now(),
        tags=standard_tags() | values.clean_tags(tags or {}),
        parent_id=parent.spool_id if parent else "",
        parent_run_id=parent.mlflow_run_id if parent else "",
    )
    # A child of a run that exists as a spool only has nothing to hang on in MLflow yet.
    orphan = bool(header.parent_id) and not header.parent_run_id
    run = Run(header, Recorder(header, live=mode == "mlflow" and not orphan))
    if config is not None:
        run.log_params(config)
        run.log_dict(config, "config.yaml")
    return run


def _slug(name: str) -> str:
    return re.sub(r"[^\w.\-]+", "-", name, flags=re.ASCII).strip(".-")[:60] or "run"
