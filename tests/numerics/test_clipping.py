"""Keeping clean estimates in range: static clipping, Imagen's dynamic thresholding, and neither."""

import pytest
import torch
from diffusers import DDIMScheduler

from envs.errors import UserError
from envs.philox import Role, Stream, normal
from stepdrop_rl.diffusion import NoiseSchedule
from stepdrop_rl.engine import Engine
from stepdrop_rl.estimates import CLIPS, QUANTILE, estimate, in_range, quantile
from stepdrop_rl.models.analytic import GaussianMixture
from stepdrop_rl.process import DiffusionProcess
from stepdrop_rl.solvers import make_solver

SHAPE = (3, 4, 4)
COUNT = 6


def wide() -> GaussianMixture:
    """Data that leave [−1, 1], so that clipping has something to do."""
    means = 1.5 * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(5))
    return GaussianMixture(NoiseSchedule("linear", 1000), means, 0.2)


@pytest.mark.parametrize("count", [1, 2, 7, 48])
def test_quantiles_are_torchs(count: int) -> None:
    values = torch.randn(5, count, generator=torch.Generator().manual_seed(0))
    for q in (0.0, 0.3, QUANTILE, 1.0):
        torch.testing.assert_close(quantile(values, q), torch.quantile(values, q, dim=1))


def test_thresholding_is_imagens() -> None:
    x0 = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(1)) * torch.linspace(
        0.1, 4, 7
    ).reshape(-1, 1, 1, 1)
    scheduler = DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=QUANTILE, sample_max_value=float("inf")
    )
    torch.testing.assert_close(in_range(x0, "dynamic"), scheduler._threshold_sample(x0))
    assert float(in_range(x0, "dynamic").abs().max()) <= 1
    torch.testing.assert_close(in_range(x0[:1], "dynamic"), x0[:1])  # within the range nothing changes


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_trajectories_agree_with_diffusers_thresholding(eta: float) -> None:
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        thresholding=True,
        dynamic_thresholding_ratio=QUANTILE,
        sample_max_value=1e6,
        timestep_spacing="leading",
        steps_offset=7,
    )
    scheduler.set_timesteps(20)
    times, rows, denoiser = scheduler.timesteps.tolist(), torch.arange(COUNT), wide()
    noise = {"seed": 3, "role": Role.EVALUATION, "image": rows}
    x = normal(SHAPE, stream=Stream.INITIAL, **noise)  # type: ignore[arg-type]
    process = DiffusionProcess(
        denoiser,
        make_solver(f"ddim:eta={eta}"),
        num_rows=COUNT,
        seed=3,
        role=Role.EVALUATION,
        clip="dynamic",
    )
    changed = 0.0
    for t in times:
        at = torch.full((COUNT,), float(t), dtype=torch.float64)
        if t == times[0]:
            process.start(rows, rows, at)
        process.evaluate(rows, at)
        changed += float(process.evidence(rows).clipped.mean())
        z = normal(SHAPE, stream=Stream.JUMP, time=(at - 50).clamp(min=0), **noise)  # type: ignore[arg-type]
        x = scheduler.step(
            denoiser(x, at)[0], t, x, eta=eta, use_clipped_model_output=True, variance_noise=z
        ).prev_sample
    assert changed > 1  # there was something to threshold
    torch.testing.assert_close(process.x0(rows), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("clip", CLIPS)
def test_eps_goes_with_the_clipped_estimate(clip: str) -> None:
    model = wide()
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([5.0, 100.0, 300.0, 600.0, 990.0], dtype=torch.float64)
    seen = estimate(model, x, t, clip=clip)  # type: ignore[arg-type]
    alpha, sigma = (value.float().reshape(-1, 1, 1, 1) for value in model.schedule.alpha_sigma(t))
    torch.testing.assert_close(alpha * seen.x0 + sigma * seen.eps, x, rtol=1e-4, atol=1e-4)
    if clip == "none":
        torch.testing.assert_close(seen.eps, seen.predicted, rtol=1e-3, atol=1e-4)
        assert not bool(seen.clipped.any())
    else:
        raw = estimate(model, x, t, clip="none").x0
        torch.testing.assert_close(seen.clipped, (raw.abs() > 1).flatten(1).float().mean(1))


def test_the_engine_clips_as_it_is_told() -> None:
    times = torch.linspace(990, 5, 8, dtype=torch.float64)
    from agents.fixed import FixedSchedule

    images = {
        clip: Engine(denoiser=wide(), solver=make_solver("ddim"), times=times, seed=1, clip=clip)
        .sample(FixedSchedule("all", times), 8)
        .images
        for clip in CLIPS
    }
    assert float(images["static"].abs().max()) <= 1
    assert float(images["dynamic"].abs().max()) <= 1
    assert float(images["none"].abs().max()) > 1
    assert float((images["static"] - images["dynamic"]).abs().max()) > 0.01


def test_an_unknown_way_to_clip_is_refused() -> None:
    with pytest.raises(UserError, match="static, dynamic or none"):
        DiffusionProcess(
            wide(),
            make_solver("ddim"),
            num_rows=1,
            seed=0,
            role=Role.EVALUATION,
            clip="hard",  # type: ignore[arg-type]
        )
