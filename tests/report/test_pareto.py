import copy

import pytest
from sample import compacted, study

from secateur.report.aggregate import all_groups, groups_of
from secateur.report.figures import pareto_plot, plots_of
from secateur.report.page import page
from secateur.report.pareto import LATENCY, MACS, SPARSITY, front_of, front_table, fronts_of, knee


def trial(name, accuracy, seed=0, data="digits", **metrics):
    return {
        "method": name,
        "point": {},
        "seed": seed,
        "metrics": {"score_dense": 0.99, "score_retrained": accuracy, **metrics},
        "config": {"data": {"name": data}},
    }


def groups_from(*trials, name="r"):
    return groups_of({"recipe": name, "trials": list(trials)})


def methods(spots):
    return [spot.group.method for spot in spots]


FIVE = [
    trial("a", 0.98, sparsity=0.2, macs=80, macs_dense=100),
    trial("b", 0.97, sparsity=0.7, macs=50, macs_dense=100),
    trial("c", 0.96, sparsity=0.6, macs=40, macs_dense=100),
    trial("d", 0.90, sparsity=0.9, macs=45, macs_dense=100),
    trial("e", 0.80, sparsity=0.8, macs=10, macs_dense=100),
]


def test_sparsity_is_better_large_and_macs_small():
    by_sparsity = front_of(groups_from(*FIVE), SPARSITY)
    assert methods(by_sparsity.best) == ["a", "b", "d"]  # b beats c; d beats e
    assert [spot.x for spot in by_sparsity.best] == pytest.approx([20, 70, 90])
    by_macs = front_of(groups_from(*FIVE), MACS)
    assert methods(by_macs.best) == ["e", "c", "b", "a"]  # c beats d
    assert [spot.x for spot in by_macs.best] == pytest.approx([10, 40, 50, 80])
    assert len(by_macs.spots) == 5
    assert by_macs.missing == 0


def test_the_knee_by_hand():
    assert knee([(0, 0), (0.2, 0.8), (1, 1)]) == 1
    assert knee([(0, 1), (0.5, 0.6), (0.9, 0.9), (1, 0)]) == 2
    # scaled: (0, 0), (0.1, 0.4), (0.5, 0.9), (1, 1), of which the third is 0.4 over the chord, the second 0.3
    assert knee([(0, 0.90), (10, 0.94), (50, 0.99), (100, 1.0)]) == 2


def test_a_front_without_a_knee():
    assert knee([(0, 0), (1, 1)]) is None
    assert knee([(0, 0), (0.5, 0.5), (1, 1)]) is None, "on the chord"
    assert knee([(0, 0), (0.8, 0.2), (1, 1)]) is None, "a dent is the worst of bargains"


def test_the_knees_of_fronts_in_both_directions():
    # by sparsity the ends are (20, .98) and (90, .90): b is (5/7, 7/8), 0.59 over the chord
    assert front_of(groups_from(*FIVE), SPARSITY).knee.group.method == "b"
    # by MACs the ends are (10, .80) and (80, .98): c is (3/7, 8/9), 0.46; b is (4/7, 17/18), 0.37
    assert front_of(groups_from(*FIVE), MACS).knee.group.method == "c"


def test_latency_is_the_mean_of_the_trials_own_ratios():
    trials = [
        trial("a", 0.9, 0, latency_ms=1.0, latency_dense_ms=2.0),
        trial("a", 0.9, 1, latency_ms=3.0, latency_dense_ms=4.0),
        trial("b", 0.8, 0, latency_ms=1.0, latency_dense_ms=1.0),
        trial("c", 0.8, 0),
    ]
    front = front_of(groups_from(*trials), LATENCY)
    assert [spot.x for spot in front.spots] == pytest.approx([62.5, 100])  # not (1 + 3) / (2 + 4)
    assert methods(front.best) == ["a"]
    assert front.missing == 1


def test_costs_are_left_out_where_nothing_was_removed():
    same = [trial(n, a, sparsity=s, macs=7, macs_dense=7) for n, a, s in (("a", 0.9, 0.1), ("b", 0.8, 0.2))]
    assert list(fronts_of(groups_from(*same))) == ["Pareto front by sparsity"]
    for each in same:
        del each["metrics"]["macs_dense"]
    assert list(fronts_of(groups_from(*same))) == ["Pareto front by sparsity"]
    assert list(fronts_of(all_groups([study()]))) == ["Pareto front by sparsity"]


def test_one_network_for_all_is_still_smaller_than_the_dense_one():
    same = [trial(n, a, macs=3, macs_dense=7) for n, a in (("a", 0.9), ("b", 0.8))]
    assert list(fronts_of(groups_from(*same))) == ["Pareto front by MACs"]


