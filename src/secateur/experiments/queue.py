"""The queue of a study's trials: an Optuna study in a database that any number of processes share.

Optuna's heartbeat is the lease. A process killed with -9 leaves its trial RUNNING: its trial is
failed when the heartbeat is stale, or at once where the process that held it ran on this machine
and is gone, and is put back into the queue. One that only slept notices, and leaves it to the other.
Optuna's own numbers mean nothing then; the hash of what determines a trial does, and of several
entries with one hash the lowest number runs.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from secateur.errors import RecipeError, SecateurError, StorageError
from secateur.experiments.claim import Lost
from secateur.experiments.database import Unreachable, cause, connect, heartbeat_seconds, said
from secateur.experiments.schema import scale_of

Row = dict[str, Any]
Point = dict[str, Any]
_ATTEMPTS = 6
_AHEAD = 16  # jobs in the queue at once: every unfinished entry is read again at each look
_SIGNED_WITHIN = 5.0  # seconds; it takes milliseconds
_TAKEN = "a trial that this process had is another's now: it slept, say; it goes on with the next"
_OPEN = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
_log = logging.getLogger(__name__)


def open_study(name: str, storage: str | None, out: Path) -> Study:
    """Open or create the study ``name``: in ``out/study.db``, or at any SQLAlchemy URL.

    Raises RecipeError for a URL that cannot be opened, StorageError for a ``study.db`` that cannot.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    out.mkdir(parents=True, exist_ok=True)
    file = (out / "study.db").absolute()
    if storage is None and file.is_symlink():
        raise StorageError(f"{file}: is a link, which is not followed; remove it")
    url = storage or URL.create("sqlite", database=str(file)).render_as_string()
    for patience in range(_ATTEMPTS, 0, -1):
        try:
            # Accuracy on validation goes up, non-zeros go down: what a searching sampler weighs.
            return optuna.create_study(
                study_name=name,
                storage=connect(url),
                directions=["maximize", "minimize"],
                load_if_exists=True,
            )
        except SecateurError:
            raise
        except (DBAPIError, StorageInternalError) as error:
            if patience == 1:
                raise _unusable(storage, file, error) from error
            time.sleep(0.5)  # two that create the tables at the same moment: one loses
        except (SQLAlchemyError, ImportError, ValueError, LookupError) as error:
            raise _unusable(storage, file, error) from error
    raise AssertionError


def _unusable(storage: str | None, file: Path, error: Exception) -> SecateurError:
    why = said(cause(error))
    if storage is None:
        return StorageError(f"{file}: cannot be opened: {why}")
    return RecipeError(f"--storage {storage}: cannot be opened: {why}")


class Lease:
    """The trial that this process holds in the queue: a thread keeps it alive, and this keeps whether another
    process has failed it all the same, as happens to one that sleeps for longer than the grace period."""

    def __init__(self, study: Study) -> None:
        self._storage: Any = study._storage
        self._lost = threading.Event()

    @contextmanager
    def of(self, trial: Trial) -> Iterator[None]:
        """Hold ``trial`` for the length of the block."""
        ended, self._lost = threading.Event(), threading.Event()
        arguments = (trial._trial_id, ended, self._lost)
        threading.Thread(target=self._beat, args=arguments, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def check(self) -> None:
        """Raise Lost where the trial is another's."""
        if self._lost.is_set():
            raise Lost(_TAKEN)

    def _beat(self, trial_id: int, ended: threading.Event, lost: threading.Event) -> None:
        with suppress(StorageError):  # of a database that is gone: the trial itself meets it too
            while not ended.is_set() and not lost.is_set():
                self._storage.record_heartbeat(trial_id)
                if self._storage.get_trial(trial_id).state != TrialState.RUNNING:
                    lost.set()
                ended.wait(heartbeat_seconds())


def run_jobs(
    study: Study,
    jobs: Mapping[str, Any],
    run: Callable[[str], Row],
    lease: Lease | None = None,
    void: Collection[int] = (),
) -> None:
    """Run every job (by hash) that has not been finished, until all are, by whomever. ``void``: numbers of
    entries that do not count, since what they left is damaged."""
    lease = lease or Lease(study)
    unsigned: dict[int, float] = {}
    while True:
        release_dead(study, unsigned)
        entries = entries_by_id(study, void)
        missing = [job for job in jobs if not any(entry.state in _OPEN for entry in entries.get(job, []))]
        waiting = sum(entry.state == TrialState.WAITING for job in jobs for entry in entries.get(job, []))
        for job in missing[: max(0, _AHEAD - waiting)]:
            study.enqueue_trial({}, user_attrs={"id": job})
        entries = entries_by_id(study, void)
        states = {entry.state for job in jobs for entry in entries.get(job, [])}
        if TrialState.WAITING in states:
            _run_one(study, lambda trial: _objective(study, trial, jobs, run, void), lease)
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
    lease: Lease | None = None,
) -> None:
    """Let a TPE sampler choose points within ``ranges`` until ``number`` of them are finished."""
    lease = lease or Lease(study)

    def objective(trial: Trial) -> tuple[float, float]:
        _sign(trial)
        rows = run({key: _suggest(trial, key, values) for key, values in ranges.items()})
        trial.set_user_attr("rows", rows)
        return _values(rows)

    unsigned: dict[int, float] = {}
    while True:
        release_dead(study, unsigned)
        trials = study.get_trials(deepcopy=False)
        states = Counter(trial.state for trial in trials)
        if states[TrialState.COMPLETE] >= number:
            return
        if states[TrialState.COMPLETE] + states[TrialState.RUNNING] >= number:
            time.sleep(0.5)  # others are at the last ones; should they die, somebody has to go on
            continue
        # A sampler of its own for each trial, seeded by how many there were: resumed or not, the same.
        study.sampler = optuna.samplers.TPESampler(seed=(seed + len(trials)) % 2**32)
        _run_one(study, objective, lease)


