"""A study: every point of a recipe's sweep with every seed, by one process or many."""

from __future__ import annotations

import ctypes
import errno
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import NonFiniteError, RecipeError, SecateurError, StepError, StorageError, WriteError
from secateur.experiments import queue
from secateur.experiments.claim import RESULT, Claim, whole_result
from secateur.experiments.dense import hash_of, seconds_an_epoch
from secateur.experiments.plan import Plan
from secateur.experiments.recipe import Recipe, check_factories, load_recipe
from secateur.experiments.results import label_of, read_results, write_results
from secateur.experiments.schema import validated_row
from secateur.experiments.trial import failed_row, run_claimed, trial_id
from secateur.measure.size import bytes_dense
from secateur.storage import load_json, own_folder, save_json, sweep
from secateur.training.fit import Epoch

OnTrial = Callable[[int, int, str], None]
OnEpoch = Callable[[str], None]
Row = dict[str, Any]
_WRITE_EVERY = 10.0  # seconds
_STUDY = "study.json"  # whose folder it is
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_NO_FOLDER = (errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
_GOES_ON = "once it can be written, the same command goes on where this one stopped"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Places:
    """A study's folder, the URL of its queue where that is not in there, and the folder of studies beside."""

    out: Path
    storage: str | None
    shared: Path | None

    def open_queue(self, recipe: Recipe) -> queue.Study:
        return queue.open_study(study_name(recipe), self.storage, self.out)


def run_study(
    recipe: Recipe,
    out: Path,
    *,
    workers: int = 1,
    storage: str | None = None,
    shared: Path | None = None,
    on_trial: OnTrial = lambda index, total, label: None,
    on_epoch: OnEpoch = lambda text: None,
) -> dict[str, Any]:
    """Run every trial of ``recipe`` that is not finished yet; write and return the results.

    ``workers`` processes share the trials, and so does every machine that runs the same command
    with the same ``storage`` (an SQLAlchemy URL; default: SQLite in ``out``). Dense networks are kept in
    ``out/dense``; with ``shared``, a folder of studies, in ``shared/dense`` for all of them, and a trial
    that another of them has finished is taken over. A finished trial is never run again; one that was killed
    goes on from its last checkpoint.

    A trial whose training diverges is reported as failed; any other error stops the study, and
    what is finished stays. Raises RecipeError where ``out`` is another recipe's.
    """
    if workers < 1:
        raise RecipeError(f"--workers {workers}: it counts processes, from 1")
    check_factories(recipe)
    with _retold():
        try:
            if out.is_dir() and not os.access(out, os.W_OK):
                return _finished_before(recipe, out)
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
            raise RecipeError(f"--out {out}: no folder can be there: {error.strerror}") from error
        _belongs(recipe.name, out)
        sweep(out)
        places, total = _Places(out, storage, shared), count_trials(recipe)
        study = places.open_queue(recipe)
        if workers == 1:
            _work(recipe, places, study, on_trial, on_epoch)
        else:
            _run_processes(recipe, workers, places, lambda done, label: on_trial(done, total, label))
        on_trial(total, total, "done")
        rows = _ordered(recipe, queue.finished_rows(study))
        others = {path.name for path in (out / "trials").glob("*")} - {row["id"] for row in rows}
        if others:
            _log.warning(
                "%s: results.json holds the %d trials of these settings; %d of others lie in trials too",
                out, len(rows), len(others),
            )  # fmt: skip
        return write_results(recipe, rows, out)


@contextmanager
def _retold() -> Iterator[None]:
    """Tell of a file that cannot be written in one line, and that nothing is lost."""
    try:
        yield
    except WriteError as error:
        raise WriteError(f"{error}; {_GOES_ON}") from error
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise WriteError(f"{error.filename or 'a file'}: {error.strerror}; {_GOES_ON}") from error


def _belongs(name: str, out: Path) -> None:
    """Note that a folder is a recipe's, by its name; raises RecipeError where it is another's."""
    for file in (out / _STUDY, out / "results.json"):  # early versions wrote only the latter
        with suppress(StorageError):
            found = load_json(file)
            owner = found.get("recipe") if isinstance(found, dict) else None
            if isinstance(owner, str) and owner != name:
                raise RecipeError(
                    f"--out {out}: holds the study {owner!r}, not {name!r}; give this one a folder of its own"
                )
            if owner == name and file.name == _STUDY:
                return
    save_json(out / _STUDY, {"schema": 1, "recipe": name})


def _finished_before(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Return the results that a folder holds which cannot be written to, where no trial is missing."""
    missing = WriteError(f"{out}: cannot be written to, and not all trials are finished")
    if not (out / "results.json").exists():
        raise missing
    results = read_results(out)
    rows = {row.get("id"): row for row in results["trials"]}
    if recipe.spec.sampler == "grid":
        names = [trial_id(plan, seed) for plan, seed in recipe.jobs]
        whole = all(name in rows for name in names)
        results["trials"] = [rows[name] for name in names if name in rows]
    else:
        whole = len(rows) >= count_trials(recipe)
    if results["recipe"] != recipe.name or not whole:
        raise missing
    return results


def study_name(recipe: Recipe) -> str:
    """Return the queue's name: a grid's trials tell themselves apart, a search is one of its own for
    every configuration and set of seeds."""
    if recipe.spec.sampler == "grid":
        return recipe.name
    configs = [plan.config for plan in recipe.plans]
    return f"{recipe.name}-tpe-{hash_of([configs, recipe.ranges, recipe.seeds])}"


def count_trials(recipe: Recipe) -> int:
    if recipe.spec.sampler == "grid":
        return len(recipe.jobs)
    return recipe.spec.trials * len(recipe.seeds)


def describe(recipe: Recipe, out: Path) -> str:
    """Return what a run would do: its trials, the epochs they train, the time and the disk they take."""
    check_factories(recipe)
    listed = recipe.jobs if recipe.spec.sampler == "grid" else []
    lines = [label_of(plan.method, plan.point, seed) for plan, seed in listed]
    idle = [label_of(plan.method, plan.point) for plan in recipe.plans if not plan.seeds]
    lines += [f"{point}: no trial, none of the seeds {recipe.seeds} is one of its own" for point in idle]
    share = count_trials(recipe) / len(recipe.jobs)
    by_dense: dict[str, list[tuple[Plan, int]]] = {}
    for plan, seed in recipe.jobs:
        by_dense.setdefault(repr((plan.data, plan.model, plan.train)), []).append((plan, seed))
    training, retraining, seconds, size = 0, 0, 0.0, 0.0
    for jobs in by_dense.values():
        first, seeds = jobs[0][0], len({seed for _, seed in jobs})
        each, network = seconds_an_epoch(first)
        own = 0 if first.model.weights is not None else first.train.epochs  # nothing is left to train
        after = share * sum(plan.epochs for plan, _ in jobs)
        training += own * seeds
        retraining += round(after)
        seconds += each * (own * seeds + after)
        # a network and its masks for each trial, one dense network for each seed
        size += (len(jobs) * share * 33 / 32 + seeds) * bytes_dense(network)
    lines += [
        f"{count_trials(recipe)} trials into {out}: {training} epochs of dense training at most, "
        f"{retraining} of retraining",
        f"about {seconds / 60:.1f} minutes of one worker, {size / 1e6:.1f} MB of disk",
    ]
    return "\n".join(lines)


def _work(recipe: Recipe, places: _Places, study: queue.Study, on_trial: OnTrial, on_epoch: OnEpoch) -> None:
    """Take trials from the queue until all of the recipe's are finished."""
    out, total, lease = places.out, count_trials(recipe), queue.Lease(study)

    def heard(text: str) -> None:
        lease.check()
        on_epoch(text)

    def run_one(plan: Plan, seed: int) -> Row:
        on_trial(queue.count_finished(study), total, label_of(plan.method, plan.point, seed))
        return finished_or_run(plan, seed, out, places.shared, heard)

    if recipe.spec.sampler == "grid":
        jobs = {trial_id(plan, seed): (plan, seed) for plan, seed in recipe.jobs}

        written = time.monotonic()

        def run(job: str) -> Row:
            nonlocal written
            row = run_one(*jobs[job])
            if time.monotonic() - written > _WRITE_EVERY:  # a study of a thousand trials is megabytes
                write_results(recipe, _ordered(recipe, [*queue.finished_rows(study), row]), out)
                written = time.monotonic()
            return row

        queue.run_jobs(study, jobs, run, lease, _damaged(study, out))
        return

    def run_point(point: dict[str, Any]) -> list[Row]:
        return [run_one(recipe.plan_at(point), seed) for seed in recipe.seeds]

    queue.search(study, recipe.spec.trials, recipe.ranges, recipe.seeds[0], run_point, lease)


def finished_or_run(
    plan: Plan, seed: int, out: Path, shared: Path | None, on_epoch: OnEpoch = lambda text: None
) -> Row:
    """Return a trial's row: of its folder in ``out``, of a study's beside in ``shared``, or by running it."""
    name = trial_id(plan, seed)

    scale = plan.task.build().score

    def say(step: str, row: Epoch) -> None:
        on_epoch(f"{step} epoch {row.epoch}: validation {scale.text(row.validation_score)}")

    with Claim(own_folder(out / "trials") / name) as claim:
        row = _kept(claim) or _taken_over(claim, shared)
        if row is not None:
            return row
        try:
            return run_claimed(plan, seed, claim, (shared or out) / "dense", say)
        except (NonFiniteError, StepError) as error:
            row = failed_row(plan, seed, str(error))
            claim.finish(row, {})
            return row


def _kept(claim: Claim) -> Row | None:
    try:
        row = claim.finished()
        return None if row is None else validated_row(row, str(claim.folder / RESULT))
    except StorageError as error:
        _log.warning("%s; the trial runs again", error)
        return None


def _taken_over(claim: Claim, shared: Path | None) -> Row | None:
    """Return the row of the same trial in a study beside, with its files copied, or None."""
    if shared is None:
        return None
    real = shared.resolve()
    for other in real.glob(f"*/trials/{claim.folder.name}/result.json"):
        if other.resolve() == other and other.parent != claim.folder.resolve():  # no link on the way
            with suppress(StorageError, OSError):  # it may be removed under our eyes
                validated_row(load_json(other), str(other))
                return claim.take_over(other.parent)
    return None


def _damaged(study: queue.Study, out: Path) -> set[int]:
    """Return the numbers of the queue's finished trials whose folders do not hold what they say."""
    found: set[int] = set()
    for name, entries in queue.entries_by_id(study).items():
        folder = out / "trials" / name
        if not (name and (folder / RESULT).exists()):
            continue  # who removed it to save space keeps the row
        try:
            whole_result(folder)
        except StorageError:  # is said where the trial runs again
            found |= {entry.number for entry in entries if entry.state.is_finished()}
    return found


def _ordered(recipe: Recipe, rows: list[Row]) -> list[Row]:
    """Return the rows, which may be of anybody's database, checked and in the order of the sweep; a search's
    in the order in which they ran."""
    rows = [validated_row(row, f"the queue of {recipe.name}") for row in rows]
    if recipe.spec.sampler != "grid":
        return rows
    by_id = {row["id"]: row for row in rows}
    names = [trial_id(plan, seed) for plan, seed in recipe.jobs]
    return [by_id[name] for name in names if name in by_id]


def _run_processes(
    recipe: Recipe, workers: int, places: _Places, on_done: Callable[[int, str], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    arguments = (recipe.path, recipe.settings, list(recipe.seeds), places, os.getpid(), errors)
    processes = [context.Process(target=_worker, args=arguments, daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    study, done = places.open_queue(recipe), -1
    try:
        while any(process.is_alive() for process in processes):
            if not errors.empty():
                raise SecateurError(errors.get())
            if queue.count_finished(study) != done:  # a line in a log each time it changes
                done = queue.count_finished(study)
                on_done(done, f"{workers} workers")
            time.sleep(0.3)
        if not errors.empty():
            raise SecateurError(errors.get())
        if any(process.exitcode for process in processes):
            codes = ", ".join(str(process.exitcode) for process in processes)
            raise SecateurError(f"a worker died (exit codes {codes}); run the same command again to go on")
    finally:
        for process in processes:
            process.terminate()


def _worker(
    path: str, settings: dict[str, Any], seeds: list[int], places: _Places, parent: int, errors: Any
) -> None:
    _die_with(parent)
    try:
        with _retold():
            recipe = load_recipe(path, settings, seeds)
            study = places.open_queue(recipe)
            _work(recipe, places, study, lambda index, total, label: None, lambda text: None)
    except SecateurError as error:
        errors.put(str(error))
    except Exception as error:
        errors.put(f"a worker failed: {type(error).__name__}: {error}")
        raise


def _die_with(parent: int) -> None:
    """On Linux, ask for SIGTERM when the parent is gone, so that no worker outlives its study."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)
