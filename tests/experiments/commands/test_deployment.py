"""A finished trial deployed: its files, and one table of what each costs."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.data import load_data
from secateur.errors import MissingExtraError, StorageError
from secateur.experiments.commands import deployment, making, measuring
from secateur.experiments.commands.deployment import deploy, deploy_checkpoint
from secateur.experiments.commands.finished import pruned_options, read_trial
from secateur.experiments.commands.inference import Format
from secateur.experiments.commands.private import PrivateFolder
from secateur.experiments.commands.sources import of_checkpoint
from secateur.experiments.recipe import load_recipe
from secateur.experiments.results import read_results
from secateur.experiments.study import run_study
from secateur.models import build_model
from secateur.report.deployed import deployment_lines
from secateur.storage import save_json
from secateur.training.checkpoint import save_weights

RECIPE = """
name: small
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 48}
train: {epochs: 4, optimizer: adam, lr: 3.0e-3, batch_size: 64}
measure: []
methods:
  units:
    steps:
      - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}
      - retrain: {epochs: 2}
  zeros: {steps: [prune: {budget: {name: uniform, sparsity: 0.5}}]}
seeds: [0]
"""
STEPS = """
steps: [prune: {budget: {name: global, sparsity: 0.5}}]
seeds: [0]
"""
NAMES = [
    "dense, PyTorch",
    "dense, ONNX",
    "pruned, PyTorch",
    "compacted, PyTorch",
    "sparse, PyTorch",
    "packed, numpy",
    "packed, compiled",
    "ONNX",
    "ONNX int8",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two trials: one with dead units left in the network, one with single zeros."""
    folder = tmp_path_factory.mktemp("deployed")
    (folder / "small.yaml").write_text(RECIPE)
    results = run_study(load_recipe(str(folder / "small.yaml")), folder / "runs" / "small")
    return folder / "runs" / "small", {row["method"]: row for row in results["trials"]}


