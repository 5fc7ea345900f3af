"""Graphs of pruned networks in files: tensors in safetensors, the graph as data. Nothing in a file is code.

A node names an operator of torch's own and its arguments. What reads or writes anything but tensors is no
such operator.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export._unlift import _get_codegen
from torch.utils import _pytree

from secateur.errors import ModelError, NonFiniteError, StorageError
from secateur.graph.capture import all_tensors, first_names
from secateur.storage import all_finite, check_digest, load_tensors
from secateur.structure.graph_form import assembled
from secateur.structure.graph_patches import CONSTANTS

FORMAT = "graph 1"
ALLOW = "; allow_nonfinite=True loads it all the same"
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "is_")
}
_OUTSIDE = ("from_file", "rand", "normal", "bernoulli", "multinomial", "_assert", "set_", "resize_", "record")
_VALUES: dict[str, Callable[[str], Any]] = {
    "dtype": lambda name: _torch(name, torch.dtype),
    "layout": lambda name: _torch(name, torch.layout),
    "memory_format": lambda name: _torch(name, torch.memory_format),
    "device": torch.device,
    "float": float,
}


def describe_graph(model: fx.GraphModule) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a graph that was made here, tied ones once, and the rest of it as JSON.

    Raises ModelError for an operator that a file cannot name.
    """
    names = first_names(model)
    codegen: Any = model.graph._codegen
    given, returned = codegen.pytree_info.in_spec, codegen.pytree_info.out_spec
    described = {
        "secateur": FORMAT,
        "class": type(model).__name__,
        "parameters": sorted(name for name, _ in model.named_parameters()),
        "frozen": sorted(name for name, p in model.named_parameters() if not p.requires_grad),
        "tied": {name: first for name, first in names.items() if first != name},
        "arguments": list(codegen.pytree_info.orig_args),
        "takes": _spec(given),
        "returns": _spec(returned),
        "nodes": [_node(node) for node in model.graph.nodes],
    }
    return {n: t.detach() for n, t in all_tensors(model) if names[n] == n}, described


