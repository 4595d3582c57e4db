"""Inside diffusers: a schedule in DDPMPipeline draws what the engine draws, and what is saved is loaded."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from gymnasium.utils.env_checker import check_env

import stepdrop_rl
from agents.fixed import FixedSchedule
from envs.errors import UserError
from envs.philox import Role, Stream, normal
from stepdrop_rl.config import DataConfig, ScheduleConfig
from stepdrop_rl.data import DATASETS, SHAPES
from stepdrop_rl.data import load as load_data
from stepdrop_rl.diffusion import CLEAN, NoiseSchedule
from stepdrop_rl.engine import Engine
from stepdrop_rl.estimates import CLIPS
from stepdrop_rl.integrations.pipeline import StepDropPipeline
from stepdrop_rl.integrations.samplers import betas
from stepdrop_rl.integrations.scheduler import StepDropScheduler
from stepdrop_rl.models.unet import PRETRAINED, load_model
from stepdrop_rl.policies import find_policy, load_policy
from stepdrop_rl.pricing import settled_price
from stepdrop_rl.solvers import SOLVERS
from stepdrop_rl.weights import read_json, write_json

TIMES = [960.0, 812.5, 500.25, 200.0, 40.0]


@pytest.fixture(scope="module")
def model():
    return load_model("digits")


@pytest.mark.parametrize("solver", [name for name in SOLVERS if not SOLVERS.load(name)().stochastic])
@pytest.mark.parametrize("told", [None, [950.0, 800.0, 505.5, 210.0, 30.0]])
@pytest.mark.parametrize("clip", CLIPS)
def test_step_by_step_it_is_the_engine(model, solver, told, clip):
    scheduler = StepDropScheduler.of(model, TIMES, solver, network_times=told, clip=clip)
    x = normal((1, 8, 8), seed=3, role=Role.EVALUATION, stream=Stream.INITIAL, image=torch.arange(4))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model.denoiser.network(x, t).sample, t, x).prev_sample
    times = torch.tensor(TIMES, dtype=torch.float64)
    agent = FixedSchedule("s", times, network_times=None if told is None else torch.tensor(told).double())
    engine = Engine(denoiser=model.denoiser, solver=SOLVERS.load(solver)(), times=times, seed=3, clip=clip)
    torch.testing.assert_close(x, engine.sample(agent, 4).images, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["digits", "cifar10"])  # cifar10's sees blocks of pixels as channels
def test_in_a_pipeline_it_calls_the_network_once_a_time_and_survives_saving(name, tmp_path):
    model = load_model(name)
    pipeline = DDPMPipeline(model.denoiser.network, StepDropScheduler.of(model, TIMES, "ddpm"))
    pipeline.set_progress_bar_config(disable=True)
    calls = []
    handle = pipeline.unet.register_forward_hook(lambda *args: calls.append(1))
    first = pipeline(2, generator=torch.Generator().manual_seed(1), output_type="np").images
    handle.remove()
    assert len(calls) == len(TIMES)
    pipeline.save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert type(loaded.scheduler) is StepDropScheduler is stepdrop_rl.StepDropScheduler
    loaded.set_progress_bar_config(disable=True)
    again = loaded(2, generator=torch.Generator().manual_seed(1), output_type="np").images
    assert (first == again).all()
    assert list(loaded.scheduler.config.times) == TIMES


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "kind, solver, settings",
    [(DDIMScheduler, "ddim", {"use_clipped_model_output": True}), (DDPMScheduler, "ddpm", {})],
)
def test_step_by_step_it_is_diffusers(kind, solver, settings, prediction):
    theirs = kind(beta_schedule="squaredcos_cap_v2", prediction_type=prediction)
    theirs.set_timesteps(8)
    times = [float(t) for t in theirs.timesteps]
    ours = StepDropScheduler.from_config(theirs.config, times=times, solver=solver)
    outputs, x = torch.randn(9, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).split([8, 1])
    x = x[0]
    drawn = [torch.Generator().manual_seed(1) for _ in range(2)]
    for output, t in zip(outputs, theirs.timesteps, strict=True):
        expected = theirs.step(output, t, x, generator=drawn[0], **settings)
        found = ours.step(output, t, x, generator=drawn[1])
        for name in ("prev_sample", "pred_original_sample"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-5)
        x = expected.prev_sample


def test_ipndm_is_diffusers_pndm_after_its_warm_up(model):
    schedule = {"trained_betas": betas(model.denoiser.schedule.alpha_bar)}
    theirs = PNDMScheduler(skip_prk_steps=True, **schedule)
    theirs.set_timesteps(10)
    times = theirs.timesteps.unique().flip(0).tolist()[2:]  # without clipping the noisiest ones blow x up
    ours = StepDropScheduler.of(model, times, "ipndm", clip="none")
    x = y = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for k, t in enumerate(
        times[:-1]
    ):  # the last jump is to the clean image: diffusers' has order 4 there, too
        if k == 1:
            theirs.counter = 2  # no second call at the first time, which ours does not make
        with torch.no_grad():
            x = ours.step(model.denoiser.raw(x, torch.full((4,), t)), t, x).prev_sample
            y = theirs.step(model.denoiser.raw(y, torch.full((4,), t)), t, y).prev_sample
        torch.testing.assert_close(x, y, rtol=0, atol=2e-5)
    assert k == 6  # four evaluations and more were looked back on


def test_the_scheduler_refuses_what_cannot_be(model):
    with pytest.raises(UserError, match="descend"):
        StepDropScheduler(times=[5.0, 6.0])
    with pytest.raises(UserError, match="as many as times"):
        StepDropScheduler(times=[6.0, 5.0], network_times=[1.0])
    with pytest.raises(UserError, match="did you mean 'ddim'"):
        StepDropScheduler(times=[6.0, 5.0], solver="dim")
    scheduler = StepDropScheduler(times=[900.0])
    x = torch.randn(1, 1, 2, 2)
    scheduler.step(x, 900, x)
    with pytest.raises(UserError, match="at its end"):
        scheduler.step(x, 900, x)
    assert CLEAN < 0


FOREIGN = [
    DDPMScheduler(),
    DDPMScheduler(num_train_timesteps=300),  # theirs is not stretched as ours is
    DDPMScheduler(beta_start=0.00085, beta_end=0.012),
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    PNDMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    LCMScheduler(),  # has defaults of its own
    DDPMScheduler(num_train_timesteps=200, trained_betas=[0.001 + 0.0001 * i for i in range(200)]),
]


@pytest.mark.parametrize("other", FOREIGN, ids=lambda other: type(other).__name__)
def test_another_schedulers_noise_schedule_is_taken_over_to_the_digit(other, tmp_path):
    ours = StepDropScheduler.from_config(other.config, times=[150.0, 20.0], solver="ddim")
    other.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    bare = {"_class_name": type(other).__name__}  # as hand-made files are: all but what differs left out
    bare |= {k: v for k, v in other.config.items() if k not in other.config["_use_default_values"]}
    for made in (
        ours,
        StepDropScheduler.from_config(bare, times=[150.0, 20.0]),
        StepDropScheduler.from_pretrained(tmp_path / "theirs", times=[150.0, 20.0]),
        StepDropScheduler.from_pretrained(tmp_path / "ours"),
        StepDropScheduler.from_config(ours.config),
        DDPMScheduler.from_config(ours.config),  # and the way back
    ):
        assert made.config.num_train_timesteps == other.config.num_train_timesteps
        assert made.config.prediction_type == other.config.prediction_type
        torch.testing.assert_close(made.alphas_cumprod, other.alphas_cumprod, rtol=0, atol=1e-6)
        if made.config.get("trained_betas") is None:
            assert made.config.beta_schedule == other.config.beta_schedule
    assert list(StepDropScheduler.from_pretrained(tmp_path / "ours").config.times) == [150.0, 20.0]


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1000, 400, 10])  # 10: our linear schedule's β are cut off
def test_our_models_noise_schedules_survive_and_so_do_files_without_betas(model, name, steps, tmp_path):
    schedule = ScheduleConfig(name=name, num_train_timesteps=steps)
    own = replace(model, info=replace(model.info, schedule=schedule))
    scheduler = StepDropScheduler.of(own, [9.0, 1.0])
    scheduler.save_pretrained(tmp_path)
    old = {  # as this class wrote them before it knew beta_start
        "_class_name": "StepDropScheduler",
        "beta_schedule": name,
        "num_train_timesteps": steps,
        "times": [9.0, 1.0],
    }
    for made in (
        scheduler,
        StepDropScheduler.from_pretrained(tmp_path),
        StepDropScheduler.from_config(scheduler.config),
        StepDropScheduler.from_config(old),
    ):
        expected = NoiseSchedule(name, steps).alpha_bar
        torch.testing.assert_close(made.schedule.alpha_bar, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "other, said",
    [
        (DDPMScheduler(beta_schedule="sigmoid").config, "unknown beta_schedule 'sigmoid'"),
        (DDPMScheduler(rescale_betas_zero_snr=True).config, "zero_snr is not supported"),
        (DDPMScheduler(prediction_type="sample").config, "unknown prediction_type 'sample'"),
        (DDPMScheduler(beta_start=0.0).config, "between 0 and 1"),
        (DDPMScheduler(trained_betas=[0.1, 0.2]).config, "num_train_timesteps = 1000 numbers"),
        (FlowMatchEulerDiscreteScheduler().config, "no DDPM-like scheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler tells neither"),
    ],
)
def test_noise_schedules_that_we_do_not_have_are_refused(other, said):
    with pytest.raises(UserError, match=said):
        StepDropScheduler.from_config(other, times=[9.0, 1.0])


def test_noise_is_added_as_the_forward_process_does(model):
    scheduler = StepDropScheduler.of(model, TIMES)
    x0, eps = torch.randn(2, 3, 1, 8, 8)
    t = torch.tensor([0.0, 500.5, 999.0])
    alpha, sigma = (v.float().reshape(-1, 1, 1, 1) for v in model.denoiser.schedule.alpha_sigma(t))
    torch.testing.assert_close(scheduler.add_noise(x0, eps, t), alpha * x0 + sigma * eps)


def test_a_policy_in_a_pipeline_spends_its_budget_and_survives_saving(model, tmp_path):
    pipeline = StepDropPipeline.of(model, load_policy(find_policy("ppo", "digits")))
    result = pipeline(batch_size=64, seed=2, price=0.02, output_type="np")
    assert result.images.shape == (64, 8, 8, 1)
    assert 0 <= result.images.min() < result.images.max() <= 1
    assert len(set(result.nfe)) > 1
    assert 3 < sum(result.nfe) / 64 < 7
    pipeline.save_pretrained(tmp_path)
    loaded = StepDropPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    again = loaded(batch_size=64, seed=2, price=0.02, output_type="np")
    assert (again.images == result.images).all()
    assert again.nfe == result.nfe
    picture = loaded(batch_size=1, price=0.02).images[0]
    assert picture.size == (8, 8)
    with pytest.raises(UserError, match="not both"):
        loaded(price=0.02, target_nfe=5)


@pytest.fixture
def pipeline():
    return StepDropPipeline.of(load_model("digits"), load_policy(find_policy("ppo", "digits")))


def test_a_budgets_price_is_found_once_for_each_policy(pipeline, monkeypatch):
    asked = []

    def counting(*args):
        asked.append(args[2])
        return settled_price(*args, num_images=64)

    monkeypatch.setattr("stepdrop_rl.integrations.pipeline.settled_price", counting)
    first = pipeline(4, target_nfe=5, seed=1, output_type="np").images
    pipeline(1, target_nfe=7, seed=2)
    assert (pipeline(4, target_nfe=5, seed=1, output_type="np").images == first).all()
    assert asked == [5, 7]
    pipeline.policy = load_policy(find_policy("ppo", "digits"))
    pipeline(1, target_nfe=5)
    assert asked == [5, 7, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_draws_the_same_pictures(pipeline, dtype):
    full = pipeline(16, price=0.02, output_type="np")
    pipeline.to(dtype)
    seen = []
    handle = pipeline.unet.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].dtype))
    half = pipeline(16, price=0.02, output_type="np")
    handle.remove()
    assert set(seen) == {dtype}
    same = [a == b for a, b in zip(full.nfe, half.nfe, strict=True)]  # a coin may fall otherwise
    assert sum(same) >= 12
    assert abs(full.images - half.images)[same].mean() < 0.02


def test_it_is_called_as_diffusers_pipelines_are(pipeline):
    def draw(start, count=4):
        generator = torch.Generator().manual_seed(start)
        settings = {"generator": generator, "price": 0.02, "output_type": "np", "return_dict": False}
        return [pipeline(count, **settings)[0] for _ in range(2)]

    first, second = draw(1)
    again = draw(1)
    assert (first == again[0]).all()
    assert (second == again[1]).all()
    assert not (first == second).all()  # the generator moves on
    assert not (first == draw(2)[0]).all()
    assert (draw(1, 2)[0] == first[:2]).all()
    images, nfe = pipeline(3, seed=5, price=0.02, return_dict=False)
    assert (len(images), len(nfe)) == (3, 3)
    with pytest.raises(UserError, match="either seed or generator"):
        pipeline(seed=0, generator=torch.Generator())
    with pytest.raises(UserError, match=r"one torch\.Generator"):
        pipeline(generator=[torch.Generator()])
    with pytest.raises(UserError, match="unknown output_type 'pt'"):
        pipeline(output_type="pt")


def test_what_is_not_there_is_said():
    with pytest.raises(AttributeError, match="nothing"):
        _ = stepdrop_rl.nothing


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_docs_run(number, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "diffusers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4  # the last two need a pipeline of yours
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[number], "docs/diffusers.md", "exec"), {})
    assert (tmp_path / ("digits-in-five" if number == 0 else "first.png")).exists()


def saved_pipeline(folder, unet=None, **scheduler):
    torch.manual_seed(0)
    unet = UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, **(unet or {})},
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )
    DDPMPipeline(unet, DDPMScheduler(**scheduler)).save_pretrained(folder)
    return unet


def test_a_foreign_u_net_is_an_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPDROP_CACHE", str(tmp_path / "cache"))
    unet = saved_pipeline(tmp_path / "theirs", beta_schedule="squaredcos_cap_v2")
    env = stepdrop_rl.from_diffusers(tmp_path / "theirs", bank_size=32, teacher_steps=6, num_decisions=5)
    check_env(env, skip_render_check=True)
    env.reset(seed=1)
    total = sum(env.step(1)[1] for _ in range(4))
    assert total == total  # a number
    network = env.core.walk.process.denoiser.network
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 900.0])
    assert torch.equal(network(x, t).sample, unet.eval()(x, t).sample)
    assert env.core.walk.process.schedule.name == "cosine"


@pytest.mark.parametrize(
    "scheduler, said",
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ({"beta_schedule": "linear", "beta_end": 0.05}, "linear from 0.0001 to 0.05"),
        ({"beta_schedule": "linear", "prediction_type": "sample"}, "predict 'sample'"),
    ],
)
def test_what_we_have_no_mathematics_for_is_refused(tmp_path, scheduler, said):
    saved_pipeline(tmp_path, **scheduler)
    with pytest.raises(UserError, match=said):
        stepdrop_rl.from_diffusers(tmp_path)


@pytest.mark.parametrize(
    "unet, said",
    [
        ({"out_channels": 2}, r"predicts 2 channels of 1 \(a learned variance\?\)"),
        ({"out_channels": 3}, "predicts 3 channels of 1: only"),
        ({"num_class_embeds": 10}, "class-conditional"),
        ({"class_embed_type": "timestep"}, "class-conditional"),
        ({"sample_size": None}, "sample_size is missing"),
    ],
)
def test_networks_that_know_more_than_noise_are_refused(tmp_path, unet, said):
    saved_pipeline(tmp_path, unet)
    with pytest.raises(UserError, match=said) as caught:
        stepdrop_rl.from_diffusers(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "cifar10"])  # cifar10's sees blocks of pixels, and predicts v
@pytest.mark.parametrize("steps", [1000, 500])
def test_a_pipeline_of_ours_is_imported_as_the_model_that_it_was(name, steps, tmp_path):
    model = load_model(name)
    linear = ScheduleConfig(name="linear", num_train_timesteps=steps)
    for schedule in (model.info.schedule, linear):
        changed = replace(model, info=replace(model.info, schedule=schedule))
        scheduler = StepDropScheduler.of(changed, [400.0, 20.0])
        DDPMPipeline(model.denoiser.network, scheduler).save_pretrained(tmp_path)
        again = load_model(str(tmp_path), dataset=name)
        assert again.hash == model.hash
        assert again.info.schedule == schedule
        assert again.info.prediction == model.info.prediction
        assert again.denoiser.prediction == model.info.prediction
        assert again.denoiser.shape == model.denoiser.shape
    assert {"digits": "epsilon", "cifar10": "v_prediction"}[name] == model.info.prediction


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_a_foreign_network_says_is_read_as_diffusers_reads_it(prediction, tmp_path):
    settings = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction}
    unet = saved_pipeline(tmp_path, **settings).eval()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        eps, _ = load_model(str(tmp_path)).denoiser(x, torch.tensor([600.0, 600.0]))
        output = unet(x, 600).sample
    theirs = DDPMScheduler(clip_sample=False, **settings)
    x0 = theirs.step(output, 600, x).pred_original_sample
    alpha_bar = theirs.alphas_cumprod[600]
    torch.testing.assert_close(eps, (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt(), rtol=0, atol=1e-5)


def test_the_shapes_that_a_foreign_network_must_have_are_those_of_the_images():
    assert set(SHAPES) == set(DATASETS)
    assert (SHAPES["digits"][0], *[SHAPES["digits"][1]] * 2) == load_data(DataConfig(), "judge").shape
    for folder in PRETRAINED.glob("*/unet"):
        name = folder.parent.name
        channels, size = SHAPES[name]
        assert load_model(name).denoiser.shape in ((channels, size, size), (channels, 64, 64))


def test_latents_are_no_images(tmp_path):
    saved_pipeline(tmp_path)
    index = read_json(tmp_path / "model_index.json")
    write_json(tmp_path / "model_index.json", index | {"vqvae": ["diffusers", "VQModel"]})
    with pytest.raises(UserError, match="also holds vqvae"):
        stepdrop_rl.from_diffusers(tmp_path)


def test_a_pipeline_in_one_folder_is_read(tmp_path):  # as the first ones of the hub are
    saved_pipeline(tmp_path)
    expected = load_model(str(tmp_path)).hash
    for part in ("unet", "scheduler"):
        for file in (tmp_path / part).iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / part).rmdir()
    assert load_model(str(tmp_path)).hash == expected


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        stepdrop_rl.from_diffusers(tmp_path)
    saved_pipeline(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot load the network"):
        stepdrop_rl.from_diffusers(tmp_path)
