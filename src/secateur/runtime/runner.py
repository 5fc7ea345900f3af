"""Run a packed network where there is no PyTorch: numpy and the standard library are enough.

    network = Network("model.secateur")
    scores = network.run(images)

or from a shell, beside the packed file: ``python run.py --input x.npy --output y.npy``.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .operators import OPERATORS, Rows, weights_of
from .unpacking import Sparse, read

ENGINES = ("auto", "numpy", "scipy", "compiled")
MODEL_FILE = "model.secateur"
CHECK_TOLERANCE = 1e-4
_SPARSE = 0.1  # share of non-zero weights under which scipy's sparse product is the faster one

Runner = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


class ProgramError(ValueError):
    """A program, an input or an engine that cannot be run; the message says why."""


class Network:
    """A packed network, ready to run on arrays of float32. Only the engine asked for is imported.

    Args:
        source: the path of a packed file, or its bytes.
        engine: "numpy"; "scipy", which multiplies by sparse matrices where few weights are left;
            "compiled", which needs numba; or "auto": numpy for the first ``after`` calls, then compiled where
            that is possible.
        after: the calls before "auto" compiles.

    Raises:
        ProgramError: for a file that holds no program, or an engine that is not there.
        FileError: for a file that cannot be read.

    Example:
        >>> import tempfile, numpy as np, torch, secateur as sc
        >>> folder = sc.write_folder(torch.nn.Linear(6, 4), torch.randn(2, 6), tempfile.mkdtemp() + "/net")
        >>> from secateur.runtime.runner import Network
        >>> Network(folder / "model.secateur").run(np.zeros((3, 6), np.float32)).shape
        (3, 4)
    """

    def __init__(
        self, source: str | os.PathLike[str] | bytes, engine: str = "auto", *, after: int = 100
    ) -> None:
        tensors, metadata = read(source, sparse=True)
        graph = metadata.get("program") if isinstance(metadata, Mapping) else None
        if not isinstance(graph, Mapping):
            raise ProgramError("the file holds weights but no program; write it with secateur's write_folder")
        check_program(graph, tensors)
        if engine not in ENGINES:
            raise ProgramError(f"engine is {engine!r}; it is one of {', '.join(ENGINES)}")
        self.graph: Mapping[str, Any] = graph
        self.metadata: Mapping[str, Any] = metadata
        self.engine = engine
        self.calls = 0
        self._to_compile = tensors if engine == "auto" else None
        self._after = after
        if engine == "compiled":
            self._runner = _compiled(graph, tensors)
        else:
            weights = sparse_weights if engine == "scipy" else numpy_weights
            self._runner = interpreter(graph, weights(graph, tensors))

    def run(self, *inputs: np.ndarray) -> Any:
        """Return the output for a batch: one array, or a tuple of them where the network has several.

        Raises ProgramError for inputs of another number, shape or dtype than ``graph["inputs"]`` says.
        """
        check_inputs(self.graph, inputs)
        self.calls += 1
        if self._to_compile is not None and self.calls > self._after:
            with suppress(ImportError, ValueError):  # numpy goes on
                self._runner = _compiled(self.graph, self._to_compile)
            self._to_compile = None
        outputs = self._runner(inputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def execute(
    graph: Mapping[str, Any], tensors: Mapping[str, Any], inputs: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Run a program once, in numpy, and return its outputs; raises ProgramError."""
    check_program(graph, tensors)
    check_inputs(graph, inputs)
    return interpreter(graph, tensors)(inputs)


def interpreter(graph: Mapping[str, Any], tensors: Mapping[str, Any]) -> Runner:
    """Return a function from inputs to outputs that drops every value when its last reader has run."""
    names = [spec["name"] for spec in graph["inputs"]]
    plan: list[tuple[Mapping[str, Any], list[str]]] = []
    alive = set(graph["outputs"])
    for node in reversed(graph["nodes"]):
        plan.append((node, [name for name in {node["output"], *node["inputs"]} if name not in alive]))
        alive.update(node["inputs"])
    plan.reverse()

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        values = dict(zip(names, inputs, strict=True))
        for node, done in plan:
            values[node["output"]] = _step(node, values, tensors)
            for name in done:
                del values[name]
        return [values[name] for name in graph["outputs"]]

    return run