def planted(folder):
    """Fill a folder with modules of everybody's names, each of which leaves a mark when it is run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("numpy", "decimal", "torch", "onnxruntime", "sitecustomize", "secateur", "numba", "scipy"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write({name!r})\n")
    (folder / ".numba_config.yaml").write_text(f"cache_dir: {folder / 'numba'}\n")
    return folder


@pytest.fixture(scope="module")
def deployed(study, tmp_path_factory):
    """What the command wrote of the first trial, its folder, its row in the results, and what was printed:
    run in a folder of planted modules, into one where somebody has left files to be run."""
    out, rows = study
    folder = out / "trials" / rows["units"]["id"]
    place = planted(tmp_path_factory.mktemp("working"))
    left = planted(folder / "deploy" / "packed" / "__pycache__")
    planted(left.parent / "secateur_runtime")
    for name in ("run.py", "kernels.py", "model.secateur"):
        (left.parent / name).write_text(f"open({str(place / 'ran')!r}, 'a').write({name!r})\n")
    (left.parent.parent / ".dense.onnx.abcdefgh").write_text("left by a deployment that was killed")
    command = [sys.executable, "-P", "-m", "secateur", "deploy", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    assert done.returncode == 0, done.stderr
    assert not (place / "ran").exists(), (place / "ran").read_text()
    assert not (place / "numba").exists()
    result = json.loads((folder / "deploy" / "deploy.json").read_text())
    return result, folder, rows["units"], done.stdout


def formats_of(result):
    return {row["name"]: row for row in result["formats"]}


def test_every_format_is_a_row_with_all_its_figures(deployed):
    result, folder, _, said = deployed
    assert [row["name"] for row in result["formats"]] == NAMES
    for name, row in formats_of(result).items():
        assert row["reason"] is None, (name, row["reason"])
        assert row["bytes"] == os.path.getsize(folder / "deploy" / row["file"])
        assert row["load_s"] > 0
        for batch in ("1", "64"):
            timing = row["latency"][batch]
            assert 0 < timing["low"] <= timing["median"] <= timing["high"]
            assert timing["runs"] >= 5
        if sys.platform == "linux":
            memory = row["memory"]
            assert 0 < memory["imports"] <= memory["peak"]["1"]
    for name in NAMES:
        assert f"making {name}" in said
        assert f"│ {name} " in said
    assert "Fastest at batch 1: " in said
    assert "units, seed 0: 360 test examples" in said


def test_what_somebody_left_there_is_neither_run_nor_kept(deployed):
    _, folder, _, said = deployed
    out = folder / "deploy"
    assert not (out / "packed" / "__pycache__").exists()
    assert not (out / "packed" / "secateur_runtime" / "numpy.py").exists()
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    subprocess.run([sys.executable, "-I", out / "packed" / "run.py", "--check"], check=True)
    assert f"  {out / 'packed' / 'model.secateur'}" in said
    assert "secateur-deploy-" not in said


def test_accuracies_are_those_of_the_study_and_of_the_whole_test_split(deployed):
    result, _, row, _ = deployed
    found = formats_of(result)
    assert result["test"] == len(load_data("digits", validation=200).test)
    assert found["dense, PyTorch"]["score"] == row["metrics"]["score_dense"]
    assert found["dense, ONNX"]["score"] == row["metrics"]["score_dense"]
    for name in ("pruned, PyTorch", "compacted, PyTorch", "packed, numpy", "packed, compiled", "ONNX"):
        assert found[name]["score"] == row["metrics"]["score_retrained"], name
        assert found[name]["same"] == result["test"], name
    assert found["ONNX int8"]["same"] > 0.95 * result["test"]
    assert result["notes"] == [], "nothing differs from the study"


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted on Linux")
def test_a_runner_without_pytorch_takes_less_memory(deployed):
    found = formats_of(deployed[0])
    assert found["packed, numpy"]["memory"]["imports"] < found["dense, PyTorch"]["memory"]["imports"] / 2
    assert found["ONNX"]["memory"]["imports"] < found["dense, PyTorch"]["memory"]["imports"]


def test_the_files_are_networks_that_run(deployed):
    _, folder, row, _ = deployed
    out = folder / "deploy"
    test = load_data("digits", validation=200).test
    dense = sc.load(build_model("digits-mlp", hidden=48), out / "dense.safetensors")
    small = sc.load(build_model("digits-mlp", hidden=48), out / "compacted.safetensors")
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in dense.parameters())
    for network, name in ((dense, "dense"), (small, "retrained")):
        right = int((network.eval()(test.inputs).argmax(1) == test.labels).sum())
        assert right / len(test) == row["metrics"][f"score_{name}"]
    np.save(out / "x.npy", test.inputs[:5].numpy())
    command = [sys.executable, "-I", out / "packed" / "run.py", "--input", out / "x.npy", "--output"]
    subprocess.run([*command, out / "y.npy"], check=True)
    assert np.allclose(np.load(out / "y.npy"), small(test.inputs[:5]).detach(), atol=1e-4)
    assert {"dense.onnx", "model.onnx", "model-int8.onnx"} <= {path.name for path in out.iterdir()}


def test_the_studys_report_shows_it(study, deployed):
    out, rows = study
    page = (out / "report.html").read_text()
    assert page.count("<h2>Deployment</h2>") == 1
    for row in deployed[0]["formats"]:
        assert f"<tr><td>{row['name']}</td><td>{row['bytes']:,}</td>" in page
    trials = {trial["id"]: trial for trial in read_results(out)["trials"]}
    assert trials[rows["units"]["id"]]["deployment"] == deployed[0]


def no_onnx(*args, **kwargs):
    raise MissingExtraError("onnxruntime", "onnx")


def test_what_cannot_be_made_is_a_row_that_says_why(study, tmp_path, monkeypatch):
    """Nothing to remove, no extras here, no dense network: the others are made, in the folder asked for."""
    out, rows = study

    monkeypatch.setattr(making, "export_onnx", no_onnx)
    monkeypatch.setitem(sys.modules, "numba", None)
    folder = out / "trials" / rows["zeros"]["id"]
    save_json(folder / "result.json", rows["zeros"] | {"dense": "0" * 16})
    result = deploy(folder, tmp_path / "elsewhere", seconds=0.01)
    found = formats_of(result)
    assert [row["name"] for row in result["formats"]] == NAMES
    assert "nothing can be removed" in found["compacted, PyTorch"]["reason"]
    assert "pip install 'secateur[onnx]'" in found["ONNX int8"]["reason"]
    assert "0000000000000000.safetensors" in found["dense, PyTorch"]["reason"]
    assert found["dense, ONNX"]["reason"] == found["dense, PyTorch"]["reason"]
    assert "pip install 'secateur[fast]'" in found["packed, compiled"]["reason"]
    made = [name for name, row in found.items() if row["reason"] is None]
    assert made == ["pruned, PyTorch", "sparse, PyTorch", "packed, numpy"]
    assert not (tmp_path / "elsewhere" / "compacted.safetensors").exists()
    assert (tmp_path / "elsewhere" / "packed" / "run.py").exists()
    assert found["pruned, PyTorch"]["bytes"] == os.path.getsize(folder / "model.safetensors")
    assert json.loads((folder / "deploy" / "deploy.json").read_text()) == result
    assert json.loads((tmp_path / "elsewhere" / "deploy.json").read_text()) == result


def test_a_folder_that_is_no_finished_trial_is_one_error(study, tmp_path):
    out, rows = study
    with pytest.raises(StorageError, match="no such folder"):
        read_trial(tmp_path / "nothing")
    with pytest.raises(StorageError, match=r"no finished trial: it holds no result\.json"):
        read_trial(tmp_path)
    (out / "trials" / "ffff").mkdir()
    with pytest.raises(StorageError, match="run the same command again"):
        read_trial(out / "trials" / "ffff")
    with pytest.raises(StorageError) as caught:
        read_trial(out)
    said = str(caught.value)
    assert f"zeros, seed 0 -> {out / 'trials' / rows['zeros']['id']}" in said
    assert "secateur choose" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": "failed", "notes": ["diverged"]}, "failed: diverged"),
        ({"config": None}, "written by an early version"),
    ],
)
def test_a_trial_without_a_network_is_one_error(tmp_path, change, message):
    row = {"id": "a", "state": "finished", "method": "m", "seed": 0, "point": {}, "config": None, "notes": []}
    (tmp_path / "result.json").write_text(json.dumps(row | change))
    with pytest.raises(StorageError, match=message):
        read_trial(tmp_path)


def test_the_options_of_a_network_from_scratch():
    config = {"model": {"name": "vgg-16-bn", "width": 0.5}, "steps": [{"scratch": {"width": 0.5}}]}
    assert pruned_options(config) == {"width": 0.25}
    config["steps"] = [{"prune": {}}, {"scratch": {"model": {"dropout": 0.0}}}, {"retrain": None}]
    assert pruned_options(config) == {"width": 0.5, "dropout": 0.0}
    assert pruned_options({"model": {"name": "n", "weights": "w"}, "steps": []}) == {}


def test_a_network_of_the_users_module(tmp_path, monkeypatch):
    """Built by a factory that only this folder knows; its order has no operator in the packed format."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = torch.nn.Linear(64, 12), torch.nn.Linear(12, 10)\n"
        "    def forward(self, x):\n"
        "        return self.b(self.a(x.flatten(1)).sort(1).values)\n"
        "def make():\n"
        "    return Net()\n"
    )
    text = RECIPE.replace("{name: digits-mlp, hidden: 48}", "{name: 'mine:make'}")
    text = text.partition("methods:")[0] + STEPS
    (tmp_path / "own.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(making, "export_onnx", no_onnx)  # half of the time
    out = tmp_path / "runs" / "own"
    row = run_study(load_recipe("own.yaml"), out)["trials"][0]
    found = formats_of(deploy(out / "trials" / row["id"], model="mine:make", seconds=0.01))
    assert found["dense, PyTorch"]["score"] == row["metrics"]["score_dense"]
    assert found["pruned, PyTorch"]["score"] == row["metrics"]["score_pruned"]
    assert found["sparse, PyTorch"]["same"] == found["pruned, PyTorch"]["same"]
    assert "sort" in found["packed, numpy"]["reason"]
    assert found["packed, compiled"]["reason"] == found["packed, numpy"]["reason"]


@pytest.mark.parametrize(
    ("labels", "options", "chooses"),
    [("classes", {}, True), ("numbers", {}, False), ("numbers", {"task": "regression"}, False)],
)
def test_first_choices_are_compared_where_outputs_are_of_classes(
    tmp_path, monkeypatch, labels, options, chooses
):
    save_weights(tmp_path / "w.safetensors", build_model("mlp", features=10, outputs=2))
    x = np.random.default_rng(0).standard_normal((200, 10)).astype("f")
    np.savez(tmp_path / "d.npz", x=x, y=x[:, :2] if labels == "numbers" else (x[:, 0] > 0).astype(int))
    data = {"name": "npz", "path": str(tmp_path / "d.npz"), "labels": labels}
    model = {"name": "mlp", "features": 10, "outputs": 2}
    given = {"model": model, "data": data, **options}
    assert of_checkpoint(tmp_path / "w.safetensors", **given).choices is chooses
    if labels == "numbers" and not options:
        monkeypatch.setattr(making, "export_onnx", no_onnx)  # half of the time
        result = deploy_checkpoint(tmp_path / "w.safetensors", tmp_path / "out", seconds=0.01, **given)
        found = formats_of(result)["packed, numpy"]
        assert found["same"] is None
        assert found["error"] < 1e-4
        assert not any("irst choice" in line for line in deployment_lines(result))


@pytest.fixture
def private(tmp_path):
    (tmp_path / "private").mkdir()
    return PrivateFolder(tmp_path / "private", ())


def test_a_measuring_process_finds_no_module_by_its_surroundings(private, tmp_path, monkeypatch):
    """Neither in the working folder nor by PYTHONPATH; the user's own module there, once it is named."""
    place = planted(tmp_path / "working")
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(place)]))
    monkeypatch.setenv("PYTHONSTARTUP", str(place / "numpy.py"))
    file = tmp_path / "w.safetensors"
    save_weights(file, build_model("digits-mlp", hidden=4))
    made = Format("x", "torch", str(file), "digits-mlp", {"hidden": 4})
    examples = measuring.written(private.path / "examples", torch.zeros(64, 1, 8, 8))
    answer = measuring._Asked(private, examples, own=False).of([made], seconds=0.01)
    assert answer["x"]["1"]["median"] > 0, answer
    assert "lacks" not in str(answer)
    (place / "mine.py").write_text("from secateur.models import build_model as make\n")
    own = Format("x", "torch", str(file), "mine:make", {"name": "digits-mlp", "hidden": 4})
    asked = measuring._Asked(private, examples, own=True)
    assert "error" in asked.of([replace(own, model="nobodys:make")], seconds=0.01)
    answer = asked.of([replace(own, options={})], seconds=0.01)
    assert answer["error"] == "mine:make needs the option 'name'", "it was found"
    assert not (place / "ran").exists(), (place / "ran").read_text()


