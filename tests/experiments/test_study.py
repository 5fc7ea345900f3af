import csv
import json
import shutil

import pytest
import torch
from numbers_of import numbers

import secateur as sc
from secateur.errors import RecipeError, StorageError
from secateur.experiments import resumed as work_module
from secateur.experiments.recipe import load_recipe
from secateur.experiments.results import read_results
from secateur.experiments.study import describe, run_study
from secateur.experiments.trial import trial_id
from secateur.models import build_model
from secateur.pruning.masks import Masks
from secateur.training.checkpoint import load_network


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    from recipes import TINY

    from secateur.experiments.recipe import load_recipe

    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(TINY)
    recipe = load_recipe(str(folder / "tiny.yaml"))
    return recipe, folder / "tiny", run_study(recipe, folder / "tiny", shared=folder)


def test_results_have_the_documented_schema(done):
    _, out, results = done
    assert results == json.loads((out / "results.json").read_text())
    assert results["schema"] == 2
    assert [row["point"]["prune.budget.sparsity"] for row in results["trials"]] == [0.5, 0.5, 0.8, 0.8]
    assert [row["seed"] for row in results["trials"]] == [0, 1, 0, 1]
    for row in results["trials"]:
        metrics = row["metrics"]
        asked = row["point"]["prune.budget.sparsity"]
        assert metrics["sparsity"] == pytest.approx(asked, abs=1e-3)
        assert row["requested"]["sparsity"] == asked
        assert metrics["compression_rate"] == pytest.approx(metrics["parameters"] / metrics["nonzero"])
        names = {f"score_{s}{v}" for s in ("dense", "pruned", "retrained") for v in ("", "_validation")} | {
            "macs",
            "bytes_dense",
            "bytes_sparse",
            "latency_ms",
            "latency_dense_ms",
            "peak_memory_mb",
        }
        assert names <= set(metrics)
        assert set(row["curves"]) == {"dense", "prune.0", "retrain"}
        assert set(row["seconds"]) == {"train", "prune", "retrain", "measure"}
    with (out / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["prune.budget.sparsity"]) for row in table] == [0.5, 0.5, 0.8, 0.8]


def test_dense_networks_are_trained_once_a_seed_and_kept_beside_the_study(done):
    _, out, results = done
    assert len(list((out.parent / "dense").glob("*.safetensors"))) == 2
    dense = {row["seed"]: row["metrics"]["score_dense"] for row in results["trials"]}
    assert [row["metrics"]["score_dense"] for row in results["trials"]] == [dense[0], dense[1]] * 2


def test_the_files_of_a_trial_are_the_network_that_was_measured(done):
    recipe, out, results = done
    row = results["trials"][2]
    folder = out / "trials" / row["id"]
    model = build_model("digits-mlp", hidden=16)
    load_network(folder / "model.safetensors", model)
    masks = Masks.load(folder / "masks.safetensors", model)
    masks.check()
    assert masks.sparsity == row["metrics"]["sparsity"]
    assert sum(int(p.count_nonzero()) for p in model.parameters()) == row["metrics"]["nonzero"]
    assert not (folder / "state.safetensors").exists()
    assert row["id"] == trial_id(recipe.plans[1], 0)


def test_a_finished_study_runs_nothing_again(done, monkeypatch):
    recipe, out, results = done
    monkeypatch.setattr(work_module, "fit", None)
    assert numbers(run_study(recipe, out)) == numbers(results)


class Killed(BaseException):
    pass


def test_a_trial_that_a_study_beside_has_finished_is_not_run_again(done, monkeypatch):
    recipe, out, results = done
    monkeypatch.setattr(work_module, "fit", None)
    beside = run_study(recipe, out.parent / "beside", shared=out.parent)
    assert beside["trials"] == results["trials"]
    for row in results["trials"]:
        files = [
            sorted(p.name for p in (f / "trials" / row["id"]).iterdir()) for f in (out, out.parent / "beside")
        ]
        assert files[0] == files[1]


@pytest.mark.parametrize("calls", [1, 3, 5, 8, 12])
def test_a_study_stopped_anywhere_goes_on_to_the_same_numbers(done, tiny, tmp_path, monkeypatch, calls):
    _, _, expected = done
    left = calls

    def bomb(row_or_text):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    with pytest.raises(Killed):
        run_study(tiny(), tmp_path / "tiny", on_epoch=bomb)
    assert numbers(run_study(tiny(), tmp_path / "tiny")) == numbers(expected)


