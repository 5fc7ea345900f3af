"""The graph of one run: the operators that really ran for the example, recorded on real values.

What ``torch.export`` refuses (branches on numbers of a tensor, shapes that depend on values, numpy in
the forward) is one path here, that of the example. What left the recording on that path is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from secateur.copying import fresh
from secateur.graph.calls import Call
from secateur.graph.compare import tensors_in
from secateur.running import as_written

_LEAVES = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__)  # ways out that are no operators
_NUMBERS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.item, torch.ops.aten.is_nonzero)
_MODES = (torch._C._set_grad_enabled, torch.amp.autocast_mode._enter_autocast,
              torch.amp.autocast_mode._exit_autocast)  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """What ran: a graph whose placeholders are named by ``tensors`` (of the model, by their names there),
    ``constants`` and ``inputs``, in this order; ``left``: the nodes whose numbers Python or numpy read, and
    the modules in whose forwards they stand."""

    graph_module: fx.GraphModule
    tensors: dict[str, str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    out_spec: Any
    left: dict[fx.Node, str]


def record(
    work: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: dict[str, Tensor]
) -> Recording:
    """Run ``work`` (a copy, in eval mode) on its arguments and return what ran.

    ``names``: its parameters and buffers, each once. Raises whatever the forward or the recording raises.
    """
    leaves, spec = _pytree.tree_flatten((fresh(args), fresh(kwargs)))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    watch, structure = _Leaving(), []

    def run(state: list[Tensor], given: list[Tensor]) -> list[Any]:
        for index, tensor in zip(places, given, strict=True):
            leaves[index] = tensor
        own_args, own_kwargs = _pytree.tree_unflatten(leaves, spec)
        with _named_by_module(work), watch:
            outputs = functional_call(work, dict(zip(names, state, strict=True)), own_args, own_kwargs)
        flat, out_spec = _pytree.tree_flatten(outputs)
        if not all(isinstance(leaf, (Tensor, int, float, str, type(None))) for leaf in flat):
            flat, out_spec = _pytree.tree_flatten(tensors_in(outputs))
        structure.append(out_spec)
        return [*flat, *watch.left]

    recorder = make_fx(
        run,
        tracing_mode="real",
        pre_dispatch=True,
        _allow_non_fake_inputs=True,
        _error_on_data_dependent_ops=False,
    )
    with as_written(), torch._dynamo.config.patch(error_on_nested_fx_trace=False):
        traced = recorder(list(names.values()), [leaves[index] for index in places])
    return _tidied(traced, list(names), len(leaves), places, structure[0], len(watch.left))


def _tidied(
    traced: fx.GraphModule, names: list[str], leaves: int, places: list[int], out_spec: Any, escaped: int
) -> Recording:
    """Give the placeholders names, make one of each constant and of each argument that is no tensor, and
    take the nodes that left from the outputs."""
    graph = traced.graph
    found = [node for node in graph.nodes if node.op == "placeholder"]
    tensors = {node.name: name for node, name in zip(found, names, strict=False)}
    constants: dict[str, Tensor] = {}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    given = dict(zip(places, found[len(names) :], strict=True))
    with graph.inserting_before(first):
        for node in [node for node in graph.nodes if node.op == "get_attr"]:
            value = getattr(traced, str(node.target), None)
            if isinstance(value, Tensor):
                place = graph.placeholder(f"constant_{len(constants)}")
                place.meta["val"] = value
                constants[place.name] = value
                node.replace_all_uses_with(place)
                graph.erase_node(node)
        inputs = [given.get(index) or graph.placeholder(f"input_{index}") for index in range(leaves)]
        for before, node in zip([found[len(names) - 1] if names else None, *inputs], inputs, strict=False):
            if before is not None:
                before.append(node)
    for node in reversed(list(graph.nodes)):  # what is left before what is entered
        if node.op == "call_function" and node.target in _MODES and not node.users:
            graph.erase_node(node)
    end = next(iter(graph.find_nodes(op="output")))
    outputs = list(end.args[0])  # type: ignore[call-overload]
    left = (
        [node for node in outputs[len(outputs) - escaped :] if isinstance(node, fx.Node)] if escaped else []
    )
    end.args = (outputs[: len(outputs) - escaped],)
    left += [node.args[0] for node in graph.nodes if Call(node).operator in _NUMBERS]  # type: ignore[misc]
    return Recording(
        traced,
        tensors,
        constants,
        tuple(node.name for node in inputs),
        out_spec,
        {node: next(iter(Call(node).modules), "") for node in left},
    )


class _Leaving(TorchFunctionMode):
    """Keeps the tensors that are read other than by an operator, as numpy does."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _LEAVES and isinstance(args[0], Tensor):
            self.left.append(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _named_by_module(work: nn.Module) -> Iterator[None]:
    """Write into each node that is recorded the modules in whose forwards it stands, as exports do."""
    starts: list[int] = []

    def nodes() -> list[fx.Node]:
        mode = get_proxy_mode()
        return [] if mode is None else list(mode.tracer.graph.nodes)  # type: ignore[union-attr]

    def enter(module: nn.Module, args: Any) -> None:
        starts.append(len(nodes()))

    def leave(path: str, module: nn.Module) -> None:
        for node in nodes()[starts.pop() :]:
            own = node.meta.get("nn_module_stack") or {}
            node.meta["nn_module_stack"] = {path: (path, type(module))} | own  # outermost first

    hooks = []
    for path, module in work.named_modules():
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(
            module.register_forward_hook(lambda m, _, __, path=path: leave(path, m), always_call=True)
        )
    try:
        yield
    finally:
        for hook in hooks:
            with suppress(KeyError):
                hook.remove()
