"""The ``share`` and ``pack`` steps: what the file holds is what the row says, and kills at any moment."""

import json

import pytest
import torch
from one_trial import run, without_times
from recipes import HEAD

import secateur as sc
from kills import killed_after_epochs, killed_at_every_write
from secateur.errors import MissingExtraError, RecipeError, StorageError
from secateur.experiments.steps import pack
from secateur.measure.size import bytes_dense
from secateur.models import build_model
from secateur.pruning.targets import find_targets
from secateur.runtime.unpacking import read
from secateur.training.checkpoint import load_network
from secateur.training.evaluate import evaluate

PRUNED = """
  - prune: {budget: {name: global, sparsity: 0.8}}
  - retrain: {epochs: 2}
"""
CHAIN = (
    PRUNED
    + """
  - share: {values: 4, train: {epochs: 2, lr: 1.0e-3}}
  - pack:
"""
)
SMALL = """
  - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}
  - retrain: {epochs: 1}
  - share: {values: 8, include: [layers.0], train: {epochs: 1}}
  - compact:
  - pack: {values: float16, compression: lzma}
"""
SCRATCH = """
  - scratch: {model: {hidden: 8}, train: {epochs: 1}}
  - pack: {values: 16}
"""
UNTRAINED = """
  - prune: {budget: {name: global, sparsity: 0.8}}
  - share: {values: 2, train: {epochs: 0}}
  - pack:
"""


def unpacked(folder):
    return sc.unpack(build_model("digits-mlp", hidden=16), folder / "model.secateur")


def split(name):
    from secateur.data import load_data

    return getattr(load_data("digits", validation=200), name)


def test_the_file_holds_the_network_of_the_row(plan, tmp_path):
    row = run(plan(CHAIN), tmp_path / "a")
    metrics, model = row["metrics"], unpacked(tmp_path / "a")
    size = (tmp_path / "a" / "model.secateur").stat().st_size
    assert metrics["bytes_packed"] == size
    assert metrics["compression_packed"] == bytes_dense(model) / size > 4
    assert metrics["score_retrained"] == evaluate(model, split("test")).score
    assert metrics["score_retrained_validation"] == evaluate(model, split("validation")).score
    assert metrics["nonzero"] == sum(int(p.count_nonzero()) for p in model.parameters())
    for layer in find_targets(model).values():
        assert len(layer.weight[layer.weight != 0].unique()) == 4
    kept = build_model("digits-mlp", hidden=16)
    load_network(tmp_path / "a" / "model.safetensors", kept)
    assert all(torch.equal(p, q) for p, q in zip(kept.parameters(), model.parameters(), strict=True))


