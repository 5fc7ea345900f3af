import pytest

from secateur.report.aggregate import (
    Figure,
    all_groups,
    figure_of,
    front,
    groups_of,
    references_of,
    scored,
    series_of,
    short,
    table_of,
)
from secateur.task.base import ACCURACY, Scale


def trial(method="m", point=None, seed=0, **metrics):
    return {
        "method": method,
        "point": point or {},
        "seed": seed,
        "metrics": metrics,
        "layers": [],
        "curves": {},
    }


def test_means_and_sample_deviations_over_seeds():
    assert figure_of([0.5, 0.7, None]) == Figure(pytest.approx(0.6), pytest.approx(0.1414213562), 2)
    assert figure_of([0.25]) == Figure(0.25, 0.0, 1)
    assert figure_of([None]) is None
    assert scored(Figure(0.98765, 0.001, 3), ACCURACY) == "98.77 ± 0.10"
    assert scored(Figure(0.98765, 0.0, 1), ACCURACY) == "98.77"
    assert scored(Figure(4.25, 0.125, 3), Scale("perplexity", "", False)) == "4.250 ± 0.125"
    assert scored(None, ACCURACY) == ""


def test_what_goes_with_the_amount_makes_no_curve_of_its_own():
    points = [(0.5, 12), (0.8, 11), (0.9, 11)]
    rows = [trial(point={"greedy.sparsity": s, "retrain.epochs": e}) for s, e in points]
    rows += [trial(method="n", point={"anneal.ratio": r}) for r in (0.75, 0.5)]
    series = series_of(groups_of({"recipe": "r", "trials": rows}))
    assert {name: len(groups) for name, groups in series.items()} == {"m": 3, "n": 2}
    rows.append(trial(point={"greedy.sparsity": 0.5, "retrain.epochs": 11}))  # now the epochs do tell
    series = series_of(groups_of({"recipe": "r", "trials": rows}))
    assert list(series) == ["m, epochs 12", "m, epochs 11", "n"]


def test_groups_keep_the_sweeps_order_and_join_seeds():
    rows = [
        trial(
            point={"a.sparsity": s},
            seed=seed,
            sparsity=s,
            score_dense=0.9,
            score_retrained=0.8 + seed / 10,
        )
        for s in (0.9, 0.5)
        for seed in (0, 1)
    ]
    groups = groups_of({"recipe": "r", "trials": rows})
    assert [g.point["a.sparsity"] for g in groups] == [0.9, 0.5]
    header, table = table_of(groups)
    assert header[:2] == ["sparsity", "sparsity %"]
    assert table[0][header.index("retrained %")] == "85.00 ± 7.07"
    assert table[0][header.index("change")] == "-5.00"


def test_curves_are_split_by_settings_that_are_not_numbers():
    rows = [
        trial(point={"prune.budget.name": name, "prune.budget.sparsity": s})
        for name in ("uniform", "global")
        for s in (0.5, 0.9)
    ]
    series = series_of(groups_of({"recipe": "r", "trials": rows}))
    assert {name: len(groups) for name, groups in series.items()} == {
        "m, budget uniform": 2,
        "m, budget global": 2,
    }
    assert short("prune.budget.sparsity") == "sparsity"


def test_numbers_that_are_not_the_amount_pruned_make_curves_of_their_own():
    rows = [
        trial(point={"train.l1": l1, "prune.budget.sparsity": s})
        for l1 in (1e-5, 1e-4)
        for s in (0.5, 0.9, 0.95)
    ]
    series = series_of(groups_of({"recipe": "r", "trials": rows}))
    assert {name: len(groups) for name, groups in series.items()} == {"m, l1 1e-05": 3, "m, l1 0.0001": 3}


def test_the_constraint_of_prune_to_is_an_amount_too():
    rows = [trial(point={"prune_to.macs": m, "train.lr": 0.1}) for m in (0.7, 0.5)]
    assert list(series_of(groups_of({"recipe": "r", "trials": rows}))) == ["m"]
    rows = [trial(point={"model.parameters": n}) for n in (7, 5)]
    assert len(series_of(groups_of({"recipe": "r", "trials": rows}))) == 2


def test_ratios_are_each_trials_own():
    rows = [
        trial(latency_ms=1.0, latency_dense_ms=2.0),
        trial(seed=1, latency_ms=3.0, latency_dense_ms=4.0),
        trial(seed=2, latency_ms=3.0),
    ]
    (group,) = groups_of({"recipe": "r", "trials": rows})
    assert group.figure("latency_ms", "latency_dense_ms").mean == pytest.approx(0.625)
    assert group.figure("latency_ms", "macs") is None


def test_studies_of_one_name_are_told_apart_and_references_stay_with_theirs():
    one = {"recipe": "r", "trials": [trial(sparsity=0.5)], "reference": [{"a.b": 1, "score_pruned": 0.5}]}
    assert [group.study for group in all_groups([one, one])] == ["r 1", "r 2"]
    assert [group.study for group in all_groups([one, one | {"recipe": "s"}])] == ["r", "s"]
    assert references_of([one])[0]["study"] == "r"
    assert table_of(all_groups([one, one]))[0][0] == "study"


def test_the_front_is_what_nothing_beats():
    points = [(0.5, 0.9), (0.6, 0.95), (0.9, 0.8), (0.9, 0.7), (0.7, 0.7)]
    assert front(points) == [1, 2]
    assert front([(0.5, 0.9), (0.5, 0.9)]) in ([0], [1])
    assert front([]) == []


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (0.90001, 0.0123, "0.9000 ± 0.0123"),
        (0.99999, 0.004, "1.0000 ± 0.0040"),
        (8.1, 0.0876, "8.100 ± 0.088"),
        (12345.6, 37.0, "1.235e+04 ± 37"),
        (1.234e-5, 3.7e-8, "1.234e-05 ± 3.7e-08"),
        (0.0, 0.5, "0 ± 0.5"),
        (-3.169, 0.08457, "-3.169 ± 0.085"),
    ],
)
def test_a_deviation_has_the_digits_of_its_mean(mean, std, text):
    assert scored(Figure(mean, std, 3), Scale("R2")) == text
