"""The field's methods as steps of recipes: what each leaves, and that a killed one goes on as it was."""

import pytest
import recipes
import torch
from one_trial import plan_of, run, without_times

from kills import killed_after_epochs
from secateur.data import load_data
from secateur.errors import RecipeError
from secateur.experiments.dense import early_weights, make_model
from secateur.training.batches import seed_of
from secateur.training.fit import fit

HEAD = recipes.HEAD
STEPS = {
    "group_lasso": "  - group_lasso: {penalty: 0.05, train: {epochs: 3, optimizer: sgd, lr: 0.1}}\n",
    "grow_penalty": """
  - grow_penalty:
      {units: true, criterion: fpgm, budget: {name: uniform, sparsity: 0.5}, stages: 3, growth: 2.0,
       train: {epochs: 3, optimizer: sgd, lr: 0.1}}
""",
    "low_rank": "  - low_rank: {share: 0.5}\n  - retrain: {epochs: 2}\n",
    "low_rank and units": """
  - low_rank: {energy: 0.8}
  - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}
  - compact:
  - retrain: {epochs: 1}
  - pack:
""",
    "l0": "  - l0: {penalty: 0.3, train: {epochs: 4, lr: 0.1}}\n",
    "variational_dropout": """
  - variational_dropout: {start: -5, train: {epochs: 3, lr: 0.02}}
  - retrain: {epochs: 1}
""",
    "regrow": "  - regrow: {budget: {name: erk, sparsity: 0.7}, stages: 3, train: {epochs: 1}}\n",
    "set": """
  - regrow: {budget: {name: uniform, sparsity: 0.7}, by: random, stages: 3, train: {epochs: 1}}
""",
    "rewind": """
  - prune: {budget: {name: global, sparsity: 0.7}}
  - rewind: {epochs: 1}
  - retrain: {epochs: 2}
""",
    "lottery tickets": """
  - prune:
      {budget: {name: global, sparsity: 0.7},
       schedule: {name: iterative, steps: 3, rewind: 1, retrain: {epochs: 2}}}
  - rewind: {epochs: 1}
  - retrain: {epochs: 2}
""",
    "synflow": """
  - prune:
      {criterion: syn_flow, budget: {name: global, sparsity: 0.7},
       schedule: {name: iterative, steps: 20, retrain: {}}}
  - retrain: {epochs: 2}
""",
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_killed_trial_goes_on_to_the_same_numbers(kind, tmp_path, monkeypatch):
    plan = plan_of(tmp_path, HEAD + STEPS[kind])
    whole = run(plan, tmp_path / "whole")
    row, kills, _ = killed_after_epochs(monkeypatch, lambda: run(plan, tmp_path / "killed"))
    assert kills
    assert without_times(row) == without_times(whole)


def test_what_is_left(tmp_path):
    rows = {kind: run(plan_of(tmp_path, HEAD + steps), tmp_path / kind) for kind, steps in STEPS.items()}
    metrics = {kind: row["metrics"] for kind, row in rows.items()}
    for kind in ("regrow", "set", "rewind", "lottery tickets", "synflow"):
        assert metrics[kind]["sparsity"] == pytest.approx(0.7, abs=2e-3), kind
    assert metrics["variational_dropout"]["sparsity"] > 0.2
    assert metrics["l0"]["parameters"] < metrics["rewind"]["parameters"]
    assert metrics["group_lasso"]["parameters"] < metrics["rewind"]["parameters"]
    assert any("8 of 16 units left" in note for note in rows["grow_penalty"]["notes"])
    assert rows["regrow"]["epochs"]["retrain"] == rows["set"]["epochs"]["retrain"] == 3
    assert rows["grow_penalty"]["metrics"]["score_pruned"] > 0.5  # nothing is lost at the cut


def test_rewinding_gives_the_weights_of_that_epoch(tmp_path):
    plan = plan_of(tmp_path, HEAD + STEPS["rewind"])
    data = load_data("digits", validation=200)
    seen = {}
    model = make_model(plan.model, 0)
    seen[0] = [p.clone() for p in model.parameters()]
    fit(
        model, data.train, data.validation, plan.train, seed=seed_of(0, "dense"),
        on_epoch=lambda row: seen.update({row.epoch: [p.detach().clone() for p in model.parameters()]}),
    )  # fmt: skip
    for epoch in (0, 1, 2):
        early = early_weights(plan, 0, data, epoch)
        assert early.keys() == model.state_dict().keys()
        named = dict(zip((name for name, _ in model.named_parameters()), seen[epoch], strict=True))
        assert all(torch.equal(early[name], weight) for name, weight in named.items()), epoch


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("  - rewind: {epochs: 3}\n", "3 is after the dense training, which has 2"),
        ("  - prune_to: {parameters: 0.5}\n  - rewind: {epochs: 1}\n", "needs the dense network's shapes"),
        (
            "  - prune: {budget: {name: global, sparsity: 0.7},\n"
            "            schedule: {name: cubic, steps: 3, rewind: 3, retrain: {}}}\n",
            "3 is after the dense training, which has 2",
        ),
        (
            "  - prune_to: {parameters: 0.5}\n  - prune: {budget: {name: global, sparsity: 0.7}, "
            "schedule: {name: cubic, steps: 3, rewind: 1, retrain: {}}}\n",
            "needs the dense network's shapes",
        ),
        ("  - group_lasso: {train: {epochs: 0}}\n", "needs epochs"),
        ("  - grow_penalty: {budget: {name: global, sparsity: 0.5}, train: {keep: best}}\n", "keep: last"),
        ("  - regrow: {budget: {name: trimmed}}\n", "unknown name 'trimmed'"),
        ("  - regrow: {budget: {name: erk, sparsity: 0.5}, by: hand}\n", "'gradient' or 'random'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(steps, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        plan_of(tmp_path, HEAD + steps)
