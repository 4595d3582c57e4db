"""What a study concludes: intervals by hand, pairing, and when a claim stands."""

import math
from dataclasses import replace

import numpy as np
import pytest

from stepdrop_rl.config import StudyConfig
from stepdrop_rl.metrics.blocks import t_quantile
from stepdrop_rl.studies.entries import Entry, difference, gather_entries
from stepdrop_rl.studies.figures import study_curves
from stepdrop_rl.studies.plan import Job
from stepdrop_rl.studies.report import compose
from stepdrop_rl.studies.spread import interval, interval_between
from stepdrop_rl.studies.verdict import Study


def result(name, nfe, fd, kid=(0.1, 0.1), precision=(0.8, 0.8), seed=0, control=None, rates=(1, 0)):
    judged = {"fd_j": list(fd), "kid": list(kid), "precision": list(precision)}
    return {
        "name": name,
        "solver": "ddim",
        "nfe": nfe,
        "seed": seed,
        "control": control,
        "rates": list(rates),
        "judges": {"j": judged},
    }


def study(*results):
    config = StudyConfig(policies={"ppo": {}}, solvers=["ddim"], nfe=[5.0])
    entries, unreachable = gather_entries(results)
    return Study(config, ["j"], {"j": "fd_j"}, entries, unreachable)


def test_an_interval_of_one_seed_is_that_of_blocks():
    one = interval([[1.0, 2.0, 3.0]])
    assert one.mean == pytest.approx(2)
    assert one.half_width == pytest.approx(t_quantile(2) * 1 / math.sqrt(3))


def test_an_interval_knows_blocks_and_seeds():
    # Seeds that differ by 10, blocks by nothing, and the other way round.
    seeds = interval([[0.0, 0.0], [10.0, 10.0]])
    assert seeds.mean == pytest.approx(5)
    assert seeds.half_width == pytest.approx(t_quantile(1) * 10 / math.sqrt(2) / math.sqrt(2))
    assert interval([[0.0, 8.0], [0.0, 8.0]]).half_width == pytest.approx(t_quantile(1) * 4)
    # Both, and nothing left: variances add, 2 of 5² + 5² and its degrees (5² + 5²)² / (5⁴ + 5⁴).
    both = interval([[0.0, 10.0], [10.0, 20.0]])
    assert both.half_width == pytest.approx(t_quantile(2) * math.sqrt(50))
    # What is left in the cells is counted once: 1, 2 and 4 of seeds' means, blocks' and cells'.
    left = interval([[0.0, 4.0, 2.0], [2.0, 0.0, 4.0]])
    over_blocks = ((1.0 - 2) ** 2 + (2.0 - 2) ** 2 + (3.0 - 2) ** 2) / 2 / 3
    assert left.half_width == pytest.approx(t_quantile(2) * math.sqrt(over_blocks))


def test_intervals_cover_what_they_say():
    """95 % of them, of five seeds on five blocks, whatever the sources of chance."""
    generator = np.random.default_rng(0)
    for of_seeds, of_blocks, of_cells in ((1, 1, 0.3), (1, 0.5, 1), (0.3, 1, 1), (0, 1, 0.5)):
        covered = 0
        for _ in range(1000):
            cells = (
                of_seeds * generator.standard_normal((5, 1))
                + of_blocks * generator.standard_normal((1, 5))
                + of_cells * generator.standard_normal((5, 5))
            )
            found = interval(cells.tolist())
            covered += abs(found.mean) <= found.half_width
        assert 930 <= covered <= 985


def test_seeds_of_two_policies_are_independent():
    ours, theirs = [[0.0, 0.0], [10.0, 10.0]], [[1.0, 1.0], [7.0, 7.0]]
    found = interval_between(ours, theirs)
    assert found.mean == pytest.approx(1)
    variances = 25.0, 9.0
    degrees = sum(variances) ** 2 / sum(v**2 for v in variances)
    assert found.half_width == pytest.approx(t_quantile(degrees) * math.sqrt(sum(variances)))
    alone = interval_between(ours, [[3.0, 3.0]])
    assert alone.half_width == interval(ours).half_width


