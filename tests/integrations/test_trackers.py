"""Trackers have what the study has, read back by their own clients; one that fails costs a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments.recipes import TINY
from secateur.cli import app
from secateur.errors import MissingExtraError, RecipeError
from secateur.experiments.recipe import load_recipe
from secateur.experiments.study import run_study
from secateur.integrations import trackers
from secateur.integrations.trackers import Tracked, curves, figures
from secateur.report.page import write_page


def recipe(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict[str, Any], Path]:
    """A real study of two trials: its folder, its results and its page."""
    folder = tmp_path_factory.mktemp("study")
    results = run_study(load_recipe(str(recipe(folder)), {}, [0]), folder / "out")
    return folder / "out", results, write_page([results], folder / "out" / "report.html")


@pytest.fixture
def study(finished, tmp_path, monkeypatch):
    """The same in a folder to which nothing has been sent yet."""
    monkeypatch.chdir(tmp_path)
    _, results, page = finished
    return tmp_path / "out", results, page


def send(name: str, study: Any) -> list[str]:
    folder, results, page = study
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    Tracked(name, results["recipe"], folder, said.append).finish(results, page)
    return said


def scalars(row: Any) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for name, epoch, value in curves(row):
        found.setdefault(name, []).append((epoch, value))
    return found


def test_what_is_sent(study):
    row = study[1]["trials"][0]
    sent = scalars(row)
    assert [epoch for epoch, _ in sent["retrain/train_loss"]] == [1, 2]
    assert sent["dense/validation_score"][1][1] == row["curves"]["dense"][1]["validation_score"]
    assert figures(row)["sparsity"] == row["metrics"]["sparsity"]
    assert figures(row)["seconds_retrain"] == row["seconds"]["retrain"]
    (header, *rows) = trackers.table(study[1])
    assert header[:4] == ["id", "method", "seed", "prune.budget.sparsity"]
    assert [line[3] for line in rows] == [0.5, 0.8]


def test_tensorboard(study):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, results, page = study
    assert send("tensorboard", study) == []
    for row in results["trials"]:
        events = EventAccumulator(str(folder / "tensorboard" / row["id"]))
        events.Reload()
        for name, points in scalars(row).items():
            assert [event.step for event in events.Scalars(name)] == [epoch for epoch, _ in points]
            assert [e.value for e in events.Scalars(name)] == pytest.approx([v for _, v in points])
        for name, value in figures(row).items():
            assert events.Scalars(name)[0].value == pytest.approx(value)
    whole = EventAccumulator(str(folder / "tensorboard"))
    whole.Reload()
    text = whole.Tensors("trials/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(row["id"] in text for row in results["trials"])
    assert str(page) in whole.Tensors("report/text_summary")[0].tensor_proto.string_val[0].decode()


def test_mlflow(study, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    folder, results, page = study
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent}/mlflow.db")
    assert send("mlflow", study) == []
    assert send("mlflow", study) == []  # the study once more, its trials not
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    by_trial = {run.data.tags["secateur.trial"]: run for run in runs if "secateur.trial" in run.data.tags}
    assert len(runs) == 4
    assert by_trial.keys() == {row["id"] for row in results["trials"]}
    for row in results["trials"]:
        run = by_trial[row["id"]]
        assert run.data.params["prune.budget.sparsity"] == str(row["point"]["prune.budget.sparsity"])
        assert run.info.status == "FINISHED"
        for name, value in figures(row).items():
            assert run.data.metrics[name] == value
        for name, points in scalars(row).items():
            history = client.get_metric_history(run.info.run_id, name)
            assert sorted((metric.step, metric.value) for metric in history) == points
    whole = next(run for run in runs if "secateur.study" in run.data.tags)
    artifacts = {file.path for file in client.list_artifacts(whole.info.run_id)}
    assert artifacts == {"trials.json", "report.html"}
    path = Path(client.download_artifacts(whole.info.run_id, "trials.json", str(folder.parent)))
    saved = json.loads(path.read_text())
    assert [saved["columns"], *saved["data"]] == trackers.table(results)
    again = Path(client.download_artifacts(whole.info.run_id, "report.html", str(folder.parent)))
    assert again.read_bytes() == page.read_bytes()


def records(path: Path) -> Iterator[bytes]:
    """Yield the records of a run's file: LevelDB's log, after seven bytes, in blocks of 32 KiB."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield whole
            whole = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb(study, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    folder, results, _ = study
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert send("wandb", study) == []
    wandb.teardown()  # what it still holds is written then
    runs: dict[str, dict[str, Any]] = {}
    for path in folder.rglob("*.wandb"):
        name, summary, history = "", {}, []
        for data in records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            name = record.run.display_name or name
            for item in record.summary.update:
                summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            if record.history.item:
                history.append({
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                })  # fmt: skip
        runs[name] = {"summary": summary, "history": history}
    assert len(runs) == 3
    for row in results["trials"]:
        run = runs[f"seed=0, prune.budget.sparsity={row['point']['prune.budget.sparsity']}"]
        for name, value in figures(row).items():
            assert run["summary"][name] == pytest.approx(value)
        for name, points in scalars(row).items():
            name = name.replace(".", "_")
            step = f"{name.partition('/')[0]}/epoch"
            seen = [(entry[step], entry[name]) for entry in run["history"] if name in entry]
            assert seen == [(epoch, pytest.approx(value)) for epoch, value in points]
    types = {name: value for entry in runs["study"]["history"] for name, value in entry.items()}
    assert (types["trials._type"], types["trials.nrows"]) == ("table-file", 2)
    assert (types["report._type"], types["report.size"]) == ("html-file", study[2].stat().st_size)


# -- in a study ----------------------------------------------------------------------------------------


class Recorded:
    """A tracker that can be away: it fails from a certain call on."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[Any] = []
        self.fails_at = fails_at

    def trial(self, row: Any) -> None:
        self._call(row["id"])

    def study(self, results: Any, page: Path) -> None:
        assert page.exists()
        self._call([row["id"] for row in results["trials"]])

    def _call(self, what: Any) -> None:
        if len(self.calls) == self.fails_at:
            raise ConnectionError("nobody answers\nat all")
        self.calls.append(what)


def run(folder: Path, *options: str) -> Any:
    arguments = ["run", str(recipe(folder)), "--seeds", "0", "--out", str(folder / "out"), "--quiet"]
    return CliRunner().invoke(app, [*arguments, *options])


@pytest.fixture
def tracker(monkeypatch):
    def put(name: str, made: Any) -> Any:
        monkeypatch.setitem(trackers.TRACKERS, name, lambda study, folder: made)
        return made

    return put


def test_a_study_sends_each_trial_once(tmp_path, tracker):
    first = tracker("mlflow", Recorded())
    assert run(tmp_path, "--track", "mlflow").exit_code == 0
    ids = [row["id"] for row in json.loads((tmp_path / "out" / "results.json").read_text())["trials"]]
    assert first.calls == [*ids, ids]
    second = tracker("mlflow", Recorded())
    assert run(tmp_path, "--track", "mlflow").exit_code == 0
    assert second.calls == [ids]  # the table and the report are as new as the results
    other = tracker("wandb", Recorded())
    assert run(tmp_path, "--track", "wandb").exit_code == 0
    assert other.calls == [*ids, ids]


def test_a_tracker_that_fails_costs_one_line(tmp_path, tracker):
    broken = tracker("mlflow", Recorded(fails_at=1))
    done = run(tmp_path, "--track", "mlflow")
    assert done.exit_code == 0
    assert done.stderr.splitlines() == ["--track mlflow: ConnectionError: nobody answers; results are kept"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["state"] for row in results["trials"]] == ["finished"] * 2
    ids = [row["id"] for row in results["trials"]]
    assert broken.calls == ids[:1]
    back = tracker("mlflow", Recorded())
    assert run(tmp_path, "--track", "mlflow").exit_code == 0
    assert back.calls == [ids[1], ids]


def test_one_that_is_away_from_the_start(study, monkeypatch):
    def away(study: str, folder: Path) -> Any:
        raise TimeoutError("no route")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", away)
    assert send("wandb", study) == ["--track wandb: TimeoutError: no route; results are kept"]


@pytest.mark.parametrize(
    ("name", "package"),
    [("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")],
)
def test_a_missing_client_is_said_before_anything_runs(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'secateur\[{name}\]'"):
        Tracked(name, "tiny", tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


def test_an_unknown_tracker(tmp_path):
    with pytest.raises(RecipeError, match="--track mlfow: there is no such tracker; did you mean 'mlflow'"):
        Tracked("mlfow", "tiny", tmp_path, print)
