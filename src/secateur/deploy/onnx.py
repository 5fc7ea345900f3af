"""``export_onnx``: a network as one ONNX file, float32 or int8, checked against torch in onnxruntime.

Everything that is exported is also run: the float file at two batch sizes, where it must equal torch,
the int8 one on its calibration data, where what it is off by is measured and reported.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.copying import check_network, copied
from secateur.deploy.onnx_int8 import calibration, layers_of, made_int8, measured, prepared, quantised
from secateur.deploy.onnx_session import session_of
from secateur.errors import ModelError, NonFiniteError, StorageError
from secateur.factories import need
from secateur.graph.capture import EXPORTED, Captured, all_tensors, arguments, batch_size, capture_any_batch
from secateur.graph.compare import TOLERANCE, difference, hollow, tensors_in
from secateur.graph.draws import other_batch, rebatched
from secateur.graph.names import unwrapped
from secateur.graph.rounding import Rounding, rounding
from secateur.pruning.calibration import Batches
from secateur.running import call, failing, run_once, shapes
from secateur.storage import as_path, replacing
from secateur.text import first_line

_LARGEST = 2_000_000_000  # bytes; a protobuf message, so a file of one piece, ends at 2 GiB
_CHATTY = (
    *("torch.onnx._internal.exporter._registration", "torch.onnx._internal.exporter._compat"),
    "onnxscript.version_converter",  # the opset that comes out is looked at
)

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Exported:
    """A written ONNX file and what was measured of it; printed it is one line.

    Attributes:
        path: the file.
        bytes: its size.
        max_error: the largest difference from torch, relative to the largest |output| of the batch.
        int8: whether weights are int8.
        inputs: how many were run: those of the batch sizes tried (float32), or the calibration data (int8).
        batch_sizes: the sizes of the batches that were run.
        agreement: of int8, the share of the calibration data with the same top-1; None without scores.
        layers: how many layers with weights are int8, of how many; None where the file is not int8.
        tolerance: how far off the float file could be and was still written.
        rounding: how far the network in float32 was from itself in float64 on the same inputs; None where it
            does not run in float64.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> done = sc.export_onnx(net, torch.randn(2, 8), "net.onnx")
        >>> done.inputs, done.batch_sizes, done.max_error < 1e-4
        (3, (2, 1), True)
    """

    path: Path
    bytes: int
    max_error: float
    int8: bool
    inputs: int
    batch_sizes: tuple[int, ...]
    agreement: float | None = None
    layers: tuple[int, int] | None = None
    tolerance: float = TOLERANCE[torch.float32]
    rounding: float | None = None

    def __repr__(self) -> str:
        kind = f"int8 in {self.layers[0]} of {self.layers[1]} layers" if self.layers else "float"
        agreement = "" if self.agreement is None else f", top-1 the same for {self.agreement:.2%}"
        sizes = " and ".join(map(str, self.batch_sizes))
        own = "" if self.rounding is None else f", itself off by {self.rounding:.1e} in float32"
        allowed = "" if self.int8 else f" (up to {self.tolerance:.1e} is right{own})"
        return (
            f"{self.path}: {self.bytes:,} bytes, {kind}; off from torch by {self.max_error:.1e} of the "
            f"largest output{allowed} over {self.inputs} inputs (batches of {sizes}){agreement}"
        )


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    int8: bool | Literal["dynamic"] = False,
    data: Batches | None = None,
    opset: int | None = None,
    reduce_range: bool = False,
    tolerance: float | None = None,
) -> Exported:
    """Write a network, dense, masked or compacted, to one ONNX file, and check that file against torch. It is
    exported in eval mode, does not change, and the file takes any number of inputs.

    The first dim of every tensor in ``example_inputs`` (and ``kwargs``) that is as long as the first one's is
    the batch. The file is compared with torch in onnxruntime at the example's batch size and another one, and
    is written only if the outputs differ by no more than rounding explains: 16 times what the network's own
    float32 is off from its float64 on the same inputs, and 1e-4 of the largest output in any case. What int8
    costs is measured, and not limited: read ``max_error`` and ``agreement`` of the result.

    Args:
        model: the network, in float32.
        example_inputs: a tensor, a tuple or a dict of keyword arguments.
        path: the file to write.
        kwargs: keyword arguments besides.
        int8: True: weights int8, symmetric, with a scale for each output channel; activations uint8, with
            ranges read from ``data``. "dynamic": no data needed, the weights of matrix products (not of
            convolutions) are int8, and ranges are found while running.
        data: batches of inputs or (inputs, labels) of the training split (a few hundred inputs do; they are
            held in memory).
        opset: of the file, by default the one torch recommends.
        reduce_range: 7-bit weights, for x86 processors without VNNI, whose 8-bit products saturate; there is
            no need on others.
        tolerance: how far off the float file may be, relative to the largest output, instead of what is
            measured (which is at most 0.01).

    Returns:
        The file, its size and what was measured of it.

    Raises:
        ModelError: where the network cannot be exported, fixes its batch size, holds half-precision or over
            2 GB of weights, or differs in onnxruntime.
        NonFiniteError: where it gives NaN.
        StorageError: where the file cannot be written.
        MissingExtraError: without the extra ``onnx``.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> done = sc.export_onnx(torch.nn.Linear(6, 4), torch.ones(2, 6), tempfile.mkdtemp() + "/x.onnx")
        >>> done.int8, done.batch_sizes
        (False, (2, 1))
    """
    path = _writable(path)
    _check_choices(model, int8, data)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, extra="onnx")
    model = copied(unwrapped(model)).cpu()  # there torch and onnxruntime round alike
    args, named = _cpu(arguments(example_inputs, kwargs))
    _check_numbers(model, (args, named))
    draws = list(_draws(model, (args, named), batch_size((args, named))))
    rounded = rounding(model, [(inputs, outputs) for _, inputs, outputs in draws], tolerance)
    captured = capture_any_batch(model, (args, named))
    feed, content = _converted(captured, opset)
    name = type(model).__name__
    error = _checked(model, session_of(content, name), feed, draws, rounded)
    sizes = tuple(number for number, _, _ in draws)
    if not int8:
        done = Exported(path, 0, error, False, sum(sizes), sizes)
        return _written(path, content, replace(done, tolerance=rounded.allowed, rounding=rounded.own))
    content = prepared(model, content)
    layers = layers_of(model, content)
    read = list(calibration(model, data, feed, _cpu(dict(kwargs or {})))) if data is not None else None
    content = quantised(model, content, read, int8 == "dynamic", reduce_range)
    made = made_int8(model, content, layers, int8 == "dynamic")
    loaded = session_of(content, name)
    pairs = read or [(feed(inputs), outputs) for _, inputs, outputs in draws]
    error, agreement, sizes = measured(model, lambda arrays: _ran(loaded, arrays, name), pairs)
    if read is None:
        agreement = None  # numbers drawn at random have no class to agree on
    done = Exported(path, 0, error, True, sum(sizes), tuple(sorted(set(sizes))), agreement, (made, layers))
    return _written(path, content, replace(done, tolerance=rounded.allowed, rounding=rounded.own))


def session(path: str | Path, threads: int = 1) -> Any:
    """Return an ``onnxruntime.InferenceSession`` for a file: on the CPU, operators one after another,
    each on ``threads`` threads (one: the caller's own)."""
    path = as_path(path)
    if not path.is_file():
        raise StorageError(f"{path}: no such file")
    return session_of(str(path), str(path), threads)


def run_onnx(path: str | Path, inputs: Any, threads: int = 1) -> Any:
    """Run an ONNX file once and return its output as an array, or a list of them where it has several.

    ``inputs``: a tensor or array; a tuple or list of them in the file's order; or a dict by name.
    """
    loaded = session(path, threads)
    names = [node.name for node in loaded.get_inputs()]
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    else:
        given = dict(enumerate(inputs if isinstance(inputs, (tuple, list)) else (inputs,)))
        given = {names[i] if i < len(names) else f"number {i + 1}": v for i, v in given.items()}
    if set(given) != set(names):
        raise ModelError(f"{path} takes the inputs {', '.join(names)}; given: {', '.join(given) or 'none'}")
    outputs = _ran(loaded, {name: _array(value) for name, value in given.items()}, str(path))
    return outputs[0] if len(outputs) == 1 else outputs


def _writable(path: str | Path) -> Path:
    """Return the path, or fail before the seconds that an export takes."""
    path = as_path(path)
    if path.is_dir():
        raise StorageError(f"{path}: is a folder; give the file to write, {path / 'model.onnx'} say")
    if not (above := next((parent for parent in path.parents if parent.exists()), Path())).is_dir():
        raise StorageError(f"{path}: cannot be written, since {above} is a file, not a folder")
    return path


def _check_choices(model: Any, int8: Any, data: Any) -> None:
    check_network(model)
    if not isinstance(int8, bool) and int8 != "dynamic":
        raise ModelError(f"int8={int8!r}; True, False or 'dynamic' is right")
    if int8 is True and data is None:
        raise ModelError(
            "int8=True needs calibration data: pass data=, batches of the training split "
            "(or int8='dynamic', which finds the ranges while running)"
        )
    if not int8 and data is not None:
        raise ModelError("data= calibrates int8; pass int8=True with it, or leave it out")


def _cpu(value: Any) -> Any:
    return _pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), value)