def test_differences_are_paired_by_block():
    ours = Entry("ppo", "ddim", 5, (result("ppo", 5, (5.0, 9.0)),))
    theirs = Entry("uniform", "ddim", 5, (result("uniform", 5, (6.0, 10.0)),))
    found = difference(ours, theirs, "j", "fd_j")
    assert found.mean == pytest.approx(-1)
    assert found.half_width == pytest.approx(0)


def test_the_figure_shows_the_policy_and_the_rivals_that_are_nearest():
    rivals = [result(f"rival{k}", 5, (10.0 + k, 10.0 + k)) | {"nfe_mean": 5.0} for k in range(12)]
    far = result("ppo", 5, (900.0, 901.0)) | {"nfe_mean": 5.0}
    figure = study_curves(study(*reversed(rivals), far), "ddim")
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"ppo", *(f"rival{k}" for k in range(9)), "(farther off: 3 more)"}


def test_no_line_leads_over_a_budget_that_was_not_judged():
    both = [result("uniform", nfe, (1, 2)) | {"nfe_mean": float(nfe)} for nfe in (4, 6)]
    rest = [result("ppo", nfe, (1, 2)) | {"nfe_mean": float(nfe)} for nfe in (4, 5, 6)]
    found = study(*both, *rest)
    found = replace(found, config=replace(found.config, nfe=[4.0, 5.0, 6.0]))
    (axes,) = study_curves(found, "ddim").axes
    at = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}["uniform"]
    assert (at[0], math.isnan(at[1]), at[2]) == (4.0, True, 6.0)


def test_a_policy_may_have_a_comma_in_its_name():
    config = StudyConfig(policies={"fork": {}, "fork, dealt": {"algo": "fork"}}, nfe=[5.0])
    entries, _ = gather_entries(
        [
            result("fork, dealt", 5, (1, 2)),
            result("fork, dealt", 5, (1, 2), control="mean_schedule"),
            result("fork", 5, (1, 2)),
            result("fork", 5, (1, 2), control="dealt", rates=(0.5, 0.5)),
            result("uniform", 5, (1, 2)),
        ]
    )
    found = Study(config, ["j"], {"j": "fd_j"}, entries, [])
    assert [e.contender for e in entries if found.looks(e)] == ["fork, dealt", "fork"]
    assert [e.name for e in entries if found.is_fixed(e)] == ["fork, dealt, mean schedule", "uniform"]
    other, _, fork, dealt, _ = entries
    assert found.is_blind(dealt, fork)
    assert not found.is_blind(dealt, other)


def test_a_rule_that_looks_is_no_rival_that_does_not():
    found = study(result("ppo", 5, (4.1, 5.1)), result("adaptive_error", 5, (4.0, 5.0), rates=(1, 0.5)))
    policy, rule = found.entries
    assert not found.is_blind(rule, policy)
    assert not found.is_fixed(rule)
    left = Job("judge", "adaptive_error", "ddim", 5.0), Job("judge", "uniform", "ddim", 5.0)
    found = replace(found, left=left)
    assert found.left_of(policy, ()) == left[1:]


def test_results_are_gathered_by_contender_and_the_unreachable_told_once():
    missing = {"name": "ppo", "solver": "ddim", "nfe": 4.0, "seed": 0, "unreachable": "from 5 to 7"}
    entries, unreachable = gather_entries(
        [
            result("ppo", 5, (1, 2)),
            result("ppo", 5, (2, 3), seed=1),
            result("ppo", 5, (3, 4), control="mean_schedule"),
            missing | {"control": None},
            missing | {"control": "dealt"},
        ]
    )
    assert [(e.name, len(e.results)) for e in entries] == [("ppo", 2), ("ppo, mean schedule", 1)]
    assert unreachable == ["ppo at 4, ddim: from 5 to 7"]