def _step(
    node: Mapping[str, Any], values: Mapping[str, np.ndarray], tensors: Mapping[str, Any]
) -> np.ndarray:
    try:
        result = OPERATORS[node["op"]](node, [values[name] for name in node["inputs"]], tensors)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise ProgramError(f"{node['output']} ({node['op']}) cannot be computed: {error}") from error
    if list(result.shape[1:]) != list(node["shape"]):
        shape = tuple(node["shape"])
        raise ProgramError(f"{node['output']} ({node['op']}) is {result.shape[1:]}, not {shape}")
    return result


def check_program(graph: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Raise ProgramError where a program is not one, or reads what nobody made."""
    try:
        if graph["version"] != 1:
            raise ProgramError(f"the program is of version {graph['version']!r}; this reader knows 1")
        known = {spec["name"] for spec in graph["inputs"]}
        for node in graph["nodes"]:
            if node["op"] not in OPERATORS:
                raise ProgramError(f"unknown operator {node['op']!r}")
            missing = [name for name in weights_of(node).values() if name not in tensors]
            missing += [name for name in node["inputs"] if name not in known]
            if missing or not node["inputs"]:
                raise ProgramError(f"{node['output']} ({node['op']}) reads {missing}, which nothing made")
            if node["output"] in known:
                raise ProgramError(f"two values are called {node['output']!r}")
            known.add(node["output"])
        if not graph["inputs"] or not graph["outputs"] or not known.issuperset(graph["outputs"]):
            raise ProgramError("the program lacks an input or an output")
    except (AttributeError, KeyError, TypeError) as error:
        raise ProgramError(f"the program is malformed: {type(error).__name__}: {error}") from error


def check_inputs(graph: Mapping[str, Any], inputs: Sequence[np.ndarray]) -> None:
    """Raise ProgramError where inputs are not what the program reads."""
    wanted = graph["inputs"]
    if len(inputs) != len(wanted):
        raise ProgramError(f"{len(inputs)} inputs given; the network reads {len(wanted)}: {described(graph)}")
    for spec, array in zip(wanted, inputs, strict=True):
        shape, kind = getattr(array, "shape", None), str(getattr(array, "dtype", type(array).__name__))
        of_kind = isinstance(array, np.ndarray) and kind == spec["dtype"]
        if not (of_kind and _fits(array.shape, spec["shape"])):
            got = kind if shape is None else f"{shape} of {kind}"
            raise ProgramError(f"input {spec['name']!r} is {got}; the network reads {described(graph)}")
    if len({len(array) for array in inputs}) > 1:
        raise ProgramError(f"the inputs are of different batch sizes: {[len(array) for array in inputs]}")


def described(graph: Mapping[str, Any]) -> str:
    """Return the inputs as one reads them in a message: ``x: (batch, 784) of float32``."""
    parts = []
    for spec in graph["inputs"]:
        shape = ", ".join("batch" if n is None else str(n) for n in spec["shape"])
        parts.append(f"{spec['name']}: ({shape}) of {spec['dtype']}")
    return "; ".join(parts)


def _fits(shape: tuple[int, ...], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or n == w for n, w in zip(shape, wanted, strict=True))


# -- other engines -------------------------------------------------------------------------------------


def numpy_weights(graph: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return dense arrays, but for weights with few non-zeros that only linear layers read: those stay
    sparse, which takes less memory, and less time for a batch of one."""
    linear = _products(graph, ("linear",))
    result: dict[str, Any] = {}
    for name, tensor in tensors.items():
        small = isinstance(tensor, Sparse) and 4 * len(tensor.values) <= math.prod(tensor.shape)
        if small and name in linear and len(tensor.shape) == 2:
            result[name] = Rows((tensor.shape[0], tensor.shape[1]), tensor.positions, tensor.values)
        else:
            result[name] = dense(tensor)
    return result


def sparse_weights(graph: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors, those with few non-zeros that only products read as scipy matrices."""
    try:
        from scipy import sparse
    except ImportError as error:
        raise ProgramError("the scipy engine needs scipy: pip install scipy") from error
    products = _products(graph, ("linear", "conv"))
    result: dict[str, Any] = {}
    for name, tensor in tensors.items():
        kept = len(tensor.values) if isinstance(tensor, Sparse) else np.count_nonzero(tensor)
        result[name] = dense(tensor)
        if name in products and kept < _SPARSE * result[name].size:
            result[name] = sparse.csr_array(result[name].reshape(len(result[name]), -1))
    return result


def dense(tensor: Any) -> np.ndarray:
    """Return a tensor that may be sparse as an array."""
    if not isinstance(tensor, Sparse):
        return tensor
    flat = np.zeros(math.prod(tensor.shape), tensor.values.dtype)
    flat[tensor.positions] = tensor.values
    return flat.reshape(tensor.shape)


def _products(graph: Mapping[str, Any], kinds: tuple[str, ...]) -> set[str]:
    """Return the weights that only ungrouped layers of these kinds read."""
    fit: dict[str, bool] = {}
    for node in graph["nodes"]:
        for key, name in weights_of(node).items():
            fits = key == "weight" and node["op"] in kinds and node.get("groups", 1) == 1
            fit[name] = fits and fit.get(name, True)
    return {name for name, fits in fit.items() if fits}


def _compiled(graph: Mapping[str, Any], tensors: Mapping[str, Any]) -> Runner:
    """Return the program compiled, whole, or piece by piece where the kernels lack an operator of it; the
    first time on a machine that takes half a minute. Raises ProgramError without numba."""
    weights = {name: dense(tensor) for name, tensor in tensors.items()}
    try:
        from .planning import Compiled

        try:
            return Compiled(graph, weights)
        except ValueError:  # UnsupportedError, of modules that are imported with numba only
            from .mixed import Mixed

            return Mixed(graph, weights)
    except ImportError as error:
        raise ProgramError(f"the compiled engine needs numba (pip install numba): {error}") from error
    except ValueError as error:
        raise ProgramError(f"the compiled engine cannot run this network: {error}; use numpy") from error


# -- the command line ----------------------------------------------------------------------------------


def main(here: str, arguments: Sequence[str] | None = None) -> int:
    """Run the packed network in the folder ``here`` as a shell asks; returns the exit code: 0, or 1 with
    one line on stderr."""
    import argparse  # a network that is imported as a module does not need it

    parser = argparse.ArgumentParser(description="Run a packed network on a batch of inputs.")
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="X.npy",
        help="the inputs, in the program's order, or all in one .npz: "
        "arg0, arg1, ... and the others by their names",
    )
    parser.add_argument(
        "--output", nargs="+", metavar="Y.npy", help="where to write the outputs (default: print)"
    )
    parser.add_argument("--check", action="store_true", help="run the inputs beside this file and compare")
    parser.add_argument("--time", type=int, metavar="N", help="run N times and print milliseconds a batch")
    parser.add_argument("--engine", choices=ENGINES, default="numpy")
    parser.add_argument("--model", default=os.path.join(here, MODEL_FILE), metavar="FILE")
    options = parser.parse_args(arguments)
    if not (options.check or options.input or options.time is not None):
        parser.error("one of --input, --check and --time is needed")
    if options.time is not None and options.time < 1:
        parser.error(f"--time is {options.time}; it counts from 1")
    if options.check and (options.input or options.output or options.time):
        parser.error("--check reads the inputs beside this file; it goes with --engine and --model alone")
    if options.output and options.time:
        parser.error("--time prints times; --output needs a run without it")
    try:
        network = Network(options.model, options.engine)
        if options.check:
            return _check(network, here)
        paths = options.input or check_paths(here, "input", len(network.graph["inputs"]))
        inputs = load_inputs(paths, network.graph)
        if options.time:
            print(timed(network, inputs, options.time))
        else:
            _write(network.run(*inputs), options.output)
    except (ImportError, OSError, ValueError) as error:  # ProgramError and FileError are ValueErrors
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 1
    return 0


def load_inputs(paths: Sequence[str], graph: Mapping[str, Any]) -> list[np.ndarray]:
    """Read the inputs of a program in its order: a .npy file each, or one .npz that holds arg0, arg1, ... as
    the first and the others by their names; raises ProgramError."""
    if len(paths) != 1 or not paths[0].endswith(".npz"):
        return [load_array(path) for path in paths]
    arrays = _load(paths[0], ".npz")
    names = [spec["name"] for spec in graph["inputs"]]
    places = [f"arg{i}" if f"arg{i}" in arrays else name for i, name in enumerate(names)]
    if sorted(places) != sorted(arrays):
        raise ProgramError(
            f"{paths[0]}: holds {', '.join(arrays) or 'no array'}; the network reads {described(graph)}: "
            "arrays of these names, or arg0, arg1, ... for the first of them, are right"
        )
    return [arrays[place] for place in places]


def load_array(path: str) -> np.ndarray:
    """Read a .npy file, never a pickle; raises ProgramError."""
    array = _load(path, ".npy")
    if not isinstance(array, np.ndarray):
        raise ProgramError(f"{path}: holds several arrays; give one .npy file an input, or one .npz for all")
    return array


def _load(path: str, kind: str) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded if kind == ".npy" else {"arg0": loaded}  # a name alone makes no archive
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a damaged archive raises what its compression does
        raise ProgramError(f"{path}: cannot be read as a {kind} file: {error}") from error


def check_paths(folder: str, kind: str, number: int) -> list[str]:
    """Return the paths of the check's arrays: check_input.npy, or check_input_1.npy, ... for several."""
    names = [f"check_{kind}{'' if number == 1 else f'_{index}'}.npy" for index in range(1, number + 1)]
    return [os.path.join(folder, name) for name in names]


def off_by(wanted: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference relative to the largest |wanted|; infinite where it is no number."""
    if wanted.shape != found.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    error = float(np.max(np.abs(wanted.astype(np.float64) - found)))
    return error / max(float(np.max(np.abs(wanted))), 1e-30) if np.isfinite(error) else float("inf")


def timed(network: Network, inputs: Sequence[np.ndarray], number: int) -> str:
    """Run once, then ``number`` times; return a line with the median and the smallest time."""
    network.run(*inputs)
    times = []
    for _ in range(number):
        start = time.perf_counter()
        network.run(*inputs)
        times.append(1000 * (time.perf_counter() - start))
    times.sort()
    median = times[len(times) // 2]
    return f"{median:.3f} ms median, {times[0]:.3f} ms smallest of {len(times)}, a batch of {len(inputs[0])}"


def _check(network: Network, folder: str) -> int:
    graph = network.graph
    inputs = [load_array(path) for path in check_paths(folder, "input", len(graph["inputs"]))]
    wanted = [load_array(path) for path in check_paths(folder, "output", len(graph["outputs"]))]
    found = network.run(*inputs)
    pairs = zip(wanted, found if len(wanted) > 1 else [found], strict=True)
    error = max(off_by(*pair) for pair in pairs)
    allowed = network.metadata.get("tolerance")
    passed = error <= (allowed if isinstance(allowed, float) else CHECK_TOLERANCE)
    moved = network.metadata.get("deviation")
    note = "" if moved is None else f" (packing moved the network's outputs by {moved:.1e})"
    verdict = "OK" if passed else "FAILED"
    print(f"max relative error {error:.1e} on a batch of {len(inputs[0])}{note}: {verdict}")
    return 0 if passed else 1


def _write(result: Any, paths: Sequence[str] | None) -> None:
    outputs = list(result) if isinstance(result, tuple) else [result]
    if paths is None:
        for output in outputs:
            print(output)
        return
    if len(paths) != len(outputs):
        raise ProgramError(f"the network has {len(outputs)} outputs; {len(paths)} paths given")
    for path, output in zip(paths, outputs, strict=True):
        with open(path, "wb") as file:  # np.save would add .npy to a name without it
            np.save(file, np.ascontiguousarray(output))
