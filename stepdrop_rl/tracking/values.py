"""Names, settings and images in a form that MLflow takes, made when they are recorded.

So that a name which MLflow would refuse is seen the same way in every mode, and not hours later at a sync.
The limits are MLflow 3's (``mlflow.utils.validation``).
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_NAME = 250
MAX_PARAM = 6000
MAX_TAG = 8000
THUMBNAIL = 256  # pixels, the longer side

IMAGES_TAG = "mlflow.loggedImages"  # makes the UI offer the view of images over steps


def clean_name(name: str) -> str:
    """Return ``name`` with what MLflow refuses in names of metrics, params and tags replaced by ``_``."""
    parts = re.sub(r"[^/\w.\- ]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:MAX_NAME].rstrip("/") or "_"


def artifact_path(name: str) -> str:
    """Return ``name``, a place among a run's artifacts; ``ValueError`` if it leads out of them."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath(".") or "\\" in name:
        raise ValueError(f"not a place among the artifacts: {name!r}")
    return str(path)


def plain(value: Any) -> Any:
    """Return ``value`` in the types of JSON and YAML; NaN and infinity, which JSON lacks, are None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or type(value) in (str, bool, int, float):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the leaves; an empty mapping is a leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def clean_params(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings as dotted params, each cut at MLflow's 6,000 characters."""
    return {clean_name(key): str(value)[:MAX_PARAM] for key, value in flatten(tree)}


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return ``tags`` as MLflow takes them."""
    return {clean_name(key): str(value)[:MAX_TAG] for key, value in tags.items()}


def to_image(image: Any) -> Image:
    """Return a PIL image: one already, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    Integers are 0..255, other numbers 0..1; what lies outside is clipped.
    """
    import numpy as np
    import PIL.Image

    if isinstance(image, PIL.Image.Image):
        return image
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(f"not an image: shape {array.shape}; give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if not np.issubdtype(array.dtype, np.integer):
        array = np.rint(np.nan_to_num(array.astype(np.float64)) * 255)
    return PIL.Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def thumbnail(image: Image) -> Image:
    """Return ``image`` scaled to a longer side of 256 pixels, as MLflow's grid of images shows it."""
    scale = THUMBNAIL / max(image.size)
    width, height = (max(1, int(side * scale)) for side in image.size)
    return image.resize((width, height))


def image_stem(key: str, step: int, time: int) -> str:
    """Return the artifact name, less its ending, by which MLflow's UI knows key and step of an image.

    This is what ``MlflowClient.log_image`` writes (beside it a thumbnail, ``+compressed.webp``). It is made
    here because a spool is written without MLflow, and a name drawn once makes a second play harmless.
    """
    safe = re.sub(r"[^\w\-. ]", "~", key)
    return f"images/{safe}+step+{step}+timestamp+{time}+{uuid.uuid4()}"
