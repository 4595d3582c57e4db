"""A kept reference stands for the data set it was made of."""

import pytest
import torch

from stepdrop_rl.config import DataConfig
from stepdrop_rl.data import load, to_float
from stepdrop_rl.metrics import load_extractor, load_reference, measure, reference
from stepdrop_rl.metrics.reference import gather, read_reference

from .conftest import call


def test_judging_by_a_kept_reference_needs_no_data(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "digits" / "references"
    assert call("reference", "--metrics.extractor", "judge", "--output", str(folder)) == 0
    assert "599 images of digits, judge split" in capsys.readouterr().out
    extractor, computed = load_reference(DataConfig(), "judge")
    kept = read_reference(folder, extractor)
    assert kept.num_images == computed.num_images == 599
    images = to_float(load(DataConfig(), "train").images[:300])
    drawn = gather(images, extractor)
    one, other = measure(*drawn, computed), measure(*drawn, kept)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=5e-3, abs=2e-4), name

    monkeypatch.setattr(reference, "PRETRAINED", tmp_path)
    monkeypatch.setattr(reference, "load", None)  # the data set is gone
    assert torch.equal(load_reference(DataConfig(size=8), "judge")[1].features, kept.features)
    assert read_reference(folder, extractor, size=16) is None


def test_a_reference_of_other_weights_is_not_used(tmp_path):
    assert call("reference", "--metrics.extractor", "judge", "--output", str(tmp_path)) == 0
    other = load_extractor("judge")
    with torch.no_grad():
        other.head.bias += 1
    assert read_reference(tmp_path, other) is None
    assert read_reference(tmp_path / "nowhere", other) is None


def test_only_the_first_features_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "REFERENCE_FEATURES", 100)
    monkeypatch.setattr(reference, "_references", {})
    assert call("reference", "--metrics.extractor", "judge", "--output", str(tmp_path)) == 0
    kept = read_reference(tmp_path, load_extractor("judge"))
    assert (len(kept.features), kept.num_images) == (100, 599)