def _check_numbers(model: nn.Module, inputs: Inputs) -> None:
    name = type(model).__name__
    tensors = {f"its {n}": t for n, t in all_tensors(model)}
    inside = [*tensors.items(), *(("an example input", t) for t in tensors_in(inputs))]
    for what, tensor in inside:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            short = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name}: {what} is {short}, which onnxruntime computes on few processors; export "
                "copy.deepcopy(model).float() on float32 inputs"
            )
    weights = sum({id(t): t.numel() * t.element_size() for t in tensors.values()}.values())
    if weights > _LARGEST:
        raise ModelError(
            f"{name} holds {weights / 1e9:.1f} GB of weights; one ONNX file holds under 2 GB: "
            "prune and compact it further, or export its parts one by one"
        )


def _shown(inputs: Inputs) -> str:
    return shapes([*inputs[0], *inputs[1].values()])


def _converted(captured: Captured, opset: int | None) -> tuple[_Feed, bytes]:
    """Return the ONNX file of a captured graph, and what feeds it."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    name = type(captured.model).__name__
    assert captured.program is not None  # a batch of any size is exported or refused
    _views_of_copies(captured.program.graph)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                captured.program, dynamo=True, external_data=False, opset_version=opset, verbose=False
            )
        # Export leaves the Python names of every node in the file, which nothing reads.
        ClearMetadataAndDocStringPass()(program.model)
        content = onnx_ir.to_proto(program.model).SerializeToString()
    except Exception as error:  # the exporter raises its own kinds, and any that its passes run into
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ModelError(f"{name} cannot be written as ONNX: {first_line(cause)}") from error
    found = program.model.opset_imports.get("")
    if opset is not None and found != opset:
        raise ModelError(f"{name} cannot be written in opset {opset}; it stays in {found}; leave opset= out")
    return _Feed(captured, {value.name for value in program.model.graph.inputs}), content


def _views_of_copies(graph: torch.fx.Graph) -> None:
    """Let every view be one of a contiguous tensor: decomposed, attention lies in memory otherwise than it
    did in the kernel that was captured. In the file a copy is nothing."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target in (aten.view.default, aten.reshape.default):
            with graph.inserting_before(node):
                source, plain = node.args[0], torch.contiguous_format
                copy = graph.call_function(aten.clone.default, (source,), {"memory_format": plain})  # type: ignore[dict-item]
            copy.meta = dict(source.meta)
            node.replace_input_with(source, copy)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what export says of packages that are absent and of deprecated parts of torch's own."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _ran(loaded: Any, feed: Mapping[str, Any], name: str) -> list[Any]:
    try:
        return loaded.run(None, dict(feed))
    except Exception as error:  # onnxruntime's own, one class a status
        shown = {key: (tuple(value.shape), str(value.dtype)) for key, value in feed.items()}
        raise ModelError(f"{name}: onnxruntime does not run it on {shown}: {first_line(error)}") from error