@pytest.mark.parametrize(
    ("kid", "precision", "holds"),
    [
        ((0.05, 0.06), (0.8, 0.8), True),
        ((0.2, 0.2), (0.8, 0.8), False),  # KID disagrees
        ((0.05, 0.06), (0.70, 0.71), False),  # images that look less real
    ],
)
def test_a_claim_stands_when_kid_agrees_and_precision_is_not_lower(kid, precision, holds):
    found = study(
        result("ppo", 5, (4.0, 5.0), kid, precision),
        result("uniform", 5, (6.0, 7.01)),
        result("blackbox", 5, (5.0, 6.01)),
        result("ppo", 5, (4.5, 5.51), control="dealt"),
    )
    (a,), (b,) = found.claims()
    assert a.nearest.rival.name == "blackbox"
    assert a.nearest.distance.mean == pytest.approx(-1.005)
    assert a.holds == holds
    assert bool(a.fault) != holds
    assert b.nearest.rival.name == "ppo, dealt"
    assert b.nearest.distance.mean == pytest.approx(-0.505)


def test_every_rival_must_be_beaten_and_precision_be_that_of_all_that_are_as_near():
    near = result("near", 5, (6.0, 7.0), precision=(0.8, 0.8))
    ours = result("ppo", 5, (4.0, 5.01), (0.05, 0.05), precision=(0.795, 0.796))
    precise = {"precision": (0.82, 0.82)}
    # As near as the nearest but for noise, and more precise; far behind, and more precise.
    tied, far = result("tied", 5, (6.0, 7.2), **precise), result("far", 5, (7.0, 8.01), **precise)
    for others, fault in [
        ([], ""),
        ([far], ""),
        ([tied], "its precision is lower than that of tied: -0.024 ± 0.006"),
        ([result("wild", 5, (5.0, 8.0))], "it is not nearer than wild outside the interval"),
        ([result("other", 5, (6.5, 7.51), kid=(0.04, 0.04))], "KID disagrees about other"),
    ]:
        (a,), (b,) = study(ours, near, *others).claims()
        assert a.nearest.rival.name == "near"
        assert a.fault == b.fault == fault


def test_precision_that_is_much_lower_is_lower_however_wide_the_interval():
    rival = result("uniform", 5, (6.0, 7.01), precision=(0.8, 0.8))
    for precision, fault in [((0.7, 0.89), ""), ((0.7, 0.87), "its precision is lower")]:
        (a,), _ = study(result("ppo", 5, (4.0, 5.0), (0.05, 0.06), precision), rival).claims()
        assert a.fault.startswith(fault)
        assert a.holds == (not fault)


def test_a_policy_is_compared_with_its_own_controls_seed_by_seed_and_with_others_as_independent():
    def seeds(name, *blocks, **more):
        return [result(name, 5, fd, seed=seed, **more) for seed, fd in enumerate(blocks)]

    found = study(
        *seeds("ppo", (4.0, 5.0), (5.0, 6.0), (9.0, 9.5)),
        *seeds("ppo", (4.1, 5.1), (5.3, 6.3), control="dealt"),  # the third is not judged yet
        *seeds("rloo", (4.1, 5.1), (5.3, 6.3)),
        result("ppo", 5, (4.1, 5.1), control="mean_schedule"),
    )
    entries = {entry.name: entry for entry in found.entries}
    own = found.minus(entries["ppo"], entries["ppo, dealt"], "j", "fd_j")
    assert own.mean == pytest.approx(-0.2)
    assert own.half_width == pytest.approx(t_quantile(1) * 0.1)
    schedule = found.minus(entries["ppo"], entries["ppo, mean schedule"], "j", "fd_j")
    assert schedule.mean == pytest.approx(38.5 / 6 - 4.6)  # one schedule, a rival of all seeds
    other = found.minus(entries["ppo"], entries["rloo"], "j", "fd_j")
    assert other.mean == pytest.approx(38.5 / 6 - 5.2)
    # Blocks differ by little: seeds' variances add, each with its degrees of freedom.
    ours, theirs = sum((x - 38.5 / 6) ** 2 for x in (4.5, 5.5, 9.25)) / 2 / 3, 0.6**2
    degrees = (ours + theirs) ** 2 / (ours**2 / 2 + theirs**2 / 1)
    assert other.half_width == pytest.approx(t_quantile(degrees) * math.sqrt(ours + theirs), rel=0.01)


