"""Training losses: weights by hand, and S²-DM against its own expansion."""

import pytest
import torch

from envs.errors import UserError
from stepdrop_rl.config import LossConfig, TrainDiffusionConfig
from stepdrop_rl.diffusion import NoiseSchedule, q_sample, target, to_epsilon
from stepdrop_rl.losses import LOSSES, Batch, ddpm, min_snr_weight, s2dm_weight_and_scale, skip_factor

T = 1000


def batch_of(prediction="epsilon", schedule="linear", output=None):
    generator = torch.Generator().manual_seed(0)
    schedule = NoiseSchedule(schedule, T)
    x0, eps, said = (torch.randn(6, 1, 4, 4, generator=generator) for _ in range(3))
    t = torch.tensor([0.0, 3.0, 10.0, 250.5, 700.0, 999.0], dtype=torch.float64)
    x_t = q_sample(schedule, x0, t, eps)
    return Batch(schedule, prediction, x0, t, eps, x_t, said if output is None else output)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_loss_is_a_float32_scalar_with_a_gradient(name, prediction):
    batch = batch_of(prediction)
    batch.output.requires_grad_(True)
    loss = LOSSES.load(name)(batch, TrainDiffusionConfig(loss=LossConfig(name=name)))
    assert loss.shape == ()
    loss.backward()
    assert float(batch.output.grad.abs().sum()) > 0
    half = LOSSES.load(name)(
        Batch(**(vars(batch) | {"output": batch.output.bfloat16()})),
        TrainDiffusionConfig(loss=LossConfig(name=name)),
    )
    assert float(half.detach()) == pytest.approx(float(loss.detach()), rel=0.05)


def test_the_plain_loss_is_zero_for_a_perfect_network_and_by_hand_for_another():
    batch = batch_of("v_prediction")
    perfect = target(batch.schedule, "v_prediction", batch.x0, batch.t, batch.eps)
    config = TrainDiffusionConfig()
    assert float(ddpm(batch_of("v_prediction", output=perfect), config)) == 0
    assert float(ddpm(batch_of("v_prediction", output=perfect + 0.5), config)) == pytest.approx(0.25)


def test_min_snr_weights():
    schedule = NoiseSchedule("cosine", T)
    snr = torch.tensor([0.01, 1.0, 5.0, 50.0], dtype=torch.float64)
    t = schedule.time_of(0.5 * torch.log(snr))
    assert torch.equal(min_snr_weight(schedule, "epsilon", t, 0.0), torch.ones(4, dtype=torch.float64))
    eps = min_snr_weight(schedule, "epsilon", t, 5.0)
    torch.testing.assert_close(eps, torch.tensor([1, 1, 1, 0.1], dtype=torch.float64), rtol=1e-8, atol=0)
    v = min_snr_weight(schedule, "v_prediction", t, 5.0)
    wanted = torch.tensor([0.01 / 1.01, 0.5, 5 / 6, 5 / 51], dtype=torch.float64)
    torch.testing.assert_close(v, wanted, rtol=1e-8, atol=0)


def test_min_snr_weighs_the_same_clean_error_alike_for_both_predictions():
    # An x0_hat off by d is an eps off by d·alpha/sigma and a v off by d/sigma (x_t given): Hang et al. 2023.
    batch = batch_of()
    alpha, sigma = batch.schedule.alpha_sigma(batch.t)
    eps = min_snr_weight(batch.schedule, "epsilon", batch.t, 5.0) * (alpha / sigma) ** 2
    v = min_snr_weight(batch.schedule, "v_prediction", batch.t, 5.0) / sigma**2
    torch.testing.assert_close(eps, v, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("skip", [2, 10, 50])
def test_the_skip_factor_is_the_papers(schedule, skip):
    """√(1 − α)/√α with α = ᾱ_t/ᾱ_{t−skip} from the table of ᾱ, and ᾱ_t where t < skip."""
    schedule = NoiseSchedule(schedule, T)
    t = torch.tensor([0, 1, skip - 1, skip, 200, 900])
    bar = schedule.alpha_bar
    alpha = torch.where(t < skip, bar[t], bar[t] / bar[(t - skip).clamp(min=0)])
    wanted = torch.sqrt(1 - alpha) / torch.sqrt(alpha)
    torch.testing.assert_close(skip_factor(schedule, t.double(), skip), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("skip", [2, 10, 50])
def test_s2dm_is_a_weight_and_a_scale_up_to_a_constant(prediction, skip):
    """Its gradient is that of w·‖b·ε − ε_θ‖², whatever the network says."""
    settings = TrainDiffusionConfig(loss=LossConfig(name="s2dm", skip=skip))
    gradients = []
    for expanded in (False, True):
        batch = batch_of(prediction)
        batch.output.requires_grad_(True)
        if expanded:
            w, b = (
                value.float().reshape(-1, 1, 1, 1)
                for value in s2dm_weight_and_scale(batch.schedule, batch.t, skip, 0.99)
            )
            eps_hat = to_epsilon(batch.schedule, prediction, batch.output, batch.x_t, batch.t)
            loss = (w * (b * batch.eps - eps_hat).square()).mean()
        else:
            loss = LOSSES.load("s2dm")(batch, settings)
        (gradient,) = torch.autograd.grad(loss, batch.output)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_the_scale_lies_where_the_field_notes_say():
    for skip in (2, 10, 50):
        _, b = s2dm_weight_and_scale(NoiseSchedule("linear", T), torch.arange(T).double(), skip, 0.99)
        assert float(b.min()) > 0.9955
        assert float(b.max()) < 1.0026


def test_the_control_has_the_weights_and_the_plain_target():
    batch = batch_of(output=batch_of().eps)
    config = TrainDiffusionConfig(loss=LossConfig(name="s2dm_weight"))
    assert float(LOSSES.load("s2dm_weight")(batch, config)) == 0
    off = batch_of(output=batch_of().eps + 1.0)
    w, _ = s2dm_weight_and_scale(off.schedule, off.t, 10, 0.99)
    assert float(LOSSES.load("s2dm_weight")(off, config)) == pytest.approx(float(w.mean()), rel=1e-5)


def test_weights_of_two_kinds_are_refused():
    with pytest.raises(UserError, match="s2dm has weights of its own"):
        TrainDiffusionConfig(loss=LossConfig(name="s2dm"), min_snr_gamma=5.0)
