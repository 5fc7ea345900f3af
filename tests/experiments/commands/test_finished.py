"""A trial that somebody sent: its files are data, and what they name is secateur's own or refused."""

import json
import os
import shutil

import pytest
import torch

from secateur.errors import DataError, ModelError, SecateurError, StorageError
from secateur.experiments.commands import finished
from secateur.experiments.commands.finished import load_dense, load_pruned, read_trial
from secateur.experiments.dense import load_dataset
from secateur.experiments.recipe import load_recipe
from secateur.experiments.study import run_study

RECIPE = """
name: small
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 8}
train: {epochs: 1}
measure: []
steps: [prune: {budget: {name: global, sparsity: 0.5}}]
seeds: [0]
"""
EVIL = "from pathlib import Path\nPath({!r}).touch()\ndef make(**options):\n    raise SystemExit\n"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study of one trial."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(RECIPE)
    row = run_study(load_recipe(str(folder / "small.yaml")), folder / "runs" / "small")["trials"][0]
    return folder / "runs" / "small" / "trials" / row["id"], row


@pytest.fixture
def received(ran, tmp_path, monkeypatch):
    """A copy of the study in a working folder that holds modules of everybody's names, each of which leaves a
    mark when it is run; a function that changes the trial's row."""
    folder, row = ran
    shutil.copytree(folder.parents[2], tmp_path / "runs")
    for name in ("evil", "numpy", "decimal", "sklearn", "secateur"):
        (tmp_path / f"{name}.py").write_text(EVIL.format(str(tmp_path / "ran")))
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "runs" / "small" / "trials" / folder.name

    def change(**config):
        changed = {key: {**row["config"][key], **config.get(key, {})} for key in ("data", "model")}
        rest = {key: value for key, value in config.items() if key not in changed}
        (copy / "result.json").write_text(json.dumps(row | {"config": row["config"] | changed | rest}))
        return copy

    yield change
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "error", "option"),
    [
        ({"model": {"name": "os:system", "command": "ls"}}, ModelError, "give --model package.module:"),
        ({"model": {"name": "evil:make"}}, ModelError, "give --model package.module:"),
        ({"model": {"name": "secateur.models.lenet:lenet_5"}}, ModelError, "give --model package.module:"),
        ({"model": {"name": "numpy"}}, ModelError, "give --model package.module:"),
        ({"data": {"name": "evil:make"}}, DataError, "give --data package.module:"),
        ({"data": {"name": "os:system", "command": "touch ran"}}, DataError, "give --data package.module:"),
        ({"data": {"name": "\x1b[2J:x\n"}}, DataError, r"'\x1b[2J:x\n'"),
    ],
)  # fmt: skip
def test_what_a_file_names_is_never_imported(received, config, error, option):
    with pytest.raises(error, match=r"result\.json: names the (network|data set) ") as caught:
        read_trial(received(**config))
    assert option in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": {"hidden": "8"}}, r"model: hidden is '8': Input should be a valid integer"),
        ({"model": {"hidden": True}}, r"model: hidden is True: Input should be a valid integer"),
        ({"model": {"hidden": [1, 2]}}, r"model: hidden is \[1, 2\]: Input should be a valid integer"),
        ({"model": {"hidden": -4}}, r"model: hidden is -4"),
        ({"model": {"hidden": 99_999}}, r"has 10,007,[0-9,]* parameters, and 100,000,000 are the most"),
        ({"model": {"hidden": 2**62}}, r"model: hidden is 4611686018427387904"),
        ({"model": {"seed": "x"}}, r"model: digits-mlp has no option 'seed'"),
        ({"model": {"weights": 5}}, r"result\.json: weights is 5"),
        ({"model": {"wid th": 5}}, r"'wid th' is no name that Python takes"),
        ({"steps": [{"scratch": {"width": 0.5}}]}, r"model: digits-mlp has no option 'width'"),
        ({"steps": [{"scratch": {"width": "x"}}]}, r"config\.steps\.0 is an object of 1 keys; a number"),
        (
            {"steps": [{"scratch": {"model": {"hidden": 99_999}}}]},
            r"parameters, and 100,000,000 are the most",
        ),
        ({"data": {"path": "x"}}, r"digits has no option 'path'"),
        ({"train": {"lr": "fast"}}, r"result\.json: lr is 'fast'"),
    ],
)
def test_options_are_those_of_our_own_factories(received, config, message):
    with pytest.raises(SecateurError, match=message):
        load_dataset(read_trial(received(**config)).plan.data)


