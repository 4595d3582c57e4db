"""What rewards may see of small images: features of two networks of our own."""

import pytest
import torch

from envs.errors import UserError
from stepdrop_rl import environment
from stepdrop_rl.config import DataConfig, EnvConfig
from stepdrop_rl.data import load, to_float
from stepdrop_rl.environment import make_world
from stepdrop_rl.metrics import load_extractor, load_reference, load_reward
from stepdrop_rl.models.unet import load_model


@pytest.fixture(scope="module")
def images():
    return to_float(load(DataConfig(), "train").images[:40])


def test_each_network_is_a_view_of_its_own(images):
    both, own, second = load_reward("both", DataConfig(), "cpu"), *map(load_extractor, ("reward", "second"))
    features, logits = both.features_and_logits(images)
    assert both.views == (own.num_features, second.num_features)
    first, other = features.split(both.views, 1)
    for seen, network in ((first, own), (other, second)):
        torch.testing.assert_close(seen, network(images), rtol=0, atol=0)
    torch.testing.assert_close(logits, own.logits(images))
    torch.testing.assert_close(both(images), features, rtol=0, atol=0)
    assert len({both.content_hash, own.content_hash, second.content_hash}) == 3


def test_both_have_a_say_in_its_slope(images):
    both = load_reward("both", DataConfig(), "cpu")
    x = images[:2].clone().requires_grad_()
    for part in both(x).split(both.views, 1):
        (slope,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
        assert float(slope.abs().min()) > 0


def test_rewards_look_through_both(images, monkeypatch):
    monkeypatch.setattr(environment, "NUM_REAL", 64)
    settings = EnvConfig(extractor="both", bank_size=32, teacher_steps=4)
    ground = make_world(settings, model=load_model("digits")).ground
    both = load_reward("both", DataConfig(), "cpu")
    assert ground.views == both.views
    assert ground.real.shape == (64, sum(both.views))
    torch.testing.assert_close(ground.features(images[:5]), both(images[:5]), rtol=1e-4, atol=1e-4)
    reference = load_reference(DataConfig(), "both")[1]
    assert reference.num_images == len(load(DataConfig(), "train")), "of what the model learned from"


def test_where_there_is_no_second_network_it_says_how_to_get_one():
    with pytest.raises(UserError, match="no second extractor for 'fashion_mnist'"):
        load_reward("both", DataConfig(name="fashion_mnist"), "cpu")
