"""Images, their splits, and the files that hold numbers."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from envs.errors import UserError
from stepdrop_rl import weights
from stepdrop_rl.data import DATASETS, SPLITS, ImageData, digits, load, to_float, to_uint8


def test_digits_splits_share_nothing_and_cover_everything() -> None:
    train, judge = (load("digits", split) for split in SPLITS)
    assert (len(train), len(judge)) == (1198, 599)
    original = load_digits()
    everything = torch.as_tensor(original.images)
    assert train.shape == judge.shape == (1, 8, 8)
    assert train.num_classes == judge.num_classes == 10
    for image, label, index in [(judge.images[0], judge.labels[0], 2), (train.images[2], train.labels[2], 3)]:
        torch.testing.assert_close(
            image[0].double() * 16 / 255, everything[index], atol=0.5 * 16 / 255, rtol=0
        )
        assert label == original.target[index]
    merged = torch.empty(1797, 8, 8, dtype=torch.uint8)
    is_judges = torch.arange(1797) % 3 == 2
    merged[is_judges], merged[~is_judges] = judge.images[:, 0], train.images[:, 0]
    assert torch.equal((merged.double() * 16 / 255).round(), everything)


def test_uint8_and_float_undo_each_other() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert to_float(levels).dtype == torch.float32
    assert (to_float(levels).min(), to_float(levels).max()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    beyond = torch.tensor([-7.0, -1.001, 1.001, float("inf"), -float("inf"), 0.999])
    assert to_uint8(beyond).tolist() == [0, 0, 255, 255, 0, 255]


def test_the_root_is_the_argument_else_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    image = ImageData(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))

    def recording(split: str, root: Path | None) -> ImageData:
        seen.append(root)
        return image

    monkeypatch.setattr(digits, "load", recording)
    monkeypatch.delenv("STEPDROP_DATA", raising=False)
    load("digits", "train")
    monkeypatch.setenv("STEPDROP_DATA", str(tmp_path))
    load("digits", "train")
    load("digits", "train", "elsewhere")
    assert seen == [None, tmp_path, Path("elsewhere")]


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'digit'; did you mean 'digits'\?"):
        load("digit", "train")
    with pytest.raises(UserError, match=r"unknown split 'training'; did you mean 'train'\?"):
        load("digits", "training")
    assert "digits" in DATASETS


# --- files --------------------------------------------------------------------------------------------------

TENSORS = {
    "scalar": torch.tensor(3),
    "half": torch.randn(2, 3).bfloat16(),
    "strided": torch.arange(12.0).reshape(3, 4).T,
    "empty": torch.zeros(0, 2),
}


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    tied = TENSORS | {"again": TENSORS["strided"]}
    identity = weights.save_weights(tmp_path / "new" / "folder", "net", tied, {"seed": 3})
    loaded, described = weights.load_weights(tmp_path / "new" / "folder", "net")
    assert described == {"seed": 3, "content_hash": identity}
    assert loaded.keys() == tied.keys()
    for name, tensor in tied.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_content_hash_sees_names_types_shapes_and_values() -> None:
    base = {"a": torch.zeros(4), "b": torch.ones(2)}
    same = {"b": torch.ones(4)[::2], "a": torch.zeros(2, 4)[1]}
    others = [
        {"a": torch.zeros(4), "c": torch.ones(2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 1.0000001])},
    ]
    identity = weights.content_hash(base)
    assert identity == weights.content_hash(same)
    assert len({identity, *map(weights.content_hash, others)}) == 5
    assert len(identity) == 16
    int(identity, 16)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "exchanged"])
def test_damaged_weights_are_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    weights.save_weights(tmp_path, "net", {"a": torch.ones(100)}, {})
    path = tmp_path / "net.safetensors"
    whole = path.read_bytes()
    if damage == "exchanged":
        weights.save_tensors(path, {"a": torch.zeros(100)})
    else:
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        path.write_bytes({"truncated": whole[:150], "flipped": flipped, "empty": b""}[damage])
    with pytest.raises(UserError, match=r"net\.safetensors is damaged") as error:
        weights.load_weights(tmp_path, "net")
    assert "\n" not in str(error.value)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent\.json: No such file"):
        weights.read_json(tmp_path / "absent.json")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        weights.load_tensors(tmp_path)
    for text, complaint in [("{", "damaged"), ("[1]", "must hold a JSON object, not a list")]:
        path = weights.write_text(tmp_path / "bad.json", text)
        with pytest.raises(UserError, match=complaint):
            weights.read_json(path)
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="damaged"):
        weights.read_json(tmp_path / "bad.json")


@dataclass
class _Record:
    path: Path
    values: tuple[float, ...]


def test_json_is_valid_whatever_the_numbers(tmp_path: Path) -> None:
    record = _Record(Path("a/b"), (1.0, float("nan"), float("inf")))
    tree = {"r": record, "t": torch.tensor([1, 2]), "n": load_digits().target[0]}
    path = weights.write_json(tmp_path / "r.json", tree)
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict == {"r": {"path": "a/b", "values": [1.0, None, None]}, "t": [1, 2], "n": 0}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights.write_text(tmp_path / "note", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*note: No space left on device"):
        weights.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    ours = weights.write_text(tmp_path / "ours", "x")
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write into"):
            weights.require_writable(place)
    with pytest.raises(UserError, match="cannot write"):
        weights.write_text(tmp_path / "file" / "below", "x")
    assert list(weights.require_writable(tmp_path / "a" / "b").iterdir()) == []


def test_weights_that_do_not_fit_say_so() -> None:
    with pytest.raises(UserError, match=r"x\.safetensors does not fit the network") as error:
        weights.load_into(torch.nn.Linear(2, 3), {"weight": torch.zeros(3, 3)}, "x.safetensors")
    assert "\n" not in str(error.value)
