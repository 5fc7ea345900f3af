"""What a deployment says of a score: the task's own, of the whole test split, of checkpoints and trials."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from secateur.data import load_data
from secateur.errors import MissingExtraError
from secateur.experiments.commands import inference, making, measuring
from secateur.experiments.commands.deployment import deploy, deploy_checkpoint
from secateur.experiments.recipe import load_recipe
from secateur.experiments.results import read_results
from secateur.experiments.study import run_study
from secateur.models import build_model
from secateur.report.page import page
from secateur.report.terminal import print_deployment
from secateur.storage import load_json, save_json
from secateur.task.built_in import classification, regression
from secateur.training.checkpoint import save_weights
from secateur.training.evaluate import evaluate
from secateur.training.fit import fit
from secateur.training.settings import Training

MLP = {"name": "mlp", "features": 10, "hidden": [12, 8]}
RECIPE = """
name: tiny
data: {name: diabetes, validation: 60}
model: {name: mlp, features: 10, hidden: [12, 8]}
task: {name: regression, score: r2}
train: {epochs: 3, optimizer: adamw, lr: 1.0e-2, batch_size: 32}
measure: []
methods:
  neurons:
    steps:
      - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}
      - retrain: {epochs: 1}
  weights: {steps: [prune: {budget: {name: global, sparsity: 0.5}}]}
seeds: [0]
"""
MADE = ["PyTorch", "sparse, PyTorch", "packed, numpy"]


@pytest.fixture(autouse=True)
def few_formats(monkeypatch):
    """Neither ONNX nor compiled kernels, and no process for each format: test_deployment starts those, and
    here it is the scores that count."""

    def no_onnx(*args, **kwargs):
        raise MissingExtraError("onnxruntime", "onnx")

    def here(command, **options):
        sys.modules.pop("secateur_run", None)  # the run.py of the deployment before
        inference.main(command[command.index("-c") + 2])

    monkeypatch.setattr(making, "export_onnx", no_onnx)
    monkeypatch.setattr(measuring, "subprocess", SimpleNamespace(run=here))
    monkeypatch.setitem(sys.modules, "numba", None)
    yield
    sys.modules.pop("secateur_run", None)


def made_of(result):
    return {row["name"]: row for row in result["formats"] if row["reason"] is None}


def printed(result):
    text = io.StringIO()
    print_deployment(result, Console(file=text, width=240))
    return text.getvalue()


def trained(options, data, task):
    """A network that knows something, so that its score is nobody else's."""
    options = dict(options)
    network = build_model(options.pop("name"), **options)
    fit(network, data.train, data.validation, Training(epochs=3, lr=1e-2), task=task)
    return network


def test_a_checkpoint_with_classes_has_a_column_of_accuracy(tmp_path):
    data, model = load_data("digits"), {"name": "digits-mlp", "hidden": 16}
    network = trained(model, data, classification())
    save_weights(tmp_path / "own.safetensors", network)
    options = {"model": model, "data": "digits", "seconds": 0.01}
    result = deploy_checkpoint(tmp_path / "own.safetensors", tmp_path / "out", **options)
    found, wanted = made_of(result), evaluate(network, data.test)
    assert list(found) == MADE
    assert result["test"] == wanted.number == len(data.test)
    assert wanted.score > 0.8
    for row in found.values():
        assert row["score"] == wanted.score
        assert row["same"] == wanted.number
        assert row["error"] < 1e-5
    assert result["source"] == "own.safetensors"
    assert result["notes"] == []
    assert load_json(tmp_path / "out" / "deploy.json") == result
    text = printed(result)
    assert f"own.safetensors: {wanted.number} test examples" in text
    assert "accuracy %" in text
    assert f" {100 * wanted.score:.2f} │" in text
    assert "Accuracy: of the whole test split. First choice and outputs: beside PyTorch" in text


