"""One format of a network loaded and run in a process that imports no more than the format needs.

``secateur.experiments.commands.measuring`` measures so: what the process imports counts in its memory, and
a format that needs no PyTorch must not meet it here.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = (1, 64)
_AT_ONCE = 256  # examples of the test split
_TORCH = ("torch", "secateur.models", "secateur.training.checkpoint")
_IMPORTS = {
    "torch": _TORCH,
    "sparse": (*_TORCH, "secateur.deploy.sparse", "scipy.sparse", "numba"),
    "numpy": (),
    "compiled": ("numba",),
    "onnxruntime": ("onnxruntime",),
}

Call = tuple[list[np.ndarray], dict[str, np.ndarray]]  # positional arguments, and those by name
Run = Callable[[Call], list[np.ndarray]]


@dataclass(frozen=True)
class Format:
    """A file and how it is run. ``engine``: "torch", "sparse" (made from the same file when it is loaded),
    "numpy" and "compiled" (the ``run.py`` beside the file), "onnxruntime". ``model`` and ``options``: the
    network that the first two build and fill. ``needs``: modules beside
    torch that they import for it."""

    name: str
    engine: str
    file: str
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()


def cost(made: Format, examples: Call, test: Call, outputs: str) -> dict[str, Any]:
    """Load a format in this process, run it, and write its outputs on the whole test split.

    Returns ``load_s``: seconds from the file to a network that is ready to run, imports not counted, and
    ``memory``: bytes resident once everything is imported, and the most while a batch of each size of
    BATCHES runs, what the first run touches included; None where nobody counts them.
    """
    import_for(made)
    gc.collect()
    imports = _counted("begin_peak")
    start = time.perf_counter()
    run = load(made, rows(examples, 0, 1))
    load_s = time.perf_counter() - start
    peak: dict[str, int | None] = {}
    for batch in BATCHES:
        _counted("begin_peak")
        run(rows(examples, 0, batch))
        peak[str(batch)] = _counted("peak")
    number = len([*test[0], *test[1].values()][0])
    parts = [run(rows(test, i, i + _AT_ONCE)) for i in range(0, number, _AT_ONCE)]
    np.savez(outputs, *(np.concatenate(part) for part in zip(*parts, strict=True)))
    return {"load_s": load_s, "memory": None if imports is None else {"imports": imports, "peak": peak}}


def latency(formats: list[Format], examples: Call, seconds: float) -> dict[str, Any]:
    """Time all formats in turn in this process, for about ``seconds`` each and batch size of BATCHES; return
    by name and batch size the median and quartiles in seconds, and the number of runs."""
    from secateur.measure.latency import time_calls

    found: dict[str, dict[str, Any]] = {made.name: {} for made in formats}
    for made in formats:
        import_for(made)
    for batch in BATCHES:
        x = rows(examples, 0, batch)
        calls = {made.name: partial(load(made, x), x) for made in formats}
        for name, timing in time_calls(calls, seconds=seconds * len(calls)).items():
            found[name][str(batch)] = asdict(timing)
    return found


def import_for(made: Format) -> None:
    """Import what a format needs, on one thread, so that loading it does not."""
    for name in _IMPORTS[made.engine]:
        with suppress(ImportError):  # an engine that is absent says so itself when it is loaded
            importlib.import_module(name)
    if made.engine in ("torch", "sparse"):
        import torch

        torch.set_num_threads(1)
        for name in made.needs:
            importlib.import_module(name)
    if made.engine in ("numpy", "compiled"):
        _runner(made.file)


def read_call(spec: Mapping[str, Any]) -> Call:
    """Return the arguments that a request names, without reading them whole."""
    named = {name: np.load(file, mmap_mode="r") for name, file in spec["named"].items()}
    return [np.load(file, mmap_mode="r") for file in spec["args"]], named


def rows(call: Call, start: int, stop: int) -> Call:
    """Return the examples of a call from ``start`` to ``stop``."""
    args, named = call

    def part(array: np.ndarray) -> np.ndarray:
        return np.array(array[start:stop], order="C")

    return [part(array) for array in args], {name: part(array) for name, array in named.items()}


def load(made: Format, example: Call) -> Run:
    """Return a function from a batch of inputs to the network's outputs. ``example``: what a sparse
    network's engines are timed on."""
    if made.engine == "onnxruntime":
        return _onnxruntime(made.file)
    if made.engine in ("numpy", "compiled"):
        return _numpy(_runner(made.file).Network(made.file, made.engine))
    import torch

    from secateur.graph.compare import tensors_in
    from secateur.models import build_model
    from secateur.running import call_model
    from secateur.training.checkpoint import load_network

    network = build_model(made.model, **made.options)
    load_network(made.file, network)
    network = network.eval().requires_grad_(False)
    if made.engine == "sparse":
        from secateur.deploy.sparse import sparsify

        network, _ = sparsify(network, _tensors(example))

    def run(x: Call) -> list[np.ndarray]:
        with torch.inference_mode():
            found = tensors_in(call_model(network, _tensors(x)))
        return [(t.float() if t.dtype == torch.bfloat16 else t).numpy() for t in found]

    return run


def _tensors(call: Call) -> Any:
    import torch

    args, named = call
    if named:  # then all are
        return {name: torch.from_numpy(array) for name, array in named.items()}
    tensors = tuple(map(torch.from_numpy, args))
    return tensors[0] if len(tensors) == 1 else tensors


def _numpy(network: Any) -> Run:
    names = [spec["name"] for spec in network.graph["inputs"]]

    def run(x: Call) -> list[np.ndarray]:
        outputs = network.run(*_placed(names, x))
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    return run


def _placed(names: Sequence[str], call: Call) -> list[np.ndarray]:
    """Return the arrays of a call in the order of a format's inputs."""
    args, named = call
    return [*args, *(named[name] for name in names[len(args) :] if name in named)]


def _onnxruntime(file: str) -> Run:
    from secateur.deploy.onnx_session import session_of

    session = session_of(file, file)
    names = [put.name for put in session.get_inputs()]
    return lambda x: [
        np.asarray(y) for y in session.run(None, dict(zip(names, _placed(names, x), strict=True)))
    ]


def _runner(file: str) -> Any:
    """Import the ``run.py`` beside a packed file, as whoever gets the folder does."""
    path = Path(file).with_name("run.py")
    name = "secateur_run"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def _counted(what: str) -> int | None:
    from secateur.measure import resident

    try:
        return getattr(resident, what)()
    except (OSError, AttributeError, TypeError):  # only Linux counts
        return None


def main(path: str) -> None:
    """Do what a request says and write the answer beside it: a JSON object, ``error`` where it failed."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    formats = [Format(**made) for made in request["formats"]]
    examples = read_call(request["examples"])
    try:
        if "seconds" in request:
            answer = latency(formats, examples, request["seconds"])
        else:
            answer = cost(formats[0], examples, read_call(request["test"]), request["outputs"])
    except Exception as error:  # every engine raises its own kinds; the table says what it was
        answer = {"error": " ".join(f"{error}".split()) or type(error).__name__}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