def unmeasured(making, seconds):
    return [{"name": name, "reason": "not measured"} for name in making.formats]


@pytest.mark.parametrize("name", ["deploy", "deploy/packed", "deploy/dense.safetensors"])
def test_a_planted_link_is_not_written_through(study, tmp_path, monkeypatch, name):
    out, rows = study
    shutil.copytree(out, tmp_path / "runs" / "small", ignore=shutil.ignore_patterns("deploy"))
    folder = tmp_path / "runs" / "small" / "trials" / rows["zeros"]["id"]
    save_json(folder / "result.json", rows["zeros"])  # which another test has changed
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.secateur").write_text("mine")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside / "model.secateur" if name.endswith("safetensors") else outside)
    monkeypatch.setattr(deployment, "measure_formats", unmeasured)
    if name == "deploy":
        with pytest.raises(
            StorageError, match="is a link, which is not followed; name the folder itself with"
        ):
            deploy(folder)
    else:
        deploy(folder)
        assert (folder / "deploy" / "deploy.json").exists()
        assert (folder / name).is_symlink() == (name == "deploy/packed"), "no packed format, a file replaced"
    assert [path.name for path in outside.iterdir()] == ["model.secateur"]
    assert (outside / "model.secateur").read_text() == "mine"


def test_a_folder_that_cannot_be_written_names_the_option(study, tmp_path, monkeypatch):
    """A trial received on a read-only disk: at once, not after minutes; with --out it is deployed."""
    out, rows = study
    folder = out / "trials" / rows["zeros"]["id"]
    whole = tempfile.TemporaryFile

    def read_only(*args, dir=None, **kwargs):
        if dir is not None and out in Path(dir).parents:
            raise OSError(errno.EROFS, "Read-only file system")
        return whole(*args, dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(deployment, "measure_formats", unmeasured)
    said = []
    with pytest.raises(
        StorageError, match=r"cannot be written \(Read-only file system\); name another place"
    ):
        deploy(folder, on_step=said.append)
    assert said == []
    deploy(folder, tmp_path / "elsewhere", on_step=said.append)
    assert (tmp_path / "elsewhere" / "deploy.json").exists()
    assert said[-1].startswith("not kept for the study's report: ")
