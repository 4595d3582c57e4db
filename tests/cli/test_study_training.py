"""Ways of training compared, for real, in small sizes; cut and gone on with."""

import pytest
import torch

from envs.errors import UserError
from stepdrop_rl.config import StudyTrainingConfig
from stepdrop_rl.losses import s2dm_weight_and_scale
from stepdrop_rl.models.scaled import ScaledDenoiser
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.weights import load_tensors, read_json

from .conftest import call

TRAINING = """
train_diffusion:
  steps: 12
  batch_size: 8
  warmup_steps: 2
  unet: {channels: [8, 8], attention: [false, true], head_dim: 8}
study_training:
  training: study.yaml
  variants: {plain: {}, "S²-DM, 2": {loss.name: s2dm, loss.skip: 2}}
  scaled: {"plain, b": [plain, 2]}
  seeds: [0, 1]
  nfe: [2, 3]
  num_samples: 48
  num_real: 64
  tracking: none
"""


def study(*argv):
    return call("study_training", "--config", "study.yaml", *argv)


@pytest.fixture(autouse=True)
def settings(own_cache, tmp_path):
    (tmp_path / "study.yaml").write_text(TRAINING, encoding="utf-8")


def test_a_study_trains_judges_and_goes_on_where_it_was_cut(tmp_path, capsys):
    assert study("--max-minutes", "0") == 0  # nothing is begun
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("result.json"))
    assert study("--seeds", "[0]", "--json", "one.json") == 0
    assert study("--json", "both.json", "--report", "report.md") == 0
    out = capsys.readouterr().out
    one, both = (read_json(tmp_path / name)["results"] for name in ("one.json", "both.json"))
    assert list(both) == ["plain", "S²-DM, 2", "plain, b"]
    for name, seeds in both.items():
        assert list(one[name]) == ["0"]
        assert seeds["0"] == one[name]["0"]  # not made again
        assert set(seeds) == {"0", "1"}
        assert set(seeds["1"]) == {"2", "3"}
        assert set(seeds["1"]["3"]) == {"held out", "training"}
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert report in out
    assert report.count("| plain | 2 |") == 4  # a table per metric and set of real images
    root = tmp_path / "runs/digits/study_training"
    a, b = (load_tensors(root / f"{name}-0/checkpoint.safetensors") for name in ("plain", "s-dm-2"))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_the_sampling_control_multiplies_eps_by_b():
    denoiser = load_model("digits").denoiser
    t = torch.tensor([900.0, 40.5], dtype=torch.float64)
    x = torch.randn(2, *denoiser.shape, generator=torch.Generator().manual_seed(0))
    b = s2dm_weight_and_scale(denoiser.schedule, t, 10, 0.99)[1]
    scaled = ScaledDenoiser(denoiser, lambda at: s2dm_weight_and_scale(denoiser.schedule, at, 10, 0.99)[1])
    expected = denoiser(x, t)[0] * b.float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(scaled(x, t)[0], expected)
    assert scaled(x, t, features=("middle",))[1].shape == (2, denoiser.feature_widths["middle"])


def test_what_is_scaled_must_be_a_variant():
    with pytest.raises(UserError, match=r"scaled\.b must be \[one of the variants, skip\]"):
        StudyTrainingConfig(scaled={"b": ["nobody", 2]})
