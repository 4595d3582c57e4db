"""How an extractor learns: a classifier with light augmentation, AdamW and a cosine.

Everything random is a function of the seed and the role: first weights, order and augmentation are drawn on
the CPU, whatever the device. Shapes: B images (B, C, H, W) float32 in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from envs.errors import UserError
from stepdrop_rl.data import ImageData, to_float
from stepdrop_rl.metrics.extractor import ROLES, Extractor

MAX_SHIFT = 1  # pixels
MAX_NOISE = 0.15  # standard deviation
MAX_CONTRAST = 0.15  # relative
WEIGHT_DECAY = 0.01
MAX_STANDARDISING = 10_000  # images that mean and deviation of the features are taken from
_EVALUATION_BATCH = 512


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to a pixel (edges repeated), change the contrast about the image's mean, add noise.

    Light, and of the kinds that a bad sampler makes: the features have to measure them, not ignore them.
    """
    B, _, H, W = images.shape
    padded = nn.functional.pad(images, (MAX_SHIFT,) * 4, mode="replicate")
    shift = torch.randint(0, 2 * MAX_SHIFT + 1, (2, B, 1), generator=generator)
    rows = (torch.arange(H) + shift[0]).unsqueeze(2)  # (B, H, 1)
    columns = (torch.arange(W) + shift[1]).unsqueeze(1)  # (B, 1, W)
    shifted = padded.permute(0, 2, 3, 1)[torch.arange(B).view(B, 1, 1), rows, columns].permute(0, 3, 1, 2)
    contrast = 1 + MAX_CONTRAST * (2 * torch.rand(B, 1, 1, 1, generator=generator) - 1)
    mean = shifted.mean(dim=(1, 2, 3), keepdim=True)
    sigma = MAX_NOISE * torch.rand(B, 1, 1, 1, generator=generator)
    return mean + contrast * (shifted - mean) + sigma * torch.randn(images.shape, generator=generator)


@torch.no_grad()
def accuracy(extractor: Extractor, data: ImageData) -> float:
    """Share of the images whose class the extractor names, in evaluation mode."""
    extractor.eval()
    hits = 0
    batches = zip(data.images.split(_EVALUATION_BATCH), data.labels.split(_EVALUATION_BATCH), strict=True)
    for images, labels in batches:
        chosen = extractor.logits(to_float(images.to(extractor.device))).argmax(dim=1)
        hits += int((chosen.cpu() == labels).sum())
    return hits / len(data)


def fit(
    role: str,
    dataset: str,
    data: ImageData,
    held_out: ImageData,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> Extractor:
    """Train the extractor of a role and return it, frozen, in evaluation mode, on the CPU.

    Args:
        role: A key of :data:`~stepdrop_rl.metrics.extractor.ROLES`.
        dataset: Name of the data set, the first half of the extractor's name.
        data: Images to learn from, of the role's split.
        held_out: Images of the other split, for the accuracy.
        epochs: Passes over ``data``.
        batch_size: Images per step.
        learning_rate: Peak of AdamW's learning rate; half a cosine takes it to 0.
        seed: Two roles with one seed still share no random number.
        device: Where the network learns.
        autocast: Type it computes in while it learns (None: float32); bfloat16 is twice as fast.
        progress: Called after each epoch with its number (from 1) and its loss.
    """
    if batch_size < 2:
        raise UserError(f"batch_size must be at least 2 (batch statistics), not {batch_size}")
    generator = torch.Generator().manual_seed(seed * len(ROLES) + list(ROLES).index(role))
    config = ROLES[role].config(data.shape[0], data.num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            int(torch.randint(2**62, (), generator=generator))
        )  # torch's initialisers take no generator
        extractor = Extractor(config, f"{dataset}_{role}")
    layout = torch.contiguous_format if autocast is None else torch.channels_last
    extractor.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    kind = torch.device(device).type
    optimiser = torch.optim.AdamW(extractor.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    images = to_float(data.images)
    total = epochs * math.ceil(len(images) / batch_size)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: 0.5 + 0.5 * math.cos(math.pi * n / total))
    for epoch in range(1, epochs + 1):
        losses = []
        for chosen in torch.randperm(len(images), generator=generator).split(batch_size):
            x = augment(images[chosen], generator).to(device, memory_format=layout)
            if len(x) > 1:  # the last batch may be a single image
                with torch.autocast(kind, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
                    logits = extractor.logits(x)
                loss = nn.functional.cross_entropy(logits.float(), data.labels[chosen].to(device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.detach())
            cosine.step()
        if progress is not None:
            progress(epoch, {"loss": float(torch.stack(losses).mean())})
    extractor.eval().requires_grad_(False)
    extractor.metadata = {
        "dataset": dataset,
        "role": role,
        "split": ROLES[role].split,
        "seed": seed,
        "epochs": epochs,
        "accuracy_on_other_split": accuracy(extractor, held_out),
    }
    extractor.to("cpu", memory_format=torch.contiguous_format).standardise(images[:MAX_STANDARDISING])  # type: ignore[call-overload]
    return extractor
