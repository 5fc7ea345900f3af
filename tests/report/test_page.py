import json
import re

import pytest

from secateur.report.page import page, write_page


def study(name="<b>evil</b> & co"):
    trials = [
        {
            "id": f"{s}{seed}",
            "method": name,
            "state": "finished",
            "point": {"prune.budget.sparsity": s, "prune.criterion": "</script><script>alert(1)</script>"},
            "seed": seed,
            "requested": {"sparsity": s},
            "metrics": {
                "sparsity": s,
                "compression_rate": 1 / (1 - s),
                "accuracy_dense": 0.98,
                "accuracy_pruned": 0.9 - s / 10,
                "accuracy_retrained": 0.97 - s / 100 + seed / 1000,
                "nonzero": 1000 * (1 - s),
            },
            "layers": [{"name": "fc<1>", "sparsity": s}],
            "curves": {
                "dense": [{"validation_accuracy": 0.9}, {"validation_accuracy": 0.95}],
                "retrain": [{"validation_accuracy": 0.96}],
            },
            "notes": ["fc<1> is emptied"],
        }
        for s in (0.5, 0.9)
        for seed in (0, 1)
    ]
    return {
        "recipe": name,
        "description": "d <i>",
        "source": "s",
        "text": "name: <x>",
        "environment": {"torch": "<2>"},
        "trials": trials,
        "reference": [{"prune.budget.sparsity": 0.5, "accuracy_retrained": 0.961}],
    }


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
    for title in ("Results", "Accuracy against sparsity", "Pareto front", "Sparsity by layer", "Training curves",
                  "Beside the quoted figures", "Environment", "Recipe"):  # fmt: skip
        assert f"<h2>{title}" in text
    assert len(figures_in(text)) == 5


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
