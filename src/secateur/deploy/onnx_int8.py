"""int8 networks for onnxruntime: calibrated, quantised, and measured against torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.errors import CriterionError, ModelError, NonFiniteError
from secateur.graph.capture import arguments
from secateur.graph.compare import difference, hollow, tensors_in
from secateur.pruning.calibration import batches
from secateur.running import call, failing
from secateur.text import first_line

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM")
# What stands between layers and computes on uint8, or only moves it; norms and the rest stay float.
_BETWEEN = (
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Softmax"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split", "Slice", "Pad", "Gather"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Where"),
)

Arrays = dict[str, Any]


def calibration(
    model: nn.Module, data: Any, feed: Callable[[Any], Arrays], shared: Mapping[str, Any]
) -> Iterator[tuple[Arrays, Any]]:
    """Yield (arrays by the file's names, torch's outputs) for each batch of ``data``.

    ``feed`` makes the arrays of (args, kwargs); ``shared``: keyword arguments of every batch.
    """
    try:
        for given, _ in batches(data, "int8", model):
            args, named = arguments(given, None)
            inputs = (_pytree.tree_map_only(Tensor, Tensor.detach, args), {**shared, **named})
            arrays = feed(inputs)
            with failing(model, given, "a batch of data="):
                outputs = call(model, *inputs)
            if hollow(outputs):
                raise NonFiniteError(f"{type(model).__name__} gives NaN on a batch of data=")
            yield arrays, outputs
    except CriterionError as error:  # no criterion is at work here
        raise ModelError(str(error)) from error


def prepared(model: nn.Module, content: bytes) -> bytes:
    """Return a float file as it is quantised: what is constant computed, shapes known."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    graph = onnx.load_from_string(content)
    _straighten(graph)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder, _quantising(model):
        start, out = Path(folder, "float.onnx"), Path(folder, "prepared.onnx")
        start.write_bytes(graph.SerializeToString())
        # The export has inferred every shape already, and where symbolic inference gives up it
        # leaves a file in the working folder.
        quant_pre_process(str(start), str(out), skip_symbolic_shape=True)
        return out.read_bytes()


def layers_of(model: nn.Module, content: bytes) -> int:
    """Return how many layers of a prepared file could be int8; ModelError where it is none."""
    import onnx

    number = _float_layers(onnx.load_from_string(content))
    if not number:
        raise ModelError(
            f"{type(model).__name__} has no layer with float32 weights that int8 is made for "
            f"({', '.join(_LAYERS)} in ONNX); leave int8= out"
        )
    return number


def quantised(
    model: nn.Module, content: bytes, read: list[tuple[Arrays, Any]] | None, dynamic: bool, reduce_range: bool
) -> bytes:
    """Return a prepared file's bytes as int8.

    ``read``: what ``calibration`` yields, from which the ranges of the activations come.
    """
    from onnxruntime import quantization

    settings: dict[str, Any] = {
        "per_channel": True,
        "reduce_range": reduce_range,
        "weight_type": quantization.QuantType.QInt8,
    }
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder, _quantising(model):
        start, out = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        start.write_bytes(content)
        if dynamic:
            # Convolutions: onnxruntime has no ConvInteger for int8 weights on the CPU.
            quantization.quantize_dynamic(start, out, op_types_to_quantize=["MatMul", "LSTM"], **settings)
        else:
            quantization.quantize_static(
                start,
                out,
                _reader([arrays for arrays, _ in read or ()]),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=[*(kind for kind in _LAYERS if kind != "LSTM"), *_BETWEEN],
                activation_type=quantization.QuantType.QUInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                **settings,
            )
        return out.read_bytes()


def made_int8(model: nn.Module, content: bytes, layers: int, dynamic: bool) -> int:
    """Return how many of a prepared file's ``layers`` are int8 in ``content``; ModelError where none is."""
    import onnx

    made = layers - _float_layers(onnx.load_from_string(content))
    if not made:
        raise ModelError(
            f"{type(model).__name__}: none of its {layers} layers could be made int8"
            + (" without data; pass int8=True and data=" if dynamic else "")
        )
    return made


@contextmanager
def _quantising(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's own and Python's
        raise ModelError(
            f"{type(model).__name__}: onnxruntime cannot quantise it: {first_line(error)}"
        ) from error


def _straighten(graph: Any) -> None:
    """Transpose the weights that Gemm reads transposed, as copies of their own, in place.

    onnxruntime transposes them itself where it makes MatMul of Gemm, without looking who else reads
    them: tied weights come out wrong, and shapes written down before are wrong for all.
    """
    from onnx import numpy_helper

    inner, weights = graph.graph, {tensor.name: tensor for tensor in graph.graph.initializer}
    turned: set[str] = set()
    for node in inner.node:
        flags = [a for a in node.attribute if a.name == "transB" and a.i]
        if node.op_type == "Gemm" and flags and node.input[1] in weights:
            name = node.input[1]
            if name not in turned:
                array = np.ascontiguousarray(numpy_helper.to_array(weights[name]).T)
                inner.initializer.append(numpy_helper.from_array(array, f"{name}_transposed"))
            turned.add(name)
            node.input[1] = f"{name}_transposed"
            flags[0].i = 0
    left = {name for node in inner.node for name in node.input} | {value.name for value in inner.output}
    for name in turned - left:
        inner.initializer.remove(weights[name])
    kept = [value for value in inner.value_info if value.name not in turned]
    del inner.value_info[:]
    inner.value_info.extend(kept)


def _reader(feeds: list[Arrays]) -> Any:
    """Return what onnxruntime calls a calibration data reader."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        left = iter(feeds)

        def get_next(self) -> Any:
            return next(self.left, None)

    return Reader()


def _float_layers(graph: Any) -> int:
    """Return how many layers read float32 weights."""
    weights = {tensor.name for tensor in graph.graph.initializer if tensor.data_type == tensor.FLOAT}
    return sum(
        node.op_type in _LAYERS and not weights.isdisjoint(node.input[:2]) for node in graph.graph.node
    )


def measured(
    model: nn.Module, run: Callable[[Arrays], list[Any]], pairs: Iterable[tuple[Arrays, Any]]
) -> tuple[float, float | None, tuple[int, ...]]:
    """Return (largest difference from torch, share of inputs with the same top-1, batch sizes)."""
    worst, same, rows, sizes = 0.0, 0, 0, []
    for arrays, expected in pairs:
        found, wanted = [torch.from_numpy(array) for array in run(arrays)], tensors_in(expected)
        worst = max(worst, difference(wanted, found))
        if worst == float("inf"):
            raise ModelError(
                f"{type(model).__name__}: its int8 outputs are not finite, or integers that differ from "
                "torch's; only numbers can be compared: export it in float32, or without its last step"
            )
        sizes.append(next(len(array) for array in arrays.values() if array.ndim))
        for ours, theirs in zip(wanted, found, strict=True):
            if ours.is_floating_point() and ours.dim() == 2 and ours.shape[1] > 1:  # a row of scores
                same += int((ours.argmax(1) == theirs.argmax(1)).sum())
                rows += len(ours)
                break
    return worst, same / rows if rows else None, tuple(sizes)