def test_a_mixture_is_a_rival_in_claim_b_alone():
    mixture = result("a/mixture-ddim-5.json", 5, (4.0, 5.0)) | {"rates": [1.0, 0.5, 1.0]}
    found = study(result("ppo", 5, (4.5, 5.51), (0.05, 0.06)), result("uniform", 5, (6.0, 7.01)), mixture)
    (a,), (b,) = found.claims()
    assert (a.nearest.rival.name, a.holds) == ("uniform", True)
    assert (b.nearest.rival.name, b.holds) == ("mixture", False)


def test_files_are_called_by_what_budgets_share():
    entries, _ = gather_entries(
        [
            result("a/energy-ddim-5.json", 5, (1, 2)),
            result("a/energy-ddim-6.json", 6, (1, 2)),
            result("a/xue-ddim-5.json", 5, (1, 2)),
            result("b/xue-ddim-5.json", 5, (2, 3)),  # another one at the same budget
            result("a/uniform.json", 5, (1, 2)),
            result("uniform", 5, (1, 2)),
        ]
    )
    assert [(e.name, e.nfe) for e in entries] == [
        ("energy", 5),
        ("energy", 6),
        ("a/xue-ddim-5.json", 5),
        ("b/xue-ddim-5.json", 5),
        ("a/uniform.json", 5),
        ("uniform", 5),
    ]


def test_a_smaller_distance_inside_the_interval_is_no_claim():
    found = study(result("ppo", 5, (4.0, 8.0), (0.05, 0.05)), result("uniform", 5, (6.0, 7.0)))
    (a,), (b,) = found.claims()
    assert a.nearest.distance.mean == pytest.approx(-0.5)
    assert not a.holds
    assert not b.holds


def test_the_fixed_schedules_that_a_policy_holds_are_rivals_too():
    found = study(
        result("ppo", 5, (4.0, 5.0)),
        result("ppo", 5, (4.2, 5.1), control="habit"),
        result("ppo", 5, (4.3, 5.2), control="mean_schedule"),
        result("ppo", 5, (3.0, 4.0), control="shuffled"),  # it looks, if at another sample
        result("uniform", 5, (6.0, 7.0)),
    )
    (a,), (b,) = found.claims()
    assert a.nearest.rival.name == b.nearest.rival.name == "ppo, habit"


def test_mixtures_rival_in_claim_b_alone_and_the_full_trajectory_in_none():
    found = study(
        result("ppo", 5, (4.0, 5.0)),
        result("mixture", 5, (3.0, 4.0), rates=(1, 0.5)),
        result("uniform", 5, (6.0, 7.0)),
        result("full", 5, (1.0, 1.0)),
    )
    (a,), (b,) = found.claims()
    assert (a.nearest.rival.name, b.nearest.rival.name) == ("uniform", "mixture")


def test_a_mixture_of_one_schedule_is_a_fixed_schedule():
    found = study(
        result("ppo", 5, (4.0, 5.0)), result("mixture", 5, (3.0, 4.0)), result("uniform", 5, (6, 7))
    )
    (a,), (b,) = found.claims()
    assert a.nearest.rival.name == b.nearest.rival.name == "mixture"


