"""Accuracy against alpha, and what an inference takes beside the dense network's."""

import math
import re

import pytest
from sample import compacted, study

from secateur.report.aggregate import all_groups
from secateur.report.figures import alpha_plot
from secateur.report.page import page
from secateur.report.pictures import write_pictures


def annealed(scores, name="annealed"):
    """A study of one point; by seed its stages: (alpha, score, kept)."""
    results = study(name, sparsities=(0.5,), seeds=tuple(range(len(scores))))
    for trial, rows in zip(results["trials"], scores, strict=True):
        keys = ("alpha", "rate", "score", "loss", "kept")
        trial["stages"] = {"anneal": [dict(zip(keys, (a, 1.0, s, 0.1, k), strict=True)) for a, s, k in rows]}
    return results


ONE = [(1.0, 0.9, True), (0.1, 0.85, True), (0.0, 0.7, True), (0.0, None, False), (0.0, 0.8, True)]
OTHER = [(1.0, 0.92, True), (0.1, 0.87, True), (0.0, 0.82, True)]


def test_seeds_of_the_same_alphas_are_one_line_of_means():
    plot = alpha_plot(all_groups([annealed([ONE, OTHER])]))
    (line,) = plot["data"]
    assert line["x"] == pytest.approx([0, 1, 1.3])  # -log10 of alpha, and 0 beside the smallest
    assert line["y"] == pytest.approx([91, 86, 81])
    assert line["error_y"]["array"] == pytest.approx([math.sqrt(2)] * 3)
    axis = plot["layout"]["xaxis"]
    assert dict(zip(axis["ticktext"], axis["tickvals"], strict=True)) == pytest.approx(
        {"1": 0, "0.5": math.log10(2), "0.2": math.log10(5), "0.1": 1, "0": 1.3}
    )


def test_seeds_of_other_alphas_are_lines_of_their_own():
    plot = alpha_plot(all_groups([annealed([ONE, [(1.0, 0.9, True), (0.05, 0.6, True), (0.0, 0.5, True)]])]))
    assert [line["name"].rpartition(", ")[2] for line in plot["data"]] == ["seed 0", "seed 1"]
    assert plot["data"][1]["x"] == pytest.approx([0, -math.log10(0.05), 0.3 - math.log10(0.05)])


def test_without_an_annealing_there_is_no_such_plot():
    assert alpha_plot(all_groups([study()])) is None
    assert "Accuracy against alpha" not in page([study()])


def test_a_page_and_its_pictures_show_it(tmp_path):
    text = page([annealed([ONE]), annealed([OTHER], "other"), study()])
    assert "<h2>Accuracy against alpha" in text
    paths = write_pictures([annealed([ONE])], tmp_path, "svg")
    assert "accuracy-against-alpha.svg" in [path.name for path in paths]


def test_time_and_memory_stand_beside_the_dense_networks():
    results = compacted("small", sparsities=(0.5,))
    for trial in results["trials"]:
        trial["metrics"] |= {"peak_memory_mb": 3.0, "peak_memory_dense_mb": 4.0}
        trial["metrics"] |= {"average_memory_mb": 1.0, "average_memory_dense_mb": 2.0}
    text = page([results])
    assert "<h2>Time and memory beside the dense network" in text
    row = re.search(r"<td>50,000</td><td>25,000</td>(.*?)</tr>", text).group(1)
    assert re.findall(r"<td>(.*?)</td>", row) == [
        "2.50",
        "1.88",
        "0.75",
        "4.00",
        "3.00",
        "0.75",
        "2.00",
        "1.00",
        "0.50",
    ]
    assert "Time and memory" not in page([study()])
