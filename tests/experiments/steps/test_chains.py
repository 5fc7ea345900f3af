"""Actions of a trial beyond one pruning: several of them, searches, and kills between any two writes."""

import pytest
import recipes
from one_trial import plan_of, run, without_times

import secateur as sc
from kills import killed_at_every_write
from secateur.errors import RecipeError
from secateur.experiments import resumed
from secateur.experiments.recipe import load_recipe
from secateur.models import build_model

HEAD = recipes.HEAD.replace(", hidden: 16", "").replace("2.0e-3", "1.0e-3")  # greedy needs units to take
TWICE = """
  - {id: first, prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}}
  - {id: smaller, compact: }
  - {id: again, retrain: {epochs: 1}}
  - {id: second, prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}}
  - {id: smallest, compact: }
  - {id: last, retrain: {epochs: 1}}
"""
GREEDY = """
  - greedy: {parameters: 0.8, every: 12, at_once: 4, examples: 60, retrain: {epochs: 1}}
"""
SELECTION = """
  - structure_selection: {penalty: 0.01, lr: 0.5, train: {epochs: 6}}
  - retrain: {epochs: 1}
"""
HYBRID = """
  - prune_to: {parameters: 0.5}
  - prune: {budget: {name: global, sparsity: 0.9}, relative_to: dense}
  - retrain: {epochs: 1, distill: 0.5}
  - compact:
"""


@pytest.fixture
def plan(tmp_path):
    return lambda steps: plan_of(tmp_path, HEAD + steps)


def test_pruned_and_compacted_twice(plan, tmp_path):
    row = run(plan(TWICE), tmp_path / "a")
    metrics = row["metrics"]
    assert metrics["parameters"] == 64 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10
    assert metrics["score_pruned"] is not None
    assert metrics["score_pruned"] != metrics["score_retrained"]
    assert sum("removed" in note for note in row["notes"]) == 2
    assert metrics["macs_dense"] > metrics["macs"]


@pytest.mark.parametrize(
    ("between", "kinds"),
    [("{epochs: 1}", ["prune", "retrain", "prune", "retrain", "prune"]), ("{}", ["prune"] * 3)],
)
def test_a_killed_gradual_pruning_goes_on_by_the_number_of_its_action(plan, between, kinds):
    schedule = f"{{name: cubic, steps: 3, retrain: {between}}}"
    steps = f"\n  - prune: {{budget: {{name: global, sparsity: 0.9}}, schedule: {schedule}}}\n"
    assert [action.timed_as for action in plan(steps).actions] == kinds
    assert plan(steps).epochs == kinds.count("retrain")


def test_what_was_pruned_last_has_not_been_retrained(plan, tmp_path):
    steps = """
  - {id: first, prune: {budget: {name: global, sparsity: 0.5}}}
  - retrain: {epochs: 1}
  - {id: second, prune: {budget: {name: global, sparsity: 0.95}}}
"""
    metrics = run(plan(steps), tmp_path / "a")["metrics"]
    assert metrics["score_retrained"] is None
    assert metrics["score_pruned"] < metrics["score_dense"]


@pytest.mark.parametrize(
    "steps", [TWICE, GREEDY, SELECTION, HYBRID], ids=["twice", "greedy", "selection", "hybrid"]
)
def test_killed_at_any_write_it_goes_on_to_the_same_numbers(plan, tmp_path, monkeypatch, steps):
    """A kill in the middle of every writing of the state, one after the other."""
    whole = run(plan(steps), tmp_path / "whole")
    again, kills = killed_at_every_write(monkeypatch, lambda: run(plan(steps), tmp_path / "killed"))
    assert kills >= 2
    assert without_times(again) == without_times(whole)
    assert not list((tmp_path / "killed").glob("*.part"))


def test_greedy_in_a_recipe(plan, tmp_path):
    row = run(plan(GREEDY), tmp_path / "a")
    metrics = row["metrics"]
    assert metrics["parameters"] <= 0.8 * 26_122
    assert metrics["score_retrained"] is not None
    assert metrics["score_pruned"] is not None
    stages = [name for name in row["curves"] if name.startswith("greedy.")]
    assert len(stages) >= 2
    small = sc.load(build_model("digits-mlp"), tmp_path / "a" / "model.safetensors")
    assert sum(p.numel() for p in small.parameters()) == metrics["parameters"]


