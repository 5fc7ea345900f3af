"""A checkpoint made smaller by one command: its errors, and what it says of what is left."""

import re

import numpy as np
import pytest
import torch

from secateur.data import load_data
from secateur.errors import RecipeError
from secateur.experiments.commands import shrinking
from secateur.experiments.commands.opening import open_network
from secateur.experiments.commands.shrinking import shrink_checkpoint
from secateur.measure.size import count_parameters
from secateur.models import build_model
from secateur.training.checkpoint import save_weights
from secateur.training.evaluate import evaluate
from secateur.training.fit import fit
from secateur.training.settings import Training

NET = {"name": "digits-mlp", "hidden": 16}


@pytest.fixture
def given(tmp_path):
    save_weights(tmp_path / "w.safetensors", build_model("digits-mlp", hidden=16))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((40, 1, 8, 8)).astype("f"))
    return {"model": NET, "weights": tmp_path / "w.safetensors", "out": tmp_path / "s.safetensors"}


def test_examples_without_labels_are_refitted_and_compared(given, tmp_path):
    said = shrink_checkpoint(**given, goals={"parameters": 0.5}, inputs=tmp_path / "x.npy")
    assert "refitted on 30 examples" in said
    assert "taught by the dense network for 10 epochs" in said
    assert "validation difference from dense" in said
    assert "on 10 examples" in said
    small, reshaped = open_network(NET, given["out"])
    assert reshaped
    assert count_parameters(small) <= 0.5 * count_parameters(build_model("digits-mlp", hidden=16))


def test_labels_teach_it_and_the_table_has_both_scores_on_test(given):
    """Read off the text, and compared with what evaluate says of the two networks."""
    data, dense = load_data("digits"), build_model("digits-mlp", hidden=16)
    fit(dense, data.train, data.validation, Training(epochs=3, lr=1e-2))
    save_weights(given["weights"], dense)
    heard = []
    options = {"goals": {"parameters": 0.5}, "epochs": 2, "on_step": heard.append}
    said = shrink_checkpoint(**given, data="digits", **options)
    small, _ = open_network(NET, given["out"])
    trained = re.search(
        r"fine-tuned for 2 epochs, the best is [12]: validation accuracy (\S+) % -> (\S+) %", said
    )
    assert trained, said
    assert float(trained[2]) == round(100 * evaluate(small, data.validation).score, 2)
    assert float(trained[2]) >= float(trained[1])
    row = re.search(r"accuracy, 360 test examples +(\S+) % +(\S+) %", said)
    assert row, said
    scores = [round(100 * evaluate(network, data.test).score, 2) for network in (dense, small)]
    assert [float(row[1]), float(row[2])] == scores
    assert re.search(r"same largest output .* of 360 ", said)
    assert "taught" not in said
    assert "fine-tuned for 2 epochs:" in heard
    assert [step.split(":")[0] for step in heard if "validation" in step] == ["  epoch 1", "  epoch 2"]


def test_too_few_examples_are_refitted_on_and_teach_nothing(given, tmp_path):
    np.save(tmp_path / "few.npy", np.load(tmp_path / "x.npy")[:20])  # of which a quarter is compared
    said = shrink_checkpoint(**given, goals={"parameters": 0.5}, inputs=tmp_path / "few.npy")
    assert "refitted on 15 examples" in said
    assert "not taught by the dense network: 15 examples are too few (from 20 on)" in said
    assert "validation" not in said
    assert "on 5 examples" in said


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "inputs alone"])
def test_no_epochs_train_nothing(given, tmp_path, monkeypatch, labelled):
    monkeypatch.setattr(shrinking, "fit", None)  # a call of it fails
    examples = {"data": "digits"} if labelled else {"inputs": tmp_path / "x.npy"}
    heard = []
    said = shrink_checkpoint(**given, goals={"macs": 0.5}, epochs=0, on_step=heard.append, **examples)
    assert heard == ["pruning digits-mlp to its goal", "refitting", "measuring"]
    assert not re.search("fine-tuned|taught|validation", said)
    assert "refitted on" in said
    assert ("accuracy, 360 test examples" in said) == labelled
    assert open_network(NET, given["out"])[1]


def test_epochs_that_make_it_worse_are_taken_back(given):
    goal = {"goals": {"parameters": 0.5}, "data": "digits"}
    shrink_checkpoint(**given, **goal, epochs=0)
    untrained = open_network(NET, given["out"])[0].state_dict()
    said = shrink_checkpoint(**given, **goal, epochs=1, lr=1e4)
    assert "fine-tuned for 1 epochs, none better than before (validation accuracy " in said
    assert said.count("left as it was") == 1
    left = open_network(NET, given["out"])[0].state_dict()
    assert all(torch.equal(left[name], tensor) for name, tensor in untrained.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goals": {"macs": None}}, "give one of --macs 0.5, --parameters 0.5 and --latency-ms 3"),
        ({"goals": {"macs": 0.5, "parameters": 0.5}}, "give one of --macs"),
        ({}, "give --data, or a file of them as --inputs"),
        ({"inputs": "x.npy", "data": "digits"}, "--data and --inputs exclude each other"),
        ({"inputs": "x.npy", "task": "regression"}, "--task: examples in --inputs have no labels"),
    ],
)
def test_options_that_do_not_go_together(given, change, message):
    with pytest.raises(RecipeError, match=message):
        shrink_checkpoint(**{**given, "goals": {"macs": 0.5}, **change})
    assert not given["out"].exists()
