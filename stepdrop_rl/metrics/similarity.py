"""How like another image an image is: of a few evaluations to the full trajectory of the same noise.

Shapes: M images (M, C, H, W) of both kinds, in [-1, 1] or uint8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stepdrop_rl.data import to_float
from stepdrop_rl.metrics.base import FeatureExtractor

_WINDOW = 7  # pixels of SSIM's window: it fits 8 x 8 images
_BATCH = 256
_MOST_DB = 100.0  # equal images have an infinite PSNR


@torch.no_grad()
def similarity(images: Tensor, others: Tensor, extractor: FeatureExtractor) -> dict[str, float]:
    """Means over the images.

    Returns:
        ``mse`` (of pixels in [-1, 1]), ``psnr`` (dB, at most 100), ``ssim`` (uniform window of 7) and
        ``perceptual``, a distance like LPIPS in the extractor's activations (:func:`perceptual_distance`).
    """
    # Takes a second to import, and few runs ask for it.
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    sums = dict.fromkeys(("mse", "psnr", "ssim", "perceptual"), 0.0)
    for batch in torch.arange(len(images)).split(_BATCH):
        a, b = (to_float(x[batch]).clamp(-1, 1).to(extractor.device) for x in (images, others))
        sums["mse"] += float((a - b).square().flatten(1).mean(1).sum())
        unlike = perceptual_distance(extractor.maps(a), extractor.maps(b))
        a, b = (a + 1) / 2, (b + 1) / 2  # SSIM's luminance is not signed
        decibel = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
        alike = structural_similarity_index_measure(
            a, b, gaussian_kernel=False, kernel_size=_WINDOW, data_range=1.0, reduction="none"
        )
        sums["psnr"] += float(decibel.clamp(max=_MOST_DB).sum())
        sums["ssim"] += float(torch.as_tensor(alike).sum())
        sums["perceptual"] += float(unlike.sum())
    return {name: total / len(images) for name, total in sums.items()}


def perceptual_distance(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """(B,) squared distances of unit-length channels, averaged over space, summed over depths.

    LPIPS (Zhang et al., 2018, eq. 1) with all weights 1.
    """
    total = torch.zeros(len(maps[0]), device=maps[0].device)
    for a, b in zip(maps, others, strict=True):
        unit_a, unit_b = (torch.nn.functional.normalize(m.float(), dim=1) for m in (a, b))
        total += (unit_a - unit_b).square().sum(1).mean((1, 2))
    return total
