"""Images, their splits, and the files that hold numbers."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from envs.errors import UserError
from stepdrop_rl import weights
from stepdrop_rl.config import DataConfig
from stepdrop_rl.data import DATASETS, SPLITS, folder_of, load, to_float, to_uint8


def test_digits_splits_share_nothing_and_cover_everything() -> None:
    train, judge = (load(DataConfig(), split) for split in SPLITS)
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


def test_the_folder_is_the_argument_else_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STEPDROP_DATA", raising=False)
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path / "cache"))
    assert folder_of(DataConfig()) == tmp_path / "cache" / "data"
    monkeypatch.setenv("STEPDROP_DATA", str(tmp_path))
    assert folder_of(DataConfig()) == tmp_path
    assert folder_of(DataConfig(root="elsewhere")) == Path("elsewhere")


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'digit'; did you mean 'digits'\?"):
        load(DataConfig(name="digit"), "train")
    with pytest.raises(UserError, match=r"unknown split 'training'; did you mean 'train'\?"):
        load(DataConfig(), "training")
    assert "digits" in DATASETS


# --- sets that lie in files ---------------------------------------------------------------------------------

needs_data = pytest.mark.skipif("STEPDROP_DATA" not in os.environ, reason="STEPDROP_DATA is not set")
OFFICIAL = {"mnist": (60_000, 1), "fashion_mnist": (60_000, 1), "cifar10": (50_000, 3)}


@needs_data
@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_sets(name: str) -> None:
    source = DataConfig(name=name, download=False)
    train, judge = (load(source, split) for split in SPLITS)
    count, channels = OFFICIAL[name]
    assert (len(train), len(judge)) == (count, 10_000)
    assert train.shape == judge.shape == (channels, 32, 32)
    assert judge.labels.bincount().min() > 800
    assert train.num_classes == judge.num_classes == 10
    assert train.images.is_contiguous()


@needs_data
def test_pixels_are_where_they_belong() -> None:
    """First training images, counted by hand in the published files: a 5, an ankle boot, a frog."""
    five = load(DataConfig(name="mnist"), "train")
    assert five.labels[0] == 5
    assert five.images[0, 0, 2 + 5, 2 + 12 : 2 + 16].tolist() == [3, 18, 18, 18]
    assert five.images[0, 0, :2].sum() == five.images[0, 0, :, 30:].sum() == 0  # the padding
    assert load(DataConfig(name="fashion_mnist"), "train").labels[:3].tolist() == [9, 0, 0]
    frog = load(DataConfig(name="cifar10"), "train")
    assert frog.labels[0] == 6
    assert frog.images[0, :, 0, 0].tolist() == [59, 62, 63]  # red, green, blue of the corner


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "celeba", "image_folder"])
def test_missing_files_are_one_line_that_says_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--data\.root or STEPDROP_DATA") as error:
        load(DataConfig(name=name, root=str(tmp_path), download=False), "train")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(UserError, match="could not be fetched: no route to host"):
        load(DataConfig(name="cifar10", root=str(tmp_path)), "train")


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 20)) -> None:
    """Grey, but for a square of ``colour`` in the middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (128, 128, 128))
    side = min(size)
    image.paste(colour, ((size[0] - side) // 2, (size[1] - side) // 2, *[(s + side) // 2 for s in size]))
    image.save(path)


def test_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path / "cache"))
    for i in range(12):
        picture(tmp_path / "data" / "ab"[i % 2] / f"{i:02}.png", (i, 0, 255 - i))
    source = DataConfig(name="image_folder", root=str(tmp_path / "data"), size=8)
    train, judge = (load(source, split) for split in SPLITS)
    assert train.shape == judge.shape == (3, 8, 8)
    assert judge.images[:, 0, 4, 4].tolist() == [0, 9]  # sorted: a/00 a/02 ... a/10 b/01 ... b/09
    assert sorted(train.images[:, 0, 4, 4].tolist()) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]
    assert train.labels.tolist() == [0] * 5 + [1] * 5
    assert (train.images[:, 2] == 255 - train.images[:, 0]).all()  # the grey is cropped away
    before = {path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert torch.equal(load(source, "train").images, train.images)
    assert {path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == before
    picture(tmp_path / "data" / "a" / "02.png", (200, 0, 55))  # a changed file is decoded again
    assert 200 in load(source, "train").images[:, 0, 4, 4].tolist()
    (tmp_path / "data" / "a" / "04.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read the image .*04\.png"):
        load(source, "train")


def test_a_folder_with_its_own_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path / "cache"))
    for split, red in (("train", 10), ("test", 20)):
        for i in range(3):
            picture(tmp_path / split / "a" / f"{i}.png", (red + i, 0, 0))
    source = DataConfig(name="image_folder", root=str(tmp_path))
    assert load(source, "train").images[:, 0, 0, 0].tolist() == [10, 11, 12]
    assert load(source, "judge").images[:, 0, 0, 0].tolist() == [20, 21, 22]
    assert load(source, "judge").shape == (3, 32, 32)


