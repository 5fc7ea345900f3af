"""The graph of a network: its ``forward`` as ``torch.export`` records it, before decomposition."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from secateur.copying import copied, fresh
from secateur.errors import ModelError
from secateur.graph.names import unwrapped
from secateur.running import arguments, forward_once

_COMPILED = "_orig_mod."  # what torch.compile puts into names


@dataclass(frozen=True)
class Captured:
    """An exported graph of a copy of ``model``, and what its placeholders stand for.

    ``tensors``: parameter or buffer by placeholder name, under its first name in the model;
    ``constants``: the tensors written into the forward, and those that it keeps from its first run on;
    ``inputs``: the placeholders of the caller.
    """

    model: nn.Module
    program: ExportedProgram
    tensors: dict[str, str]
    buffers: frozenset[str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def graph(self) -> fx.Graph:
        return self.program.graph_module.graph

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
    """Export a copy of ``model`` in eval mode on example inputs; raises ModelError where that fails.

    The copy has run once before: what a forward makes at its first run and keeps (a table of positions,
    an entry of a cache that all copies share) is made of real numbers, and not by the export.
    """
    model = unwrapped(model)
    args, named = arguments(example_inputs, kwargs)
    work = copied(model).eval()
    if not any(tensor.is_meta for _, tensor in all_tensors(work)):
        forward_once(work, args, kwargs=named)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                work, fresh(args), fresh(named) or None, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:  # export raises anything that the forward does, and its own kinds
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        raise ModelError(
            f"{type(model).__name__} cannot be captured by torch.export on these example inputs: {lines[0]}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    first, made = first_names(model), dict(all_tensors(work))
    tensors: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    buffers: set[str] = set()
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None:
            tensor = made[spec.target]
            # A buffer that the run registered, or made anew for these inputs.
            if spec.target not in first or tensor.shape != tensor_of(model, spec.target).shape:
                constants[name] = tensor
                continue
            tensors[name] = first[spec.target]
            if spec.kind == InputKind.BUFFER:
                buffers.add(tensors[name])
        elif spec.kind == InputKind.CONSTANT_TENSOR and spec.target is not None:
            constants[name] = program.constants[spec.target]  # type: ignore[assignment]
        elif spec.kind == InputKind.USER_INPUT:
            inputs.append(name)
    given = {parameter.data_ptr() for parameter in model.parameters() if parameter.numel()}
    written = [tensor for tensor in constants.values() if not tensor.is_meta and tensor.numel()]
    if any(tensor.data_ptr() in given for tensor in written):
        raise ModelError(
            f"{type(model).__name__}: its forward reads the network by another way than self (a global name, "
            "say), so that no copy of it could be cut; write the forward as a method"
        )
    return Captured(model, program, tensors, frozenset(buffers), constants, tuple(inputs), args, named)


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
    if tensor.device.type == "meta" or not tensor.numel():
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
