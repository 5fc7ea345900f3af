"""A network as a small program: a flat list of operators in JSON, and the tensors that they read.

The program is ``{"version": 1, "inputs": [...], "outputs": [...], "nodes": [...]}``:

``inputs``: ``{"name", "shape", "dtype"}``, the first number of a shape None: the batch, which is free.
``outputs``: names of values, in the order in which the network returns them.
``nodes``, in an order in which they can be run: ``{"op", "inputs", "output", "shape", ...}``, where
``inputs`` names earlier values, ``output`` is a name given once and ``shape`` is its shape without the
first dim, which is the batch, or a multiple of it (windows of an image, say). Values are float32, or where an
operator says so bools or whole numbers; inputs are float32, int64, int32 or bool, and tensors float32.
Weights are named by their key in ``tensors``; None where there is none. What an op has besides:

======================= ==================================================================================
linear                  weight (outputs, inputs), bias; works on the last dim
conv                    weight (outputs, inputs/groups, *kernel), bias, kernel, stride, padding, dilation:
                        one number a spatial dim (one or two), zeros on both sides; groups
conv_transpose          as conv; weight (inputs, outputs/groups, *kernel); its size is that of ``shape``
embedding               weight (rows, features); its input is of int64 or int32
lstm, gru,              one layer in one direction: what a ``linear`` took from the input (steps, gates x
rnn_tanh, rnn_relu      size), and the states before the first step, where not zero; weight (gates x size,
                        size), bias, reverse: from the last step on; cells: those too, behind the hidden
                        states
max_pool                kernel, stride, padding, dilation; pads with -inf, on the right as
                        far as ``shape`` needs
avg_pool                kernel, stride, padding, count_padding, divisor (None: the numbers under the kernel,
                        those of the padding too where count_padding is true)
mean, sum, amax         dims (counted with the batch, which is 0 and never among them), keepdim
scale                   scale, shift: tensors, one number a channel (dim 1): x * scale + shift
layer_norm              dims: how many of the last ones; weight, bias, eps
group_norm              groups, weight, bias, eps
softmax, log_softmax    dim
add, sub, mul, div      two inputs of the same number of dims, broadcast; or one, and a ``scalar`` or the
                        name of a ``tensor``, which is the left operand where ``reversed`` is true
maximum, minimum        as add
eq, ne, lt, gt, le, ge  as add; bools
and, or, xor, not       of bools
exp, log, abs, sin, cos of one input
where                   of three inputs: bools, what is taken where they are true, and where not
cast                    dtype: float32, int64, int32 or bool
cumsum, argmax          dim
matmul                  of two inputs, over their last two dims
cat                     dim
reshape                 nothing: see ``shape``; row by row. Where an example has another number of rows
                        afterwards, rows: (rows now, rows before)
constant                tensor: the rows that every example has; rows: (how many, those of the input)
expand                  nothing: see ``shape``; dims of size 1 repeated
power                   exponent
permute                 dims, the first one 0
slice                   dim, start, stop, step (positive)
take                    dim, indices: which entries of it
mix                     dim; low, high, share: low + share (high - low) of the entries at two places
pad                     before, after: one number a dim of ``shape``; value
an activation           its ``settings``, each a number, or None for a bound that ``clamp`` lacks: see
                        ``secateur.runtime.activations.ACTIVATIONS``
======================= ==================================================================================

A ``linear`` or ``conv`` may have an ``activation``, the name of one, applied to its result, whose settings
then stand in the same node.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.deploy.program.folding import fold, fuse, pruned
from secateur.deploy.program.lowering import lower
from secateur.errors import ModelError, NonFiniteError
from secateur.graph.capture import all_tensors, arguments, capture
from secateur.graph.compare import difference, tensors_in
from secateur.graph.draws import other_batch, rebatched
from secateur.graph.names import unwrapped
from secateur.graph.rounding import Rounding, rounding
from secateur.running import run_once
from secateur.runtime.operators import weights_of
from secateur.runtime.runner import ProgramError, execute

_BATCHES = (37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)


@dataclass(frozen=True)
class Program:
    """A network's operators (``graph``, pure JSON, as above), its float32 tensors by name, and how far off
    it may be."""

    graph: dict[str, Any]
    tensors: dict[str, Tensor]
    rounding: Rounding

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the tensors as numpy arrays, which share their memory."""
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}