def test_a_claim_holds_so_far_where_rivals_or_seeds_are_left():
    found = study(result("ppo", 5, (2.0, 2.1), kid=(0.05, 0.05)), result("uniform", 5, (6.0, 6.1)))

    def words(*left):
        (a,), (b,) = replace(found, left=[Job("judge", *job) for job in left]).claims()
        return a.word, b.word

    assert words() == ("holds", "holds")
    assert words(("full", "ddim", 5.0), ("xue", "ddim", 4.0), ("xue", "multistep", 5.0)) == ("holds", "holds")
    assert words(("ppo", "ddim", 5.0, 0, "shuffled")) == ("holds", "holds")
    assert words(("ppo", "ddim", 5.0, 0, "dealt")) == ("holds", "holds so far")
    for left in (("xue", "ddim", 5.0), ("ppo", "ddim", 5.0, 1), ("ppo", "ddim", 5.0, 0, "mean_schedule")):
        assert words(left) == ("holds so far", "holds so far")
    (a,), _ = replace(found, left=[Job("judge", "xue", "ddim", 5.0)]).claims()
    assert [job.name for job in a.left] == ["xue"]
    named = replace(found, config=replace(found.config, only=["ppo", "uniform"]))
    assert [one.word for (one,) in named.claims()] == ["holds against those named"] * 2


def test_the_report_tells_who_was_not_judged():
    nobody = study()
    left = [Job("judge", name, "ddim", 5.0) for name in ("gits", "xue")]
    told = [block.text for block in compose(replace(nobody, left=left))]
    assert told[1] == "2 judgements are still missing (listed at the end)."
    assert told[-1] == "gits at 5, ddim; xue at 5, ddim."
    one = compose(replace(nobody, left=left[1:]))[1].text
    assert one == "1 judgement is still missing (listed at the end)."
    assert not any("still missing" in str(block.text) for block in compose(nobody))


def test_a_full_trajectory_that_few_evaluations_beat_is_noticed():
    worse = study(result("full", 50, (9.0, 9.5)), result("uniform", 10, (5.0, 5.5)))
    better = study(result("full", 50, (4.0, 4.5)), result("uniform", 10, (5.0, 5.5)))
    assert not worse.ends_are_sound("ddim")
    assert better.ends_are_sound("ddim")


def test_a_claim_tells_its_rivals_and_whom_the_other_judge_has_nearest():
    def both(name, first, second):
        one = result(name, 5, (first, first)) | {"nfe_mean": 5.0, "images_per_second": 1.0, "device": "cpu"}
        one["times"] = [900.0, 100.0]
        kept = {"kid": [0.1, 0.1], "precision": [0.8, 0.8], "recall": [0.5, 0.5], "is_mean": [9.0, 9.0]}
        one["judges"] = {"j": kept | {"fd_j": [first, first]}, "k": kept | {"fd_k": [second, second]}}
        return one

    found = study(both("ppo", 2.0, 4.0), both("uniform", 3.0, 9.0), both("karras", 7.0, 1.5))
    two = replace(found, judges=["j", "k"], distances={"j": "fd_j", "k": "fd_k"})
    table = next(b.table for b in compose(two) if b.table and "the claim" in b.table[0])
    row = dict(zip(table[0], table[1][0], strict=True))
    assert row["nearest rival"] == "uniform"
    assert row["rivals"] == "2"
    assert row["nearest by fd_k"] == "karras: +2.50 ± 0.00"


def test_claim_b_stands_only_where_claim_a_does():
    # Dealt is nearer than all that is fixed, which does not make the fixed one's precision lower.
    found = study(
        result("ppo", 5, (2.0, 2.0), kid=(0.1, 0.1), precision=(0.8, 0.8)),
        result("uniform", 5, (4.0, 4.0), kid=(0.2, 0.2), precision=(0.9, 0.9)),
        result("ppo", 5, (3.0, 3.0), kid=(0.2, 0.2), precision=(0.8, 0.8), control="dealt", rates=(0.5, 0.5)),
    )
    (a,), (b,) = found.claims()
    assert b.nearest.rival.name == "ppo, dealt"
    assert not a.holds
    assert b.fault == a.fault
    assert "precision is lower than that of uniform" in a.fault
