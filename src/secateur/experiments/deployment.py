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
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import secateur
from secateur.data.dataset import Dataset, Split
from secateur.deploy.folder import PACKAGE, check_free, put, write_folder
from secateur.deploy.onnx import export_onnx
from secateur.errors import MissingExtraError, ModelError, SecateurError, StorageError
from secateur.experiments.checkpoints import Named
from secateur.experiments.dense import calibration_batches, load_dataset
from secateur.experiments.finished import (
    FinishedTrial,
    dense_options,
    load_dense,
    load_pruned,
    pruned_options,
    read_trial,
)
from secateur.experiments.inference import BATCHES, Format
from secateur.experiments.private import PrivateFolder, private_folder
from secateur.experiments.results import DEPLOYED, check_writable, versions
from secateur.experiments.schema import SCHEMA
from secateur.storage import load_json, replacing, save_json
from secateur.structure.compact import compact
from secateur.structure.saved import save
from secateur.training.evaluate import predictions

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

OnStep = Callable[[str], None]
PRUNED = "pruned, PyTorch"
COMPACTED = "compacted.safetensors"
_LEFT = re.compile(r"\.(dense|compacted|packed|model|model-int8|deploy)(\.[a-z]+)?\.[a-z0-9_]{8}(\.old)?")
_CACHES = shutil.ignore_patterns("__pycache__")  # of what was compiled to be measured
_CALIBRATION = 512  # training examples that int8 reads
_COMPILING = ("compiled", "sparse")  # engines whose first use on a machine is not like the next ones


