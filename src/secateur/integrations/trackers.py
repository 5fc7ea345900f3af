"""Results of a study in TensorBoard, MLflow or Weights & Biases, through their own clients.

A tracker is a class with two methods: ``trial`` takes the row of a finished trial, ``study`` the whole
results and the page of the report. ``Tracked`` calls them while a study runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from secateur.errors import MissingExtraError, RecipeError, StorageError
from secateur.factories import need
from secateur.storage import load_json, save_json
from secateur.text import first_line, nearest

Row = Mapping[str, Any]
Say = Callable[[str], None]
_SENT = "tracked.json"  # by tracker the trials that it has


class Tracker(Protocol):
    """Where results go besides the study's folder."""

    def trial(self, row: Row) -> None:
        """Take a finished trial: its point, its figures, and its curves by epoch."""
        ...

    def study(self, results: Mapping[str, Any], page: Path) -> None:
        """Take the table of all trials, and the report."""
        ...


class TensorBoard:
    """Event files in ``tensorboard`` of the study's folder, one folder a trial."""

    def __init__(self, study: str, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard") from error
        self._writer, self.folder = SummaryWriter, folder / "tensorboard"

    def trial(self, row: Row) -> None:
        with self._writer(str(self.folder / row["id"])) as writer:
            writer.add_hparams(_point(row), figures(row), run_name=".")
            for name, epoch, value in curves(row):
                writer.add_scalar(name, value, epoch)

    def study(self, results: Mapping[str, Any], page: Path) -> None:
        header, *rows = table(results)
        lines = [header, ["---"] * len(header), *rows]
        with self._writer(str(self.folder)) as writer:
            writer.add_text("trials", "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))
            writer.add_text("report", str(page.resolve()))


class MLflow:
    """An experiment of the recipe's name where ``MLFLOW_TRACKING_URI`` says, one run a trial."""

    def __init__(self, study: str, folder: Path) -> None:
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
        )  # 7 are minutes for a server that is away
        try:
            from mlflow import MlflowClient  # type: ignore[import-not-found]
            from mlflow.entities import Metric, Param  # type: ignore[import-not-found]
        except ImportError as error:
            raise MissingExtraError("mlflow", "mlflow") from error
        self._metric, self._param = Metric, Param
        self.client = MlflowClient()
        found = self.client.get_experiment_by_name(study)
        self.experiment = self.client.create_experiment(study) if found is None else found.experiment_id

    def trial(self, row: Row) -> None:
        now = round(time.time() * 1000)
        run = self._run(_label(row), {"secateur.trial": row["id"]})
        last = [self._metric(name, value, now, 0) for name, value in figures(row).items()]
        along = [self._metric(name, value, now, epoch) for name, epoch, value in curves(row)]
        params = [self._param(name, str(value)[:500]) for name, value in _point(row).items()]
        metrics = last + along
        for first in range(0, max(1, len(metrics)), 500):  # the most that a server takes at once
            self.client.log_batch(run, metrics[first : first + 500], params if first == 0 else [])
        self.client.set_terminated(run, "FAILED" if row["state"] == "failed" else "FINISHED")

    def study(self, results: Mapping[str, Any], page: Path) -> None:
        header, *rows = table(results)
        run = self._run("study", {"secateur.study": results["recipe"]})
        self.client.log_dict(run, {"columns": header, "data": rows}, "trials.json")
        self.client.set_tag(run, "mlflow.loggedArtifacts", '[{"path": "trials.json", "type": "table"}]')
        self.client.log_artifact(run, str(page))
        self.client.set_terminated(run)

    def _run(self, name: str, tags: dict[str, str]) -> str:
        return self.client.create_run(self.experiment, run_name=name[:250], tags=tags).info.run_id


class WandB:
    """A project of the recipe's name in Weights & Biases, one run a trial; with ``WANDB_MODE=offline`` as
    files in the study's folder."""

    def __init__(self, study: str, folder: Path) -> None:
        wandb = need("wandb", extra="wandb")
        self.wandb, self.project, self.folder = wandb, study, folder

    def _run(self, **options: Any) -> Any:
        settings = self.wandb.Settings(silent=True)
        return self.wandb.init(project=self.project, dir=str(self.folder), settings=settings, **options)

    def trial(self, row: Row) -> None:
        config = {**_point(row), "trial": row["id"]}
        with self._run(name=_label(row), config=config, group=row["method"]) as run:
            for name, epoch, value in curves(row):
                plain = name.replace(".", "_")  # a dot nests there
                step = f"{plain.partition('/')[0]}/epoch"
                run.define_metric(plain, step_metric=step)
                run.log({plain: value, step: epoch})
            run.summary.update(figures(row))

    def study(self, results: Mapping[str, Any], page: Path) -> None:
        header, *rows = table(results)
        with self._run(name="study", job_type="report") as run:
            cells = [[str(cell) for cell in row] for row in rows]  # a column has one type there
            run.log({"trials": self.wandb.Table(columns=header, data=cells)})
            run.log({"report": self.wandb.Html(page.read_text(encoding="utf-8"), inject=False)})


TRACKERS: dict[str, Callable[[str, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


class Tracked:
    """A study on its way into a tracker, and what that has of it already; without a ``name`` into none.

    A tracker that fails is told of in one line and left alone from then on: the study goes on, and whoever
    runs it again with the tracker back sends what is missing.

    Raises RecipeError for a name of no tracker, MissingExtraError where its client is not installed.
    """

    def __init__(self, name: str | None, study: str, folder: Path, say: Say) -> None:
        if name is not None and name not in TRACKERS:
            raise RecipeError(f"--track {name}: there is no such tracker{nearest(name, TRACKERS)}")
        self.name, self.folder, self.say = name, folder, say
        self.tracker: Tracker | None = None
        self._before = set(self._finished())
        if name is not None:
            self._try(lambda: setattr(self, "tracker", TRACKERS[name](study, folder)))

    def with_trials(self, told: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
        """Return ``told``, which a study calls with each trial, so that it sends what has finished too."""

        def on_trial(index: int, total: int, label: str) -> None:
            told(index, total, label)
            for path in self._finished() if self.tracker is not None else ():
                if path not in self._before:
                    self._before.add(path)
                    with suppress(StorageError):  # not whole: the study itself tells of it
                        self._send(load_json(path))

        return on_trial

    def finish(self, results: Mapping[str, Any], page: Path) -> None:
        """Send the trials of the results that are not there yet, the table and the report."""
        for row in results["trials"]:
            self._send(row)
        self._try(lambda: self.tracker and self.tracker.study(results, page))

    def _finished(self) -> Iterator[Path]:
        return self.folder.glob("trials/*/result.json")

    def _send(self, row: Row) -> None:
        if self.tracker is None:
            return
        tracker, sent, name = self.tracker, self._sent(), str(self.name)

        def send() -> None:
            tracker.trial(row)
            save_json(self.folder / _SENT, {**sent, name: [*sent.get(name, []), row["id"]]})

        if row["id"] not in sent.get(name, []):
            self._try(send)

    def _sent(self) -> dict[str, list[str]]:
        with suppress(StorageError):
            found = load_json(self.folder / _SENT)
            if isinstance(found, dict) and all(isinstance(ids, list) for ids in found.values()):
                return found
        return {}

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except MissingExtraError:
            raise
        except Exception as error:  # whatever a client raises, the results are the study's own
            self.tracker = None
            self.say(f"--track {self.name}: {type(error).__name__}: {first_line(error)}; results are kept")


# -- what they are told --------------------------------------------------------------------------------


def figures(row: Row) -> dict[str, float]:
    """Return the figures of a trial that are numbers, and how many seconds its parts took."""
    seconds = {f"seconds_{part}": value for part, value in row.get("seconds", {}).items()}
    return {name: float(value) for name, value in {**row["metrics"], **seconds}.items() if value is not None}


def curves(row: Row) -> Iterator[tuple[str, int, float]]:
    """Yield (step/figure, epoch, value) of all that a trial measured by epoch."""
    for step, epochs in row.get("curves", {}).items():
        for number, entry in enumerate(epochs, 1):
            for name, value in entry.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    yield f"{step}/{name}", entry.get("epoch", number), float(value)


def table(results: Mapping[str, Any]) -> list[list[Any]]:
    """Return the trials as rows under a header: who they are, their points, their figures."""
    rows = results["trials"]
    points = list(dict.fromkeys(name for row in rows for name in row["point"]))
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    return [["id", "method", "seed", *points, *names]] + [
        [row["id"], row["method"], row["seed"]]
        + [row["point"].get(name) for name in points]
        + [row["metrics"].get(name) for name in names]
        for row in rows
    ]


def _point(row: Row) -> dict[str, Any]:
    """Return the settings of a trial's point as plain values."""
    plain = {n: v if isinstance(v, (int, float, str)) else str(v) for n, v in row["point"].items()}
    return {"method": row["method"], "seed": row["seed"], **plain}


def _label(row: Row) -> str:
    return ", ".join([f"{name}={value}" for name, value in _point(row).items() if name != "method"])
