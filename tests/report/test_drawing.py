"""The dense network's line, and accuracy against the size of the packed file."""

import pytest
from sample import study

from secateur.report.aggregate import all_groups, table_of
from secateur.report.drawing import dense_levels
from secateur.report.figures import plots_of, score_plot


def packed(**changes):
    results = study("packed")
    for trial in results["trials"]:
        left = 1 - trial["point"]["prune.budget.sparsity"]
        trial["metrics"] |= {
            "bytes_packed": round(2000 * left) + trial["seed"],
            "compression_packed": 2 / left,
        }
        trial["metrics"] |= changes
    return results


def test_each_network_of_a_study_has_its_own_dense_line():
    results = study("one")
    for trial in results["trials"]:
        trial["config"]["model"] = {"name": "small" if trial["seed"] == 0 else "large"}
        trial["point"]["model.name"] = trial["config"]["model"]["name"]
        trial["metrics"]["score_dense"] = 0.9 if trial["seed"] == 0 else 0.95
    assert dense_levels(all_groups([results])) == {"dense, small": 90.0, "dense, large": 95.0}
    both = dense_levels(all_groups([results, study("two")]))
    assert both == {"dense, one small": 90.0, "dense, one large": 95.0, "dense, two": 98.0}
    assert dense_levels(all_groups([study("two"), study("three")])) == {"dense": 98.0}


def test_the_accuracy_of_what_a_file_holds_stands_against_its_size():
    groups = all_groups([packed()])
    plot = plots_of(groups, [])["Accuracy against file size"]
    assert [trace["name"] for trace in plot["data"]] == [
        name for name in (t["name"] for t in plot["data"]) if name.endswith("retrained")
    ]
    assert plot["data"][0]["x"] == pytest.approx([4.0, 20.0])
    assert plot["data"][0]["y"] == pytest.approx([96.55, 96.15])
    assert plot["layout"]["xaxis"]["type"] == "log"


def test_where_nothing_was_retrained_it_is_the_pruned_ones():
    (trace,) = score_plot(all_groups([packed(score_retrained=None)]), [], "compression_packed")["data"]
    assert trace["name"].endswith("pruned")
    assert trace["y"] == pytest.approx([85.0, 81.0])


def test_a_quoted_file_stands_where_its_own_rate_is():
    quoted = [{"prune.budget.sparsity": 0.5, "score_retrained": 0.97, "compression_packed": 40}]
    plot = score_plot(all_groups([packed()]), quoted, "compression_packed")
    assert plot["data"][-1]["name"] == "quoted, retrained"
    assert (plot["data"][-1]["x"], plot["data"][-1]["y"]) == ([40.0], [97.0])


def test_without_files_there_is_neither_figure_nor_column():
    groups = all_groups([study()])
    quoted = [{"prune.budget.sparsity": 0.5, "score_retrained": 0.97, "compression_packed": 40}]
    assert "Accuracy against file size" not in plots_of(groups, quoted)
    assert "file bytes" not in table_of(groups)[0]


def test_the_table_has_the_bytes_of_each_file_beside_those_that_have_none():
    header, rows = table_of(all_groups([packed(), study("plain")]))
    place = header.index("file bytes")
    assert header[place : place + 3] == ["file bytes", "dense / file", "seeds"]
    assert [row[place : place + 3] for row in rows] == [
        ["1,000", "4.00x", "2"],
        ["200", "20.00x", "2"],
        ["", "", "2"],
        ["", "", "2"],
    ]
