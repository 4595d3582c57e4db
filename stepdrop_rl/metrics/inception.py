"""The Inception network of the FID, by torch-fidelity: only its distance is called ``fid``.

Its weights are 91 MB: a file of yours (``--metrics.inception-weights FILE``) or torch-fidelity's download,
kept in the cache. Shapes: B images (B, C, H, W) in [-1, 1], C = 1 or 3.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from envs.errors import UserError
from stepdrop_rl.caches import cache_folder
from stepdrop_rl.data.base import to_uint8
from stepdrop_rl.metrics.base import INCEPTION
from stepdrop_rl.metrics.checkpoints import read_checkpoint
from stepdrop_rl.weights import content_hash

# The layers up to each depth whose activations are shown, and what follows.
_DEPTHS = (
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    ("MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d"),
    ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


class Inception:
    """A :class:`~stepdrop_rl.metrics.base.FeatureExtractor` with torch-fidelity's own numbers.

    Args:
        path: File of the weights.

    Raises:
        UserError: It cannot be read, or holds another network.
    """

    name = INCEPTION

    def __init__(self, path: Path) -> None:
        read_checkpoint(path)  # by the reader that runs no code: what it takes may be read again
        try:
            self.network: Any = FeatureExtractorInceptionV3(
                INCEPTION, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except (RuntimeError, AttributeError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{path} does not hold torch-fidelity's Inception network: {reason}") from None

    @cached_property
    def content_hash(self) -> str:
        """Of the weights."""
        return content_hash(self.network.state_dict())

    @property
    def device(self) -> torch.device:
        """Where it takes images."""
        return self.network.fc.weight.device  # type: ignore[no-any-return]

    def to(self, device: torch.device | str) -> Inception:
        """Move it."""
        self.network.to(device)
        return self

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2048) features and (B, 1008) logits without bias, which the Inception score is made of."""
        features, logits = self.network(_colour(x))
        return features, logits

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations of five depths."""
        side = self.network.INPUT_IMAGE_SIZE
        pixels = _colour(x).float()
        hidden = interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(side, side), align_corners=False)
        hidden = (hidden - 128) / 128
        found = []
        for layers in _DEPTHS:
            for layer in layers:
                hidden = getattr(self.network, layer)(hidden)
            found.append(hidden)
        return found


def _colour(x: Tensor) -> Tensor:
    return to_uint8(x).expand(-1, 3, -1, -1)


def load() -> Inception:
    """Return it with torch-fidelity's weights: from the cache, else downloaded."""
    path = cache_folder("extractors") / Path(URL_INCEPTION_V3).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix="6726825d")
        except Exception as error:  # sockets, certificates, disks: a person needs one line
            raise UserError(
                f"the Inception weights cannot be downloaded ({' '.join(str(error).split())[:120]}): "
                "give --metrics.inception-weights FILE"
            ) from None
    return Inception(path)
