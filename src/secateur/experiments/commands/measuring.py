"""What each format of a network costs: measured in processes that find no module but the interpreter's own
and secateur's, whatever the working folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import secateur
from secateur.data.dataset import Split
from secateur.errors import ModelError
from secateur.experiments.commands.inference import BATCHES, Format
from secateur.experiments.commands.making import PRUNED, Making
from secateur.experiments.commands.private import PrivateFolder
from secateur.storage import load_json, save_json
from secateur.task.classifying import predictions

_COMPILING = ("compiled", "sparse")  # engines whose first use on a machine is not like the next ones


def measure_formats(making: Making, seconds: float) -> list[dict[str, Any]]:
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


def _cost(made: Format, making: Making) -> dict[str, Any]:
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


_CHILD = """\
import sys
sys.path += sys.argv[2:]
from secateur.experiments.commands.inference import main
main(sys.argv[1])
"""


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
