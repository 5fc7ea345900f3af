"""Steps for language models: what each leaves, and that a killed one goes on as it was."""

import pytest
from one_trial import plan_of, run, without_times

from kills import killed_after_epochs
from secateur.errors import RecipeError
from secateur.experiments import trial

pytest.importorskip("transformers")
HEAD = """
name: steps
data: {{name: tinyshakespeare, context: 16, train: 96, validation: 64}}
model: {{name: {name}, vocabulary: 66, context: 16, width: 16, layers: 3, heads: 2, ffn: 24}}
task: {{name: language}}
train: {{epochs: 1, optimizer: adamw, lr: 4.0e-3, batch_size: 32}}
measure: []
seeds: [0]
steps:
"""
LLAMA, MIXTRAL = HEAD.format(name="llama"), HEAD.format(name="mixtral")
RECOVER = "  - recover: {examples: 64, rank: 2, lr: 5.0e-3}\n  - retrain: {epochs: 1}\n"
STEPS = {
    "sparsegpt": LLAMA
    + "  - sparsegpt: {budget: {name: uniform, sparsity: 0.5}, calibration: 32, exclude: ['lm_head*']}\n"
    + RECOVER,
    "wanda": LLAMA
    + "  - prune: {criterion: {name: wanda, sequential: true}, calibration: 32, exclude: ['lm_head*'],\n"
    + "            budget: {name: uniform, sparsity: 0.5, per: row}}\n"
    + "  - recover: {examples: 64, rank: null, target: difference}\n  - retrain: {epochs: 1}\n",
    "depth": LLAMA + "  - depth: {share: 0.34, calibration: 32}\n" + RECOVER,
    "depth, then units": LLAMA
    + "  - depth: {share: 0.34, calibration: 32}\n"
    + "  - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}\n  - compact:\n"
    + "  - retrain: {epochs: 1}\n",
    "experts": MIXTRAL + "  - experts: {share: 0.5, calibration: 32}\n" + RECOVER,
    "experts by frequency": MIXTRAL
    + "  - experts: {share: 0.25, by: frequency, groups: 2, calibration: 32}\n  - retrain: {epochs: 1}\n",
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.mark.parametrize("kind", STEPS)
def test_a_killed_trial_goes_on_to_the_same_numbers(kind, tmp_path, monkeypatch):
    plan = plan_of(tmp_path, STEPS[kind])
    whole = run(plan, tmp_path / "whole")
    row, kills, _ = killed_after_epochs(monkeypatch, lambda: run(plan, tmp_path / "killed"))
    assert kills
    assert without_times(row) == without_times(whole)


def test_what_is_left(tmp_path):
    rows = {kind: run(plan_of(tmp_path, steps), tmp_path / kind) for kind, steps in STEPS.items()}
    metrics = {kind: row["metrics"] for kind, row in rows.items()}
    for kind in ("sparsegpt", "wanda"):
        assert metrics[kind]["sparsity"] == pytest.approx(0.5, abs=2e-3), kind  # of what masks are of
        assert rows[kind]["metrics"]["score_retrained"] != rows[kind]["metrics"]["score_pruned"]
    assert metrics["depth"]["parameters"] < 0.8 * metrics["sparsegpt"]["parameters"]
    assert any("model.layers." in note and "influence" in note for note in rows["depth"]["notes"])
    assert metrics["experts"]["parameters"] < metrics["experts by frequency"]["parameters"]
    assert any("4 of 8" in note or "12 of 24 units removed" in note for note in rows["experts"]["notes"])
    assert any(note.startswith("outputs: ") for note in rows["sparsegpt"]["notes"])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("  - sparsegpt: {budget: {name: global, sparsity: 0.5}}\n", "takes Uniform or NM, not Global"),
        (
            "  - sparsegpt: {budget: {name: uniform, sparsity: 0.5, per: row}}\n",
            "compares all rows of a layer",
        ),
        ("  - experts: {share: 1.0}\n", "share"),
        ("  - experts: {share: 0.5, by: size}\n", "'reap' or 'frequency'"),
        ("  - depth: {share: 0}\n", "share"),
        ("  - recover: {rank: 0}\n", "rank"),
        ("  - recover: {target: labels}\n", "'divergence' or 'difference'"),
        (
            "  - prune: {criterion: {name: wanda, sequential: true},\n"
            "            budget: {name: global, sparsity: 0.5}}\n",
            "sequential cuts each layer before the next is ranked",
        ),
        ("  - prune_to: {parameters: 0.5}\n  - depth: {share: 0.5}\n", "needs the dense network's shapes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(steps, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        plan_of(tmp_path, LLAMA + steps)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("  - depth: {share: 0.1, calibration: 8}\n", "0.1 of 3 blocks is none; ask for more"),
        ("  - depth: {share: 0.34, option: depth, calibration: 8}\n", "depth"),
        ("  - depth: {share: 0.34, option: heads, calibration: 8}\n", "no option that says how many blocks"),
    ],
)
def test_what_the_network_shows_is_said_in_time(step, message, tmp_path):
    assert trial
    with pytest.raises(RecipeError, match=message):
        run(plan_of(tmp_path, LLAMA + step), tmp_path / "run")
