"""What the three shells share: spaces, seeds, NumPy at the border, and the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from envs.mdp import StepDropCore
from envs.observation import observation_space
from envs.philox import MAX_SEED

Frame = NDArray[np.uint8]

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}

_SIDE = 160  # pixels of each picture in a frame
_BAR = 24  # height of the timeline
_EVALUATED, _SKIPPED, _AHEAD, _HERE = (31, 119, 180), (222, 222, 222), (250, 250, 250), (214, 39, 40)


def single_observation_space(core: StepDropCore) -> spaces.Box:
    """Of one sample."""
    return observation_space(core.walk.process.num_features)


def single_action_space() -> spaces.Discrete:
    """0 skip, 1 evaluate."""
    return spaces.Discrete(2)


def fresh_seed(generator: np.random.Generator) -> int:
    """A seed for episodes, for a reset that names none."""
    return int(generator.integers(0, MAX_SEED))


def seeds_tensor(core: StepDropCore, seeds: list[int]) -> Tensor:
    """Seeds as the core takes them: 32 bits each."""
    return torch.tensor([seed & MAX_SEED for seed in seeds], dtype=torch.int64, device=core.rows.device)


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A fresh array."""
    return np.array(tensor.detach().cpu().numpy())


def information(core: StepDropCore, rows: Tensor) -> dict[str, NDArray[Any]]:
    """What the observation does not say, one array per key."""
    return {
        "nfe": to_numpy(core.walk.nfe[rows]),
        "quality": to_numpy(core.phi[rows]),
        "price": to_numpy(core.walk.price[rows]),
        "image": to_numpy(core.images[rows]),
    }


def frame(core: StepDropCore, row: int) -> Frame:
    """The sample and its timeline: (H, W, 3) uint8.

    Left: the image at the current time, one jump from the anchor. Right: the clean estimate. Below: one cell
    per grid point, blue where it was evaluated, grey where skipped, red where the decision stands.
    """
    walk = core.walk
    rows = core.rows[row : row + 1]
    point = min(int(walk.index[row]), len(walk.grid) - 1)
    done = int(walk.index[row]) >= len(walk.grid)
    clean = walk.process.x0(rows)
    noisy = clean if done else walk.process.jump(rows, walk.grid.times[point].reshape(1))
    pictures = np.concatenate([_enlarge(noisy[0]), _enlarge(clean[0])], axis=1)
    bar = np.empty((_BAR, pictures.shape[1], 3), dtype=np.uint8)
    edges = np.linspace(0, pictures.shape[1], len(walk.grid) + 1).astype(int)
    evaluated = to_numpy(walk.evaluated[row])
    for i in range(len(walk.grid)):
        here = i == point and not done
        past = i < point or done
        colour = _HERE if here else _EVALUATED if evaluated[i] else _SKIPPED if past else _AHEAD
        bar[:, edges[i] : edges[i + 1]] = colour
        bar[:, edges[i]] = 255
    return np.concatenate([pictures, bar], axis=0)


def _enlarge(image: Tensor) -> Frame:
    """(C, H, W) in [−1, 1] to (_SIDE, _SIDE, 3) uint8, pixel by pixel."""
    pixels = ((image.detach().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    height, width = pixels.shape[1:]
    down = torch.arange(_SIDE) * height // _SIDE
    across = torch.arange(_SIDE) * width // _SIDE
    big = pixels[:, down][:, :, across].permute(1, 2, 0)
    return to_numpy(big.expand(-1, -1, 3) if big.shape[-1] == 1 else big)