def program_of(model: nn.Module, example_inputs: Any, tolerance: float | None = None) -> Program:
    """Return the program of ``model`` in eval mode, batch norms folded and activations fused. It is run in
    numpy on the example and on other numbers in other batch sizes, 1 among them, and must give what the model
    gives, but for rounding (``secateur.graph.rounding``).

    Args:
        model: the network; nothing of it is changed, and what is not folded shares its memory.
        example_inputs: a tensor, a tuple or a dict of keyword arguments, of any batch size: the first dim of
            every tensor is the batch, and stays free.
        tolerance: how far off the program may be, relative to the largest output, instead of what is
            measured.

    Returns:
        The program and its tensors.

    Raises:
        ModelError: for a model that cannot be captured, is not in float32, mixes the batch with other dims,
            uses an operator that a program lacks, or where the outputs differ.
        NonFiniteError: for outputs that are no numbers.

    Example:
        >>> import torch
        >>> from secateur.deploy.program.export import program_of
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU())
        >>> program = program_of(model, torch.ones(2, 6))
        >>> [(node["op"], node["activation"], node["shape"]) for node in program.graph["nodes"]]
        [('linear', 'relu', [4])]
    """
    model = unwrapped(model)
    args, kwargs = arguments(example_inputs, None)
    size = _batch_size(model, (args, kwargs))
    batch = _strange_size(model, (args, kwargs))
    run_once(model, args, kwargs=kwargs)
    try:
        captured = capture(model, *rebatched((args, kwargs), size, batch))
    except ModelError as error:
        raise ModelError(
            f"{type(model).__name__} cannot be captured with any number of examples in a batch: {error}"
        ) from error
    if captured.refused:
        raise ModelError(f"{type(model).__name__} cannot be a program: {captured.notes[0]}")
    lowered = lower(captured, batch)
    nodes = pruned(lowered.nodes, lowered.outputs)
    nodes, tensors = fold(nodes, lowered.tensors, lowered.outputs)
    nodes = fuse(nodes, lowered.outputs)
    graph = {"version": 1, "inputs": lowered.inputs, "outputs": lowered.outputs, "nodes": nodes}
    try:
        graph = json.loads(json.dumps(graph, allow_nan=False))
    except ValueError as error:
        raise ModelError(f"{type(model).__name__} has a setting that is no finite number") from error
    read = {name for node in nodes for name in weights_of(node).values()}
    kept = {name: t.to("cpu", torch.float32).contiguous() for name, t in tensors.items() if name in read}
    calls = [(args, kwargs)]
    calls += [other_batch((args, kwargs), size, other) for other in sorted({1, 2 * size + 1})]
    wanted = [run_once(model, args, kwargs=kwargs) for args, kwargs in calls]
    program = Program(graph, kept, rounding(model, zip(calls, wanted, strict=True), tolerance))
    for (args, kwargs), outputs in zip(calls, wanted, strict=True):
        _verify(model, program, args, kwargs, outputs)
    return program


def in_order(graph: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the tensors among the arguments of a call as arrays, in the order of the program's inputs."""
    given = [t.detach().cpu() for t in tensors_in(list(args))]
    named = {name: t.detach().cpu() for name, t in kwargs.items() if isinstance(t, Tensor)}
    given += [named.pop(spec["name"]) for spec in graph["inputs"][len(given) :] if spec["name"] in named]
    if named or len(given) != len(graph["inputs"]):
        wanted = ", ".join(spec["name"] for spec in graph["inputs"])
        raise ModelError(f"the program's inputs are {wanted}; give tensors, a tuple of them, or a flat dict")
    return [t.numpy() for t in given]


def _batch_size(model: nn.Module, inputs: Any) -> int:
    sizes = {t.shape[0] if t.dim() else 0 for t in tensors_in(inputs)}
    if len(sizes) != 1 or 0 in sizes:
        raise ModelError(
            f"{type(model).__name__} needs example inputs of one batch size, the first dim of each; "
            f"got {sorted(sizes) or 'no tensor'}"
        )
    wrong = sorted({str(t.dtype) for _, t in all_tensors(model) if t.is_floating_point()} - {"torch.float32"})
    if wrong:
        raise ModelError(
            f"{type(model).__name__} is in {', '.join(wrong)}; a program is in float32: use .float()"
        )
    return sizes.pop()


def _strange_size(model: nn.Module, inputs: Any) -> int:
    """A batch size that is the size of nothing else: then a dim of that size is the batch."""
    taken = {n for _, t in all_tensors(model) for n in t.shape}
    taken |= {n for t in tensors_in(inputs) for n in t.shape}
    return next((size for size in _BATCHES if size not in taken), max(taken) + 1)


def _verify(
    model: nn.Module, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
) -> None:
    """Run the program and compare; raises ModelError."""
    name = type(model).__name__
    wanted = [t.detach().cpu() for t in tensors_in(outputs)]
    if not all(bool(torch.isfinite(t).all()) for t in wanted):
        raise NonFiniteError(f"{name} puts out a NaN or an infinity; nothing can be compared")
    arrays = in_order(program.graph, args, kwargs)
    try:
        found = execute(program.graph, program.arrays(), arrays)
    except ProgramError as error:
        raise ModelError(
            f"{name} does not run as a program on a batch of {len(arrays[0])}: {error}"
        ) from error
    error = difference(wanted, [torch.from_numpy(np.ascontiguousarray(y)) for y in found])
    if not error <= program.rounding.allowed:
        raise ModelError(
            f"{name} as a program is off by {error:.1e} (relative; up to {program.rounding.allowed:.1e} is "
            f"right) on a batch of {len(arrays[0])}: "
            "its forward depends on the batch size, or writes into a view, or an operator of its own is not "
            "the one that it was registered to be like"
        )