@dataclass
class _Making:
    """The formats of one trial so far: those that were made, and of the others why not, in order.

    ``folder``: where they are made and run, in ``private``; ``target``: where they go in the end.
    """

    trial: FinishedTrial
    data: Dataset
    private: PrivateFolder
    target: Path
    on_step: OnStep
    formats: dict[str, Format | str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.private.path / "made"

    @property
    def example(self) -> Tensor:
        return self.data.validation.inputs[:2]

    def add(
        self, name: str, engine: str, make: Callable[[], Path], options: Mapping[str, Any] | None = None
    ) -> None:
        """Make a file, and take it as a format; an error of secateur's is its row instead."""
        self.on_step(f"making {name}")
        try:
            path = make()
        except SecateurError as error:
            self.formats[name] = str(error)
            return
        model = "" if options is None else self.trial.plan.model.name
        self.formats[name] = Format(name, engine, str(path), model, options or {})
        self.on_step(f"  {self.shown(path)}")

    def shown(self, path: Path) -> Path:
        """Return where a file is in the end."""
        return self.target / path.relative_to(self.folder) if path.is_relative_to(self.folder) else path


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
    give (see :func:`read_trial`).

    Raises StorageError for a folder that is no finished trial (see :func:`read_trial`) or files that cannot
    be written. A format that cannot be made or run is a row with the reason.
    """
    trial = read_trial(folder, model, data)
    own = trial.folder / DEPLOYED
    target = own.parent if out is None else out.resolve()
    check_writable(target)
    with private_folder() as private:
        making = _Making(trial, load_dataset(trial.plan.data), private, target, on_step)
        making.folder.mkdir()
        _make(making)
        rows = _measured(making, seconds)
        result = {
            "schema": SCHEMA,
            "trial": {key: trial.row[key] for key in ("id", "method", "point", "seed")},
            "environment": versions() | _packages() | {"device": "cpu", "threads": 1},
            "test": len(making.data.test),
            "seconds": seconds,
            "formats": rows,
            "notes": _differences(trial, {row["name"]: row for row in rows}),
        }
        _publish(making, own.name, result)
    if own.parent != target:
        try:
            check_writable(own.parent)
            with _alone(own.parent):
                save_json(own, result)
        except (OSError, StorageError) as error:
            on_step(f"not kept for the study's report: {error}")
    return result


def _publish(making: _Making, table: str, result: Mapping[str, Any]) -> None:
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
                beside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=making.target))
                shutil.copytree(made, beside, dirs_exist_ok=True, ignore=_CACHES)
                put(beside, target)
            else:
                with replacing(target) as temporary:
                    shutil.copyfile(made, temporary)
        save_json(making.target / table, result)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, where the system has such."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _make(making: _Making) -> None:
    """Write every file, dense first."""
    trial, folder, example = making.trial, making.folder, making.example
    config = trial.plan.config
    calibration = calibration_batches(making.data.train, _CALIBRATION, trial.row["seed"])

    def dense(name: str, write: Callable[[nn.Module, Path], object]) -> Path:
        write(load_dense(trial, trial.dense_file()), folder / name)
        return folder / name

    making.add("dense, PyTorch", "torch", lambda: dense("dense.safetensors", save), dense_options(config))
    making.add(
        "dense, ONNX",
        "onnxruntime",
        lambda: dense("dense.onnx", lambda network, path: export_onnx(network, example, path)),
    )
    small = pruned = load_pruned(trial)
    options, file = pruned_options(config), trial.network_file
    making.add(PRUNED, "torch", lambda: file, options)
    compacted = folder / COMPACTED

    def removed() -> Path:
        nonlocal small, file
        network, proof = compact(pruned, example)
        if not proof.removed:
            raise ModelError(f"nothing can be removed from {file.name}: no unit in it is dead")
        save(network, compacted)
        small, file = network, compacted
        before, after = proof.parameters
        making.notes["compacted, PyTorch"] = (
            f"{after:,} of {before:,} parameters, proved equal to the pruned network to "
            f"{max(proof.max_error, proof.max_error_randomised):.1e}; sparse, packed and ONNX are made of it"
        )
        return compacted

    making.add("compacted, PyTorch", "torch", removed, options)
    making.add("sparse, PyTorch", "sparse", lambda: file, options)
    making.notes["sparse, PyTorch"] = (
        f"has no file of its own: sparsify makes it from {file.name} at every start, for the batch size that "
        "it runs, and the load time is mostly that of timing each layer's engines"
    )

    def packed() -> Path:
        check_free(making.target / "packed")
        return write_folder(small, example, folder / "packed") / "model.secateur"

    making.add("packed, numpy", "numpy", packed)
    made = making.formats["packed, numpy"]
    if isinstance(made, Format):
        beside = Path(made.file).parent
        code = sum(path.stat().st_size for path in (beside / "run.py", *beside.glob(f"{PACKAGE}/*.py")))
        making.notes["packed, numpy"] = f"run.py and {PACKAGE} beside it are {code:,} bytes more"
    making.add("packed, compiled", "compiled", lambda: _compilable(made))

    def onnx(name: str, **int8: Any) -> Path:
        done = export_onnx(small, example, folder / name, **int8)
        if done.layers:
            making.notes["ONNX int8"] = f"int8 in {done.layers[0]} of {done.layers[1]} layers"
        return folder / name

    making.add("ONNX", "onnxruntime", lambda: onnx("model.onnx"))
    making.add("ONNX int8", "onnxruntime", lambda: onnx("model-int8.onnx", int8=True, data=calibration))


def _compilable(packed: Format | str) -> Path:
    if isinstance(packed, str):
        raise ModelError(packed)
    if importlib.util.find_spec("numba") is None:
        raise MissingExtraError("numba", "fast")
    return Path(packed.file)


# -- measuring -----------------------------------------------------------------------------------------


def _measured(making: _Making, seconds: float) -> list[dict[str, Any]]:
    """Return a row a format, with figures or the reason why there are none."""
    rows: dict[str, dict[str, Any]] = {}
    folder, test, validation = making.private.path, making.data.test, making.data.validation
    np.save(folder / "test.npy", test.inputs.numpy())
    # The speed and the memory are no test figures: nothing else needs the test split before its time.
    several = torch.arange(max(BATCHES)) % len(validation)
    np.save(folder / "examples.npy", validation.inputs[several].numpy())
    outputs: dict[str, Tensor] = {}
    for name, made in making.formats.items():
        rows[name] = {"name": name, "reason": made if isinstance(made, str) else None}
        if isinstance(made, Format):
            making.on_step(f"measuring {name}")
            rows[name] |= _cost(made, making)
        if isinstance(made, Format) and rows[name]["reason"] is None:
            outputs[name] = predictions(torch.from_numpy(np.load(folder / "outputs.npy")))
    running = [made for name, made in making.formats.items() if name in outputs and isinstance(made, Format)]
    making.on_step(f"timing {len(running)} formats in turn")
    times = _asked(making.private, running, seconds=seconds)
    if "error" in times:
        raise ModelError(f"the formats cannot be timed together: {times['error']}")
    for name, chosen in outputs.items():
        rows[name] |= {"latency": times[name], **_agreement(chosen, outputs.get(PRUNED), test)}
    for name, note in making.notes.items():
        if rows[name]["reason"] is None:
            rows[name]["note"] = note
    return list(rows.values())


def _cost(made: Format, making: _Making) -> dict[str, Any]:
    """Return the part of a row that a process of the format's own measures."""
    folder = making.private.path
    given = {"test": str(folder / "test.npy"), "outputs": str(folder / "outputs.npy")}
    answer = _asked(making.private, [made], **given)
    if made.engine in _COMPILING and "error" not in answer:
        first = answer["load_s"]
        answer = _asked(making.private, [made], **given)
        if made.engine == "compiled" and first > 2 * answer.get("load_s", first):
            making.notes[made.name] = f"the first start on a machine compiles: here {first:.0f} s"
    if "error" in answer:
        return {"reason": answer["error"]}
    path = Path(made.file)
    file = os.path.relpath(making.shown(path), making.target)
    return {"file": file, "bytes": path.stat().st_size, **answer}


_CHILD = (
    "import sys; sys.path += sys.argv[2:]; from secateur.experiments.inference import main; main(sys.argv[1])"
)


def _asked(private: PrivateFolder, formats: Sequence[Format], **request: Any) -> dict[str, Any]:
    """Return what a new process answers, or ``{"error": ...}`` where it died."""
    folder = private.path
    question, answer = folder / "request.json", folder / "answer.json"
    answer.unlink(missing_ok=True)
    request |= {"examples": str(folder / "examples.npy"), "answer": str(answer)}
    save_json(question, request | {"formats": [asdict(made) for made in formats]})
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    own = any(":" in made.model for made in formats)  # the caller's module: then its places are trusted too
    done = subprocess.run(
        [sys.executable, "-I", "-c", _CHILD, str(question), *_places(own)],
        cwd=None if own else folder,  # numba reads its settings there
        env=os.environ | one,
        pass_fds=private.held,
        capture_output=True,
        text=True,
        check=False,
    )
    if not answer.is_file():
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"error": f"its process died: {said[-1]}"}
    return load_json(answer)