def test_celeba_is_cropped_to_the_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On files of CelebA's layout and size; its checksums cannot hold for them."""
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda self: True)
    base = tmp_path / "celeba"
    names = [f"00000{i}.jpg" for i in range(1, 6)]
    for name in names:
        picture(base / "img_align_celeba" / name, (250, 0, 0), (178, 218))
    parts = [0, 0, 0, 2, 2]  # three for training, two for testing
    (base / "list_eval_partition.txt").write_text(
        "".join(f"{name} {part}\n" for name, part in zip(names, parts, strict=True))
    )
    header = " ".join(f"A{i}" for i in range(40))
    rows = [["-1"] * 40 for _ in names]
    rows[1][20] = rows[2][31] = "1"
    table = "".join(f"{name} {' '.join(row)}\n" for name, row in zip(names, rows, strict=True))
    (base / "list_attr_celeba.txt").write_text(f"{len(names)}\n{header}\n{table}")
    for other, columns in (
        ("identity_CelebA", 1),
        ("list_bbox_celeba", 4),
        ("list_landmarks_align_celeba", 10),
    ):
        lines = "".join(f"{name} {' '.join(['1'] * columns)}\n" for name in names)
        head = "" if columns == 1 else f"{len(names)}\n{' '.join('abcdefghij'[:columns])}\n"
        (base / f"{other}.txt").write_text(head + lines)
    source = DataConfig(name="celeba", root=str(tmp_path), download=False)
    train, judge = (load(source, split) for split in SPLITS)
    assert (train.images.shape, judge.images.shape) == ((3, 3, 64, 64), (2, 3, 64, 64))
    assert train.labels.tolist() == [0, 2, 1]  # neither, man, smiling woman
    assert (train.images[:, 0].float() - 250).abs().max() < 12  # nothing but the face's square


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


@pytest.mark.parametrize("moment", ["tensors wait", "described", "moved"])
def test_a_kill_at_any_moment_of_an_overwrite_leaves_the_old_pair_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class KilledError(Exception):
        pass

    weights.save_weights(tmp_path, "net", {"a": torch.zeros(3)}, {"step": 1})
    write_json, calls = weights.write_json, []

    def killed(path: Path, value: object) -> Path:
        if moment == "tensors wait":
            raise KilledError
        calls.append(write_json(path, value))
        if moment == "described":
            raise KilledError
        return calls[0]

    monkeypatch.setattr(weights, "write_json", killed)
    with contextlib.suppress(KilledError):
        weights.save_weights(tmp_path, "net", {"a": torch.ones(3)}, {"step": 2})
    monkeypatch.setattr(weights, "write_json", write_json)
    tensors, described = weights.load_weights(tmp_path, "net")
    new = moment != "tensors wait"
    assert described["step"] == 1 + new
    assert tensors["a"].tolist() == [float(new)] * 3
    weights.save_weights(tmp_path, "net", {"a": torch.full((3,), 7.0)}, {"step": 3})  # and life goes on
    assert weights.load_weights(tmp_path, "net")[0]["a"].tolist() == [7.0] * 3


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