def _array(value: Any) -> Any:
    return np.asarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, order="C")


class _Feed:
    """Turns inputs as the forward takes them into arrays by the file's names."""

    def __init__(self, captured: Captured, taken: set[str]) -> None:
        self.name = type(captured.model).__name__
        self.keys = list(captured.kwargs)
        self.spec = _pytree.tree_structure((captured.args, captured.kwargs))
        self.names = [name if name in taken else None for name in captured.inputs]

    def __call__(self, inputs: Inputs) -> dict[str, Any]:
        args, named = inputs
        if set(named) == set(self.keys):
            named = {key: named[key] for key in self.keys}
        leaves, spec = _pytree.tree_flatten((args, named))
        if spec != self.spec:
            raise ModelError(
                f"{self.name}: a batch of data= holds {_shown(inputs)}, which is not made like the example "
                "inputs; several inputs go in a tuple of their own: ((a, b), labels)"
            )
        return {
            name: _array(leaf)
            for name, leaf in zip(self.names, leaves, strict=True)
            if name is not None and isinstance(leaf, Tensor)
        }


def _draws(model: nn.Module, inputs: Inputs, batch: int) -> Iterator[tuple[int, Inputs, Any]]:
    """Yield (batch size, inputs, torch's outputs): the example, and other numbers in another size."""
    name = type(model).__name__
    expected = run_once(model, inputs[0], kwargs=inputs[1])
    if not tensors_in(expected):
        raise ModelError(f"{name} returns no tensor; there is nothing to export")
    if hollow(expected):
        raise NonFiniteError(f"{name} gives NaN on the example inputs; nothing can be checked against that")
    yield batch, inputs, expected
    number = EXPORTED if batch == 1 else 1
    drawn = other_batch(inputs, batch, number)
    try:
        outputs = call(model, *drawn)
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError):
        outputs = None
    if outputs is None or hollow(outputs):  # not every network takes every number: a logarithm, say
        drawn = rebatched(inputs, batch, number)
        with failing(model, [*drawn[0], *drawn[1].values()], f"a batch of {number}"):
            outputs = call(model, *drawn)
    yield number, drawn, outputs


