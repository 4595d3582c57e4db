"""Tiny diffusers U-Nets: made, saved and loaded.

A model folder is a diffusers model folder (``config.json``, ``diffusion_pytorch_model.safetensors``) with
one more file, ``stepdrop.json``: noise schedule, prediction type, data set and the ends of its grid.
Any diffusers ``UNet2DModel`` folder loads, where that file is written beside it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from envs.errors import UserError
from envs.registry import unknown_name
from stepdrop_rl.config import Prediction, ScheduleConfig, UNetConfig
from stepdrop_rl.device import autocast_type
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.models.denoiser import NetworkDenoiser, unet_of
from stepdrop_rl.runs import run_folder
from stepdrop_rl.threads import use_kept_threads
from stepdrop_rl.weights import content_hash, read_json, require_writable, write_text

PRETRAINED = Path(__file__).parent / "pretrained"
SCHEMA = "stepdrop_rl.model/1"
_NORM_GROUPS = 8  # of group normalisation: every width is a multiple of it


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What sampling must know of a network.

    Args:
        dataset: Data set it was trained on.
        prediction: epsilon or v_prediction.
        schedule: Its noise schedule.
        t_start: Largest time of its grid: where sampling starts.
        t_end: Smallest time of its grid: the last evaluation before the clean image.
    """

    dataset: str
    prediction: str
    schedule: ScheduleConfig
    t_start: float
    t_end: float
    schema: str = SCHEMA


class PixelUnshuffledUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A ``UNet2DModel`` that sees blocks of pixels as channels: a quarter of the work for ``factor`` 2.

    Its configuration says of what size its images are, as diffusers' pipelines ask.
    """

    @register_to_config
    def __init__(
        self,
        factor: int,
        inner: dict[str, Any],
        in_channels: int | None = None,
        sample_size: int | None = None,
    ) -> None:
        del in_channels, sample_size  # they follow from the others
        super().__init__()
        self.unet = UNet2DModel.from_config(inner)  # a config entry of that name would hide it
        folded = self.unet.config
        self.register_to_config(
            in_channels=folded.in_channels // factor**2, sample_size=folded.sample_size * factor
        )

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        """Predict for (B, C, H, W) images at (B,) times."""
        factor = self.config.factor
        folded = nn.functional.pixel_unshuffle(sample, factor)
        output = self.unet(folded, timestep).sample
        return UNet2DOutput(sample=nn.functional.pixel_shuffle(output, factor))


def make_network(config: UNetConfig, shape: tuple[int, int, int]) -> nn.Module:
    """Return an untrained network for images of ``shape`` (C, H, W)."""
    channels, size, width = shape
    if size != width:
        raise UserError(f"images must be square, not {size}×{width}")
    folds = config.unshuffle
    if size % (folds * 2 ** (len(config.channels) - 1)):
        raise UserError(f"{size}×{size} images cannot be halved at every one of unet.channels' levels")
    down = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention]
    up = ["AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention)]
    try:
        unet = UNet2DModel(
            sample_size=size // folds,
            in_channels=channels * folds**2,
            out_channels=channels * folds**2,
            block_out_channels=tuple(config.channels),
            layers_per_block=config.layers,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            attention_head_dim=config.head_dim,
            norm_num_groups=_NORM_GROUPS,
            dropout=config.dropout,
        )
    except (ValueError, RuntimeError, ZeroDivisionError) as error:  # torch and diffusers check widths
        raise UserError(f"no network can be made of these unet settings: {error}") from None
    return unet if folds == 1 else PixelUnshuffledUNet(folds, dict(unet.config))


def save_model(folder: Path, network: nn.Module, info: ModelInfo) -> None:
    """Write a model folder; each of its files is moved into place when it is whole."""
    require_writable(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
        network.save_pretrained(beside)  # type: ignore[operator]
        for file in Path(beside).iterdir():
            file.chmod(0o644)  # diffusers leaves weights readable by their owner only
            file.replace(folder / file.name)
    write_info(folder, info)


def write_info(folder: Path, info: ModelInfo) -> None:
    """Write what sampling must know beside the network (also after the ends were chosen anew)."""
    write_text(folder / "stepdrop.json", json.dumps(asdict(info), indent=2) + "\n")


def model_folder(name: str) -> Path:
    """The folder of a shipped model (by name), of any other or of a diffusers pipeline (by path)."""
    shipped = PRETRAINED / name / "unet"
    trained = run_folder(name, "diffusion") / "unet"  # of a data set that no model ships for
    for folder in (shipped, Path(name), trained):
        if (folder / "stepdrop.json").is_file():
            return folder
    if (Path(name) / "model_index.json").is_file():
        return Path(name)
    known = ", ".join(sorted(path.parent.name for path in PRETRAINED.glob("*/unet")))
    raise UserError(
        f"no model '{name}': neither a shipped one ({known}) nor a folder with stepdrop.json "
        "or a diffusers pipeline's (model_index.json); "
        "python -m stepdrop_rl.train_diffusion --data.name NAME makes one"
    )


def read_info(folder: Path) -> ModelInfo:
    """Read ``stepdrop.json`` of a model folder."""
    raw = read_json(folder / "stepdrop.json")
    file = folder / "stepdrop.json"
    if raw.get("schema") != SCHEMA:
        raise UserError(f"{file} has schema '{raw.get('schema')}', this version reads '{SCHEMA}'")
    try:
        info = replace(ModelInfo(**raw), schedule=ScheduleConfig(**raw["schedule"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    if info.prediction not in get_args(Prediction):
        raise unknown_name(f"prediction in {file}", str(info.prediction), get_args(Prediction))
    ends, last = (info.t_start, info.t_end), info.schedule.num_train_timesteps - 1
    if not all(isinstance(t, int | float) for t in ends) or not 0 <= info.t_end < info.t_start <= last:
        raise UserError(f"{file}: need 0 <= t_end < t_start <= {last}, not {info.t_end} and {info.t_start}")
    return info


@dataclass(frozen=True)
class Model:
    """A loaded model: its denoiser, what sampling must know, and the hash of its weights."""

    denoiser: NetworkDenoiser
    info: ModelInfo
    hash: str


def load_network(folder: Path, device: torch.device | str) -> nn.Module:
    """Read an unconditional U-Net from a diffusers model folder, frozen; :class:`UserError` if it is none."""
    kind = read_json(folder / "config.json").get("_class_name", "UNet2DModel")
    classes: dict[str, Any] = {known.__name__: known for known in (UNet2DModel, PixelUnshuffledUNet)}
    if kind not in classes:
        raise UserError(f"{folder} holds a {kind}, not an unconditional UNet2DModel")
    try:
        # low_cpu_mem_usage needs accelerate, and is of use for networks a thousand times as large.
        network, loading = classes[kind].from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        if loading["missing_keys"]:  # diffusers only warns, and leaves them at random
            raise ValueError(f"its weights lack {', '.join(sorted(loading['missing_keys']))}")
        on_cuda = torch.device(device).type == "cuda"
        layout = torch.channels_last if on_cuda else torch.contiguous_format
        network = network.to(device, memory_format=layout).eval().requires_grad_(False)
    except Exception as error:  # diffusers and safetensors raise many kinds for a damaged file
        raise UserError(
            f"cannot load the network in {folder}: {' '.join(str(error).split())[:200]}"
        ) from None
    _require_plain(network, folder)
    return network  # type: ignore[no-any-return]


def _require_plain(network: nn.Module, folder: Path) -> None:
    """Raise :class:`UserError` for a network that asks for or answers more than :class:`Denoiser` knows."""
    unet: Any = unet_of(network)
    told = unet.config
    if told.class_embed_type is not None or told.num_class_embeds is not None:
        raise UserError(
            f"the network in {folder} is class-conditional: only unconditional ones are supported"
        )
    if told.out_channels != told.in_channels:
        learned = " (a learned variance?)" if told.out_channels == 2 * told.in_channels else ""
        raise UserError(
            f"the network in {folder} predicts {told.out_channels} channels of {told.in_channels}{learned}: "
            "only networks that predict epsilon or v alone are supported"
        )
    if told.sample_size is None:
        raise UserError(f"{folder / 'config.json'} does not tell the images' size: sample_size is missing")


def image_shape(network: Any) -> tuple[int, int, int]:
    """(C, H, W) of a network's images, as its configuration tells."""
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(network.config.in_channels), int(height), int(width)