def finished_rows(study: Study) -> list[Row]:
    """Return the rows of every finished trial, in the order in which they were begun."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [row for trial in trials for row in _rows_of(trial)]


def _rows_of(trial: FrozenTrial) -> list[Row]:
    """Return the rows of a trial; what the database holds is data of anybody's."""
    rows = trial.user_attrs.get("rows", [])
    if isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows
    ):
        return rows
    raise StorageError(f"trial {trial.number} of the queue: its 'rows' are no rows of trials")


def count_finished(study: Study) -> int:
    """Return how many rows ``finished_rows`` has, without a look at them."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sum(len(trial.user_attrs.get("rows", [])) for trial in trials)


def entries_by_id(study: Study, void: Collection[int] = ()) -> dict[str, list[FrozenTrial]]:
    entries: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.number not in void:
            entries.setdefault(str(trial.user_attrs.get("id", "")), []).append(trial)
    return entries


def release_dead(study: Study, unsigned: dict[int, float]) -> None:
    """Fail the trials whose process is gone, and put a search's points back into the queue.

    A process killed in the moment between taking a trial and signing it leaves one with neither an
    owner nor a heartbeat. ``unsigned`` is the caller's memory of when it first saw each of those: one
    that stays so is dead.
    """
    storage: Any = study._storage
    stale = set(storage._get_stale_trial_ids(study._study_id))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get("owner")
        if owner is None:
            first_seen = unsigned.setdefault(trial.number, time.monotonic())
            dead = time.monotonic() - first_seen > _SIGNED_WITHIN
        else:
            dead = trial._trial_id in stale or _is_dead(str(owner))
        if dead and _release(storage, trial._trial_id) and trial.params:
            study.enqueue_trial(trial.params)


def _run_one(study: Study, objective: Callable[[Trial], tuple[float, float]], lease: Lease) -> None:
    """Take a trial from the queue and run it; one that another process takes from this one is left to it."""
    storage: Any = study._storage
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, that heartbeats are its own loop's: here the lease beats
        trial = study.ask()
    try:
        with lease.of(trial):
            values = objective(trial)
        storage.set_trial_state_values(trial._trial_id, state=TrialState.COMPLETE, values=values)
    except UpdateFinishedTrialError:
        if storage.get_trial(trial._trial_id).state == TrialState.FAIL:  # else told, and the answer was lost
            _log.warning("%s", _TAKEN)
    except Lost as lost:
        ours = _release(storage, trial._trial_id)
        if str(lost) and ours:
            raise StorageError(f"{lost}; it is not of this queue: give both the same --storage") from lost
        if str(lost):
            _log.warning("%s", lost)
    except Unreachable:
        raise  # nothing can be given back
    except BaseException:  # Ctrl-C, say: this process lives on, so it gives its lease back itself
        with suppress(StorageError):
            _release(storage, trial._trial_id)
        raise


def _release(storage: Any, trial_id: int) -> bool:
    try:
        storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False  # finished, or another process was faster
    return True


def _objective(
    study: Study, trial: Trial, jobs: Mapping[str, Any], run: Callable[[str], Row], void: Collection[int]
) -> tuple[float, float]:
    _sign(trial)
    job = str(trial.user_attrs.get("id"))
    if job not in jobs:
        raise Lost  # drawn after another process took the last one, or of another version of the recipe
    rivals: Iterable[FrozenTrial] = entries_by_id(study, void)[job]
    if any(rival.number < trial.number and rival.state in _OPEN for rival in rivals):
        raise Lost
    row = run(job)
    trial.set_user_attr("rows", [row])
    return _values([row])


def _values(rows: list[Row]) -> tuple[float, float]:
    """What a search compares: mean validation score, larger being better, and mean non-zeros; the worst for a
    failure."""
    metrics = [row["metrics"] for row in rows]
    names = [f"score_{network}_validation" for network in ("retrained", "pruned", "dense")]
    scores = [next((of[name] for name in names if of.get(name) is not None), None) for of in metrics]
    pairs = zip(rows, scores, strict=True)
    better = [-1e18 if score is None else scale_of(row).oriented(score) for row, score in pairs]
    sizes = [of.get("nonzero", 1e18) for of in metrics]
    return sum(better) / len(rows), sum(sizes) / len(rows)


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
    if host != socket.gethostname() or not (pid.isascii() and pid.isdecimal()) or not started:
        return False  # another machine's, or one without /proc: only its heartbeat tells
    return _started(pid) != started


def _started(pid: str | int) -> str:
    """Return when a process started, in ticks; "" where there is none, or nothing to tell by."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else "?"
