"""The ``anneal`` step: stages in the result, a really smaller network, and kills at any moment."""

import json

import pytest
import torch
from one_trial import run, without_times
from recipes import HEAD

import secateur as sc
from kills import killed_after_epochs, killed_at_every_write
from secateur.errors import NonFiniteError, RecipeError
from secateur.experiments import resumed as working
from secateur.experiments import state as states
from secateur.experiments.recipe import load_recipe
from secateur.experiments.steps import anneal, scratch
from secateur.models import build_model

PLAIN = """
  - anneal: {ratio: 0.5, schedule: {step: 0.4}, train: {epochs: 1}}
  - retrain: {epochs: 1}
"""
LATE = """
  - anneal:
      start: svd
      update: 0.4
      schedule: {name: multiplicative, factor: 0.4, threshold: 0.1}
      rates: [1, 3]
      tolerance: 0.1
      calibration: 100
      train: {epochs: 2, keep: last, optimizer: sgd}
"""
SECOND = """
  - {id: first, anneal: {ratio: 0.75, start: random, schedule: {step: 0.5}, train: {epochs: 1}}}
  - id: second
    anneal: {adaptive: true, schedule: {step: 0.5}, rates: [1, 1], train: {epochs: 1, distill: 0.5}}
"""


def test_its_stages_and_its_small_network_are_in_the_result(plan, tmp_path):
    row = run(plan(PLAIN), tmp_path / "a")
    stages = row["stages"]["anneal"]
    assert [s["alpha"] for s in stages] == pytest.approx([1.0, 0.6, 0.2, 0.0])
    assert [s["rate"] for s in stages] == [0.0, 1.0, 1.0, 1.0]
    assert stages[0]["score"] == row["metrics"]["score_dense_validation"]
    assert set(row["curves"]) == {"dense", "anneal.1", "anneal.2", "anneal.3", "retrain"}
    for number, stage in enumerate(stages[1:], 1):
        assert stage["score"] == row["curves"][f"anneal.{number}"][-1]["validation_score"]
    metrics = row["metrics"]
    assert metrics["score_pruned_validation"] == pytest.approx(stages[-1]["score"], abs=0.011)
    assert metrics["score_retrained"] is not None
    assert metrics["parameters"] == 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert metrics["macs"] == 64 * 8 + 8 * 8 + 8 * 10
    assert row["epochs"]["retrain"] == 4
    assert any("removed" in note and "equal to" in note for note in row["notes"])
    small = sc.load(build_model("digits-mlp", hidden=16), tmp_path / "a" / "model.safetensors")
    assert sum(p.numel() for p in small.parameters()) == metrics["parameters"]


def test_the_rates_and_the_update_reach_the_training(plan, tmp_path, monkeypatch):
    seen = []
    real = working.fit

    def spy(network, *args, **kwargs):
        if hasattr(network, "frozen"):
            alphas = set(network.alphas.values())
            seen.append((alphas.pop(), network.frozen, args[2].lr))
        return real(network, *args, **kwargs)

    monkeypatch.setattr(working, "fit", spy)
    row = run(plan(LATE), tmp_path / "a")
    stages = row["stages"]["anneal"][1:]
    assert [alpha for alpha, _, _ in seen] == [s["alpha"] for s in stages]
    assert [frozen for _, frozen, _ in seen] == [alpha > 0.4 for alpha, _, _ in seen]
    assert [lr for _, _, lr in seen] == pytest.approx([2e-3 * s["rate"] for s in stages])
    assert 3.0 in {s["rate"] for s in stages}
    assert sorted({alpha for alpha, _, _ in seen}, reverse=True) == pytest.approx([0.4, 0.16, 0.0])


@pytest.mark.parametrize("steps", [PLAIN, LATE, SECOND], ids=["plain", "late", "second"])
def test_killed_at_any_write_it_goes_on_to_the_same_numbers(plan, tmp_path, monkeypatch, steps):
    whole = run(plan(steps), tmp_path / "whole")
    again, kills = killed_at_every_write(monkeypatch, lambda: run(plan(steps), tmp_path / "killed"))
    assert kills >= 4
    assert without_times(again) == without_times(whole)
    assert not list((tmp_path / "killed").glob("*.part"))


