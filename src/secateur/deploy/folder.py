"""A folder that runs a pruned network where there is no PyTorch: the packed file, ``run.py``, and a copy of
``secateur.runtime``, which it runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from secateur.deploy.packing import pack
from secateur.deploy.program.export import Program, in_order, program_of
from secateur.errors import ModelError, StorageError
from secateur.graph.capture import arguments
from secateur.graph.compare import tensors_in
from secateur.graph.names import unwrapped
from secateur.running import run_once
from secateur.runtime.runner import CHECK_TOLERANCE, MODEL_FILE, check_paths, execute, off_by
from secateur.runtime.unpacking import read
from secateur.storage import as_others, as_path

PACKAGE = "secateur_runtime"  # the copy of secateur.runtime beside run.py
_OURS = (MODEL_FILE, "run.py", PACKAGE, "kernels.py")  # the last where an earlier version wrote it
_RUN = '''"""Runs the packed network beside this file; needs Python 3.11 and numpy. Written by secateur.

    python run.py --input x.npy --output y.npy      run.py --help shows the rest
"""

import gc
import os
import sys
from importlib import import_module, util

# What numpy does when it is imported is most of what one inference costs. Its threads would double it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE, NAME = os.path.dirname(os.path.abspath(__file__)), "{name}"
collects = gc.isenabled()
gc.disable()
if NAME not in sys.modules:  # found by its path: what else lies here stays out of it
    spec = util.spec_from_file_location(NAME, os.path.join(HERE, "{package}", "__init__.py"))
    sys.modules[NAME] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
runner = import_module(NAME + ".runner")
if collects:
    gc.enable()
Network = runner.Network

if __name__ == "__main__":
    sys.exit(runner.main(HERE))
'''


def write_folder(
    model: nn.Module,
    example_inputs: Any,
    folder: str | Path,
    *,
    values: str | int = "lossless",
    compression: str = "lzma",
    check_inputs: Any = None,
    tolerance: float | None = None,
) -> Path:
    """Write a folder that runs the network where there is no PyTorch, and return its path. The folder appears
    at once and whole, after its ``run.py --check`` has passed in a process of its own; one that this function
    wrote is replaced.

    It holds the packed network ``model.secateur``, ``run.py`` with what it runs in ``secateur_runtime``, and
    ``check_input.npy`` with the outputs that it must give, ``check_output.npy``: the model's or, where
    ``values`` loses something, those of the packed weights; then the file says how far they are from the
    model's.

    Args:
        model: the network, dense, masked or compacted; it is run in eval mode and not changed.
        example_inputs: a tensor, a tuple or a dict of keyword arguments, the first dim of each the batch.
        folder: the folder to write.
        values: as ``secateur.pack`` takes them.
        compression: as ``secateur.pack`` takes it.
        check_inputs: what ``run.py --check`` runs (default: the example).
        tolerance: how far off from the model the outputs may be, relative to the largest one (default: 16
            times what its own float32 is off from its float64, from 1e-4 to 0.01).

    Returns:
        The path of the folder.

    Raises:
        ModelError: as ``secateur.deploy.program.export.program_of`` does, or where the check fails.
        StorageError: for a folder that holds other files.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU())
        >>> folder = sc.write_folder(model, torch.randn(2, 6), tempfile.mkdtemp() + "/net")
        >>> (folder / "run.py").exists()
        True
    """
    target = as_path(folder)
    check_free(target)
    program = program_of(model, example_inputs, tolerance)
    args, kwargs = arguments(example_inputs if check_inputs is None else check_inputs, None)
    inputs = in_order(program.graph, args, kwargs)
    expected = run_once(unwrapped(model), args, kwargs=kwargs, what="check inputs")
    outputs = [t.detach().cpu().numpy() for t in tensors_in(expected)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(target) as made:
        _pack(program, made, values, compression, {})
        if values != "lossless":
            packed = execute(program.graph, read(made / MODEL_FILE)[0], inputs)
            moved = max(off_by(*pair) for pair in zip(outputs, packed, strict=True))
            outputs = packed
            _pack(program, made, values, compression, {"values": values, "deviation": moved})
        _write_runner(made)
        for kind, arrays in (("input", inputs), ("output", outputs)):
            for path, array in zip(check_paths(str(made), kind, len(arrays)), arrays, strict=True):
                np.save(path, np.ascontiguousarray(array))
        _check(made)
    return target


def _write_runner(folder: Path) -> None:
    """Copy ``secateur.runtime``, and write the ``run.py`` that imports it under a name of its contents: two
    folders that are used in one process share it where it is the same, and there alone."""
    package, digest = folder / PACKAGE, 0
    package.mkdir()
    for file in sorted(files("secateur.runtime").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            content = file.read_bytes()
            digest = zlib.crc32(content, zlib.crc32(file.name.encode(), digest))
            (package / file.name).write_bytes(content)
    run = _RUN.format(name=f"{PACKAGE}_{digest:08x}", package=PACKAGE)
    (folder / "run.py").write_text(run, encoding="utf-8")


def _pack(program: Program, folder: Path, values: str | int, compression: str, notes: dict[str, Any]) -> None:
    metadata = {"program": program.graph, **notes}
    if program.rounding.allowed != CHECK_TOLERANCE:
        metadata["tolerance"] = program.rounding.allowed
    pack(program.tensors, folder / MODEL_FILE, values=values, compression=compression, metadata=metadata)


def _check(folder: Path) -> None:
    command = [sys.executable, "-I", str(folder / "run.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
        raise ModelError(f"run.py --check fails in a process of its own: {said[-1]}")


def check_free(target: Path) -> None:
    """Raise StorageError where ``target`` is what ``write_folder`` has not written, or a link."""
    if target.is_symlink():
        raise StorageError(f"{target} is a link, which is not followed; name a new folder")
    if not target.exists():
        return
    found = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    other = {name for name in found if name not in _OURS and not name.startswith("check_")}
    if found and MODEL_FILE not in found:
        other |= found
    if not target.is_dir() or other - {"__pycache__"}:
        raise StorageError(f"{target} holds other files, {sorted(other)[0]!r} for one; name a new folder")


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside ``target`` that takes its place on success and vanishes on failure."""
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield made
        as_others(made, 0o777)
        old = made.with_name(made.name + ".old")
        if target.exists():
            target.rename(old)
        made.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)
