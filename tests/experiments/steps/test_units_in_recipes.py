"""Units in recipes: pruned, refitted, removed for real, retrained; resumed where they were killed."""

import json

import pytest
import torch

from secateur.errors import RecipeError
from secateur.experiments import resumed as working
from secateur.experiments.recipe import load_recipe
from secateur.experiments.trial import run_trial

UNITS = """
name: units
data: {name: digits, validation: 200}
model: {name: digits-mlp}
train: {epochs: 2, lr: 1.0e-3}
measure: []
methods:
  refitted and retrained:
    steps:
      - prune: {units: true, criterion: activation_norm, budget: {name: uniform, sparsity: 0.75}}
      - refit: {calibration: 300}
      - compact:
      - retrain: {epochs: 1}
  to half the MACs:
    steps:
      - prune_to: {criterion: l2_norm, macs: 0.5}
      - retrain: {epochs: 1}
seeds: [0]
"""


@pytest.fixture
def recipe(tmp_path):
    def load(text=UNITS):
        path = tmp_path / "units.yaml"
        path.write_text(text)
        return load_recipe(str(path))

    return load


def run(plan, folder, dense):
    folder.mkdir(parents=True, exist_ok=True)
    row = run_trial(plan, 0, folder, dense, lambda step, row: None)
    return {k: row[k] for k in ("metrics", "layers", "notes", "requested")}


def test_units_go_for_real(recipe, tmp_path):
    plans = recipe().plans
    row = run(plans[0], tmp_path / "a", tmp_path / "dense")
    metrics = row["metrics"]
    assert metrics["parameters"] == metrics["nonzero"] < 26_122 / 3
    assert metrics["sparsity"] == pytest.approx(1 - sum(r["kept"] for r in row["layers"]) / 25_856)
    assert metrics["compression_rate"] == pytest.approx(26_122 / metrics["nonzero"])
    assert metrics["score_retrained"] is not None
    assert any("removed" in note for note in row["notes"])


TWINS = """
import torch
from torch import nn

class Branch(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.up, self.down = nn.Linear(64, 12), nn.Linear(12, 64)
        self.up.weight.data *= size
    def forward(self, x):
        return x + self.down(self.up(x).relu())

def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), Branch(1.0), Branch(1.1), nn.Linear(64, 10))
"""

ALIKE = """
name: alike
data: {name: digits, validation: 200}
model: {name: "own_twins:make"}
train: {epochs: 0}
measure: []
methods:
  a share:
    steps:
      - prune: {units: true, criterion: l2_norm, budget: {name: global, sparsity: 0.5}, alike: true}
      - compact:
  a goal:
    steps:
      - prune_to: {criterion: l2_norm, parameters: 0.6, alike: true}
seeds: [0]
"""


@pytest.mark.parametrize("index", [0, 1])
def test_like_blocks_lose_as_many_units_each(recipe, tmp_path, monkeypatch, index):
    (tmp_path / "own_twins.py").write_text(TWINS)
    monkeypatch.syspath_prepend(tmp_path)
    row = run(recipe(ALIKE).plans[index], tmp_path / "a", tmp_path / "dense")
    uneven = run(recipe(ALIKE.replace(", alike: true", "")).plans[index], tmp_path / "b", tmp_path / "dense")

    def widths(row):
        return [layer["shape"][0] for layer in row["layers"] if layer["name"].endswith("up.weight")]

    assert len(set(widths(row))) == 1
    assert len(set(widths(uneven))) == 2


def test_a_constraint_is_met(recipe, tmp_path):
    row = run(recipe().plans[1], tmp_path / "b", tmp_path / "dense")
    metrics = row["metrics"]
    assert any(f"25,856 -> {metrics['macs']:,} MACs" in note for note in row["notes"])
    assert 0.4 * 25_856 < metrics["macs"] <= 0.5 * 25_856


@pytest.mark.parametrize("index", [0, 1])
def test_killed_after_the_removal_it_goes_on_to_the_same_numbers(recipe, tmp_path, monkeypatch, index):
    plan = recipe().plans[index]
    whole = run(plan, tmp_path / "whole", tmp_path / "dense")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(working, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "killed", tmp_path / "dense")
    again = run(plan, tmp_path / "killed", tmp_path / "dense")
    assert json.dumps(again, sort_keys=True) == json.dumps(whole, sort_keys=True)


def test_the_small_network_is_in_the_folder(recipe, tmp_path):
    import secateur as sc
    from secateur.models import build_model

    row = run(recipe().plans[0], tmp_path / "a", tmp_path / "dense")
    small = sc.load(build_model("digits-mlp"), tmp_path / "a" / "model.safetensors")
    assert sum(p.numel() for p in small.parameters()) == row["metrics"]["parameters"]
    assert torch.isfinite(small(torch.rand(3, 64))).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("units: true, ", "", "or units: true in a recipe"),
        ("{name: uniform, sparsity: 0.75}", "{name: std, sensitivity: 1}", "does not go with whole units"),
        ("macs: 0.5", "macs: 0.5, parameters: 0.5", "exactly one of macs, parameters and latency_ms"),
        ("criterion: l2_norm, macs", "criterion: magnitude, macs", "l2_norm ranks units"),
        (
            "units: true, criterion: activation_norm",
            "alike: true",
            "alike count whole units: .* or units: true in a recipe",
        ),
        ("units: true, ", "units: true, alike: 1, ", "alike"),
        (
            "{name: uniform, sparsity: 0.75}",
            "{name: parameter_share, sparsity: 0.5}, alike: true",
            "weighs each",
        ),
        ("macs: 0.5", "macs: 0.5, alike: half", "alike"),
        ("calibration: 300", "calibrations: 300", "unknown key 'calibrations'"),
    ],
)
def test_what_does_not_go_with_units_is_said_before_anything_runs(recipe, old, new, message):
    with pytest.raises(RecipeError, match=message):
        recipe(UNITS.replace(old, new))
