"""Files and lists of times where the name of an agent may stand: what is read, and what is refused."""

import json

import pytest

from agents.base import Budget
from agents.planned import Oracle, oracle_record
from envs.errors import UserError
from stepdrop_rl.models.unet import load_model
from stepdrop_rl.policies import check_name, given, make_agent

TIMES = [967.1, 500.5, 24.0]


@pytest.fixture(scope="module")
def model():
    return load_model("digits")


def written(tmp_path, **entries):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"schema": "stepdrop_rl.schedule/1", "times": TIMES} | entries))
    return str(path)


def made(name, model, solver=None):
    info = model.info
    return make_agent(name, Budget(5, info.t_start, info.t_end, 24), model=model, solver=solver)


def test_a_list_of_times_is_run_unrounded(model):
    agent = made("[967.1, 500.5, 24]", model, "ddim")
    assert agent.times.tolist() == TIMES
    assert (agent.name, agent.nfe, agent.solver) == ("3 given times", 3, None)


def test_a_file_may_tell_the_orders_of_jumps(tmp_path, model):
    assert made(written(tmp_path, orders=[1, 2, 1]), model).orders.tolist() == [1, 2, 1]
    assert made(written(tmp_path), model).orders is None


def test_names_that_are_not_given_are_left_to_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uniform").write_text("a file that is called like a spacing")
    assert given("uniform") is None
    assert given("ppo") is None
    check_name("uniform")
    with pytest.raises(UserError, match="did you mean 'uniform'"):
        check_name("unifrom")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"times": "98765"}, "damaged"),
        ({"times": [True, False]}, "damaged"),
        ({"times": ["900", "300"]}, "damaged"),
        ({"times": {"900": 300}}, "damaged"),
        ({"times": [10**400, 3]}, "damaged"),
        ({"network_times": "987"}, "damaged"),
        ({"times": [900, float("nan")]}, "times must descend"),
        ({"times": []}, "times must descend"),
        ({"orders": 2}, "orders must be as many whole numbers as times"),
        ({"orders": [2, 2]}, "orders must be as many whole numbers as times"),
        ({"orders": [2, 2, 0]}, "orders must be as many whole numbers as times, 1 at least"),
        ({"orders": [2, 2.0, True]}, "orders must be as many whole numbers as times"),
        ({"schema": "stepdrop_rl.mixture/1", "schedules": ["987"]}, "damaged"),
        ({"schema": "stepdrop_rl.mixture/1", "schedules": [[900, float("nan")]]}, "must descend"),
        ({"schema": "stepdrop_rl.mixture/1", "schedules": [TIMES], "weights": [True]}, "damaged"),
        ({"schema": ["a list"]}, "has schema"),
    ],
)
def test_damaged_files_are_said_with_their_name(tmp_path, entries, said):
    with pytest.raises(UserError, match=rf"s\.json.*{said}"):
        given(written(tmp_path, **entries))


@pytest.mark.parametrize("text", ["[" * 100_000, '"times"', "[900, 300]", "", '{"schema": 1}'])
def test_files_that_hold_something_else_are_said(tmp_path, text):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"s\.json"):
        given(str(path))


@pytest.mark.parametrize("text", ["[", "[900, x]", "[true]", "[[900]]", '["900"]', "[" * 100_000])
def test_lists_of_anything_else_are_said(text):
    with pytest.raises(UserError, match="is not a list of times") as caught:
        given(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("name", "said"), [("[1200, 5]", r"\[0, 999\]"), ("[5, 900]", "descend"), ("[]", "one")]
)
def test_lists_outside_the_model_are_said(model, name, said):
    with pytest.raises(UserError, match=said):
        made(name, model)


def test_range_errors_name_the_file(tmp_path, model):
    with pytest.raises(UserError, match=r"s\.json: .*\[0, 999\]"):
        made(written(tmp_path, times=[1200, 5]), model)


def test_a_file_made_for_another_model_is_run_with_one_warning(tmp_path, model, capsys):
    own = written(tmp_path, model_hash=model.hash)
    made(own, model)
    assert capsys.readouterr().err == ""
    other = written(tmp_path, model_hash="0" * 16)
    for _ in range(3):
        assert made(other, model).nfe == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{other} was made for another model ({'0' * 16}, not {model.hash})" in err


def test_an_oracle_is_no_policy(tmp_path):
    path = tmp_path / "o.json"
    path.write_text(json.dumps(oracle_record(Oracle("o", [TIMES, TIMES[1:]], "ddim"))))
    with pytest.raises(UserError, match=r"each of 2 training noises.*--algo clone"):
        given(str(path))


def test_given_chances_are_kept_and_the_ends_protected(model):
    from stepdrop_rl.arena import make_arena
    from stepdrop_rl.config import AgentChoice

    arena, (agent, _) = make_arena(AgentChoice(policy="bernoulli:p=[0.5, 0.9]", num_decisions=5), blocks=2)
    assert agent.name == "bernoulli:p=[0.5, 0.9]"
    count = 2000
    rates = arena.engine(agent).sample(agent, count).evaluated.double().mean(0)
    wanted = [1, 0.4, 0.3, 0.2, 1]
    assert rates.tolist() == pytest.approx(wanted, abs=4 * (0.25 / count) ** 0.5)
    assert (rates[0], rates[-1]) == (1, 1)
    assert made("bernoulli:p=0.7", model).rates.tolist() == pytest.approx([1, *[0.3] * 22, 1])
    table = [0.0, *(k / 40 for k in range(22)), 1.0]
    rates = made(f"bernoulli:p={table}", model).rates.tolist()
    assert rates == pytest.approx([1, *(1 - k / 40 for k in range(22)), 1])


@pytest.mark.parametrize("p", ["", "x", "1.5", "-0.1", "true", "[]", "[0.5, NaN]", '["0.5"]', "[" * 100_000])
def test_what_is_no_probability_is_said(model, p):
    with pytest.raises(UserError, match="a probability of skipping"):
        made(f"bernoulli:p={p}", model)