def test_greedy_stops_at_a_loss_of_accuracy(plan, tmp_path):
    row = run(
        plan("\n  - greedy: {accuracy_drop: 2.0, every: 8, at_once: 4, examples: 60}\n"), tmp_path / "a"
    )
    assert row["metrics"]["score_retrained"] is None
    assert 0 < row["metrics"]["sparsity"] < 1


def test_structure_selection_in_a_recipe(plan, tmp_path):
    row = run(plan(SELECTION), tmp_path / "a")
    assert row["metrics"]["parameters"] < 26_122
    assert len(row["curves"]["structure_selection"]) == 6
    assert any("small factors set to zero" in note for note in row["notes"])


def test_sparsity_relative_to_the_dense_network(plan, tmp_path):
    row = run(plan(HYBRID), tmp_path / "a")
    assert row["requested"]["sparsity"] == 0.9
    assert 0.9 <= row["metrics"]["sparsity"] < 0.92  # compact takes what fed dead units too
    assert row["metrics"]["parameters"] <= 0.5 * 26_122


def test_less_than_is_gone_already_is_said(plan, tmp_path):
    row = run(plan(HYBRID.replace("0.9", "0.2").replace("\n  - compact:", "")), tmp_path / "a")
    assert any("was gone already" in note for note in row["notes"])
    assert row["metrics"]["sparsity"] > 0.45


def test_criteria_with_a_loss_know_a_single_logit(plan, tmp_path):
    steps = "\n  - prune: {criterion: taylor, budget: {name: global, sparsity: 0.5}}\n"
    text = (HEAD + steps).replace("name: digits,", "name: make-classification, features: 10,")
    (tmp_path / "one.yaml").write_text(text.replace("name: digits-mlp", "name: tabular-256, features: 10"))
    row = run(load_recipe(str(tmp_path / "one.yaml")).plans[0], tmp_path / "a")
    assert row["metrics"]["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("\n  - prune_to: {macs: 2}\n", "macs is 2.0; it is a share"),
        ("\n  - prune_to: {latency_ms: -1}\n", "positive number of milliseconds"),
        ("\n  - compact:\n  - refit: {}\n", "put it before compact"),
        ("\n  - greedy: {}\n", "exactly one of sparsity, parameters, macs, latency_ms and drop"),
        ("\n  - greedy: {sparsity: 1.5}\n", "between 0 and 1"),
        ("\n  - greedy: {accuracy_drop: -1}\n", "percentage points of accuracy"),
        ("\n  - greedy: {sparsity: 0.5, scope: all}\n", "scope"),
        ("\n  - structure_selection: {units: false, blocks: false}\n", "nothing is left to select"),
        ("\n  - structure_selection: {train: {epochs: 0}}\n", "needs epochs"),
        ("\n  - structure_selection: {train: {keep: best}}\n", "keep: last"),
        ("\n  - prune: {budget: {name: uniform, sparsity: 0.5}, relative_to: dense}\n", "a global budget"),
        ("\n  - retrain: {distill: 2}\n", "share of the loss"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(plan, steps, message):
    with pytest.raises(RecipeError, match=message):
        plan(steps)


def test_a_dense_network_has_no_teacher(tmp_path):
    (tmp_path / "one.yaml").write_text(HEAD.replace("lr: 1.0e-3", "distill: 0.5") + "\n  - compact:\n")
    with pytest.raises(RecipeError, match="retraining has one"):
        load_recipe(str(tmp_path / "one.yaml"))


def test_the_teacher_is_the_dense_network(plan, tmp_path, monkeypatch):
    seen = []
    real = resumed.fit

    def spy(*args, **kwargs):
        seen.extend(teacher for teacher in [kwargs.get("teacher")] if teacher is not None)
        return real(*args, **kwargs)

    monkeypatch.setattr(resumed, "fit", spy)
    run(plan(HYBRID), tmp_path / "a")
    assert sum(p.numel() for p in seen[0].parameters()) == 26_122
