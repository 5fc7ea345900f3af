import json
import re

import pytest
from sample import study

from secateur.report.page import page, write_page


@pytest.fixture(scope="module")
def text():
    return page([study()])


def figures_in(text):
    found = re.search(r"<script type='application/json' id=figures>(.*?)</script>", text, re.DOTALL)
    return json.loads(found.group(1))


def body_of(text):
    """The page without plotly's own script."""
    start = text.index("</script>", text.index("id=figures"))
    return text[:start] + text[text.rindex("<script>") :]


def test_every_section_is_there(text):
    for title in ("Results", "Accuracy against sparsity", "Pareto front", "Sparsity by layer",
                  "Beside the quoted figures",
        "Twenty points of an honest report", "Environment", "Recipe"):  # fmt: skip
        assert f"<h2>{title}" in text
    assert len(figures_in(text)) == 6


def test_what_users_name_is_escaped(text):
    body = body_of(text)
    assert "<b>evil</b>" not in body
    assert "alert(1)</script>" not in body
    assert "&lt;b&gt;evil&lt;/b&gt; &amp; co" in body
    assert "fc&lt;1&gt; is emptied" in body


def test_nothing_is_fetched(text):
    body = body_of(text)
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", body)
    assert "plotly.js v" in text  # the script is in the page


def test_figures_hold_the_means_and_deviations(text):
    accuracy = figures_in(text)["plot0"]
    retrained = next(trace for trace in accuracy["data"] if trace["name"].endswith("retrained"))
    assert retrained["x"] == [50.0, 90.0]
    assert retrained["y"] == pytest.approx([96.55, 96.15])
    assert retrained["error_y"]["array"] == pytest.approx([0.0707, 0.0707], abs=1e-3)
    quoted = next(trace for trace in accuracy["data"] if trace["name"].startswith("quoted"))
    assert quoted["y"] == pytest.approx([96.1])
    assert figures_in(text)["plot1"]["layout"]["xaxis"]["type"] == "log"


def test_ours_stands_beside_the_quoted(text):
    row = re.search(r"<tr><td>sparsity 0.5</td>(.*?)</tr>", text).group(1)
    assert re.findall(r"<td>(.*?)</td>", row) == ["accuracy retrained", "96.10", "96.55 ± 0.07", "+0.45"]


def test_several_studies_share_one_page(tmp_path):
    path = write_page([study("first"), study("second")], tmp_path / "both.html")
    text = path.read_text()
    assert "<h1>first + second</h1>" in text
    names = [trace["name"] for trace in figures_in(text)["plot0"]["data"]]
    assert any(name.startswith("first") for name in names)
    assert any(name.startswith("second") for name in names)


def test_parameters_and_non_zeros_are_both_drawn():
    """Zeros alone leave the parameters as many: two curves for each method, one of them flat."""
    from secateur.report.aggregate import all_groups
    from secateur.report.figures import counts_plot

    plot = counts_plot(all_groups([study()]))
    nonzero, parameters = plot["data"][:2]
    assert nonzero["name"].endswith("non-zero")
    assert parameters["name"].endswith("parameters")
    assert len(nonzero["x"]) == len(parameters["x"]) > 1
    assert nonzero["y"] != parameters["y"]
