"""The table of a deployment: figures as they were measured, and reasons where there are none."""

import io
import re

from rich.console import Console
from sample import study

from secateur.report.deployed import deployment_lines, deployment_table, deployments_of
from secateur.report.page import page
from secateur.report.terminal import print_deployment


def made(name, file, number, latency, **more):
    timing = {"median": latency, "low": latency / 2, "high": 2 * latency, "runs": 9, "threads": 1}
    return {
        "name": name,
        "file": file,
        "bytes": number,
        "reason": None,
        "load_s": 0.0123,
        "latency": {"1": timing, "64": timing | {"median": 1 / latency / 1e6}},
        "memory": {"imports": 200_000_000, "peak": {"1": 203_400_000, "64": 201_200_000}},
        "score": 0.9876,
        "same": 9_998,
        **more,
    }


DEPLOYMENT = {
    "schema": 2,
    "trial": {"id": "5000", "method": "<i>zeros", "point": {"prune.budget.sparsity": 0.5}, "seed": 0},
    "environment": {"torch": "<2>", "commit": None},
    "test": 10_000,
    "formats": [
        made("dense, PyTorch", "dense.safetensors", 1_000_000, 0.002, same=None),
        made("packed, numpy", "packed/model.secateur", 50_000, 0.004, note="run.py is more", memory=None),
        made("packed, compiled", "packed/model.secateur", 50_000, 0.001),
        {"name": "ONNX", "reason": "<b> comes with: pip install 'secateur[onnx]'"},
    ],
    "notes": ["pruned, PyTorch: 98.00 % here, 98.10 % in the study's results"],
}


def with_one_deployed(name="s"):
    results = study(name)
    results["trials"][0]["deployment"] = DEPLOYMENT
    return results


def test_the_table():
    header, rows = deployment_table(DEPLOYMENT)
    assert all(len(row) == len(header) for row in rows)
    assert rows[0] == [
        "dense, PyTorch", "1,000,000", "12.3", "2.000 (1.000 to 4.000)", "0.500 (1.000 to 4.000)",
        "203.4", "3.4", "1.2", "98.76", "",
    ]  # fmt: skip
    assert rows[1][5:8] == ["unknown here", "", ""]
    assert rows[2][-1] == "9,998 of 10,000"
    assert rows[3] == ["ONNX", "not made", *[""] * 8]


def test_the_lines_name_the_best_and_every_reason():
    lines = deployment_lines(DEPLOYMENT)
    assert lines[:4] == [
        "Fastest at batch 1: packed, compiled; at batch 64: packed, numpy; "
        "smallest file: packed/model.secateur (50,000 bytes).",
        "ONNX: not made: <b> comes with: pip install 'secateur[onnx]'",
        "packed, numpy: run.py is more",
        DEPLOYMENT["notes"][0],
    ]
    nothing = DEPLOYMENT | {"formats": DEPLOYMENT["formats"][3:]}
    assert deployment_lines(nothing)[0].startswith("ONNX: not made")


def test_every_trial_that_was_deployed_is_on_the_page():
    text = page([with_one_deployed()])
    section = text[text.index("<h2>Deployment</h2>") :].split("<h2>")[1]
    assert "sparsity 0.5" in section
    assert re.search(r"<tr><td>packed, compiled</td><td>50,000</td><td>12.3</td>", section)
    assert "&lt;b&gt; comes with" in section
    assert "torch &lt;2&gt;" in section
    assert "commit" not in section
    assert "<h2>Deployment" not in page([study()])


def test_several_studies_are_told_apart():
    labels = list(deployments_of([with_one_deployed("one"), with_one_deployed("two")]))
    assert [label.partition(":")[0] for label in labels] == ["one", "two"]


def test_on_a_terminal_nothing_is_taken_for_markup():
    written = io.StringIO()
    print_deployment(DEPLOYMENT, Console(file=written, width=200))
    text = written.getvalue()
    assert "<i>zeros: sparsity 0.5, seed 0: 10,000 test examples" in text
    assert "pip install 'secateur[onnx]'" in text
