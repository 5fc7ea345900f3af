"""The queue of a study's trials: an Optuna study in a database that any number of processes share.

Optuna's heartbeat is the lease. A process killed with -9 leaves its trial RUNNING: its trial is
failed when the heartbeat is stale, or at once where the process that held it ran on this machine
and is gone, and is put back into the queue. Optuna's own numbers mean nothing then; the hash of
what determines a trial does, and of several entries with one hash the lowest number runs.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from secateur.errors import RecipeError

Row = dict[str, Any]
Point = dict[str, Any]
HEARTBEAT, GRACE = 10, 30  # seconds
_ATTEMPTS = 6
_AHEAD = 16  # jobs in the queue at once: every unfinished entry is read again at each look
_SIGNED_WITHIN = 5.0  # seconds; it takes milliseconds
_OPEN = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)


class Lost(Exception):
    """This entry of the queue is not to be run: another with the same hash is."""


def open_study(name: str, storage: str | None, out: Path) -> Study:
    """Open or create the study ``name``: in ``out/study.db``, or at any SQLAlchemy URL."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    out.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(out / 'study.db').resolve()}"
    for patience in range(_ATTEMPTS, 0, -1):
        try:
            return _open(name, url)
        except DBAPIError as error:  # two that create the tables at the same moment: one loses
            if patience == 1:
                raise _unusable(url, error) from error
            time.sleep(0.5)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise _unusable(url, error) from error
    raise AssertionError


def _open(name: str, url: str) -> Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        backend = RDBStorage(url, _engine_settings(url), heartbeat_interval=HEARTBEAT, grace_period=GRACE)
        if url.startswith("sqlite"):
            _take_turns(backend.engine)
        # Accuracy on validation goes up, non-zeros go down: what a searching sampler weighs.
        return optuna.create_study(
            study_name=name, storage=backend, directions=["maximize", "minimize"], load_if_exists=True
        )