def test_the_values_are_trained_and_the_zeros_stay(plan, tmp_path):
    shared = run(plan(CHAIN), tmp_path / "trained")
    plain = run(plan(CHAIN.replace("epochs: 2, lr: 1.0e-3", "epochs: 0")), tmp_path / "plain")
    assert [row["epoch"] for row in shared["curves"]["share"]] == [1, 2]
    assert plain["curves"]["share"] == []
    assert shared["epochs"]["retrain"] == plain["epochs"]["retrain"] + 2
    assert shared["curves"]["retrain"][0]["train_loss"] == plain["curves"]["retrain"][0]["train_loss"]
    assert shared["metrics"]["sparsity"] == plain["metrics"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    before, after = unpacked(tmp_path / "plain"), unpacked(tmp_path / "trained")
    assert not torch.equal(before.layers[0].weight, after.layers[0].weight)
    assert torch.equal(before.layers[0].weight == 0, after.layers[0].weight == 0)
    best = max(r["validation_score"] for r in shared["curves"]["share"])
    assert shared["metrics"]["score_retrained_validation"] == best


def test_without_a_file_the_row_says_nothing_of_one(plan, tmp_path):
    metrics = run(plan(PRUNED), tmp_path / "a")["metrics"]
    assert "bytes_packed" not in metrics
    assert not (tmp_path / "a" / "model.secateur").exists()


def test_lossless_is_the_network_that_was_packed(plan, tmp_path):
    before = run(plan(PRUNED), tmp_path / "before")
    packed = run(plan(PRUNED + "  - pack: {values: null}\n"), tmp_path / "packed")
    for name in ("score_pruned", "score_retrained", "nonzero", "sparsity"):
        assert packed["metrics"][name] == before["metrics"][name]
    assert packed["notes"] == before["notes"]
    assert read(str(tmp_path / "packed" / "model.secateur"))[1] is None


@pytest.mark.parametrize("values", ["float16", 3])
def test_what_is_lost_is_measured_on_validation_and_stands_in_the_file(plan, tmp_path, values):
    before = run(plan(PRUNED), tmp_path / "before")["metrics"]
    row = run(plan(PRUNED + f"  - pack: {{values: {values}}}\n"), tmp_path / "packed")
    metrics, model = row["metrics"], unpacked(tmp_path / "packed")
    cost = read(str(tmp_path / "packed" / "model.secateur"))[1]["validation"]
    assert cost["examples"] == 200
    assert cost["accuracy_lossless"] == before["score_retrained_validation"]
    assert cost["accuracy"] == evaluate(model, split("validation")).score
    assert metrics["score_retrained_validation"] == cost["accuracy"]
    assert metrics["score_retrained"] == evaluate(model, split("test")).score
    change = 100 * (cost["accuracy"] - cost["accuracy_lossless"])
    assert f"packed with values {values}: {change:+.2f} percentage points, on validation" in row["notes"]


def test_nothing_retrained_the_pruned_accuracy_is_the_files(plan, tmp_path):
    metrics = run(plan(UNTRAINED), tmp_path / "a")["metrics"]
    assert metrics["score_retrained"] is None
    assert metrics["score_pruned"] == evaluate(unpacked(tmp_path / "a"), split("test")).score


def test_a_network_that_is_really_smaller_is_unpacked_into_one_at_full_size(plan, tmp_path):
    row = run(plan(SMALL), tmp_path / "a")
    model = unpacked(tmp_path / "a")
    assert model.layers[0].out_features == 8
    assert row["metrics"]["parameters"] == sum(p.numel() for p in model.parameters())
    whole = bytes_dense(build_model("digits-mlp", hidden=16))
    assert row["metrics"]["compression_packed"] == whole / row["metrics"]["bytes_packed"]


def test_a_control_from_scratch_is_packed_with_its_own_options(plan, tmp_path):
    row = run(plan(SCRATCH), tmp_path / "a")
    small = sc.unpack(build_model("digits-mlp", hidden=8), tmp_path / "a" / "model.secateur")
    assert row["metrics"]["score_retrained"] == evaluate(small, split("test")).score


def test_a_file_that_unpacks_to_something_else_is_an_error(plan, tmp_path, monkeypatch):
    def wrong(model, path):
        torch.nn.init.ones_(model.layers[0].weight)
        return model

    monkeypatch.setattr(pack, "unpack", wrong)
    with pytest.raises(
        StorageError, match=r"model.secateur: layers.0.weight is not unpacked as it was packed"
    ):
        run(plan(PRUNED + "  - pack:\n"), tmp_path / "a")


@pytest.mark.parametrize("steps", [CHAIN, SMALL, SCRATCH, UNTRAINED])
def test_killed_at_any_write_it_goes_on_to_the_same_numbers(plan, tmp_path, monkeypatch, steps):
    whole = run(plan(steps), tmp_path / "whole")
    again, kills = killed_at_every_write(monkeypatch, lambda: run(plan(steps), tmp_path / "killed"))
    assert kills >= 2
    assert without_times(again) == without_times(whole)
    files = [(tmp_path / name / "model.secateur").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    assert not list((tmp_path / "killed").glob("*.part"))


def test_killed_in_any_epoch_it_goes_on_from_it(plan, tmp_path, monkeypatch):
    whole = run(plan(CHAIN), tmp_path / "whole")
    again, _, number = killed_after_epochs(monkeypatch, lambda: run(plan(CHAIN), tmp_path / "killed"))
    assert number == 4  # two of retraining and two of shared values: none was run again
    assert without_times(again) == without_times(whole)


def test_epochs_of_shared_values_are_counted(plan):
    assert plan(CHAIN).epochs == 4
    assert plan(PRUNED + "  - share: {values: 4}\n").epochs == 2 + 2  # as train says


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("share: {values: 1}", r"line 12: values is 1; it is a number of shared values, an integer from 2"),
        ("share: {values: 257}", r"line 12: values is 257"),
        ("share: {values: few}", r"line 12: values is 'few'"),
        ("share: {epochs: 2}", r"line 12: unknown key 'epochs'"),
        ("share: {train: {epoch: 2}}", r"line 12: unknown key 'epoch'; did you mean 'epochs'"),
        ("pack: {values: 1}", r"line 12: values is 1; it is a number of shared values"),
        (
            "pack: {values: float8}",
            r"line 12: values is 'float8'; it is null \(lossless\), float16 or a number",
        ),
        ("pack: {compression: zip}", r"line 12: compression is 'zip': Input should be 'lzma' or 'zstd'"),
        ("share:\n  - {id: more, retrain: }", r"line 13: retrain would undo what share did; put it before"),
        ("share:\n  - {id: more, prune: {budget: {name: global, sparsity: 0.9}}}", r"prune would undo"),
        (
            "pack:\n  - compact:",
            r"line 13: compact after pack: pack writes what the trial ends with, put it last",
        ),
        ("pack:\n  - {id: again, pack: }", r"line 13: pack after pack"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(plan, step, message):
    with pytest.raises(RecipeError, match=message):
        plan(PRUNED.rstrip() + f"\n  - {step}\n")


def test_shared_values_may_be_compacted_and_shared_again(plan):
    steps = plan(PRUNED + "  - share:\n  - {id: fewer, share: {values: 4}}\n  - compact:\n  - pack:\n").steps
    assert [step.kind for step in steps] == ["prune", "retrain", "share", "share", "compact", "pack"]


def test_zstd_that_is_missing_is_said_before_anything_runs(plan, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match="zstandard"):
        plan(PRUNED + "  - pack: {compression: zstd}\n")


def test_the_sweep_reaches_both_steps(tmp_path):
    from secateur.experiments.recipe import load_recipe

    text = HEAD.replace("seeds: [0]", "sweep: {share.values: [4, 16], pack.values: [null, float16]}")
    (tmp_path / "swept.yaml").write_text(text + CHAIN)
    plans = load_recipe(str(tmp_path / "swept.yaml")).plans
    found = [(p.steps[2].settings.values, p.steps[3].settings.values) for p in plans]
    assert found == [(4, None), (4, "float16"), (16, None), (16, "float16")]
    assert json.dumps(plans[0].point) == '{"share.values": 4, "pack.values": null}'
