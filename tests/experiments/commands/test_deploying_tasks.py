"""Networks of other tasks than classification deployed: checkpoints with labels, trials, older tables."""

import json
import re
import sys

import pytest
from rich.console import Console

from secateur.data import load_data
from secateur.experiments.commands import making
from secateur.experiments.commands.deployment import deploy, deploy_checkpoint
from secateur.experiments.deployment_schema import validated_deployment
from secateur.experiments.recipe import load_recipe
from secateur.experiments.study import run_study
from secateur.models import build_model
from secateur.report.terminal import print_deployment
from secateur.task import build_task
from secateur.training.checkpoint import save_weights
from secateur.training.evaluate import evaluate
from secateur.training.fit import fit
from secateur.training.settings import Training

NUMBERS = {"name": "mlp", "features": 10, "hidden": [16], "outputs": 1}


@pytest.fixture(autouse=True)
def few_formats(monkeypatch):
    """Packed and PyTorch: enough to see a score in a row, in a quarter of the time."""

    def no_onnx(*_, **__):
        raise making.ModelError("left out")

    monkeypatch.setattr(making, "export_onnx", no_onnx)
    monkeypatch.setitem(sys.modules, "numba", None)


def printed(result):
    console = Console(width=250, record=True)
    print_deployment(result, console)
    return console.export_text()


def made(result):
    return {row["name"]: row for row in result["formats"] if row["reason"] is None}


def test_a_checkpoint_with_numbers_for_labels_has_its_score_in_every_format(tmp_path):
    found, task = load_data("diabetes"), build_task("regression")
    network = build_model(**NUMBERS)
    fit(network, found.train, found.validation, Training(epochs=3, lr=3e-3), task=task)
    save_weights(tmp_path / "w.safetensors", network)
    options = {"model": NUMBERS, "data": "diabetes", "task": "regression"}
    result = deploy_checkpoint(tmp_path / "w.safetensors", tmp_path / "out", **options, seconds=0.01)
    wanted = evaluate(network, found.test, task)
    rows = made(result)
    assert result["score"]["name"] == "R2"
    assert rows["PyTorch"]["score"] == pytest.approx(wanted.score, rel=1e-6)
    assert rows["packed, numpy"]["score"] == pytest.approx(wanted.score, rel=1e-4)
    assert result["test"] == wanted.number
    assert "R2" in printed(result)
    assert "accuracy" not in printed(result)
    assert json.loads((tmp_path / "out" / "deploy.json").read_text()) == result


RECIPE = """
name: numbers
data: {name: diabetes, validation: 60}
model: {name: mlp, features: 10, hidden: [16], outputs: 1}
task: {name: regression}
train: {epochs: 3, lr: 3.0e-3, batch_size: 64}
measure: []
steps:
  - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}
  - retrain: {epochs: 1}
seeds: [0]
"""


def test_a_trial_of_another_task_says_its_own_score(tmp_path):
    (tmp_path / "numbers.yaml").write_text(RECIPE)
    row = run_study(load_recipe(str(tmp_path / "numbers.yaml")), tmp_path / "runs")["trials"][0]
    result = deploy(tmp_path / "runs" / "trials" / row["id"], seconds=0.01)
    rows = made(result)
    assert rows["dense, PyTorch"]["score"] == pytest.approx(row["metrics"]["score_dense"], rel=1e-6)
    assert rows["packed, numpy"]["score"] == pytest.approx(row["metrics"]["score_retrained"], rel=1e-4)
    text = printed(result)
    assert "R2" in text
    assert not re.search("accuracy|first choice", text)
    page = (tmp_path / "runs" / "trials" / row["id"] / "deploy" / "deploy.json").read_text()
    assert "accuracy" not in page


def test_a_table_of_schema_1_is_read():
    """Before there were other tasks a format had an accuracy."""
    timing = {"median": 1.0, "low": 0.9, "high": 1.1, "runs": 10, "threads": 1}
    row = {
        "name": "packed, numpy", "reason": None, "file": "packed", "bytes": 10, "load_s": 0.1, "memory": None,
        "latency": {"1": timing, "64": timing}, "accuracy": 0.5, "same": 3,
    }  # fmt: skip
    old = {
        "schema": 1,
        "trial": {"id": "ab", "method": "m", "point": {}, "seed": 0},
        "environment": {"python": "3"},
        "test": 6,
        "formats": [row, {"name": "ONNX", "reason": "left out"}],
    }
    found = validated_deployment(old, "deploy.json")
    assert found["schema"] == 2
    assert found["formats"][0]["score"] == 0.5
    assert "accuracy" not in found["formats"][0]
    assert "accuracy" in printed(found)  # that is what the score of such a table is