def load_graph(path: str | Path, *, allow_nonfinite: bool = False) -> fx.GraphModule:
    """Read a network that ``compact(..., form="graph")`` made and ``save`` wrote; no class of it is needed.

    It runs operators of torch's own on the tensors of the file, and no code of it. Outputs of classes of
    other packages come back as dicts.

    Args:
        path: the file.
        allow_nonfinite: take weights that hold a NaN or an infinity.

    Returns:
        The network, in eval mode.

    Raises:
        StorageError: for a file that is damaged, changed or of another kind.
        NonFiniteError: for weights that hold a NaN or an infinity, unless ``allow_nonfinite``.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> x = torch.randn(2, 8)
        >>> _ = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x))
        >>> small, proof = sc.compact(net, x, form="graph")
        >>> sc.save(small, "graph.safetensors")
        >>> torch.equal(sc.load_graph("graph.safetensors")(x), small(x))
        True
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("secateur") != FORMAT:
        raise StorageError(f"{path}: not a graph saved by secateur (its metadata lack 'secateur: {FORMAT}')")
    check_digest(path, tensors, metadata)
    for name, tensor in tensors.items():
        if not (allow_nonfinite or name.startswith(CONSTANTS) or all_finite(tensor)):
            raise NonFiniteError(f"{path}: {name} holds a NaN or an infinity{ALLOW}")
    try:
        return _built(tensors, metadata)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise StorageError(f"{path}: what it says of the graph is damaged: {error}") from error


def _built(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> fx.GraphModule:
    parameters, frozen = set(said["parameters"]), set(said["frozen"])
    found: dict[str, Tensor] = {
        name: nn.Parameter(t, (t.is_floating_point() or t.is_complex()) and name not in frozen)
        if name in parameters
        else t
        for name, t in tensors.items()
    }
    found |= {name: found[first] for name, first in said["tied"].items()}
    if unknown := [
        name for name in found if not all(part.isidentifier() or part.isdigit() for part in name.split("."))
    ]:
        raise ValueError(f"{unknown[0]!r} is no name of a tensor")
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for node in said["nodes"]:
        kind, name = node["op"], node["name"]
        if not isinstance(name, str) or not name.isidentifier() or name in nodes:
            raise ValueError(f"{name!r} is no name of a node, or of two")
        if kind == "placeholder":
            nodes[name] = graph.placeholder(name)
        elif kind == "get_attr":
            if node["target"] not in found:
                raise ValueError(f"there is no tensor {node['target']!r}")
            nodes[name] = graph.get_attr(node["target"])
        elif kind == "call":
            args, kwargs = _decoded(node["args"], nodes), _decoded(node["kwargs"], nodes)
            nodes[name] = graph.call_function(_called(node["target"]), tuple(args), kwargs)
        elif kind == "output":
            nodes[name] = graph.output(_decoded(node["args"], nodes)[0])
        else:
            raise ValueError(f"{kind!r} is no kind of node")
    arguments = said["arguments"]
    if not all(isinstance(name, str) and name.isidentifier() for name in arguments):
        raise ValueError("its arguments have no names")
    graph.set_codegen(_get_codegen(_read_spec(said["takes"]), _read_spec(said["returns"]), arguments))
    graph.lint()
    name = str(said["class"])
    return assembled(found, graph, name if name.isidentifier() else "Network")


# -- nodes and values ------------------------------------------------------------------------------------


def _node(node: fx.Node) -> dict[str, Any]:
    if node.op == "call_function":
        return {
            "name": node.name,
            "op": "call",
            "target": _name_of(node.target),
            "args": _encoded(list(node.args)),
            "kwargs": _encoded(dict(node.kwargs)),
        }
    row = {"name": node.name, "op": node.op}
    return row | (
        {"args": _encoded(list(node.args))} if node.op == "output" else {"target": str(node.target)}
    )


def _name_of(target: Any) -> str:
    name = str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", "")
    try:
        if _called(name) is target:
            return name
    except ValueError:
        pass
    raise ModelError(
        f"the graph calls {target}, which no file can name; torch.export.save writes such graphs"
    )


def _called(name: str) -> Any:
    """Return the operator of torch's own, or of Python's, by its name."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    package, packet, overload = name.split(".")
    if package != "aten" or (packet.startswith(_OUTSIDE) and packet != "_assert_scalar"):
        raise ValueError(f"{name} is no operator on tensors")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _encoded(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_encoded(part) for part in value]
    if isinstance(value, dict):
        return {"items": {key: _encoded(part) for key, part in value.items()}}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ModelError(f"the graph holds a {type(value).__name__}, which no file of it can")


def _decoded(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decoded(part, nodes) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[inner]
    if kind == "items":
        return {key: _decoded(part, nodes) for key, part in inner.items()}
    return _VALUES[kind](inner)


def _torch(name: str, kind: type) -> Any:
    value = getattr(torch, name)
    if not isinstance(value, kind):
        raise ValueError(f"{name} is no {kind.__name__}")
    return value


# -- what goes in and comes out --------------------------------------------------------------------------


def _spec(spec: Any) -> Any:
    """Return a nesting of tuples, lists and dicts as JSON; classes of other packages become dicts."""
    if spec is None or spec.is_leaf():
        return None
    parts = [_spec(spec.child(index)) for index in range(spec.num_children)]
    if spec.type in (tuple, list):
        return {spec.type.__name__: parts}
    keys = list(spec.context) if isinstance(spec.context, (list, tuple)) else []
    if len(keys) != len(parts) and keys and isinstance(keys[0], (list, tuple)):
        keys = list(keys[0])
    if len(keys) == len(parts) and all(isinstance(key, str) for key in keys):
        return {"dict": [[key, part] for key, part in zip(keys, parts, strict=True)]}
    return {"tuple": parts}


def _read_spec(said: Any) -> Any:
    return _pytree.tree_structure(_nested(said))


def _nested(said: Any) -> Any:
    if said is None:
        return 0
    ((kind, parts),) = said.items()
    if kind == "dict":
        return {key: _nested(part) for key, part in parts}
    if kind not in ("tuple", "list"):
        raise ValueError(f"{kind!r} is no nesting")
    values = [_nested(part) for part in parts]
    return tuple(values) if kind == "tuple" else values
