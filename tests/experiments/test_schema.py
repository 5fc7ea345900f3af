"""What a study and a deployment write today is read back as it is; what a file must not hold is named."""

import json

import pytest

from secateur.errors import StorageError
from secateur.experiments.deployment_schema import validated_deployment
from secateur.experiments.recipe import load_recipe
from secateur.experiments.results import read_results
from secateur.experiments.schema import scale_of, validated_results, validated_row
from secateur.experiments.study import run_study
from secateur.experiments.trial import failed_row
from secateur.task.base import Scale

RECIPE = """
name: kinds
description: "every kind of step: ça va, 漢字"
source: "a test"
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 12}
train: {epochs: 1}
measure: [latency, memory]
methods:
  zeros:
    steps:
      - prune: {budget: {name: global, sparsity: 0.5}, criterion: {name: magnitude}}
      - retrain: {epochs: 1}
      - share: {values: 8, train: {epochs: 1}}
      - pack: {}
    sweep: {prune.budget.sparsity: [0.25, 0.5]}
  units:
    steps:
      - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}
      - compact: {}
  alphas: {steps: [{id: slowly, anneal: {ratio: 0.5, schedule: {step: 0.5}, train: {epochs: 1}}}]}
  wider: {steps: [scratch: {model: {hidden: 16}, train: {epochs: 1}}]}
  dense: {steps: []}
seeds: [0]
reference: [{method: zeros, prune.budget.sparsity: 0.5, score_retrained: 0.9, note: "quoted"}]
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "kinds.yaml").write_text(RECIPE)
    recipe = load_recipe(str(folder / "kinds.yaml"))
    return recipe, folder / "kinds", run_study(recipe, folder / "kinds")


def test_every_row_that_is_written_reads_back_as_it_is(ran):
    recipe, out, results = ran
    assert read_results(out) == results
    for row in results["trials"]:
        again = validated_row(json.loads((out / "trials" / row["id"] / "result.json").read_text()), "file")
        assert again == row
        assert list(again) == list(row), "in the order of the file"
    lost = failed_row(recipe.plans[0], 0, "its loss is nan\n\x1b[0m")
    assert validated_row(lost, "database") == lost


@pytest.fixture
def results(ran):
    return json.loads((ran[1] / "results.json").read_text())


def test_keys_of_a_later_version_are_left_out(results):
    results["trials"][0] |= {"later": 1, "deployment": {"formats": [{"name": "forged"}]}}
    results["trials"][0]["metrics"]["later"] = {"x": 1}
    found = validated_results(results | {"later": 1}, "file")
    assert "later" not in found
    assert not {"later", "deployment"} & set(found["trials"][0])
    assert "later" not in found["trials"][0]["metrics"]


def test_a_trial_stands_once_and_has_figures(results):
    first = results["trials"][0]
    with pytest.raises(StorageError, match=f"^file: the trial {first['id']} stands there twice"):
        validated_results(results | {"trials": [*results["trials"], first]}, "file")
    with pytest.raises(StorageError, match="a trial lacks 'metrics'"):
        validated_row(first | {"metrics": {}}, "file")


@pytest.mark.parametrize("schema", [3, 2.0, True, "1", None, [1]])
def test_another_schema_is_refused(results, schema):
    for read in (validated_results, validated_deployment):
        with pytest.raises(
            StorageError, match=r"^file: not results of schema 2 or before, which this version reads$"
        ):
            read(results | {"schema": schema}, "file")
    with pytest.raises(StorageError, match="schema 2 or before"):
        validated_results([results], "file")


@pytest.mark.parametrize("row", [None, [], "x", 5, {}, {"state": "finished"}, {"state": "failed", "id": "a"}])
def test_a_row_of_another_kind_is_one_error(row):
    with pytest.raises(StorageError, match=r"^database: "):
        validated_row(row, "database")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1, True, "1", None, [], pytest.param(10**5000, id="huge")]
)
def test_a_figure_is_a_number_in_its_range(results, value):
    """Also where no JSON was read: a row comes out of a database, too."""
    row = results["trials"][0]
    with pytest.raises(StorageError, match=r"^file: layers\.0\.weights is "):
        validated_row(row | {"layers": [{**row["layers"][0], "weights": value}]}, "file")


def test_what_is_nested_or_long_beyond_measure_is_refused(results):
    deep = value = {}
    for _ in range(40):
        value["x"] = value = {}
    row = results["trials"][0]
    with pytest.raises(
        StorageError, match=r"file: point is an object of 1 keys; plain data are right, of at"
    ):
        validated_row(row | {"point": deep}, "file")
    with pytest.raises(
        StorageError, match=r"notes\.0 is 'xxx.*\.\.\.; a text of at most 1,000,000 characters"
    ):
        validated_row(row | {"notes": ["x" * 1_000_001]}, "file")
    with pytest.raises(
        StorageError, match=r"notes is a list of 1000001; a list of at most 1,000,000 is right"
    ):
        validated_row(row | {"notes": ["x"] * 1_000_001}, "file")


def test_results_of_the_schema_before_are_read_as_accuracies():
    epoch = {"epoch": 1, "validation_accuracy": 0.5}
    row = {
        "id": "0a", "method": "m", "state": "failed", "point": {}, "seed": 0, "curves": {"dense": [epoch]},
        "metrics": {"accuracy_dense": 0.9, "accuracy_pruned_validation": None, "macs": 5},
    }  # fmt: skip
    read = validated_results({"schema": 1, "recipe": "r", "trials": [row]}, "file")
    assert read["schema"] == 2
    (trial,) = read["trials"]
    assert trial["metrics"] == {"score_dense": 0.9, "score_pruned_validation": None, "macs": 5}
    assert trial["curves"] == {"dense": [{"epoch": 1, "validation_score": 0.5}]}
    assert scale_of(trial) == Scale("accuracy", "%")


def test_a_score_that_is_no_share_may_be_any_number():
    row = {"id": "0a", "method": "m", "state": "failed", "point": {}, "seed": 0}
    loss = {"name": "perplexity", "higher_is_better": False}
    read = validated_row(row | {"metrics": {"score_dense": 12.5}, "score": loss}, "file")
    assert read["metrics"]["score_dense"] == 12.5
    assert scale_of(read).drop(12.5, 14.0) == 1.5
    with pytest.raises(StorageError, match=r"metrics\.score_dense is 12\.5; a number from 0 to 1 is right"):
        validated_row(row | {"metrics": {"score_dense": 12.5}}, "file")
