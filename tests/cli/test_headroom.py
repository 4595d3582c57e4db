"""What unequal shares of evaluations could gain."""

import pytest
import torch

from stepdrop_rl.arena import make_arena
from stepdrop_rl.config import AgentChoice
from stepdrop_rl.looks import draw_looking
from stepdrop_rl.weights import read_json

from .conftest import call


def test_looking_on_changes_nothing():
    arena, contender = make_arena(AgentChoice(policy="log_snr", target_nfe=4, batch_size=16), blocks=2)
    images, looks = draw_looking(arena, contender.agent, 24)
    expected = arena.engine(contender.agent).sample(contender.agent, 24).images
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    widths = arena.model.denoiser.feature_widths
    assert [tuple(look.shape) for look in looks] == [(24, 3 + sum(widths.values()))] * 4
    assert bool((looks[0][:, 1] == 0).all()), "nothing has changed yet"
    assert all(float(look[:, 1].std()) > 0 for look in looks[1:])


def test_the_tables_say_who_gains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--nfe", "[3, 4]", "--fewest", "2", "--most", "5", "--num-samples", "96"]
    assert call("headroom", *argv, "--tracking", "offline", "--json", "h.json", "--report", "h.md") == 0
    found = read_json("h.json")
    rows = {(row["nfe"], row["who"]): row for row in found["rows"]}
    for nfe in (3, 4):
        alike, oracle = rows[nfe, "all alike"], rows[nfe, "oracle"]
        assert alike["nfe_mean"] == nfe
        assert alike["nfe_std"] == 0
        assert oracle["nfe_mean"] == pytest.approx(nfe, abs=0.05)
        assert oracle["error"] < min(alike["error"], rows[nfe, "oracle's, dealt to others"]["error"])
    assert {count: len(row) for count, row in found["told"].items()} == {"2": 2, "3": 3, "4": 4, "5": 5}
    assert (tmp_path / "h.md").read_text(encoding="utf-8") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--nfe", "[2, 4]"], "means from fewest to most (3 to 10)"),
        (["--fewest", "5", "--most", "5"], "need 2 <= fewest < most"),
        (["--schedule", "log_snrr"], "log_snr"),
        (["--schedule", "bernoulli"], "fixed"),
        (["--schedule", "[967, 500, 24]"], "a spacing for every number of evaluations"),
        (["--schedule", "ppo"], "a spacing for every number of evaluations"),
    ],
)
def test_wrong_settings_are_said(argv, says, capsys):
    assert call("headroom", *argv) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
