"""The pages say what the results say: tables are the script's, and verdicts follow from the figures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("results", DOCS / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept(script):
    return script.studies()


def test_the_tables_of_the_pages_are_those_of_the_results(script, kept):
    for path in script.PAGES:
        text = path.read_text(encoding="utf-8")
        assert script.with_tables(text, kept) == text, "run docs/results.py"


def test_the_page_of_quoted_figures_is_that_of_the_results(script, kept):
    assert script.sources.page(kept) == (DOCS / "sources.md").read_text(encoding="utf-8"), (
        "run docs/results.py"
    )


def trial(seed: int, s: float, after: float, validation: float, left: int = 100, steps=None):
    metrics = {"score_dense": 0.98, "compression_rate": 1000 / left}
    for name in ("score_retrained", "score_pruned"):
        metrics |= {name: after, f"{name}_validation": validation}
    config = {
        "data": {"name": "mnist"},
        "model": {"name": "lenet-300-100"},
        "steps": steps or [{"prune": {}}],
    }
    point = {"prune.budget.sensitivity": s}
    return {
        "method": "std", "point": point, "seed": seed, "metrics": metrics, "config": config, "epochs": {}
    }  # fmt: skip


def study(trials, **quoted):
    reference = [{"prune.budget.sensitivity": 1.0, **quoted}]
    return {"std": {"recipe": "std", "source": "Cao", "trials": trials, "reference": reference}}


def verdict(script, trials, **quoted) -> list[str]:
    ((_, row),) = script.sources.rows_of(study(trials, **quoted))
    return row.cells()


def test_above_the_noise_is_beaten_and_below_it_is_not_reached(script):
    three = [trial(seed, 1.0, value, 0.9) for seed, value in enumerate((0.96, 0.97, 0.98))]
    # The mean is 97, its 95 % interval 4.30 * 1 / sqrt(3) = 2.48.
    for quoted, said in (
        (0.9451, "beaten, by 2.49"),
        (0.96, "equal within noise (+1.00 ± 2.48)"),
        (0.99, "equal within noise (-2.00 ± 2.48)"),
        (0.9949, "not reached, by 2.49: longer was tried"),
    ):
        cells = verdict(script, three, score_retrained=quoted, note="longer was tried")
        assert cells[1:] == [f"{100 * quoted:.2f}", "97.00 ± 1.00, n=3", "", said]


def test_the_best_of_ours_is_chosen_on_validation_among_those_as_small(script):
    own = trial(0, 1.0, 0.90, 0.90)
    better = trial(0, 2.0, 0.91, 0.95, left=90)
    best_on_test = trial(0, 3.0, 0.99, 0.80, left=80)
    larger = trial(0, 0.5, 0.97, 0.99, left=200)
    cells = verdict(script, [own, better, best_on_test, larger], score_retrained=0.905)
    assert cells[2:] == ["90.00", "91.00 (`std, sensitivity 2`)", "beaten, by 0.50 (one seed)"]


def test_what_was_not_run_says_so(script):
    assert verdict(script, [trial(0, 2.0, 0.9, 0.9)], score_retrained=0.9)[2:] == [
        "not run",
        "",
        "not run",
    ]
    assert script.table("nowhere | sparsity", {}).startswith("Not run yet here: `secateur run nowhere")


def test_what_was_trained_between_cuts_is_no_answer_to_what_was_only_cut(script):
    gradual = [{"prune": {"schedule": {"name": "cubic"}}}]
    trials = [trial(0, 1.0, 0.90, 0.90), trial(0, 2.0, 0.99, 0.99, left=90, steps=gradual)]
    assert verdict(script, trials, score_pruned=0.95)[3:] == ["", "not reached, by 5.00"]
    assert verdict(script, trials, score_retrained=0.95)[4] == "beaten, by 4.00 (one seed)"
