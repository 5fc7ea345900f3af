"""``secateur deploy``: a finished trial in every format it can run in, and what each costs, measured.

What runs is written here, into a private folder, and run there by processes that find no module but the
interpreter's own and secateur's: a trial's folder, the one that the files go to and the working folder may
hold anything.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.deploy.folder import replacing_folder
from secateur.errors import StorageError
from secateur.experiments.checked_json import SCHEMA
from secateur.experiments.commands.finished import FinishedTrial, read_trial
from secateur.experiments.commands.making import COMPACTED, Making, OnStep, make_formats
from secateur.experiments.commands.measuring import measure_formats
from secateur.experiments.commands.opening import Named
from secateur.experiments.commands.private import private_folder
from secateur.experiments.commands.sources import PRUNED, Source, of_checkpoint, of_trial
from secateur.experiments.dense import dataset_of
from secateur.experiments.results import DEPLOYED, check_writable, versions
from secateur.experiments.schema import scale_of, score_of
from secateur.storage import lock, replacing, save_json

_LEFT = re.compile(r"\.(dense|compacted|packed|model|model-int8|deploy)(\.[a-z]+)?\.[a-z0-9_]{8}(\.old)?")
_CACHES = shutil.ignore_patterns("__pycache__")  # of what was compiled to be measured


def deploy(
    folder: Path,
    out: Path | None = None,
    *,
    model: Named | None = None,
    data: Named | None = None,
    seconds: float = 0.5,
    on_step: OnStep = lambda text: None,
) -> dict[str, Any]:
    """Write a finished trial's network in every format into ``out`` (default: ``deploy`` in its folder),
    measure each, and return what is also written there, and to the trial's own ``deploy``, as
    ``deploy.json``.

    Formats that come after the compacted network are made from it, where anything could be removed, else
    from the pruned one. Each is loaded once in a process of its own, which also runs the whole test split;
    latency is timed in one process, all formats in turn, for ``seconds`` each and batch size, on one
    thread. ``on_step`` hears what is being done. The files go where they belong when all has been measured.

    ``model`` and ``data``: a network and a data set of your own, which the trial's file names and cannot
    give (see ``read_trial``).

    Raises StorageError for a folder that is no finished trial (see ``read_trial``) or files that cannot
    be written. A format that cannot be made or run is a row with the reason.
    """
    trial = read_trial(folder, model, data)
    own = trial.folder / DEPLOYED
    target = own.parent if out is None else out.resolve()
    check_writable(target)
    source = of_trial(trial, dataset_of(trial.plan))
    of = {key: trial.row[key] for key in ("id", "method", "point", "seed")}

    def notes(rows: Mapping[str, Any]) -> list[str]:
        return _differences(trial, rows)

    result = _deployed(source, target, {"trial": of}, notes, seconds, on_step)
    if own.parent != target:
        try:
            check_writable(own.parent)
            with _alone(own.parent):
                save_json(own, result)
        except (OSError, StorageError) as error:
            on_step(f"not kept for the study's report: {error}")
    return result


def deploy_checkpoint(
    file: Path, out: Path, *, seconds: float = 0.5, on_step: OnStep = lambda text: None, **given: Any
) -> dict[str, Any]:
    """Do for a checkpoint of one's own, or a folder of transformers, what ``deploy`` does for a trial, into
    the folder ``out``; ``given``: what builds it and what it runs on, as ``of_checkpoint`` takes them."""
    target = out.resolve()
    check_writable(target)
    source = of_checkpoint(file, **given)
    return _deployed(
        source, target, {"source": source.label}, lambda rows: list(source.notes), seconds, on_step
    )


def _deployed(
    source: Source,
    target: Path,
    what: Mapping[str, Any],
    notes: Callable[[Mapping[str, Any]], list[str]],
    seconds: float,
    on_step: OnStep,
) -> dict[str, Any]:
    """Make and measure every format of a network, and put the files and ``deploy.json`` into ``target``."""
    with private_folder() as private:
        making = Making(source, private, target, on_step)
        making.folder.mkdir()
        make_formats(making)
        rows = measure_formats(making, seconds)
        result = {
            "schema": SCHEMA,
            **what,
            "environment": versions() | _packages() | {"device": "cpu", "threads": 1},
            "test": source.number,
            "score": None if source.task is None else score_of(source.task),
            "reference": source.reference,
            "seconds": seconds,
            "formats": rows,
            "notes": notes({row["name"]: row for row in rows}),
        }
        _publish(making, DEPLOYED.name, result)
    return result


def _publish(making: Making, table: str, result: Mapping[str, Any]) -> None:
    """Put what was made where it belongs, each file as a whole, and the table last."""
    names = [path.name for path in sorted(making.folder.iterdir())]
    with _alone(making.target):
        for left in making.target.glob(".*"):  # by one that was killed in here
            if _LEFT.fullmatch(left.name):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        if COMPACTED not in names:
            (making.target / COMPACTED).unlink(missing_ok=True)
        for name in names:
            made, target = making.folder / name, making.target / name
            if made.is_dir():
                with replacing_folder(target) as beside:
                    shutil.copytree(made, beside, dirs_exist_ok=True, ignore=_CACHES)
            else:
                with replacing(target) as temporary:
                    shutil.copyfile(made, temporary)
        save_json(making.target / table, result)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, where the system has such."""
    if os.name != "posix":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


def _differences(trial: FinishedTrial, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each network whose score here is not what the study recorded."""
    metrics, scale, lines = trial.row["metrics"], scale_of(trial.row), []
    retrained = metrics.get("score_retrained")
    recorded = {
        "dense, PyTorch": metrics.get("score_dense"),
        PRUNED: metrics.get("score_pruned") if retrained is None else retrained,
    }
    for name, before in recorded.items():
        now = rows[name].get("score")
        if before is not None and now is not None and now != before:
            lines.append(f"{name}: {scale.text(now)} here, {scale.text(before)} in the study's results")
    return lines


def _packages() -> dict[str, str]:
    """Return the versions of what runs the formats, of those that are here."""
    names = ("numpy", "scipy", "numba", "onnxruntime")
    return {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