def test_without_the_dense_networks_macs_they_are_in_millions():
    trials = copy.deepcopy(FIVE)
    for each in trials:
        del each["metrics"]["macs_dense"]
        each["metrics"]["macs"] *= 10_000
    fronts = fronts_of(groups_from(*trials))
    assert [spot.x for spot in fronts["Pareto front by MACs"].best] == pytest.approx([0.1, 0.4, 0.5, 0.8])
    header, rows = front_table(fronts)
    assert [row[header.index("MACs, M")] for row in rows] == ["0.8", "0.5", "0.4", "0.45", "0.1"]


def test_networks_of_several_data_sets_do_not_beat_each_other():
    trials = [
        trial("a", 0.9, sparsity=0.1), trial("b", 0.8, sparsity=0.2),
        trial("a", 0.5, sparsity=0.1, data="cifar10"), trial("b", 0.4, sparsity=0.2, data="cifar10"),
    ]  # fmt: skip
    fronts = fronts_of([*groups_from(*trials[:2]), *groups_from(*trials[2:])])
    assert list(fronts) == ["Pareto front by sparsity, digits", "Pareto front by sparsity, cifar10"]
    assert all(methods(front.best) == ["a", "b"] for front in fronts.values())


def test_the_table_names_the_fronts_and_their_knees():
    header, rows = front_table(fronts_of(groups_from(*FIVE)))
    assert header == [
        "method", "setting", "sparsity %", "MACs %", "test accuracy %", "on the front by", "knee of",
    ]  # fmt: skip
    assert rows == [
        ["a", "", "20.00", "80.00", "98.00", "sparsity, MACs", ""],
        ["b", "", "70.00", "50.00", "97.00", "sparsity, MACs", "sparsity"],
        ["c", "", "60.00", "40.00", "96.00", "MACs", "MACs"],
        ["d", "", "90.00", "45.00", "90.00", "sparsity", ""],
        ["e", "", "80.00", "10.00", "80.00", "MACs", ""],
    ]


def test_the_plot_joins_the_front_by_what_is_had_there():
    """At least 50 % sparsity is had with the accuracy of the next sparser point: the step goes down first.
    At most 50 % of the MACs: with that of the next cheaper point, so along first."""
    groups = groups_from(*FIVE)
    for axis, shape, xs in ((SPARSITY, "vh", [20, 70, 90]), (MACS, "hv", [10, 40, 50, 80])):
        joined = pareto_plot(front_of(groups, axis), groups)["data"][0]
        assert joined["line"]["shape"] == shape
        assert joined["x"] == pytest.approx(xs)


def test_beaten_points_are_paler_and_methods_keep_their_colours():
    groups = groups_from(*FIVE)
    by_sparsity = pareto_plot(front_of(groups, SPARSITY), groups)
    by_macs = pareto_plot(front_of(groups, MACS), groups)
    pale = [trace["name"] for trace in by_sparsity["data"] if trace.get("opacity")]
    assert pale == ["c", "e"]
    assert [trace["name"] for trace in by_macs["data"] if trace.get("opacity")] == ["d"]
    colours = [
        {trace["name"]: trace["marker"]["color"] for trace in plot["data"] if trace["name"] in "abcde"}
        for plot in (by_sparsity, by_macs)
    ]
    assert colours[0] == colours[1]
    assert len(set(colours[0].values())) == 5
    assert by_macs["data"][-1]["name"] == "knee: c"
    assert by_macs["layout"]["annotations"][0]["text"] == "dense 99.00"


def test_one_method_has_one_name_in_the_legend_and_its_bars():
    plots = plots_of(all_groups([compacted(), compacted("worse")]), [])
    traces = plots["Pareto front by latency"]["data"]
    named = [trace["name"] for trace in traces if trace.get("showlegend", True)]
    assert len(named) == len(set(named))
    results = compacted()
    results["trials"][0]["metrics"]["score_retrained"] -= 0.002
    trace = plots_of(groups_of(results), [])["Pareto front by sparsity"]["data"][1]
    assert trace["error_y"]["array"] == pytest.approx([100 * 0.002 / 2**0.5, 0, 0])


def test_the_page_shows_three_fronts_and_says_what_they_are():
    text = page([compacted("first"), compacted("second")])
    for name in ("sparsity", "MACs", "latency"):
        assert f"<h2>Pareto front by {name}</h2>" in text
    assert "zeros alone do not lower them" in text
    assert "Latency is measured, batch of one" in text
    assert "<th>on the front by</th><th>knee of</th>" in text
    plain = page([study()])
    assert "zeros alone do not lower them" not in plain
    assert "The knee is" not in plain, "two points have none"