def test_a_checkpoint_of_a_regression_has_its_own_score_and_no_first_choice(tmp_path):
    data, task = load_data("diabetes"), regression()
    network = trained(MLP, data, task)
    save_weights(tmp_path / "own.safetensors", network)
    options = {"model": MLP, "data": "diabetes", "task": "regression", "seconds": 0.01}
    result = deploy_checkpoint(tmp_path / "own.safetensors", tmp_path / "out", **options)
    found, wanted = made_of(result), evaluate(network, data.test, task)
    assert list(found) == MADE
    assert result["score"]["name"] == task.score.name == "R2"
    for row in found.values():
        assert row["score"] == pytest.approx(wanted.score, rel=1e-6)
        assert row["same"] is None
        assert row["error"] < 1e-5
    text = printed(result)
    assert f" {task.score.name} " in text
    assert "same first choice" not in text
    assert "accuracy" not in (text + json.dumps(result)).lower()


def test_labels_that_are_no_classes_are_no_score_without_a_task(tmp_path):
    data = load_data("diabetes")
    save_weights(tmp_path / "own.safetensors", trained(MLP, data, regression()))
    options = {"model": MLP, "data": "diabetes", "seconds": 0.01}
    result = deploy_checkpoint(tmp_path / "own.safetensors", tmp_path / "out", **options)
    assert result["score"] is None
    assert [row["score"] for row in made_of(result).values()] == [None] * len(MADE)
    assert "accuracy" not in printed(result).lower()


@pytest.fixture(scope="module")
def of_regression(tmp_path_factory):
    """A study of two finished trials, whose score is R2."""
    out = tmp_path_factory.mktemp("regression") / "study"
    (out.parent / "tiny.yaml").write_text(RECIPE)
    return out, run_study(load_recipe(str(out.parent / "tiny.yaml")), out)["trials"]


def test_a_trial_of_another_task_says_accuracy_nowhere(of_regression):
    out, rows = of_regression
    row = next(row for row in rows if row["method"] == "neurons")
    result = deploy(out / "trials" / row["id"], seconds=0.01)
    found = made_of(result)
    assert result["score"] == row["score"]
    assert result["score"]["name"] == "R2"
    assert found["dense, PyTorch"]["score"] == pytest.approx(row["metrics"]["score_dense"], rel=1e-6)
    for name in ("pruned, PyTorch", "packed, numpy"):
        assert found[name]["score"] == pytest.approx(row["metrics"]["score_retrained"], rel=1e-5)
        assert found[name]["same"] is None
    text = printed(result)
    assert " R2 " in text
    assert "R2: of the whole test split." in text
    section = page([read_results(out)]).split("<h2>Deployment</h2>")[1].split("<h2>")[0]
    assert "<th>R2</th>" in section
    for said in (text, section, (out / "trials" / row["id"] / "deploy" / "deploy.json").read_text()):
        assert "accuracy" not in said.lower()


def old(row, latency):
    timing = {"median": latency, "low": latency, "high": latency, "runs": 9, "threads": 1}
    return {"name": row, "file": "x.safetensors", "bytes": 5000, "reason": None, "load_s": 0.01} | {
        "memory": None,
        "latency": {"1": timing, "64": timing},
        "accuracy": 0.4321,
        "same": 8,
    }


def test_what_was_deployed_before_scores_had_names_is_still_in_the_report(of_regression):
    """Schema 1 called every score an accuracy, as the only one that there was."""
    out, rows = of_regression
    row = next(row for row in rows if row["method"] == "weights")
    trial = {key: row[key] for key in ("id", "method", "point", "seed")}
    formats = [old("dense, PyTorch", 0.001), {"name": "ONNX", "reason": "no onnx"}]
    deployed = {"schema": 1, "trial": trial, "environment": {}, "test": 9, "seconds": 0.5}
    folder = out / "trials" / row["id"] / "deploy"
    folder.mkdir()
    save_json(folder / "deploy.json", deployed | {"formats": formats, "notes": []})
    results = read_results(out)
    read = next(trial for trial in results["trials"] if trial["id"] == row["id"])["deployment"]
    assert read["schema"] == 2
    assert read["formats"][0]["score"] == 0.4321
    assert "accuracy" not in read["formats"][0]
    section = page([results]).split("<h2>Deployment</h2>")[1]
    assert "<th>accuracy %</th>" in section
    assert "<td>43.21</td><td>8 of 9</td>" in section
