"""Judges that come as a file: torch-fidelity's Inception and CIFAR ResNets, here with random weights."""

import pickle

import pytest
import torch
import torch_fidelity
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from envs.errors import UserError
from stepdrop_rl.config import MetricsConfig
from stepdrop_rl.data import to_float
from stepdrop_rl.metrics import find_extractor, gather, make_reference, quality
from stepdrop_rl.metrics.cifar_resnet import CifarResNet

IMAGES = torch.randint(0, 256, (24, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *args, **kwargs: None)
        torch.manual_seed(0)
        network = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)
    return path


class Pictures(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_the_fid_is_torch_fidelitys_own(inception_file):
    judge = find_extractor(inception_file, "cifar10")
    real, drawn = IMAGES[:12], IMAGES[12:]
    found = quality(drawn, make_reference(real, judge), judge)
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(drawn),
        input2=Pictures(real),
        fid=True,
        isc=True,
        isc_splits=1,
        samples_shuffle=False,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
        batch_size=12,
        feature_extractor_weights_path=str(inception_file),
    )
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4, abs=1e-6)
    assert found["is_mean"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert not any(name.startswith("fd_") for name in found)
    maps = judge.maps(to_float(real[:2]))
    features = judge.features_and_logits(to_float(real[:2]))[0]
    torch.testing.assert_close(maps[-1].mean((2, 3)), features, rtol=1e-4, atol=1e-5)
    grey = judge.features_and_logits(to_float(real[:2, :1]))[0]
    same = judge.features_and_logits(to_float(real[:2, :1]).expand(-1, 3, -1, -1))[0]
    assert torch.equal(grey, same)


@pytest.fixture
def resnet_file(tmp_path):
    torch.manual_seed(1)
    network = CifarResNet("resnet20", 3)
    kept = {f"module.{k}": v for k, v in network.state_dict().items() if not k.startswith("feature_")}
    torch.save({"state_dict": kept, "best_prec1": 91.7}, tmp_path / "resnet20.th")
    return tmp_path / "resnet20.th"


def test_a_cifar_resnet_is_read_and_has_features_of_several_depths(resnet_file):
    judge = find_extractor(resnet_file, "cifar10")
    assert judge.name == "resnet20"
    assert sum(p.numel() for p in judge.parameters()) == 269_722  # as published
    x = to_float(IMAGES)
    assert [tuple(m.shape[1:]) for m in judge.maps(x)] == [
        (16, 32, 32),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
    ]
    judge.standardise(x)
    features, logits = gather(IMAGES, judge)
    assert (features.shape, logits.shape) == ((24, 2 * 128), (24, 10))
    torch.testing.assert_close(features.mean(0), torch.zeros(256), rtol=0, atol=1e-4)


def test_files_that_hold_something_else_are_refused(tmp_path, resnet_file):
    for content, said in (
        ({"weight": torch.ones(2)}, "neither an Inception network nor a CIFAR ResNet"),
        ({"Mixed_5b.branch1x1.conv.weight": torch.ones(2)}, "does not hold torch-fidelity's Inception"),
        ([1, 2], "no checkpoint of tensors"),
    ):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(UserError, match=said):
            find_extractor(tmp_path / "other.pth", "cifar10")
    short = torch.load(resnet_file, weights_only=True)
    del short["state_dict"]["module.conv1.weight"]
    torch.save(short, tmp_path / "short.th")
    with pytest.raises(UserError, match="does not fit the network"):
        find_extractor(tmp_path / "short.th", "cifar10")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="no checkpoint of tensors"):
        find_extractor(tmp_path / "text.pth", "cifar10")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_file_that_would_run_code_is_refused_before_it_does(tmp_path, capsys):
    torch.save({"Mixed_5b": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"Mixed_5b": Evil()}))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(UserError, match="no checkpoint of tensors"):
            find_extractor(tmp_path / name, "cifar10")
    assert "code ran" not in capsys.readouterr().out


def test_one_judge_at_a_time():
    assert MetricsConfig(inception_weights="f.pth").judge == "f.pth"
    assert MetricsConfig(extractor="judge").judge == "judge"
    with pytest.raises(UserError, match="not both"):
        MetricsConfig(extractor="judge", inception_weights="f.pth")