def test_weights_of_ones_own_are_the_dense_network(tiny, tmp_path, done):
    _, out, _ = done
    weights = next((out.parent / "dense").glob("*.safetensors"))
    results = run_study(
        tiny({"model.weights": str(weights), "train.epochs": 50}, seeds=[0]), tmp_path / "own"
    )
    assert results["trials"][0]["curves"]["dense"] == []
    dense = {t["metrics"]["score_dense"] for t in done[2]["trials"]}
    assert results["trials"][0]["metrics"]["score_dense"] in dense


def test_a_smaller_network_of_ones_own_is_the_dense_network(tiny, tmp_path):
    model, x = build_model("digits-mlp", hidden=16), torch.randn(2, 64)
    masks = sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(model, x))
    small, _ = sc.compact(model, x, masks=masks)
    sc.save(small, tmp_path / "small.safetensors")
    results = run_study(
        tiny({"model.weights": str(tmp_path / "small.safetensors")}, seeds=[0]), tmp_path / "own"
    )
    parameters = {t["metrics"]["parameters"] for t in results["trials"]}
    assert parameters == {sum(p.numel() for p in small.parameters())}


def test_threads_and_global_seed_do_not_matter(done, tiny, tmp_path):
    torch.manual_seed(999)
    assert numbers(run_study(tiny(seeds=[1]), tmp_path / "again")) == numbers(done[2])[1::2]


def test_a_dry_run_counts_what_would_run(tiny):
    text = describe(tiny(), __import__("pathlib").Path("runs/tiny"))
    assert "tiny, prune.budget.sparsity=0.8, seed 1" in text
    assert "4 trials into runs/tiny: 4 epochs of dense training at most, 12 of retraining" in text
    assert "minutes of one worker" in text


OWN_SEEDS = """\
name: own
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 16}
train: {epochs: 2, lr: 2.0e-3}
measure: []
methods:
  every seed: {steps: [{prune: {budget: {name: global, sparsity: 0.5}}}, {retrain: {epochs: 1}}]}
  one seed: {steps: [{prune: {budget: {name: uniform, sparsity: 0.5}}}], seeds: [0]}
seeds: [0, 1]
"""


@pytest.fixture
def own_seeds(tmp_path):
    from secateur.experiments.recipe import load_recipe

    (tmp_path / "own.yaml").write_text(OWN_SEEDS)
    return lambda seeds=None: load_recipe(str(tmp_path / "own.yaml"), seeds=seeds)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_method_with_seeds_of_its_own_runs_no_others(own_seeds, tmp_path, workers):
    results = run_study(own_seeds(), tmp_path / "out" / "own", workers=workers)
    ran = [(row["method"], row["seed"]) for row in results["trials"]]
    assert ran == [("every seed", 0), ("every seed", 1), ("one seed", 0)]


def test_a_dry_run_counts_a_methods_own_seeds(own_seeds, tmp_path):
    text = describe(own_seeds(), tmp_path)
    assert "one seed, seed 0\n3 trials" in text
    assert "4 epochs of dense training at most, 2 of retraining" in text
    text = describe(own_seeds([1]), tmp_path)
    assert "every seed, seed 1\none seed: no trial, none of the seeds [1] is one of its own\n1 trials" in text
    assert "2 epochs of dense training at most, 1 of retraining" in text


