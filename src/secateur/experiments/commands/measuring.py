"""What each format of a network costs: measured in processes that find no module but the interpreter's own
and secateur's, whatever the working folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import secateur
from secateur.errors import ModelError
from secateur.experiments.commands.agreeing import compared
from secateur.experiments.commands.inference import Format
from secateur.experiments.commands.making import Making
from secateur.experiments.commands.private import PrivateFolder
from secateur.experiments.commands.sources import Source
from secateur.running import arguments
from secateur.storage import load_json, save_json

_OUTPUTS = "outputs.npz"
_COMPILING = ("compiled", "sparse")  # engines whose first use on a machine is not like the next ones


def measure_formats(making: Making, seconds: float) -> list[dict[str, Any]]:
    """Return a row a format, with figures or the reason why there are none."""
    rows: dict[str, dict[str, Any]] = {}
    source = making.source
    test = written(making.private.path / "test", source.test)
    examples = written(making.private.path / "examples", source.timed)
    asked = _Asked(making.private, examples, source.own)
    outputs: dict[str, list[Tensor]] = {}
    for name, made in making.formats.items():
        rows[name] = {"name": name, "reason": made if isinstance(made, str) else None}
        if isinstance(made, Format):
            making.on_step(f"measuring {name}")
            rows[name] |= _cost(made, making, asked, test)
        if isinstance(made, Format) and rows[name]["reason"] is None:
            outputs[name] = _read(making.private.path / _OUTPUTS)
    running = [made for name, made in making.formats.items() if name in outputs and isinstance(made, Format)]
    making.on_step(f"timing {len(running)} formats in turn")
    times = asked.of(running, seconds=seconds)
    if "error" in times:
        raise ModelError(f"the formats cannot be timed together: {times['error']}")
    for name, given in outputs.items():
        rows[name] |= {"latency": times[name], "score": _score(given, source)}
        rows[name] |= _agreement(given, outputs.get(source.reference), source.number, source.choices)
    for name, note in making.notes.items():
        if rows[name]["reason"] is None:
            rows[name]["note"] = note
    return list(rows.values())


def _cost(made: Format, making: Making, asked: _Asked, test: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a row that a process of the format's own measures."""
    given = {"test": test, "outputs": str(making.private.path / _OUTPUTS)}
    answer = asked.of([made], **given)
    if made.engine in _COMPILING and "error" not in answer:
        first = answer["load_s"]
        answer = asked.of([made], **given)
        if made.engine == "compiled" and first > 2 * answer.get("load_s", first):
            making.notes[made.name] = f"the first start on a machine compiles: here {first:.1f} s"
    if "error" in answer:
        return {"reason": answer["error"]}
    path = Path(made.file)
    file = os.path.relpath(making.shown(path), making.target)
    return {"file": file, "bytes": path.stat().st_size, **answer}


_CHILD = """\
import sys
sys.path += sys.argv[2:]
from secateur.experiments.commands.inference import main
main(sys.argv[1])
"""


@dataclass(frozen=True)
class _Asked:
    """Processes that answer in a private folder; ``own``: they find modules where this one does."""

    private: PrivateFolder
    examples: Mapping[str, Any]
    own: bool

    def of(self, formats: Sequence[Format], **request: Any) -> dict[str, Any]:
        """Return what a new process answers, or ``{"error": ...}`` where it died."""
        folder = self.private.path
        question, answer = folder / "request.json", folder / "answer.json"
        answer.unlink(missing_ok=True)
        request |= {"examples": self.examples, "answer": str(answer)}
        save_json(question, request | {"formats": [asdict(made) for made in formats]})
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, str(question), *_places(self.own)],
            cwd=None if self.own else folder,  # numba reads its settings there
            env=os.environ | one,
            pass_fds=self.private.held,
            capture_output=True,
            text=True,
            check=False,
        )
        if not answer.is_file():
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return {"error": f"its process died: {said[-1]}"}
        return load_json(answer)


def written(folder: Path, inputs: Any) -> dict[str, Any]:
    """Write a call's arguments, a file each, and return which they are, as a request names them."""
    folder.mkdir()
    args, named = arguments(inputs)

    def file(index: int, tensor: Tensor) -> str:
        np.save(folder / f"{index}.npy", tensor.numpy())
        return str(folder / f"{index}.npy")

    files = [file(index, tensor) for index, tensor in enumerate([*args, *named.values()])]
    return {"args": files[: len(args)], "named": dict(zip(named, files[len(args) :], strict=True))}


def _read(file: Path) -> list[Tensor]:
    with np.load(file) as arrays:
        return [torch.from_numpy(arrays[name]) for name in arrays.files]


def _places(own: bool) -> list[str]:
    """Return where a process looks for modules after the interpreter's own places: where the packages that it
    needs came from, or everywhere that this process looks."""
    if own:
        return [os.path.abspath(place) for place in sys.path]
    found = {Path(str(package.__file__)).parents[1] for package in (secateur, torch, np)}
    return sorted(map(str, found))


def _score(outputs: list[Tensor], source: Source) -> float | None:
    """Return the task's score of outputs; None without labels, or where a network alone gives its loss."""
    if source.task is None or source.labels is None or not source.task.in_eval:
        return None
    meter = source.task.score.meter()
    meter.update(outputs[0] if len(outputs) == 1 else tuple(outputs), source.labels)
    return float(meter.compute())


def _agreement(
    outputs: list[Tensor], reference: list[Tensor] | None, number: int, choices: bool
) -> dict[str, Any]:
    """Return for how many examples a format chooses as the network in PyTorch does, where outputs are scores
    of classes, and by how much its outputs differ from that one's."""
    if reference is None:
        return {"same": None, "error": None}
    found = compared([reference], [outputs], [number])
    return {"same": found.same if choices else None, "error": found.error}