def test_killed_in_the_middle_of_a_stage_it_goes_on_from_the_epoch(plan, tmp_path, monkeypatch):
    whole = run(plan(LATE), tmp_path / "whole")
    again, kills, number = killed_after_epochs(
        monkeypatch, lambda: run(plan(LATE), tmp_path / "killed"), every=3
    )
    assert kills >= 2
    assert number <= 2 * len(whole["stages"]["anneal"]) + 4  # no epoch but the interrupted ones' was lost
    assert without_times(again) == without_times(whole)


def test_a_stage_that_diverges_at_a_raised_rate_is_undone(plan, tmp_path, monkeypatch):
    real = working.fit

    def fit(network, train, validation, training, **kwargs):
        if training.lr > 0.1:
            kwargs["checkpoint"].write_bytes(b"half a training")
            raise NonFiniteError("the loss became nan")
        return real(network, train, validation, training, **kwargs)

    monkeypatch.setattr(working, "fit", fit)
    steps = PLAIN.replace("ratio: 0.5", "ratio: 0.5, start: random, tolerance: 0.0, rates: [1, 1000]")
    row = run(plan(steps), tmp_path / "a")
    lost = [s for s in row["stages"]["anneal"] if s["rate"] == 1000]
    assert lost
    assert all(s["score"] is None and not s["kept"] for s in lost)
    assert json.loads((tmp_path / "a" / "result.json").read_text())["stages"] == row["stages"]
    assert len(row["curves"]) == 2 + sum(s["rate"] == 1 for s in row["stages"]["anneal"])


def test_the_folded_network_predicts_as_the_annealed_one(plan, tmp_path, monkeypatch):
    kept = {}
    real = anneal.anneal_branches

    def spy(branches, *args, **kwargs):
        found = real(branches, *args, **kwargs)
        kept["branches"] = branches
        return found

    monkeypatch.setattr(anneal, "anneal_branches", spy)
    run(plan(PLAIN.partition("  - retrain")[0]), tmp_path / "a")
    small = sc.load(build_model("digits-mlp", hidden=16), tmp_path / "a" / "model.safetensors").eval()
    from secateur.data import load_data

    inputs = load_data("digits", validation=200).test.inputs
    with torch.no_grad():
        network = kept["branches"].network.eval()
        assert set(network.alphas.values()) == {0.0}
        assert torch.equal(network(inputs).argmax(1), small(inputs).argmax(1))


def test_epochs_are_counted_with_one_training_at_each_alpha(plan):
    assert plan(PLAIN).epochs == 3 + 1
    assert plan(LATE).epochs == 3 * 2


def test_a_control_from_scratch_is_narrower_by_a_factor(tmp_path):
    text = HEAD.replace("digits-mlp, hidden: 16", "vgg-16-bn, width: 0.5")
    (tmp_path / "one.yaml").write_text(text + "\n  - scratch: {width: 0.5}\n")
    plan = load_recipe(str(tmp_path / "one.yaml")).plans[0]
    asked = []

    class Work:
        seed = 0

        def __init__(self):
            self.plan = plan
            self.state = states.TrialState(torch.nn.Linear(1, 1))

        def train(self, *args):
            asked.append(self.state.options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "scratch_model", lambda plan, options, seed: torch.nn.Linear(2, 2))
        plan.actions[0].run(Work())
    assert asked == [{"width": 0.25}]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("\n  - anneal: {ratio: 1.0}\n", "ratio"),
        ("\n  - anneal: {start: warm}\n", "start"),
        ("\n  - anneal: {update: late}\n", "update"),
        ("\n  - anneal: {update: 2.0}\n", "update is 2.0; it is 'start', 'never' or an alpha"),
        ("\n  - anneal: {schedule: {name: linear}}\n", "name"),
        ("\n  - anneal: {schedule: {step: 0}}\n", "schedule.step is 0"),
        ("\n  - anneal: {schedule: {steps: 4}}\n", "unknown key 'steps'; did you mean 'step'"),
        ("\n  - anneal: {rates: []}\n", "rates"),
        ("\n  - anneal: {tolerance: -1}\n", "tolerance"),
        ("\n  - anneal: {train: {epochs: 0}}\n", "each stage needs epochs"),
        ("\n  - anneal: {train: {l1: 1.0e-4}}\n", "neither l1 nor slimming"),
        ("\n  - anneal: {}\n  - refit: {}\n", "put it before anneal"),
        ("\n  - scratch: {}\n", "lacks 'model'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(plan, steps, message):
    with pytest.raises(RecipeError, match=message):
        plan(steps)