def _checked(
    model: nn.Module,
    loaded: Any,
    feed: _Feed,
    draws: Iterable[tuple[int, Inputs, Any]],
    rounded: Rounding,
) -> float:
    """Return the largest difference from torch, or raise ModelError that says where it is too large."""
    name, worst = type(model).__name__, 0.0
    names = [node.name for node in loaded.get_outputs()]
    for number, inputs, expected in draws:
        found, wanted = _ran(loaded, feed(inputs), name), tensors_in(expected)
        if len(found) != len(wanted):
            raise ModelError(f"{name} returns {len(wanted)} tensors, and {len(found)} in onnxruntime")
        for output, ours, theirs in zip(names, wanted, found, strict=True):
            error = difference(ours, torch.from_numpy(theirs))
            worst = max(worst, error)
            if error > rounded.allowed:
                what = f"is off by {error:.1e} of its largest value (up to {rounded.allowed:.1e} is right)"
                if tuple(ours.shape) != theirs.shape:
                    what = f"has the shape {theirs.shape} in onnxruntime and {tuple(ours.shape)} in torch"
                raise ModelError(
                    f"{name}: with a batch of {number}, output {output!r} {what}; nothing was written"
                )
    return worst


def _written(path: Path, content: bytes, done: Exported) -> Exported:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return replace(done, bytes=len(content))
