"""A folder that runs a pruned network where there is no PyTorch: the packed file and one ``run.py``.

The compiled kernels are a file of their own, ``kernels.py``: ``run.py`` does without it, and would be read
and translated at every start with it.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from secateur.deploy.graph import Program, in_order, program_of
from secateur.deploy.packing import pack
from secateur.deploy.runner import KERNELS_FILE, MODEL_FILE, check_paths, execute, off_by
from secateur.deploy.unpacking import read
from secateur.errors import ModelError, StorageError
from secateur.graph.capture import arguments
from secateur.graph.compare import tensors_in
from secateur.graph.names import unwrapped
from secateur.running import run_once

MODULES = ("unpacking", "activations", "operators", "runner")
KERNELS = ("row_kernel", "kernels", "workspace", "convolution", "instructions", "planning")
_HEADER = '''"""Runs the packed network beside this file; needs Python 3.11 and numpy. Written by secateur.

    python run.py --input x.npy --output y.npy      run.py --help shows the rest
"""

from __future__ import annotations

import gc
import os

# What numpy does when it is imported is most of what one inference costs. Its threads would double it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
gc.disable()
'''
_KERNELS_HEADER = '''"""The compiled kernels, which run.py imports when it is asked for them; needs numba."""

from __future__ import annotations

import os
'''


def bundle(modules: Sequence[str] = MODULES) -> str:
    """Return the text of ``run.py``, or with KERNELS of ``kernels.py``: modules that need no PyTorch, one
    after the other.

    Raises ValueError where two of them define one name, or one would import secateur.
    """
    imports: list[ast.Import | ast.ImportFrom] = []
    owners: dict[str, str] = {}
    bodies: list[str] = []
    for module in modules:
        source = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        lines = source.splitlines()
        for index, statement in enumerate(ast.parse(source).body):
            imported = isinstance(statement, (ast.Import, ast.ImportFrom))
            if imported:
                imports.append(statement)
            for name in _defined(statement):
                if owners.setdefault(name, module) != module:
                    raise ValueError(
                        f"{name!r} is defined in {owners[name]}.py and in {module}.py: rename one"
                    )
            if imported or (index == 0 and isinstance(statement, ast.Expr)):  # the module's docstring
                for line in range(statement.lineno - 1, statement.end_lineno or statement.lineno):
                    lines[line] = ""
        bodies.append(f"# == {module} ==\n\n" + "\n".join(lines).strip("\n"))
    runs = modules == MODULES
    head = "\n".join(
        [_HEADER if runs else _KERNELS_HEADER, *_merged(imports), *(["", "gc.enable()"] if runs else [])]
    )
    text = "\n\n\n".join([head, *bodies]) + "\n"
    if any(name.split(".")[0] == "secateur" for name in _imported(text)):
        raise ValueError("the file would import secateur, which is not there when it runs")
    return text


def write_folder(
    model: nn.Module,
    example_inputs: Any,
    folder: str | Path,
    *,
    values: str | int = "lossless",
    compression: str = "lzma",
    check_inputs: Any = None,
) -> Path:
    """Write ``model.secateur``, ``run.py``, ``kernels.py``, ``check_input.npy`` and ``check_output.npy``;
    return the folder.

    ``values`` and ``compression`` are ``pack``'s. ``check_inputs``: what ``run.py --check`` runs (default:
    the example). The outputs beside them are the model's; where ``values`` loses something, those of the
    packed weights, and the file says how far they are from the model's. The folder appears at once and
    whole, after its ``run.py --check`` has passed in a process of its own; one that this function wrote
    is replaced.

    Raises ModelError as :func:`program_of` does or where the check fails, StorageError for a folder that
    holds other files.
    """
    target = Path(folder)
    check_free(target)
    program = program_of(model, example_inputs)
    args, kwargs = arguments(example_inputs if check_inputs is None else check_inputs, None)
    inputs = in_order(program.graph, args, kwargs)
    expected = run_once(unwrapped(model), args, kwargs=kwargs, what="check inputs")
    outputs = [t.detach().cpu().numpy() for t in tensors_in(expected)]
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        if values == "lossless":
            _pack(program, made, values, compression, {})
        else:
            packed = _packed_outputs(program, made, values, compression, inputs)
            moved = max(off_by(*pair) for pair in zip(outputs, packed, strict=True))
            outputs = packed
            _pack(program, made, values, compression, {"values": values, "deviation": moved})
        (made / "run.py").write_text(bundle(), encoding="utf-8")
        (made / KERNELS_FILE).write_text(bundle(KERNELS), encoding="utf-8")
        for kind, arrays in (("input", inputs), ("output", outputs)):
            for path, array in zip(check_paths(str(made), kind, len(arrays)), arrays, strict=True):
                np.save(path, np.ascontiguousarray(array))
        _check(made)
        put(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _pack(program: Program, folder: Path, values: str | int, compression: str, notes: dict[str, Any]) -> None:
    metadata = {"program": program.graph, **notes}
    pack(program.tensors, folder / MODEL_FILE, values=values, compression=compression, metadata=metadata)


def _packed_outputs(
    program: Program, folder: Path, values: str | int, compression: str, inputs: Sequence[np.ndarray]
) -> list[np.ndarray]:
    _pack(program, folder, values, compression, {})
    tensors, _ = read(folder / MODEL_FILE)
    return execute(program.graph, tensors, inputs)


def _check(folder: Path) -> None:
    command = [sys.executable, "-I", str(folder / "run.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
        raise ModelError(f"run.py --check fails in a process of its own: {said[-1]}")


def check_free(target: Path) -> None:
    """Raise StorageError where ``target`` is what :func:`write_folder` has not written, or a link."""
    if target.is_symlink():
        raise StorageError(f"{target} is a link, which is not followed; name a new folder")
    if not target.exists():
        return
    found = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    ours = (MODEL_FILE, KERNELS_FILE, "run.py")
    other = {name for name in found if name not in ours and not name.startswith("check_")}
    if found and MODEL_FILE not in found:
        other |= found
    if not target.is_dir() or other - {"__pycache__"}:
        raise StorageError(f"{target} holds other files, {sorted(other)[0]!r} for one; name a new folder")


def put(made: Path, target: Path) -> None:
    """Rename the new folder to where it belongs, and an old one away first."""
    umask = os.umask(0)
    os.umask(umask)
    made.chmod(0o777 & ~umask)
    old = made.with_name(made.name + ".old")
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def _merged(imports: Sequence[ast.Import | ast.ImportFrom]) -> list[str]:
    """Return the lines of all imports but secateur's own and those of the header, each module once."""
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    for statement in imports:
        parts = {ast.unparse(alias) for alias in statement.names}
        if isinstance(statement, ast.Import):
            plain |= parts
        elif statement.module and statement.module.split(".")[0] not in ("secateur", "__future__"):
            names.setdefault(statement.module, set()).update(parts)
    lines = [f"import {part}" for part in sorted(plain - {"os"})]
    return lines + [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]


def _imported(text: str) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found
