"""What rewards may see of a network that knows large images: components, in the units of our own."""

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from envs.errors import UserError
from stepdrop_rl import environment
from stepdrop_rl.config import DataConfig, EnvConfig
from stepdrop_rl.data import load, to_float
from stepdrop_rl.environment import make_world
from stepdrop_rl.metrics import load_extractor, load_reward, reference
from stepdrop_rl.metrics.efficientnet import EfficientNetLite
from stepdrop_rl.metrics.joined import COMPONENTS, Joined, principal
from stepdrop_rl.models.unet import load_model


def test_components_are_those_of_principal_component_analysis_scaled_to_a_variance():
    mixing = torch.randn(20, 20, generator=torch.Generator().manual_seed(0)).double()
    features = torch.randn(500, 20, generator=torch.Generator().manual_seed(1)).double() @ mixing + 3
    found = principal(features, variance=7.0, count=5)
    ours = ((features - found["mean"]) @ found["components"].double()).numpy()
    theirs = PCA(5).fit_transform(features.numpy())
    theirs *= np.sqrt(7.0 / theirs.var(0, ddof=1).sum())
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-4, atol=1e-4)


FEW = 300


@pytest.fixture(scope="module")
def images():
    return to_float(load(DataConfig(), "train").images[:FEW])


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPDROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(reference, "JOINED_IMAGES", FEW)
        yield load_reward("joined", DataConfig(), "cpu")


@pytest.fixture(scope="module")
def features(joined, images):
    with torch.no_grad():
        return joined(images)


def test_both_parts_weigh_the_same_and_the_first_is_our_own(joined, images, features):
    own = load_extractor("reward")
    with torch.no_grad():
        count = own.num_features
        assert features.shape == (len(images), count + COMPONENTS)
        assert torch.equal(features[:, :count], own(images))
        torch.testing.assert_close(joined.features_and_logits(images[:9])[1], own.logits(images[:9]))
    variances = features.double().var(0)
    assert float(variances[count:].sum()) == pytest.approx(float(variances[:count].sum()), rel=1e-4)
    among = torch.corrcoef(features[:, count:].double().T)
    assert float((among - torch.eye(COMPONENTS)).abs().max()) < 1e-3
    assert torch.equal(variances[count:], variances[count:].sort(descending=True).values)


def test_it_slopes_as_finite_differences_say(joined, images):
    exact = deepcopy(joined)
    exact.own.double()
    exact.large.network.double()
    exact.mean, exact.components = exact.mean.double(), exact.components.double()
    x = 0.8 * images[:2].double()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    weights = torch.randn(COMPONENTS, generator=torch.Generator().manual_seed(3)).double()

    def value(at):
        return (exact(at)[:, -COMPONENTS:] @ weights).sum()

    x.requires_grad_()
    (slope,) = torch.autograd.grad(value(x), x)
    step = 1e-8  # the network is made of straight pieces: few of them end so near
    with torch.no_grad():
        measured = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(float(measured), rel=1e-4)


def test_components_are_found_once_for_these_images(joined, monkeypatch):
    def called(*_):
        raise AssertionError("it looked again")

    monkeypatch.setattr(EfficientNetLite, "features", called)
    again = load_reward("joined", DataConfig(), "cpu")
    assert again.content_hash == joined.content_hash
    (kept,) = (Path(os.environ["STEPDROP_CACHE"]) / "extractors").glob("joined-*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])  # damaged: found anew
    with pytest.raises(AssertionError, match="looked again"):
        load_reward("joined", DataConfig(), "cpu")
    kept.write_bytes(whole)
    other = Joined(load_extractor("reward"))
    with pytest.raises(AssertionError, match="looked again"):
        other.fit(to_float(load(DataConfig(), "judge").images))


def test_its_reference_is_of_the_images_that_the_model_learned_from(joined, features, monkeypatch):
    shown = load(DataConfig(), "train")
    splits = {"train": replace(shown, images=shown.images[:FEW], labels=shown.labels[:FEW])}
    monkeypatch.setattr(reference, "load", lambda source, split: splits[split])
    found, real = reference.load_reference(DataConfig(), "joined")
    assert found.content_hash == joined.content_hash
    assert real.num_images == FEW
    torch.testing.assert_close(real.features, features, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(real.statistics["sigma"], np.cov(features.double().numpy().T), atol=1e-2)


def test_rewards_look_through_it_and_through_no_judge(joined, images, features, monkeypatch):
    settings = EnvConfig(extractor="joined", bank_size=32, teacher_steps=4)
    monkeypatch.setattr(environment, "NUM_REAL", 64)
    ground = make_world(settings, model=load_model("digits")).ground
    assert ground.real.shape == (64, features.shape[1])
    assert ground.teacher_features.shape == (32, features.shape[1])
    with torch.no_grad():
        torch.testing.assert_close(ground.features(images[:5]), features[:5], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="unknown extractor of rewards 'judge'"):
        load_reward("judge", DataConfig(), "cpu")
