"""From a foreign pipeline's folder to a policy and back into diffusers, by the commands."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import stepdrop_rl
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.policies import load_policy
from stepdrop_rl.weights import read_json

from .conftest import call
from .test_commands import TINY_POLICY

pytestmark = pytest.mark.usefixtures("own_cache")


def foreign(folder, size=8, channels=1, **others):
    """A pipeline of somebody else's."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        **others,
    )
    DDPMPipeline(unet, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(folder)
    return unet.eval()


def test_a_foreign_pipeline_gets_a_policy_and_goes_on_in_diffusers(capsys):
    unet = foreign("theirs")
    data = ["--model", "theirs", "--data.name", "digits", "--tracking", "none"]
    assert call("train_policy", *TINY_POLICY, *data) == 0
    policy = load_policy(Path("runs/digits/ppo"))
    assert policy.info.dataset == "digits"
    model = load_model("theirs", dataset="digits")
    assert policy.info.model_hash == model.hash
    assert (model.info.schedule.name, model.info.prediction) == ("linear", "v_prediction")
    draw = ["--policy", "ppo", "--price", "0.02", "--num-samples", "64"]
    assert (
        call("evaluate", *data, *draw, "--blocks", "2", "--baselines", "[uniform]", "--json", "e.json") == 0
    )
    assert read_json("e.json")["records"][0]["dataset"] == "digits"
    assert call("sample", *data, *draw) == 0
    assert call("search", *data, "--method", "xue", "--nfe", "4", "--output", "s.json") == 0

    pipeline = stepdrop_rl.StepDropPipeline.of(model, policy)
    images = pipeline(4, price=0.02, output_type="np").images
    pipeline.save_pretrained("ours")
    loaded = stepdrop_rl.StepDropPipeline.from_pretrained("ours", low_cpu_mem_usage=False)
    assert (loaded(4, price=0.02, output_type="np").images == images).all()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 900.0])
    assert torch.equal(loaded.unet.eval()(x, t).sample, unet(x, t).sample)

    capsys.readouterr()
    assert call("sample", "--model", "ours", *data[2:], *draw) == 0  # it is a pipeline too
    assert call("sample", *data[2:], *draw) == 2  # the digits' own model is another one
    assert "trained for another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "made, data, said",
    [
        ({"size": 16}, "digits", "draws images of 1×16×16, those of 'digits' are 1×8×8"),
        ({"channels": 3}, "digits", "draws images of 3×8×8, those of 'digits' are 1×8×8"),
        ({}, "cifar10", "draws images of 1×8×8, those of 'cifar10' are 3×32×32"),
        ({"size": (8, 16), "channels": 3}, "image_folder", "3×8×16, those of 'image_folder' are 3×8×8"),
        ({"num_class_embeds": 10}, "digits", "class-conditional"),
    ],
)
@pytest.mark.parametrize("command", ["train_policy", "evaluate", "search", "sample"])
def test_what_does_not_fit_is_said_in_one_line(command, made, data, said, capsys):
    foreign("theirs", **made)
    capsys.readouterr()
    argv = ["--policy", "uniform"] if command in ("evaluate", "sample") else []
    assert call(command, *argv, "--model", "theirs", "--data.name", data, "--tracking", "none") == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.count("\n") == 0
