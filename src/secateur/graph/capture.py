"""The graph of a network: its ``forward`` as ``torch.export`` records it, before decomposition, or as it
ran for the example where an export is refused."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree

from secateur.copying import copied, fresh
from secateur.errors import ModelError
from secateur.graph.draws import rebatched
from secateur.graph.names import unwrapped
from secateur.graph.recording import Recording, record
from secateur.running import arguments, forward_once, shapes, uncached
from secateur.shards import sharded
from secateur.text import first_line

EXPORTED = 3  # torch.export takes a batch of 1 for a constant
_MOST = 65535  # beyond this batch norms on a GPU take another kernel, and torch.export wants to be told
_COMPILED = "_orig_mod."  # what torch.compile puts into names
_EXPORTED, _RECORDED = "torch.export", "as it ran"
_LOUD = ("torch._export", "torch.export", "torch.fx.experimental", "torch._dynamo", "torch._subclasses")


@dataclass(frozen=True)
class Captured:
    """A graph of a copy of ``model``, and what its placeholders stand for.

    ``tensors``: parameter or buffer by placeholder name, under its first name in the model;
    ``constants``: the tensors written into the forward, and those that it keeps from its first run on;
    ``inputs``: the placeholders of the caller; ``outputs``: the nodes of what it returns, in ``out_spec``.

    ``program`` is what ``torch.export`` gave; None where the graph is what ran for the example, and then
    ``refused`` says why, and ``left`` which nodes' numbers left it (read by Python or numpy) and in which
    modules: they are the example's for good.
    """

    model: nn.Module
    graph_module: fx.GraphModule
    tensors: dict[str, str]
    buffers: frozenset[str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    out_spec: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    program: ExportedProgram | None = None
    refused: str = ""
    left: Mapping[fx.Node, str] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the nodes that it returns."""
        if self.program is not None:
            return tuple(self.program.graph_signature.user_outputs)  # type: ignore[arg-type]
        end = next(iter(self.graph.find_nodes(op="output")))
        return tuple(node.name for node in end.args[0] if isinstance(node, fx.Node))  # type: ignore[union-attr]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the graph says of the example alone, in words."""
        if not self.refused:
            return ()
        places = dict.fromkeys(
            f"in {path!r}" if path else "in its own forward" for path in self.left.values()
        )
        numbers = f"; numbers are read from tensors {', '.join(places)}" if places else ""
        return (
            f"analysed as it ran on the example inputs, because torch.export refuses it ({self.refused})"
            f"{numbers}; where other inputs take another path, give examples= that do",
        )

    def tensor(self, name: str) -> Tensor:
        """Return the model's parameter or buffer ``name``."""
        return tensor_of(self.model, name)