def _engine_settings(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {}


def _take_turns(engine: Engine) -> None:
    """Let every SQLite transaction lock the file when it begins: SQLite knows no row locks, and two
    processes that both read a trial as waiting would both take it."""

    @event.listens_for(engine, "connect")
    def no_implicit_begin(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin_immediate(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections opened before these rules


def _unusable(url: str, error: Exception) -> RecipeError:
    first = str(error).strip().splitlines()[0]
    return RecipeError(f"--storage {url}: cannot be opened: {first}")


def run_jobs(study: Study, jobs: Mapping[str, Any], run: Callable[[str], Row]) -> None:
    """Run every job (by hash) that has not been finished, until all are, by whomever."""
    unsigned: dict[int, float] = {}
    while True:
        release_dead(study, unsigned)
        entries = entries_by_id(study)
        missing = [job for job in jobs if not any(entry.state in _OPEN for entry in entries.get(job, []))]
        waiting = sum(entry.state == TrialState.WAITING for job in jobs for entry in entries.get(job, []))
        for job in missing[: max(0, _AHEAD - waiting)]:
            study.enqueue_trial({}, user_attrs={"id": job})
        entries = entries_by_id(study)
        states = {entry.state for job in jobs for entry in entries.get(job, [])}
        if TrialState.WAITING in states:
            _run_one(study, lambda trial: _objective(study, trial, jobs, run))
        elif TrialState.RUNNING in states:
            time.sleep(0.5)
        else:
            return


def search(
    study: Study,
    number: int,
    ranges: Mapping[str, list[Any]],
    seed: int,
    run: Callable[[Point], list[Row]],
) -> None:
    """Let a TPE sampler choose points within ``ranges`` until ``number`` of them are finished."""

    def objective(trial: Trial) -> tuple[float, float]:
        _sign(trial)
        rows = run({key: _suggest(trial, key, values) for key, values in ranges.items()})
        trial.set_user_attr("rows", rows)
        return _values(rows)

    unsigned: dict[int, float] = {}
    while True:
        release_dead(study, unsigned)
        trials = study.get_trials(deepcopy=False)
        complete, running = (
            sum(trial.state == state for trial in trials)
            for state in (TrialState.COMPLETE, TrialState.RUNNING)
        )
        if complete >= number:
            return
        if complete + running >= number:
            time.sleep(0.5)  # others are at the last ones; should they die, somebody has to go on
            continue
        # A sampler of its own for each trial, seeded by how many there were: resumed or not, the same.
        study.sampler = optuna.samplers.TPESampler(seed=(seed + len(trials)) % 2**32)
        _run_one(study, objective)


def finished_rows(study: Study) -> list[Row]:
    """Return the rows of every finished trial, in the order in which they were begun."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [row for trial in trials for row in trial.user_attrs.get("rows", [])]


def entries_by_id(study: Study) -> dict[str, list[FrozenTrial]]:
    entries: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        entries.setdefault(trial.user_attrs.get("id", ""), []).append(trial)
    return entries


def release_dead(study: Study, unsigned: dict[int, float]) -> None:
    """Fail the trials whose process is gone, and put a search's points back into the queue.

    A process killed in the moment between taking a trial and signing it leaves one with neither an
    owner nor a heartbeat. ``unsigned`` is the caller's memory of when it first saw each of those: one
    that stays so is dead.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    for trial in running:
        owner = trial.user_attrs.get("owner")
        if owner is None:
            first_seen = unsigned.setdefault(trial.number, time.monotonic())
            dead = time.monotonic() - first_seen > _SIGNED_WITHIN
        else:
            dead = _is_dead(owner)
        if dead and _release(study, trial._trial_id) and trial.params:
            study.enqueue_trial(trial.params)


def _run_one(study: Study, objective: Callable[[Trial], tuple[float, float]]) -> None:
    begun: list[Trial] = []

    def remembered(trial: Trial) -> tuple[float, float]:
        begun.append(trial)
        return objective(trial)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            study.optimize(remembered, n_trials=1, catch=(Lost,))
        except BaseException:  # Ctrl-C, say: this process lives on, so it gives its lease back itself
            for trial in begun:
                _release(study, trial._trial_id)
            raise


def _release(study: Study, trial_id: int) -> bool:
    try:
        study._storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False  # finished, or another process was faster
    return True


def _objective(
    study: Study, trial: Trial, jobs: Mapping[str, Any], run: Callable[[str], Row]
) -> tuple[float, float]:
    _sign(trial)
    job = str(trial.user_attrs.get("id"))
    if job not in jobs:
        raise Lost  # drawn after another process took the last one, or of another version of the recipe
    rivals: Iterable[FrozenTrial] = entries_by_id(study)[job]
    if any(rival.number < trial.number and rival.state in _OPEN for rival in rivals):
        raise Lost
    row = run(job)
    trial.set_user_attr("rows", [row])
    return _values([row])


def _values(rows: list[Row]) -> tuple[float, float]:
    """What a search compares: mean accuracy on validation, mean non-zeros; the worst for a failure."""
    accuracies, sizes = [], []
    for row in rows:
        metrics = row["metrics"]
        last = metrics.get("accuracy_retrained_validation")
        last = metrics.get("accuracy_pruned_validation") if last is None else last
        accuracies.append(metrics.get("accuracy_dense_validation", 0.0) if last is None else last)
        sizes.append(metrics.get("nonzero", 1e18))
    return sum(accuracies) / len(rows), sum(sizes) / len(rows)


def _suggest(trial: Trial, key: str, values: list[Any]) -> Any:
    """Draw within the range that a sweep's numbers span; choose among anything else."""
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        return trial.suggest_categorical(key, values)
    if all(isinstance(v, int) for v in values):
        return trial.suggest_int(key, min(values), max(values))
    return trial.suggest_float(key, float(min(values)), float(max(values)))


def _sign(trial: Trial) -> None:
    pid = os.getpid()
    trial.set_user_attr("owner", f"{socket.gethostname()}/{pid}/{_started(pid)}")


def _is_dead(owner: str) -> bool:
    host, _, rest = owner.partition("/")
    pid, _, started = rest.partition("/")
    if host != socket.gethostname() or not pid.isdigit() or not started:
        return False  # another machine's, or one without /proc: only its heartbeat tells
    return _started(int(pid)) != started


def _started(pid: int) -> str:
    """Return when a process started, in ticks; "" where there is none, or nothing to tell by."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else "?"
