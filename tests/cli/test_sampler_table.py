"""The table of samplers, and diffusers' own beside ours."""

import re
from dataclasses import replace

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from agents.fixed import FixedSchedule
from envs.errors import UserError
from stepdrop_rl.diffusion import image_scale
from stepdrop_rl.engine import Engine
from stepdrop_rl.integrations.samplers import SAMPLERS, draw
from stepdrop_rl.models.denoiser import NetworkDenoiser
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.solvers import SOLVERS
from stepdrop_rl.weights import read_json, write_json

from .conftest import call, spooled


@pytest.fixture(scope="module")
def model():
    return load_model("digits")


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_diffusers_samplers_keep_to_the_budget_and_draw_digits(model, name):
    images, calls = draw(name, model, 20, 40, seed=1, batch_size=32)
    assert 18 <= calls <= 20
    assert images.shape == (40, 1, 8, 8)
    ink = (images > 0).float().mean((1, 2, 3))
    assert 0.2 < float(ink.mean()) < 0.5  # of real digits: 0.34
    with pytest.raises(UserError, match="did you mean"):
        draw(f"{name}x", model, 20, 1, seed=1)


class SaysV(nn.Module):
    """A network that predicts epsilon, as one that predicts v: v = (eps − sigma·x) / alpha."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x, t):
        alpha, sigma = (image_scale(v, x) for v in self.denoiser.schedule.alpha_sigma(t))
        return UNet2DOutput(sample=(self.denoiser(x, t)[0] - sigma * x) / alpha)


# Not PNDM: it averages what the network says, before it is turned into noise.
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "diffusers:pndm"])
def test_a_network_that_predicts_v_draws_the_same_images(model, name):
    settings = {"prediction": "v_prediction", "shape": model.denoiser.shape}
    denoiser = NetworkDenoiser(SaysV(model.denoiser), model.denoiser.schedule, **settings)
    as_v = replace(model, denoiser=denoiser, info=replace(model.info, prediction="v_prediction"))
    expected, found = (draw(name, one, 10, 16, seed=1)[0] for one in (model, as_v))
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)  # alpha is tiny at their first times


def test_ours_is_diffusers_on_the_same_times(model):
    theirs, calls = draw("diffusers:dpm++2m", model, 8, 16, seed=1)
    times = torch.linspace(model.info.t_start, model.info.t_end, 8).round().double()
    engine = Engine(denoiser=model.denoiser, solver=SOLVERS.load("multistep")(), times=times, seed=1)
    ours = engine.sample(FixedSchedule("even", times), 16).images
    assert calls == 8
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-3)  # float32 tables on their side


def test_the_table_has_every_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--solvers", "[ddim, multistep]", "--schedules", "[uniform, log_snr]", "--nfe", "[2, 4]"]
    argv += ["--num-samples", "32", "--tracking", "offline", "--json", "t.json", "--figure", "t.png"]
    assert call("sampler_table", *argv, "--report", "t.md") == 0
    rows = read_json("t.json")["rows"]
    assert len(rows) == (2 * 2 + len(SAMPLERS)) * 2
    assert all(row["fd_digits_judge"] > 0 for row in rows)
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text.count("**") == 8  # the best of each column, twice two
    distances, kids = text.split("KID of the same images:")
    for row in rows:
        assert f"{row['fd_digits_judge']:.2f}" in distances
        assert f"{row['kid']:.4f}" in kids
    assert distances.count("| ddim |") == kids.count("| ddim |") == 2
    others = [row for row in rows if row["budget"] != row["nfe"]]
    assert len(re.findall(r"\d \(\d+\) \|", text)) == 2 * len(others)
    heun = next(line for line in distances.splitlines() if line.startswith("| diffusers:heun"))
    spent = [row for row in rows if row["solver"] == "diffusers:heun"]
    assert [(row["budget"], row["nfe"]) for row in spent] == [(2, 1), (4, 3)]
    for row in spent:
        assert f"{row['fd_digits_judge']:.2f} ({row['nfe']})" in heun
    assert "in brackets" in text
    assert (tmp_path / "t.png").stat().st_size > 1000
    runs = spooled()
    (parent, _) = runs.pop("samplers-digits")
    lines = {f"{row['solver']}-{row['schedule']}": row for row in rows}  # the last row of each line
    assert runs.keys() == lines.keys()
    for name, (header, logged) in runs.items():
        assert header["parent_id"] == parent["id"]
        assert logged == {key: lines[name][key] for key in ("fd_digits_judge", "kid")}
    assert call("sampler_table", "--solvers", "[dim]") == 2
    assert call("sampler_table", "--schedules", "[log_snrr]") == 2


FAST = ["--diffusers", "false", "--num-samples", "32", "--tracking", "none"]


def test_a_file_stands_in_the_column_of_its_count_with_its_solver(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    schedule = {"schema": "stepdrop_rl.schedule/1", "solver": "ddim", "times": [967, 700, 400, 100]}
    write_json("s.json", schedule)
    argv = ["--schedules", '[uniform, s.json, "[967.1, 24]"]', "--nfe", "[2, 4]", "--json", "t.json"]
    argv += ["--figure", "t.png"]
    assert call("sampler_table", "--solvers", "[ddim, multistep]", *argv, *FAST) == 0
    rows = read_json("t.json")["rows"]
    given = [(r["solver"], r["schedule"], r["budget"], r["nfe"]) for r in rows if r["schedule"] != "uniform"]
    assert given == [
        ("ddim", "s.json", 4, 4),
        ("ddim", "[967.1, 24]", 2, 2),
        ("multistep", "[967.1, 24]", 2, 2),
    ]
    assert "| ddim | s.json | – | " in capsys.readouterr().out
    for changes, said in (
        (["--nfe", "[3]"], "s.json spends 4 evaluations, for which --nfe [3] has no column"),
        (["--solvers", "[multistep]"], "s.json was made for solver 'ddim'"),
    ):
        assert call("sampler_table", "--solvers", "[ddim]", *argv, *FAST, *changes) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--schedules", "[target_stochastic]", "--nfe", "[2000]"], "can spend at most 24"),
        (["--schedules", "[uniform]", "--nfe", "[4, 2000]"], "can spend at most 1000"),
        (["--schedules", "[ppo]"], "'ppo' is none: evaluate it"),
        (["--schedules", '["bernoulli:p=0.7"]'], "evaluate it"),
    ],
)
def test_what_no_column_can_show_is_said(capsys, argv, said):
    assert call("sampler_table", "--solvers", "[multistep]", *FAST, *argv) == 2
    assert said in capsys.readouterr().err


def test_the_table_clips_as_it_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}
    for clip in ("static", "none"):
        argv = ["--solvers", "[ddim]", "--schedules", "[uniform]", "--nfe", "[4]", "--clip", clip]
        assert call("sampler_table", *argv, *FAST, "--json", "t.json") == 0
        found[clip] = read_json("t.json")["rows"][0]["kid"]
    assert found["static"] != found["none"]