def assemble(
    network: nn.Module,
    info: ModelInfo,
    device: torch.device | str,
    *,
    precision: str = "auto",
    pad_to: int | None = None,
    compiled: bool = False,
) -> Model:
    """A model of a loaded network and what sampling must know of it."""
    denoiser = NetworkDenoiser(
        network,
        NoiseSchedule(info.schedule.name, info.schedule.num_train_timesteps, device),
        prediction=info.prediction,
        shape=image_shape(network),
        autocast=autocast_type(precision, device, network),
        pad_to=pad_to,
        capture=torch.device(device).type == "cuda",
        compiled=compiled,
    )
    identity = content_hash(dict(network.state_dict()))
    if torch.device(device).type == "cpu":
        use_kept_threads(identity)
    return Model(denoiser, info, identity)


def load_model(
    name: str,
    device: torch.device | str = "cpu",
    *,
    precision: str = "auto",
    pad_to: int | None = None,
    dataset: str = "",
    compiled: bool = False,
) -> Model:
    """Load a shipped model by name, or any model folder; :class:`UserError` where it is damaged.

    A folder of a diffusers pipeline will do, too; ``dataset`` is what such a one, which does not say it,
    learned from. ``compiled`` is of CPUs: on CUDA calls are replayed as graphs.
    """
    folder = model_folder(name)
    if not (folder / "stepdrop.json").is_file():
        from stepdrop_rl.integrations.importing import model_from_diffusers  # it makes models of this module

        return model_from_diffusers(
            folder, dataset=dataset, device=device, precision=precision, pad_to=pad_to, compiled=compiled
        )
    info = read_info(folder)
    return assemble(
        load_network(folder, device), info, device, precision=precision, pad_to=pad_to, compiled=compiled
    )
