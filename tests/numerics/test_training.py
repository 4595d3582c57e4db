"""Diffusion training: batches are functions of (seed, step, index), and a resumed run is the same run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from envs.errors import UserError
from envs.philox import Role, Stream, normal, uniform
from stepdrop_rl.config import DataConfig, ScheduleConfig, TrainDiffusionConfig, UNetConfig
from stepdrop_rl.data import load, to_float
from stepdrop_rl.diffusion import NoiseSchedule, q_sample
from stepdrop_rl.diffusion_training import CHECKPOINT, Trainer, batch_indices, epoch_order
from stepdrop_rl.models.unet import make_network

from .conftest import exact

SHAPE = (1, 8, 8)
TINY = UNetConfig(channels=[8, 16], attention=[False, True], head_dim=8, dropout=0.1)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load(DataConfig(), "train").images


def config(**changes: Any) -> TrainDiffusionConfig:
    usual = TrainDiffusionConfig(
        seed=3, steps=8, batch_size=12, warmup_steps=2, learning_rate=2e-3, unet=TINY, precision="float32"
    )
    return replace(usual, **changes)


def trainer(images: Tensor, settings: TrainDiffusionConfig | None = None, init: int = 0) -> Trainer:
    settings = settings or config()
    torch.manual_seed(init)
    network = make_network(settings.unet, SHAPE)
    schedule = NoiseSchedule(settings.schedule.name, settings.schedule.num_train_timesteps)
    return Trainer(settings, network, images, schedule)


def run(one: Trainer, steps: int) -> list[float]:
    return [float(one.train_step()["loss"]) for _ in range(steps)]


def same_weights(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    for name, tensor in one.state_dict().items():
        exact(tensor, theirs[name])


def differ(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


# --- data order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 97, 1198])
def test_an_epoch_is_a_permutation(count: int) -> None:
    for epoch in (0, 1, 7):
        exact(epoch_order(count, epoch, seed=5).sort().values, torch.arange(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [epoch_order(97, epoch, seed) for epoch in range(3) for seed in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == 9
    exact(epoch_order(97, 2, seed=1), epoch_order(97, 2, seed=1))


def test_orders_are_uniform() -> None:
    # Where image 0 stands in 600 epochs of 10: a chi-squared of 9 degrees of freedom, below 27.9 at 0.999.
    place = torch.stack([epoch_order(10, epoch, seed=0).argsort()[0] for epoch in range(600)])
    found = torch.bincount(place, minlength=10).double()
    assert float(((found - 60) ** 2 / 60).sum()) < 27.9


def test_steps_walk_through_the_epochs_without_losing_an_image() -> None:
    images, size = 50, 12
    walked = [batch_indices(images, size, step, seed=4) for step in range(25)]  # 300 examples: 6 epochs
    chosen = torch.cat([indices for indices, _ in walked])
    exact(torch.cat([examples for _, examples in walked]), torch.arange(300))
    for epoch, part in enumerate(chosen.split(images)):
        exact(part, epoch_order(images, epoch, seed=4))


def test_a_batch_larger_than_the_data_spans_epochs() -> None:
    chosen, _ = batch_indices(5, 13, 1, seed=4)
    order = torch.cat([epoch_order(5, epoch, seed=4) for epoch in range(6)])
    exact(chosen, order[13:26])


# --- batches ------------------------------------------------------------------------------------


def test_batches_are_functions_of_seed_and_step(digits: Tensor) -> None:
    one, other = trainer(digits), trainer(digits, init=9)
    run(other, 2)  # whatever has happened before
    for step in (0, 3, 250):
        for a, b in zip(one.batch(step), other.batch(step), strict=True):
            exact(a, b)
    reseeded = trainer(digits, config(seed=4))
    for a, b in zip(one.batch(0), reseeded.batch(0), strict=True):
        assert not torch.equal(a, b)
    for a, b in zip(one.batch(0), one.batch(1), strict=True):
        assert not torch.equal(a, b)


def test_the_same_examples_in_other_batches_are_the_same(digits: Tensor) -> None:
    small, large = (trainer(digits, config(batch_size=size, flip=True)) for size in (6, 24))
    for part, whole in zip(
        zip(*[small.batch(step) for step in range(4, 8)], strict=True), large.batch(1), strict=True
    ):
        exact(torch.cat(part), whole)


def test_a_batch_is_made_of_its_own_random_numbers(digits: Tensor) -> None:
    one = trainer(digits, config(flip=True))
    x0, t, eps, _ = one.batch(5)
    chosen, examples = batch_indices(len(digits), 12, 5, seed=3)
    u = uniform(2, seed=3, role=Role.DIFFUSION_TRAINING, stream=Stream.DATA_TIME, image=examples)
    exact(t, u[:, 0] * 999)
    clean = to_float(digits[chosen])
    mirrored = u[:, 1] < 0.5
    assert 0 < int(mirrored.sum()) < 12
    exact(x0[mirrored], clean[mirrored].flip(3))
    exact(x0[~mirrored], clean[~mirrored])
    noise = normal(SHAPE, seed=3, role=Role.DIFFUSION_TRAINING, stream=Stream.DATA_NOISE, image=examples)
    exact(eps, noise)
    exact(trainer(digits).batch(5)[0], clean)  # without flips


def test_times_cover_the_schedule(digits: Tensor) -> None:
    one = trainer(digits, config(batch_size=4000, schedule=ScheduleConfig(num_train_timesteps=101)))
    t = one.batch(0)[1]
    assert t.dtype == torch.float64
    assert 0 <= float(t.min()) < 1
    assert 99 < float(t.max()) <= 100
    assert abs(float(t.mean()) - 50) < 4 * 100 / math.sqrt(12 * 4000)
    assert bool((t != t.round()).any())  # real times


# --- steps --------------------------------------------------------------------------------------


def test_two_trainers_go_the_same_way(digits: Tensor) -> None:
    one, other = trainer(digits), trainer(digits)
    losses = run(one, 4)
    torch.manual_seed(12345)  # the global generator is nobody's business
    torch.rand(7)
    assert run(other, 4) == losses
    same_weights(one.network, other.network)
    same_weights(one.ema, other.ema)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_the_loss_is_the_weighted_error_of_the_prediction(
    digits: Tensor, prediction: str, gamma: float
) -> None:
    settings = config(prediction=prediction, min_snr_gamma=gamma, unet=replace(TINY, dropout=0.0))
    one = trainer(digits, settings)
    x0, t, eps, _ = one.batch(0)
    bar = one.schedule.alpha_sigma(t)[0] ** 2
    with torch.no_grad():
        said = one.network(q_sample(one.schedule, x0, t, eps), t.float()).sample.double()
    alpha, sigma = bar.sqrt().reshape(-1, 1, 1, 1), (1 - bar).sqrt().reshape(-1, 1, 1, 1)
    wanted = eps if prediction == "epsilon" else alpha * eps - sigma * x0
    error = ((said - wanted) ** 2).flatten(1).mean(1)
    snr = bar / (1 - bar)
    weight = torch.ones_like(snr)
    if gamma:
        weight = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    found = float(one.train_step()["loss"])
    assert found == pytest.approx(float((weight * error).mean()), rel=1e-5)


def test_learning_rate_warms_up_and_decays(digits: Tensor) -> None:
    one = trainer(digits, config(learning_rate=0.4, warmup_steps=4, steps=24))
    closed = {
        0: 0.1,  # (0 + 1)/4 of the peak
        1: 0.2,
        3: 0.4,
        4: 0.4,  # the peak, where the decay begins
        9: 0.4 * 0.5 * (1 + math.cos(math.pi / 4)),
        14: 0.2,  # half of the decay
        19: 0.4 * 0.5 * (1 + math.cos(3 * math.pi / 4)),
        24: 0.0,
    }
    for step, rate in closed.items():
        assert one.learning_rate(step) == pytest.approx(rate, abs=1e-12)
    rates = [one.learning_rate(step) for step in range(25)]
    assert rates[:4] == sorted(rates[:4])
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_no_warm_up_starts_at_the_peak(digits: Tensor) -> None:
    assert trainer(digits, config(warmup_steps=0)).learning_rate(0) == 2e-3


def test_the_learning_rate_is_used(digits: Tensor) -> None:
    one = trainer(digits, config(weight_decay=0.0, grad_clip=1e9))
    for step in range(2):
        assert one.train_step()["learning_rate"] == one.learning_rate(step)
        assert [group["lr"] for group in one.optimizer.param_groups] == [one.learning_rate(step)]
    # Adam's first step is ±rate for every weight whose gradient is not tiny.
    fresh = trainer(digits, config(weight_decay=0.0, grad_clip=1e9))
    before = [p.detach().clone() for p in fresh.network.parameters()]
    fresh.train_step()
    moved = torch.cat(
        [(p.detach() - b).abs().flatten() for p, b in zip(fresh.network.parameters(), before, strict=True)]
    )
    assert float(moved.median()) == pytest.approx(fresh.learning_rate(0), rel=1e-2)
    assert float(moved.max()) < fresh.learning_rate(0) * 1.01


def test_gradients_are_clipped(digits: Tensor) -> None:
    free, clipped = trainer(digits, config(grad_clip=1e9)), trainer(digits, config(grad_clip=1e-3))
    norm = float(free.train_step()["grad_norm"])
    assert float(clipped.train_step()["grad_norm"]) == pytest.approx(norm)  # told as it was
    gradients = [p.grad.flatten() for p in clipped.network.parameters() if p.grad is not None]
    left = float(torch.cat(gradients).norm())
    assert left == pytest.approx(1e-3, rel=1e-3)


def test_the_average_is_the_recursion_written_out(digits: Tensor) -> None:
    one = trainer(digits, config(ema_decay=0.15))
    by_hand = [p.detach().double() for p in one.network.parameters()]
    for decay in (1 / 10, 0.15, 0.15):  # min(ema_decay, (1 + step)/(10 + step)): 2/11 is more than 0.15
        one.train_step()
        by_hand = [
            decay * mean + (1 - decay) * p.detach().double()
            for mean, p in zip(by_hand, one.network.parameters(), strict=True)
        ]
    for mean, wanted in zip(one.ema.parameters(), by_hand, strict=True):
        torch.testing.assert_close(mean.double(), wanted, rtol=1e-5, atol=1e-7)
        assert not mean.requires_grad
    assert not one.ema.training
    assert one.network.training


def test_the_loss_falls_on_digits(digits: Tensor) -> None:
    one = trainer(digits, config(steps=60, batch_size=32, warmup_steps=5, learning_rate=4e-3))
    losses = run(one, 60)
    assert all(math.isfinite(loss) for loss in losses)
    assert (
        losses[0] > 0.8
    )  # a random network: hardly better than saying that there is no noise, which costs 1
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]


# --- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [1, 5])
def test_a_resumed_run_is_bit_identical(digits: Tensor, tmp_path: Path, split: int) -> None:
    whole = trainer(digits)
    losses = run(whole, 8)
    first = trainer(digits)
    before = run(first, split)
    first.save(tmp_path)
    run(first, 1)  # what happens after the checkpoint must not matter
    second = trainer(digits, init=99)  # another start: everything must come from the checkpoint
    assert differ(second.network, first.network)
    second.resume(tmp_path)
    assert second.step == split
    assert before + run(second, 8 - split) == losses
    same_weights(second.network, whole.network)
    same_weights(second.ema, whole.ema)
    assert second.step == 8


def test_a_checkpoint_before_the_first_step_resumes(digits: Tensor, tmp_path: Path) -> None:
    trainer(digits).save(tmp_path)
    second = trainer(digits, init=99)
    second.resume(tmp_path)
    assert run(second, 2) == run(trainer(digits), 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-3),
        ("seed", 4),
        ("steps", 9),
        ("batch_size", 11),
        ("ema_decay", 0.9),
        ("prediction", "v_prediction"),
        ("schedule", ScheduleConfig(name="linear")),
        ("unet", replace(TINY, channels=[8, 24])),
        ("data", DataConfig(name="others")),
        ("flip", True),
        ("min_snr_gamma", 5.0),
        ("precision", "bfloat16"),
    ],
)
def test_changed_settings_refuse_to_resume(digits: Tensor, tmp_path: Path, name: str, value: Any) -> None:
    trainer(digits).save(tmp_path)
    changed = trainer(digits, config(**{name: value}))
    with pytest.raises(UserError, match=name) as error:
        changed.resume(tmp_path)
    assert "\n" not in str(error.value)
    assert changed.step == 0


def test_settings_that_change_no_number_do_not(digits: Tensor, tmp_path: Path) -> None:
    trainer(digits).save(tmp_path)
    free = config(
        output="elsewhere", resume=True, max_minutes=1.0, checkpoint_every=3, sample_every=9, tracking="none"
    )
    trainer(digits, free).resume(tmp_path)


def test_missing_and_damaged_checkpoints_are_told(digits: Tensor, tmp_path: Path) -> None:
    one = trainer(digits)
    with pytest.raises(UserError, match="cannot read"):
        one.resume(tmp_path)
    one.save(tmp_path)
    weights = tmp_path / f"{CHECKPOINT}.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged") as error:
            one.resume(tmp_path)
        assert "\n" not in str(error.value)


def test_a_checkpoint_replaces_the_one_before(digits: Tensor, tmp_path: Path) -> None:
    one = trainer(digits)
    for _ in range(2):
        run(one, 1)
        one.save(tmp_path)
    again = trainer(digits, init=99)
    again.resume(tmp_path)
    assert again.step == 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
