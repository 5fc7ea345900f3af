from PIL import Image
from sample import halved, study

from secateur.report.aggregate import all_groups
from secateur.report.figures import plots_of
from secateur.report.pictures import write_pictures
from secateur.report.smaller import smaller_of, smaller_plot, smaller_table

TITLE = "Really smaller, beside the dense network"


def test_zeros_alone_are_no_smaller_network():
    groups = all_groups([study(), halved()])
    assert [group.study for group in smaller_of(groups)] == ["halved"]
    assert smaller_of(all_groups([study()])) == []
    assert smaller_table(all_groups([study()]))[1] == []
    assert TITLE not in plots_of(all_groups([study()]), [])


def test_a_network_that_is_larger_or_emptied_or_says_too_little():
    larger = halved(compression_rate=0.5)
    emptied = halved(parameters=10_000, nonzero=0, compression_rate=10_000.0)
    unknown = halved(compression_rate=None)
    assert smaller_of(all_groups([larger])) == smaller_of(all_groups([emptied])) == []
    assert smaller_of(all_groups([unknown])) == []


def test_the_table_has_dense_before_pruned():
    header, rows = smaller_table(all_groups([halved()]))
    assert header[0] == "dense → pruned"
    (row,) = rows
    assert row[1:3] == ["10,000 → 5,000 (2.00x smaller)", "50,000 → 25,000 (2.00x fewer)"]
    assert row[3] == "2.5 → 1.88 (1.33x faster)"  # seeds: 2 -> 1.5 and 3 -> 2.25 ms
    assert row[4] == "98.00 ± 0.00 → 98.60 ± 0.00"


def test_what_was_not_measured_is_left_out():
    results = halved(latency_ms=None, latency_dense_ms=None)
    assert smaller_table(all_groups([results]))[1][0][3] == ""
    bars = smaller_plot(all_groups([results]))["data"]
    assert [trace["y"] for trace in bars] == [["parameters", "multiply-adds", "test accuracy"]] * 2


def test_bars_are_shares_of_the_dense_networks():
    dense, pruned = smaller_plot(all_groups([halved()]))["data"]
    assert dense["x"] == [100.0, 100.0, 100.0, 98.0]
    assert pruned["x"] == [50.0, 50.0, 75.0, 98.6]
    assert pruned["text"][:2] == ["5,000 (2.00x less)", "25,000 (2.00x less)"]
    assert dense["text"] == ["10,000", "50,000", "2.5 ms", "98.00 ± 0.00 %"]


def test_each_has_bars_of_its_own_up_to_six():
    some = smaller_plot(all_groups([halved([0.3, 0.5])]))["data"]
    assert len(some) == 4
    assert some[0]["name"].startswith("dense, of halved: sparsity 0.3")
    assert smaller_plot(all_groups([halved([i / 10 for i in range(1, 7)])])) is not None
    assert smaller_plot(all_groups([halved([i / 10 for i in range(1, 8)])])) is None


def test_the_picture(tmp_path):
    first = write_pictures([halved()], tmp_path, "png")[0]
    assert first.name == "really-smaller-beside-the-dense-network.png"
    colours = {colour for _, colour in Image.open(first).convert("RGB").getcolors(1 << 24)}
    assert {(0x9A, 0xA4, 0xB0), (0x25, 0x63, 0xA8)} <= colours
