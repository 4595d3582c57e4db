"""Files that hold numbers: safetensors and JSON, written atomically, read without ever running code.

A file is written beside its place and moved there when it is whole, so a killed run leaves the old file or
the new one. Whatever cannot be read or written is a :class:`UserError` of one line that names the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from envs.errors import UserError

HASH_DIGITS = 16  # 64 bits: names a model, does not protect against an attacker

PathLike = str | os.PathLike[str]


def _because(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())


def write_bytes(path: PathLike, data: bytes) -> Path:
    """Write ``data`` to ``path`` atomically, making its folder; :class:`UserError` where that fails."""
    path = Path(path)
    # Not tempfile: its files are readable by their owner only, and the mode survives the move.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a crash may keep the name and lose the bytes
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_because(error)}") from error
    return path


def write_text(path: PathLike, text: str) -> Path:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    return write_bytes(path, text.encode())


def _plain(value: Any) -> Any:
    """``value`` in JSON's own types; numbers that JSON lacks (NaN, infinity) become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def write_json(path: PathLike, value: Any) -> Path:
    """Write ``value`` as indented JSON; dataclasses, paths, tensors and arrays are taken as well."""
    return write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: PathLike) -> dict[str, Any]:
    """Return the JSON object in ``path``; :class:`UserError` if it is missing, damaged or no object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {_because(error)}") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise UserError(f"{path} is damaged: {_because(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def save_tensors(path: PathLike, tensors: Mapping[str, Tensor]) -> Path:
    """Write named tensors (any device) as a safetensors file, atomically."""
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, safetensors_torch.save(copies))


def load_tensors(path: PathLike) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file on the CPU; :class:`UserError` if missing or damaged."""
    try:
        return dict(safetensors_torch.load(Path(path).read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read {path}: {_because(error)}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged: {_because(error)}") from error


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 over names, dtypes, shapes and bytes, in order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:HASH_DIGITS]


def save_weights(
    folder: PathLike, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> str:
    """Write ``name.safetensors`` and ``name.json`` into ``folder``; return the tensors' content hash.

    The JSON holds ``metadata`` and ``content_hash``, which says which tensors it belongs to. Its replacement
    is the one moment of change: new tensors wait beside the old ones until then, and :func:`load_weights`
    finds them there if a kill comes before they have moved.
    """
    folder = Path(folder)
    identity = content_hash(tensors)
    waiting = save_tensors(folder / f"{name}.next.safetensors", tensors)
    write_json(folder / f"{name}.json", {**metadata, "content_hash": identity})
    try:
        waiting.replace(folder / f"{name}.safetensors")
    except OSError as error:
        raise UserError(f"cannot write {folder / name}.safetensors: {_because(error)}") from error
    return identity


def load_weights(folder: PathLike, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and metadata of :func:`save_weights`; :class:`UserError` if they do not match."""
    folder = Path(folder)
    metadata = read_json(folder / f"{name}.json")
    file, waiting = (folder / f"{name}{suffix}.safetensors" for suffix in ("", ".next"))
    tensors = load_tensors(waiting if waiting.is_file() and not file.is_file() else file)
    if content_hash(tensors) != metadata.get("content_hash") and waiting.is_file():
        tensors = load_tensors(waiting)
    if content_hash(tensors) != metadata.get("content_hash"):
        raise UserError(f"{file} is damaged: not the weights that {name}.json describes")
    return tensors, metadata


def holds_weights(folder: PathLike, name: str) -> bool:
    """Whether tensors and metadata are both there: a clone may have the metadata alone."""
    folder = Path(folder)
    tensors = (folder / f"{name}{suffix}.safetensors" for suffix in ("", ".next"))
    return (folder / f"{name}.json").is_file() and any(file.is_file() for file in tensors)


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: PathLike) -> None:
    """Load ``tensors`` into ``module``; :class:`UserError` naming ``source`` if they do not fit it."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{source} does not fit the network it names: {_because(error)[:200]}") from error


def require_writable(folder: PathLike) -> Path:
    """Make ``folder`` and prove that files can be written there; :class:`UserError` before work is lost.

    Trying is the only proof: permission bits say nothing of read-only mounts, quotas or the superuser.
    """
    folder = Path(folder)
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.touch(exist_ok=False)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {_because(error)}") from error
    return folder