def test_foreign_results_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 99}')
    with pytest.raises(StorageError, match="not results of schema 2"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(StorageError, match="not valid JSON"):
        read_results(tmp_path)


SCRATCH = """\
name: control
description: "a small dense network"
source: "a test"
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 32}
train: {epochs: 2, lr: 2.0e-3}
methods:
  small: {steps: [{scratch: {model: {hidden: 8}, train: {epochs: 4}}}]}
  dense: {steps: []}
seeds: [0]
"""


def test_a_small_network_from_scratch_takes_the_pruned_ones_place(tmp_path):
    from secateur.experiments.recipe import load_recipe

    path = tmp_path / "control.yaml"
    path.write_text(SCRATCH)
    small, dense = run_study(load_recipe(str(path)), tmp_path / "control")["trials"]
    parameters = 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert small["metrics"]["parameters"] == small["metrics"]["nonzero"] == parameters
    weights, whole = 64 * 8 + 8 * 8 + 8 * 10, 64 * 32 + 32 * 32 + 32 * 10
    assert small["metrics"]["sparsity"] == pytest.approx(1 - weights / whole)
    assert len(small["curves"]["scratch"]) == 4
    assert small["metrics"]["score_retrained"] > 0.3
    assert small["metrics"]["score_pruned"] is None
    assert dense["metrics"]["compression_rate"] == 1.0
    assert dense["metrics"]["score_retrained"] is None
    again = build_model("digits-mlp", hidden=8)
    load_network(tmp_path / "control" / "trials" / small["id"] / "model.safetensors", again)


def test_a_control_killed_in_its_training_goes_on(tmp_path):
    from secateur.experiments.recipe import load_recipe

    path = tmp_path / "control.yaml"
    path.write_text(SCRATCH)
    whole = run_study(load_recipe(str(path)), tmp_path / "whole" / "control")
    heard = 0

    def bomb(text):
        nonlocal heard
        heard += "scratch" in text
        if heard == 3:
            heard += 100
            raise Killed

    with pytest.raises(Killed):
        run_study(load_recipe(str(path)), tmp_path / "cut" / "control", on_epoch=bomb)
    assert numbers(run_study(load_recipe(str(path)), tmp_path / "cut" / "control")) == numbers(whole)


def test_a_trials_name_follows_the_content_of_what_it_reads(tiny, tmp_path, done):
    _, out, _ = done
    first, second = sorted((out.parent / "dense").glob("*.safetensors"))[:2]
    own = tmp_path / "own.safetensors"
    own.write_bytes(first.read_bytes())
    plan = tiny({"model.weights": str(own)}).plans[0]
    before = trial_id(plan, 0)
    own.write_bytes(second.read_bytes())
    assert trial_id(plan, 0) != before
    own.write_bytes(first.read_bytes())
    assert trial_id(plan, 0) == before


def test_what_ran_is_recorded(done):
    _, _, results = done
    assert results["settings"] == {}
    row = results["trials"][0]
    assert row["config"]["steps"][0]["prune"]["budget"] == {"name": "global", "sparsity": 0.5}
    assert row["classes"] == 10


def test_results_of_an_early_version_are_one_clear_error(tmp_path):
    (tmp_path / "results.json").write_text(
        '{"schema": 1, "recipe": "r", "trials": [{"state": "finished", "method": "m"}]}'
    )
    with pytest.raises(StorageError, match="a trial lacks 'point': written by an early version"):
        read_results(tmp_path)


def copy_of(done, tmp_path):
    recipe, out, results = done
    shutil.copytree(out, tmp_path / "tiny")
    return recipe, tmp_path / "tiny", results


@pytest.mark.parametrize("damage", ["result cut short", "another network", "masks of another"])
def test_a_finished_trial_that_is_damaged_since_runs_again(done, tmp_path, caplog, damage):
    recipe, out, results = copy_of(done, tmp_path)
    row = results["trials"][1]
    folder = out / "trials" / row["id"]
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    if damage == "result cut short":
        (folder / "result.json").write_bytes((folder / "result.json").read_bytes()[:200])
    else:
        name = "model" if damage == "another network" else "masks"
        (folder / f"{name}.safetensors").write_bytes(b"x" * 100)
    again = run_study(recipe, out, shared=done[1].parent)
    assert numbers(again) == numbers(results)
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == before
    assert "the trial runs again" in caplog.text
    caplog.clear()
    assert run_study(recipe, out, shared=done[1].parent) == again
    assert caplog.text == ""


def test_a_trial_whose_folder_was_removed_keeps_its_row(done, tmp_path):
    recipe, out, results = copy_of(done, tmp_path)
    shutil.rmtree(out / "trials" / results["trials"][0]["id"])
    assert run_study(recipe, out, shared=done[1].parent)["trials"] == results["trials"]
    assert not (out / "trials" / results["trials"][0]["id"]).exists()


def test_other_settings_in_the_same_folder_are_said(done, tmp_path, caplog):
    recipe, out, _ = copy_of(done, tmp_path)
    other = load_recipe(recipe.path, {"retrain.epochs": 1}, [0])
    run_study(other, out, shared=done[1].parent)
    assert "results.json holds the 2 trials of these settings; 4 of others lie in trials too" in caplog.text


@pytest.mark.parametrize("out", ["file/sub", "file", "x" * 300])
def test_an_output_folder_that_cannot_be_is_one_line(done, tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"--out .*: no folder can be there: "):
        run_study(done[0], tmp_path / out)
