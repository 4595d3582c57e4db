"""The border between networks and mathematics: predictions, features, padding, model folders."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from envs.errors import UserError
from stepdrop_rl import device
from stepdrop_rl.config import ScheduleConfig, UNetConfig
from stepdrop_rl.device import autocast_type
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.models.denoiser import FEATURES, NetworkDenoiser, feature_widths, unet_of
from stepdrop_rl.models.unet import (
    ModelInfo,
    PixelUnshuffledUNet,
    load_model,
    make_network,
    save_model,
    write_info,
)

from .conftest import SHAPE, TINY, denoiser_of, exact, network

FOLDED = UNetConfig(channels=[8, 16], attention=[False, True], head_dim=8, unshuffle=2)
WEIGHTS = "diffusion_pytorch_model.safetensors"

both_kinds = pytest.mark.parametrize("unet", [TINY, FOLDED], ids=["plain", "unshuffled"])


def info(**changes: Any) -> ModelInfo:
    usual: dict[str, Any] = {
        "dataset": "digits",
        "prediction": "epsilon",
        "schedule": ScheduleConfig(name="linear", num_train_timesteps=500),
        "t_start": 480.5,
        "t_end": 9.0,
    }
    return ModelInfo(**(usual | changes))


def inputs(count: int = 5) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(20, 900, count, dtype=torch.float64).round() + 0.5


# --- predictions --------------------------------------------------------------------------------


class AsVelocity(nn.Module):
    """Says as v what another network says as eps: alpha·eps − sigma·x0, x0 = (x − sigma·eps)/alpha."""

    def __init__(self, net: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        eps = self.net(x, t).sample.double()
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in self.schedule.alpha_sigma(t))
        return SimpleNamespace(sample=(alpha * eps - sigma * (x - sigma * eps) / alpha).float())


def test_epsilon_and_velocity_networks_that_know_the_same_say_the_same() -> None:
    net = network()
    says_eps = denoiser_of(net)
    says_v = denoiser_of(AsVelocity(net, says_eps.schedule), "v_prediction")
    x, t = inputs()
    eps, _ = says_eps(x, t)
    # v is rounded to float32 once, alpha·v + sigma·x again: a few units of 6e-8 of numbers below 4.
    torch.testing.assert_close(says_v(x, t)[0], eps, rtol=0, atol=2e-6)
    exact(eps, net(x, t.float()).sample)


def test_the_network_is_given_the_real_time() -> None:
    ask = denoiser_of(network())
    x, t = inputs(1)
    assert not torch.equal(ask(x, t)[0], ask(x, t.floor())[0])


def test_bfloat16_networks_leave_the_trajectory_in_float32() -> None:
    net = network()
    x, t = inputs()
    wide, narrow = denoiser_of(net)(x, t)[0], denoiser_of(net, autocast=torch.bfloat16)(x, t)[0]
    assert narrow.dtype == torch.float32
    assert not torch.equal(wide, narrow)
    torch.testing.assert_close(narrow, wide, rtol=0, atol=0.1)  # 8 bits through a dozen layers


def test_precision_by_device() -> None:
    assert autocast_type("auto", "cpu") is None
    assert autocast_type("auto", "cuda") == torch.bfloat16
    assert autocast_type("float32", "cuda") is None
    assert autocast_type("bfloat16", "cpu") == torch.bfloat16


def test_a_large_network_is_called_in_bfloat16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(1000, 1000)
    for has, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(device, "cpu_has_bfloat16", lambda has=has: has)
        assert autocast_type("auto", "cpu", large) is expected
        assert autocast_type("auto", "cpu", small) is None
        assert autocast_type("float32", "cpu", large) is None


# --- features -----------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("names", [("middle",), ("decoder",), ("middle", "decoder"), ("decoder", "middle")])
def test_features_are_the_pooled_blocks_and_change_nothing(unet: UNetConfig, names: tuple[str, ...]) -> None:
    net = network(unet)
    ask = denoiser_of(net)
    x, t = inputs()
    seen: dict[str, Tensor] = {}
    last = len(TINY.channels) - 1
    blocks = {
        name: unet_of(net).get_submodule(path)
        for name, path in (("middle", "mid_block"), ("decoder", f"up_blocks.{last}"))
    }

    def watch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [block.register_forward_hook(watch(name)) for name, block in blocks.items()]
    eps, features = ask(x, t, features=names)
    for handle in handles:
        handle.remove()
    assert features is not None
    assert features.shape == (len(x), sum(ask.feature_widths[name] for name in names))
    exact(features, torch.cat([seen[name].mean((2, 3)) for name in names], 1))
    plain, nothing = ask(x, t)
    assert nothing is None
    exact(eps, plain)
    assert not any("forward" in vars(block) for block in blocks.values())  # nothing of the look stays behind


@both_kinds
def test_number_of_features(unet: UNetConfig) -> None:
    widths = feature_widths(network(unet))
    assert tuple(widths) == FEATURES
    assert widths == {"middle": TINY.channels[-1], "decoder": TINY.channels[0]}


def test_a_network_without_a_middle_has_no_features() -> None:
    assert feature_widths(nn.Conv2d(1, 1, 3)) == {}


# --- padding ------------------------------------------------------------------------------------


def test_a_padded_call_holds_exactly_its_rows_and_answers_bit_equal() -> None:
    net = network()
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    ask = denoiser_of(net, pad_to=8)
    x, t = inputs(21)
    whole, features = ask(x, t, features=("middle",))
    assert features is not None
    assert sizes == [8, 8, 8]
    for rows in ([0], [3, 4], list(range(20, 6, -1))):
        part, part_features = ask(x[rows], t[rows], features=("middle",))
        assert part_features is not None
        exact(part, whole[rows])
        exact(part_features, features[rows])
    # Other batch shapes: the libraries sum in another order; 1e-6 of numbers of order 1 (DESIGN.md).
    torch.testing.assert_close(denoiser_of(net)(x, t)[0], whole, rtol=0, atol=1e-5)


# --- making networks ----------------------------------------------------------------------------


@both_kinds
def test_a_network_keeps_the_shape_of_its_images(unet: UNetConfig) -> None:
    x, t = inputs()
    output = network(unet)(x, t.float()).sample
    assert output.shape == x.shape
    assert float(output.std()) > 0


def test_unshuffled_pixels_come_back_to_their_place() -> None:
    net = network(FOLDED)
    inner = unet_of(net)
    x, t = inputs()
    folded = torch.stack([x[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)  # (B, 4, H/2, W/2)
    said = inner(folded, t.float()).sample
    wanted = torch.empty_like(x)
    for channel, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        wanted[:, 0, i::2, j::2] = said[:, channel]
    exact(net(x, t.float()).sample, wanted)


@pytest.mark.parametrize(("shape", "said"), [((1, 8, 6), "square"), ((1, 9, 9), "halved")])
def test_impossible_images_are_refused(shape: tuple[int, int, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_network(TINY, shape)


# --- model folders ------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_saved_model_comes_back_whole(tmp_path: Path, unet: UNetConfig, prediction: str) -> None:
    net = network(unet)
    save_model(tmp_path / "m", net, info(prediction=prediction))
    model = load_model(str(tmp_path / "m"))
    assert isinstance(model.denoiser.network, PixelUnshuffledUNet) == (unet is FOLDED)
    assert model.info == info(prediction=prediction)
    assert model.denoiser.shape == SHAPE
    assert model.denoiser.schedule.name == "linear"
    assert model.denoiser.schedule.num_train_timesteps == 500
    assert model.denoiser.feature_widths["middle"] == TINY.channels[-1]
    x, t = inputs()
    exact(model.denoiser.network(x, t.float()).sample, net(x, t.float()).sample)
    says = NetworkDenoiser(net, NoiseSchedule("linear", 500), prediction=prediction, shape=SHAPE)
    exact(model.denoiser(x, t.clamp(max=499))[0], says(x, t.clamp(max=499))[0])
    assert not any(p.requires_grad for p in model.denoiser.network.parameters())
    assert not model.denoiser.network.training


def test_any_diffusers_unet_folder_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).eval()
    theirs.requires_grad_(
        False
    )  # as loaded: PyTorch multiplies by another routine where it may differentiate
    theirs.save_pretrained(tmp_path)
    write_info(tmp_path, info())
    model = load_model(str(tmp_path), pad_to=4)
    assert model.denoiser.shape == (3, 8, 8)
    x, t = torch.randn(4, 3, 8, 8), torch.full((4,), 77.0, dtype=torch.float64)
    exact(model.denoiser(x, t)[0], theirs(x, t.float()).sample)


def test_the_hash_names_the_weights(tmp_path: Path) -> None:
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        save_model(tmp_path / name, network(seed=seed), info())
    write_info(tmp_path / "b", info(t_end=20.0))  # the ends may be chosen anew
    a, b, c = (load_model(str(tmp_path / name)) for name in "abc")
    assert a.hash == b.hash != c.hash
    assert (a.info.t_end, b.info.t_end) == (9.0, 20.0)


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def edit(name: str, **values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(raw | values))

    return change


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def edit_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def cut(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no info": remove("stepdrop.json"),
    "info is no JSON": write("stepdrop.json", "{"),
    "info is a list": write("stepdrop.json", "[]"),
    "info is empty": write("stepdrop.json", "{}"),
    "info of another version": edit("stepdrop.json", schema="stepdrop_rl.model/999"),
    "unknown entry": edit("stepdrop.json", colour="red"),
    "unknown prediction": edit("stepdrop.json", prediction="sample"),
    "unknown schedule": edit("stepdrop.json", schedule={"name": "sigmoid", "num_train_timesteps": 500}),
    "schedule is a word": edit("stepdrop.json", schedule="linear"),
    "T is too small": edit("stepdrop.json", schedule={"name": "linear", "num_train_timesteps": 1}),
    "T is a word": edit("stepdrop.json", schedule={"name": "linear", "num_train_timesteps": "many"}),
    "an end is a word": edit("stepdrop.json", t_start="late"),
    "no config": remove("config.json"),
    "config is no JSON": write("config.json", "{"),
    "no weights": remove(WEIGHTS),
    "weights are empty": write(WEIGHTS, ""),
    "weights are cut": cut,
    "a tensor is missing": edit_weights(lambda tensors: tensors.pop("conv_in.weight")),
    "a tensor of another shape": edit_weights(
        lambda tensors: tensors.update({"conv_in.bias": torch.zeros(3)})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_folder_is_answered_in_one_line(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    save_model(tmp_path / "m", network(), info())
    damage(tmp_path / "m")
    with pytest.raises(UserError) as error:
        load_model(str(tmp_path / "m"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) > 20


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model 'nowhere'"):
        load_model("nowhere")
    with pytest.raises(UserError, match="no model"):
        load_model(str(tmp_path))