def _places(own: bool) -> list[str]:
    """Return where a process looks for modules after the interpreter's own places: where the packages that it
    needs came from, or everywhere that this process looks."""
    if own:
        return [os.path.abspath(place) for place in sys.path]
    found = {Path(str(package.__file__)).parents[1] for package in (secateur, torch, np)}
    return sorted(map(str, found))


def _agreement(chosen: Tensor, pruned: Tensor | None, test: Split) -> dict[str, Any]:
    same = None if pruned is None else int((chosen == pruned).sum())
    return {"accuracy": int((chosen == test.labels).sum()) / len(test), "same": same}


def _differences(trial: FinishedTrial, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each network whose accuracy here is not what the study recorded."""
    metrics, lines = trial.row["metrics"], []
    retrained = metrics.get("accuracy_retrained")
    recorded = {
        "dense, PyTorch": metrics.get("accuracy_dense"),
        PRUNED: metrics.get("accuracy_pruned") if retrained is None else retrained,
    }
    for name, before in recorded.items():
        now = rows[name].get("accuracy")
        if before is not None and now is not None and now != before:
            lines.append(f"{name}: {100 * now:.2f} % here, {100 * before:.2f} % in the study's results")
    return lines


def _packages() -> dict[str, str]:
    """Return the versions of what runs the formats, of those that are here."""
    names = ("numpy", "scipy", "numba", "onnxruntime")
    return {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