@torch.no_grad()
def capture(
    model: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Captured:
    """Capture a copy of ``model`` in eval mode on example inputs: exported, or as it runs on them where that
    is refused. Raises ModelError where neither can be done.

    The copy has run once before: what a forward makes at its first run and keeps (a table of positions,
    an entry of a cache that all copies share) is made of real numbers, and not by the export.
    """
    model = unwrapped(model)
    args, named = arguments(example_inputs, kwargs)
    work = copied(model).eval()
    real = not any(tensor.is_meta for _, tensor in all_tensors(work))
    if real:
        forward_once(work, args, kwargs=named)
    try:
        # To stderr torch prints a graph as far as it came.
        with _quiet(), uncached(work), redirect_stderr(StringIO()):
            program = torch.export.export(
                work, fresh(args), fresh(named) or None, dynamic_shapes=dynamic_shapes, strict=False
            )
        _check_sizes(program)
        captured = _exported(model, work, program, args, named)
    except ModelError:
        raise
    except Exception as error:  # export raises anything that the forward does, and its own kinds
        why, name = _reason(error), type(model).__name__
        if not real or dynamic_shapes is not None:
            raise ModelError(
                f"{name} cannot be captured by torch.export on these example inputs: {why}"
            ) from error
        try:
            with _quiet():
                captured = _recorded(model, copied(model).eval(), args, named, why)
        except Exception as second:
            raise ModelError(
                f"{name} cannot be captured on these example inputs, neither by torch.export ({why}) nor "
                f"as it runs ({_reason(second)})"
            ) from second
    _check_own(captured)
    return captured


def capture_any_batch(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Captured:
    """Capture a copy of ``model`` for batches of any size: the first dim of every input that has as many
    examples as the first. Raises ModelError where the forward takes some sizes only."""
    batch = batch_size(inputs)
    args, named = rebatched(inputs, batch, max(batch, EXPORTED))
    dim, dims = torch.export.Dim("batch", max=max(batch, _MOST)), torch.export.ShapesCollection()
    for given, leaf in zip(_pytree.tree_leaves(inputs), _pytree.tree_leaves((args, named)), strict=True):
        if isinstance(given, Tensor) and given.dim() and given.shape[0] == batch:
            dims[leaf] = {0: dim}
    try:
        return capture(model, args, named, dynamic_shapes=dims.dynamic_shapes(model, args, named))
    except ModelError as error:
        if "Constraints violated" not in str(error.__cause__):
            raise
        said = [line.strip(" -") for line in str(error.__cause__).splitlines() if "batch" in line]
        raise ModelError(
            f"{type(model).__name__} is captured at some batch sizes only ({said[-1] if said else error}); "
            "in its forward, write x.size(0) or -1 where the batch size stands as a number, or is len(x)"
        ) from error


def batch_size(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> int:
    """Return the first dim of the first tensor; raises ModelError where there is none."""
    sizes = [leaf.shape[0] for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    if not sizes or not sizes[0]:
        raise ModelError(
            f"example inputs {shapes([*inputs[0], *inputs[1].values()])} hold no tensor whose first dim is a "
            "batch"
        )
    return sizes[0]


def _check_sizes(program: ExportedProgram) -> None:
    """Raise ValueError for a size that depends on the values of the inputs: nothing can be cut beside it."""
    for node in program.graph.nodes:
        for value in _pytree.tree_leaves(node.meta.get("val")):
            sizes = (
                [n.node for n in value.shape if isinstance(n, torch.SymInt)]
                if isinstance(value, Tensor)
                else []
            )
            if any(size.hint is None for size in sizes):
                raise ValueError(f"the size of {node.target} depends on the values of its operands")


def _reason(error: Exception) -> str:
    return shorten(first_line(error).partition(" (unhinted")[0], 120, placeholder=" ...")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the fused path of attention, which no graph shows, and without torch's own reports."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in _LOUD}
    torch.backends.mha.set_fastpath_enabled(False)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for logger, level in loggers.items():
            logger.setLevel(level)


def _exported(
    model: nn.Module, work: nn.Module, program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Captured:
    first, made = first_names(model), dict(all_tensors(work))
    tensors: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    buffers: set[str] = set()
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None:
            if _grown(model, first, spec.target, made[spec.target]):
                constants[name] = made[spec.target]
                continue
            tensors[name] = first[spec.target]
            if spec.kind == InputKind.BUFFER:
                buffers.add(tensors[name])
        elif spec.kind == InputKind.CONSTANT_TENSOR and spec.target is not None:
            constants[name] = program.constants[spec.target]  # type: ignore[assignment]
        elif spec.kind == InputKind.USER_INPUT:
            inputs.append(name)
    for target in program.state_dict:  # the program shall hold no copy of the weights beside the model
        if not _grown(model, first, target, made[target]):
            program.state_dict[target] = tensor_of(model, first[target])
    return Captured(
        model, program.graph_module, tensors, frozenset(buffers), constants, tuple(inputs),
        program.call_spec.out_spec, args, kwargs, program,
    )  # fmt: skip


def _recorded(
    model: nn.Module, work: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], why: str
) -> Captured:
    forward_once(work, args, kwargs=kwargs)
    first = first_names(model)
    held = {
        name: tensor
        for name, tensor in all_tensors(work)
        if first.get(name) == name and not _grown(model, first, name, tensor)
    }
    with uncached(work):
        done: Recording = record(work, args, kwargs, held)
    buffers = {name for name, tensor in held.items() if not isinstance(tensor, nn.Parameter)}
    return Captured(
        model, done.graph_module, done.tensors, frozenset(buffers), done.constants, done.inputs,
        done.out_spec, args, kwargs, refused=why, left=done.left,
    )  # fmt: skip


def _grown(model: nn.Module, first: Mapping[str, str], name: str, tensor: Tensor) -> bool:
    """Whether a run registered a buffer, or made it anew for its inputs."""
    return name not in first or tensor.shape != tensor_of(model, name).shape


def _check_own(captured: Captured) -> None:
    """Refuse a forward that reads the given network itself: no copy of it could be cut."""
    given = {parameter.data_ptr() for parameter in captured.model.parameters() if parameter.numel()}
    written = [tensor for tensor in captured.constants.values() if not tensor.is_meta and tensor.numel()]
    if any(tensor.data_ptr() in given for tensor in written):
        raise ModelError(
            f"{type(captured.model).__name__}: its forward reads the network by another way than self (a "
            "global name, say), so that no copy of it could be cut; write the forward as a method"
        )


def all_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer under each of its names, children that are compiled as they were
    before."""
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            yield name.replace(_COMPILED, ""), tensor


def parameters_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter once, by the name that ``all_tensors`` gives it first."""
    for name, parameter in model.named_parameters():
        yield name.replace(_COMPILED, ""), parameter


def module_of(model: nn.Module, path: str) -> nn.Module:
    """Return the module at ``path``, as it was before it was compiled."""
    return unwrapped(model.get_submodule(path))


def first_names(model: nn.Module) -> dict[str, str]:
    """Return, for every name of a parameter or buffer, the first name of the same tensor."""
    first: dict[Any, str] = {}
    names: dict[str, str] = {}
    for name, tensor in all_tensors(model):
        names[name] = first.setdefault(_identity(tensor), name)
    return names


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer called ``name``."""
    path, _, leaf = name.rpartition(".")
    module = module_of(model, path)
    found = module._parameters.get(leaf)
    found = module._buffers.get(leaf) if found is None else found
    if found is None:
        raise ModelError(f"{type(model).__name__} has no parameter or buffer {name!r}")
    return found


def _identity(tensor: Tensor) -> Any:
    if tensor.device.type == "meta" or not tensor.numel() or sharded(tensor):
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
