"""A checkpoint made smaller by one command: its errors, and what it says of what is left."""

import re
import sys

import numpy as np
import pytest
import torch

from secateur.cli import main
from secateur.data import load_data
from secateur.errors import DataError, RecipeError
from secateur.experiments.commands import shrinking
from secateur.experiments.commands.opening import open_network
from secateur.experiments.commands.shrinking import shrink_checkpoint
from secateur.measure.macs import count_macs
from secateur.measure.size import count_parameters
from secateur.measure.summary import profile
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
    assert "refitted on 25 examples" in said
    assert "taught by the dense network for 10 epochs" in said
    assert "validation difference from dense" in said
    assert "on 10 examples" in said
    assert "multiply-adds, latency and memory: of one example, on one thread" in said
    counts = next(line.split() for line in said.splitlines() if line.startswith("multiply-adds "))
    dense = count_macs(build_model("digits-mlp", hidden=16), torch.zeros(1, 1, 8, 8)).dense
    assert int(counts[1].replace(",", "")) == dense
    assert f"{counts[1]} -> {counts[2]} MACs" in said
    small, reshaped = open_network(NET, given["out"])
    assert reshaped
    assert count_parameters(small) <= 0.5 * count_parameters(build_model("digits-mlp", hidden=16))


@pytest.fixture
def llama(tmp_path):
    """A folder as transformers writes one, in which the second block's units matter more."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes))
    for parameter in network.model.layers[1].parameters():
        parameter.data *= 1.2
    network.save_pretrained(tmp_path / "llama")
    np.savez(tmp_path / "x.npz", input_ids=np.random.default_rng(0).integers(0, 64, (24, 7)))
    return {"model": str(tmp_path / "llama"), "inputs": tmp_path / "x.npz", "goals": {"parameters": 0.7}}


def test_blocks_cut_alike_become_a_folder_that_transformers_opens_alone(llama, tmp_path, monkeypatch, capsys):
    import transformers

    out = tmp_path / "small"
    named = ("--model", llama["model"], "--inputs", str(llama["inputs"]), "--out", str(out))
    options = ("--parameters", "0.7", "--epochs", "1", "--alike")
    monkeypatch.setattr(sys, "argv", ["secateur", "shrink", *named, *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "opened by AutoModelForCausalLM\nconfig.json says " in said
    assert not (out / "secateur.json").exists()
    small = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    assert small.config.intermediate_size < 48
    widths = {layer.mlp.up_proj.weight.shape[0] for layer in small.model.layers}
    assert widths == {small.config.intermediate_size}
    dense = transformers.AutoModelForCausalLM.from_pretrained(llama["model"])
    assert small.num_parameters() <= 0.7 * dense.num_parameters()


def test_blocks_of_their_own_sizes_say_what_their_folder_needs(llama, tmp_path):
    said = shrink_checkpoint(**llama, out=tmp_path / "small", epochs=0)
    assert (
        "opened by AutoModelForCausalLM with trust_remote_code=True, and by secateur.from_pretrained" in said
    )


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
    assert "training for 2 epochs" in heard
    assert [step.split(":")[0] for step in heard if "validation" in step] == ["  epoch 1", "  epoch 2"]


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


def test_few_examples_are_not_taught_from(given, tmp_path):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype("f"))
    said = shrink_checkpoint(**given, goals={"macs": 0.6}, inputs=tmp_path / "few.npy")
    assert "refitted on 6 examples" in said
    assert "not taught by the dense network: of fewer than 24 examples" in said
    assert "on 2 examples" in said


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.a, self.b = way, nn.Linear(6, 24), nn.Linear(24, 4)
        self.norm = nn.BatchNorm1d(24)
    def forward(self, x):
        y = self.b(torch.relu(self.norm(self.a(x))))
        return {"flat": y[:, 0], "two": (y, y.sum(1)), "turned": y.T, "scalar": (y, y.mean()),
                "choice": y.argmax(1), "named": {"boxes": y, "score": y[:, 1]}}[self.way]
"""


@pytest.mark.parametrize(
    ("way", "taught"),
    [("flat", True), ("two", True), ("named", True), ("turned", False), ("scalar", False), ("choice", False)],
)
def test_whatever_a_network_puts_out_it_is_made_smaller(way, taught, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((100, 6)).astype("f"))
    monkeypatch.chdir(tmp_path)
    model, out = {"name": "own:Net", "way": way}, tmp_path / "small.safetensors"
    said = shrink_checkpoint(model=model, out=out, inputs=tmp_path / "x.npy", goals={"macs": 0.6}, epochs=2)
    assert out.exists()
    assert ("not taught by the dense network: it puts out" in said) != taught
    assert ("taught by the dense network for 2 epochs" in said) == taught
    assert "on 25 examples" in said
    assert "no --weights: as own:Net made them" in said


def test_teaching_leaves_the_norms_statistics_alone(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    np.save(tmp_path / "x.npy", 3 + np.random.default_rng(0).standard_normal((100, 6)).astype("f"))
    monkeypatch.chdir(tmp_path)
    model, out = {"name": "own:Net", "way": "two"}, tmp_path / "small.safetensors"
    said = shrink_checkpoint(model=model, out=out, inputs=tmp_path / "x.npy", goals={"macs": 0.6}, epochs=3)
    assert "the best is" in said
    small, _ = open_network(model, out)
    assert not small.norm.running_mean.any()  # as they began
    assert type(small).train is torch.nn.Module.train


def test_a_nan_among_the_examples_is_one_error_at_once(given, tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 1, 8, 8)).astype("f")
    x[39, 0, 3, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match=r"x\.npy: arg0 holds a NaN"):
        shrink_checkpoint(**given, goals={"macs": 0.6}, inputs=tmp_path / "x.npy")


def test_what_is_measured_lies_as_a_file_opens(tmp_path, monkeypatch):
    """Training turns convolutions to channels last, which can be much faster, and a file does not."""
    seen = []
    monkeypatch.setattr(
        "secateur.experiments.commands.shrinking.profile",
        lambda network, *_, **given: seen.append(network) or profile(network, *_, **given),
    )
    images = np.random.default_rng(0).standard_normal((60, 1, 28, 28)).astype("f")
    np.save(tmp_path / "x.npy", images)
    save_weights(tmp_path / "w.safetensors", build_model("lenet-5"))
    given = {"model": "lenet-5", "weights": tmp_path / "w.safetensors", "out": tmp_path / "s.safetensors"}
    shrink_checkpoint(**given, goals={"macs": 0.6}, inputs=tmp_path / "x.npy", epochs=1)
    assert all(parameter.is_contiguous() for network in seen for parameter in network.parameters())
