"""A folder opened by transformers alone, in another process, and what it gives compared."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from secateur.errors import ModelError
from secateur.graph.compare import difference
from secateur.storage import load_tensors, save_json, save_tensors

_PROGRAM = """
import json, sys
sys.modules["secateur"] = None  # an import of it fails
import torch, transformers
from safetensors.torch import load_file, save_file
with open(sys.argv[1]) as file: said = json.load(file)
inputs = load_file(said["inputs"])
kind = getattr(transformers, said["auto"])
options = {"trust_remote_code": said["remote_code"], "dtype": torch.float32}
model = kind.from_pretrained(said["folder"], **options).eval()
for module in model.modules():
    if getattr(getattr(module, "config", None), "use_cache", None): module.config.use_cache = False
args, kwargs = (inputs[key] for key in said["args"]), {n: inputs[key] for n, key in said["kwargs"].items()}
with torch.no_grad(): outputs = model(*args, **kwargs)
found, seen = [], [outputs]
def look(value):
    if isinstance(value, torch.Tensor): found.append(value)
    elif isinstance(value, dict): [look(part) for part in value.values()]
    elif isinstance(value, (list, tuple)): [look(part) for part in value]
look(outputs)
save_file({str(i): t.detach().clone().contiguous() for i, t in enumerate(found)}, said["outputs"])
"""


def environment(place: Path) -> dict[str, str]:
    """Return what a process is started with that opens a folder: nothing is fetched, nothing left behind."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{place}/modules"}


def off_anew(
    folder: Path,
    auto: str,
    remote_code: bool,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    expected: list[torch.Tensor],
) -> float:
    """Return how far the outputs of a folder are from the expected, relative to the largest of each; raises
    ModelError where transformers alone cannot open it."""
    args, kwargs = inputs
    named = {f"arg{i}": value for i, value in enumerate(args)} | {f"kw_{n}": v for n, v in kwargs.items()}
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{name.removeprefix('kw_')} is a {type(value).__name__}: another process is given tensors "
                "alone; pass proof=False, and compare what from_pretrained opens yourself"
            )
    with tempfile.TemporaryDirectory() as place:
        said = {
            "folder": str(folder),
            "auto": auto,
            "remote_code": remote_code,
            "inputs": f"{place}/inputs.safetensors",
            "outputs": f"{place}/outputs.safetensors",
            "args": [f"arg{i}" for i in range(len(args))],
            "kwargs": {name: f"kw_{name}" for name in kwargs},
        }
        save_tensors(said["inputs"], {name: value.contiguous() for name, value in named.items()}, {})
        save_json(f"{place}/said.json", said)
        command = [sys.executable, "-P", "-c", _PROGRAM, f"{place}/said.json"]
        own = environment(Path(place))
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise ModelError(f"{auto} does not open the folder in a process of its own: {last}")
        tensors, _ = load_tensors(said["outputs"])
        return difference(expected, [tensors[str(number)] for number in range(len(tensors))])
