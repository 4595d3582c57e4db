"""Skip-aware training: inputs are the model's own jumps, targets lead back to the clean image."""

import json
from dataclasses import replace

import pytest
import torch

from envs.errors import UserError
from envs.philox import Role
from stepdrop_rl.config import DataConfig, SkipAwareConfig, TrainDiffusionConfig, UNetConfig
from stepdrop_rl.data import load
from stepdrop_rl.diffusion import NoiseSchedule, image_scale, q_sample
from stepdrop_rl.diffusion_training import Trainer
from stepdrop_rl.grid_ends import default_ends
from stepdrop_rl.models.unet import make_network
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.skip_aware import jumps_of, own_jump, visited_jumps
from stepdrop_rl.solvers.ddim import DDIM

SCHEDULE = NoiseSchedule("cosine", 1000)
SHAPE = (1, 4, 4)


class Oracle:
    """Says ``eps``, whatever it is shown."""

    schedule, shape, feature_widths = SCHEDULE, SHAPE, {}

    def __init__(self, eps):
        self.eps = eps

    def __call__(self, x, t, *, features=()):
        return self.eps[: len(x)], None


class Wrong(Oracle):
    def __call__(self, x, t, *, features=()):
        return 0.3 * x + 0.1, None


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(5, *SHAPE, generator=generator) * 1.8 - 0.9
    return x0, torch.randn(5, *SHAPE, generator=generator)


T = torch.tensor([900.0, 700.0, 500.5, 300.0, 90.0], dtype=torch.float64)
S = torch.tensor([700.0, 20.0, 100.0, 299.5, 90.0], dtype=torch.float64)


def test_jumps_of_evaluations_by_hand():
    times = torch.tensor([900.0, 600.0, 300.0, 50.0], dtype=torch.float64)
    evaluated = torch.tensor([[True, False, True, True], [True, False, False, False]])
    expected = [[900, 900], [900, 300], [300, 50], [900, 900]]
    assert jumps_of(evaluated, times).tolist() == expected


def test_a_perfect_network_jumps_along_the_forward_process(images):
    x0, eps = images
    x_s, back = own_jump(Oracle(eps), SCHEDULE, x0, q_sample(SCHEDULE, x0, T, eps), T, S)
    torch.testing.assert_close(x_s, q_sample(SCHEDULE, x0, S, eps), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back, eps, rtol=1e-3, atol=1e-3)


def test_the_target_leads_back_to_the_clean_image_whatever_the_network_says(images):
    x0, eps = images
    x_s, back = own_jump(Wrong(eps), SCHEDULE, x0, q_sample(SCHEDULE, x0, T, eps), T, S)
    alpha, sigma = SCHEDULE.alpha_sigma(S)
    torch.testing.assert_close(image_scale(alpha, x0) * x0 + image_scale(sigma, x0) * back, x_s)
    assert float((back - eps)[:3].abs().max()) > 0.1  # the jump's error is in it
    torch.testing.assert_close(back[4], eps[4], rtol=1e-5, atol=1e-5)  # (t, t) is no jump


def test_the_jump_is_the_samplers_own(images):
    x0, eps = images
    denoiser = Wrong(eps)
    process = DiffusionProcess(denoiser, DDIM(), num_rows=5, seed=0, role=Role.EVALUATION)
    rows = torch.arange(5)
    process.start(rows, rows, T)
    process._x[:] = q_sample(SCHEDULE, x0, T, eps)
    x_t = process._x.clone()
    process.evaluate(rows, T)
    torch.testing.assert_close(own_jump(denoiser, SCHEDULE, x0, x_t, T, S)[0], process.jump(rows, S))


def test_a_schedule_says_its_jumps_itself(tmp_path):
    start, end = default_ends(SCHEDULE)
    found = visited_jumps(SkipAwareConfig(policy="uniform", nfe=3), "digits", SCHEDULE)
    middle = (start + end) / 2
    expected = [[start, start], [start, middle], [middle, end]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"schema": "stepdrop_rl.schedule/1", "solver": None, "times": [800, 3.5]}))
    assert visited_jumps(SkipAwareConfig(policy=str(file)), "digits", SCHEDULE).tolist() == [
        [800, 800],
        [800, 3.5],
    ]


def test_a_policy_is_watched():
    jumps = visited_jumps(SkipAwareConfig(policy="ppo", nfe=5), "digits", SCHEDULE)
    starts = jumps[:, 0] == jumps[:, 1]
    assert int(starts.sum()) == 512  # one per image
    assert 4.5 < len(jumps) / 512 <= 5.1
    assert bool((jumps[~starts, 0] > jumps[~starts, 1]).all())
    with pytest.raises(UserError, match="unknown policy 'nobody'"):
        visited_jumps(SkipAwareConfig(policy="nobody"), "digits", SCHEDULE)


def trainer(share, **changes):
    config = TrainDiffusionConfig(
        seed=3,
        steps=20,
        batch_size=64,
        warmup_steps=2,
        flip=True,
        unet=UNetConfig(channels=[8, 16], attention=[False, True], head_dim=8, dropout=0.0),
        precision="float32",
        skip_aware=SkipAwareConfig(share=share, nfe=4),
    )
    torch.manual_seed(0)
    network = make_network(config.unet, (1, 8, 8))
    return Trainer(replace(config, **changes), network, load(DataConfig(), "train").images, SCHEDULE)


def test_only_the_share_of_a_batch_is_jumped():
    plain, half, all_of = (trainer(share) for share in (0.0, 0.5, 1.0))
    x0, t, eps, x_t = plain.batch(2)
    for other, least, most in ((half, 20, 44), (all_of, 64, 64)):
        a0, at, aeps, a_t = other.batch(2)
        assert torch.equal(a0, x0)
        moved = at != t
        assert least <= int(moved.sum()) <= most
        assert torch.equal(aeps[~moved], eps[~moved])
        assert torch.equal(a_t[~moved], x_t[~moved])
        assert torch.isin(at[moved], all_of.jumps[:, 1]).all()
        torch.testing.assert_close(q_sample(SCHEDULE, a0, at, aeps), a_t, rtol=1e-4, atol=1e-4)


def test_skip_aware_training_resumes_exactly(tmp_path):
    one, other = trainer(0.5), trainer(0.5)
    losses = [float(one.train_step()["loss"]) for _ in range(6)]
    again = [float(other.train_step()["loss"]) for _ in range(3)]
    other.save(tmp_path)
    resumed = trainer(0.5)
    resumed.resume(tmp_path)
    assert again + [float(resumed.train_step()["loss"]) for _ in range(3)] == losses
    with pytest.raises(UserError, match="skip_aware"):
        trainer(0.25).resume(tmp_path)