@pytest.mark.parametrize("path", ["fifo", "/dev/zero", "/dev/stdin", ".", "no\0where", "x" * 4000])
@pytest.mark.parametrize("data", [{"name": "npz"}, {"name": "image-folder", "size": 8}])
def test_what_no_plain_file_is_hangs_nothing(received, path, data, tmp_path):
    """The dense network's weights and the data, which a file may have anywhere on the disk: read as what they
    are, by readers that run nothing, or refused."""
    os.mkfifo(tmp_path / "fifo")
    trial = read_trial(received(model={"weights": path}))
    with pytest.raises(StorageError, match="the trial's dense network should be there"):
        trial.dense_file()
    if len(path) < 255:  # the data sets' own check of long names is theirs
        trial = read_trial(received(data={"path": path, **data}))
        with pytest.raises(DataError):
            load_dataset(trial.plan.data)


def test_the_callers_own_network_and_data_are_what_it_says(received, tmp_path):
    (tmp_path / "callers.py").write_text(
        "from secateur.data import load_data\n"
        "from secateur.models import build_model\n"
        "def net(hidden=8):\n    return build_model('digits-mlp', hidden=hidden)\n"
        "def set(validation, seed, more=0):\n    return load_data('digits', validation=validation + more)\n"
    )
    folder = received(model={"name": "evil:make", "x": 1}, data={"name": "evil:make", "y": 2})
    data = {"name": "callers:set", "validation": 100, "more": 7}
    trial = read_trial(folder, model="callers:net", data=data)
    assert trial.plan.model.model_extra == {}
    assert len(load_dataset(trial.plan.data).validation) == 107
    assert torch.equal(
        load_pruned(trial).layers[0].weight, load_pruned(read_trial(received())).layers[0].weight
    )
    assert trial.dense_file().is_file()
    with pytest.raises(StorageError, match="has shape"):  # its options too are the caller's
        load_pruned(read_trial(folder, model={"name": "callers:net", "hidden": 9}, data="digits"))
    with pytest.raises(ModelError, match="names the network"):
        read_trial(received(model={"name": "evil:make"}), data="digits")


def test_the_callers_weights_stand_in_for_those_that_are_not_here(received, tmp_path):
    folder = received(model={"weights": "/not/here.safetensors"})
    with pytest.raises(StorageError, match=r"/not/here\.safetensors: no such file"):
        read_trial(folder).dense_file()
    dense = read_trial(received()).dense_file()
    folder = received(model={"weights": "/not/here.safetensors"})
    trial = read_trial(folder, model={"name": "digits-mlp", "hidden": 8, "weights": str(dense)})
    assert trial.dense_file() == dense
    assert load_dense(trial, dense).layers[0].out_features == 8


def test_dense_networks_are_found_in_the_study_or_beside_it(received, tmp_path):
    trial = read_trial(received())
    within, beside = tmp_path / "runs" / "small" / "dense", tmp_path / "runs" / "dense"
    assert trial.dense_file().parent == within
    within.rename(beside)
    assert trial.dense_file().parent == beside


@pytest.mark.parametrize("what", ["dense", "model", "result"])
def test_no_link_is_followed_out_of_the_folder(received, tmp_path, tmp_path_factory, what):
    folder = received()
    outside = tmp_path_factory.mktemp("outside")
    file = read_trial(folder).dense_file() if what == "dense" else None
    file = file or folder / {"model": "model.safetensors", "result": "result.json"}[what]
    shutil.move(file, outside / file.name)
    file.symlink_to(outside / file.name)
    with pytest.raises(StorageError, match="a link leads out of"):
        _networks(folder)


def _networks(folder):
    trial = read_trial(folder)
    return load_dense(trial, trial.dense_file()), load_pruned(trial)


def test_a_network_that_no_memory_holds_is_not_built(received, monkeypatch):
    """Even where its size is just over what a file may ask for, no memory is taken before it is refused."""
    monkeypatch.setattr(finished, "_LARGEST", 600)
    made = []
    monkeypatch.setattr(
        torch.nn.Linear, "reset_parameters", lambda self: made.append(self.weight.device.type)
    )
    with pytest.raises(ModelError, match=r"has 682 parameters, and 600 are the most that a file may ask for"):
        read_trial(received())
    assert set(made) == {"meta"}
