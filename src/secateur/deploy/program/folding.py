"""Making a program smaller: dead nodes dropped, batch norms folded, activations fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from secateur.runtime.activations import ACTIVATIONS

Nodes = list[dict[str, Any]]
_LAYERS = ("linear", "conv")


def scale_and_shift(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return what a batch norm with these statistics multiplies by and adds, in float64."""
    scale = (variance.double() + eps).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def scaled(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a layer that does what one does and then a scale, in float64."""
    scale, shift = scale.double(), shift.double()
    made = weight.double() * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    made[made == 0] = 0.0  # a zero times a negative scale has a sign, which costs room in a file
    return made, shift if bias is None else bias.double() * scale + shift


def pruned(nodes: Nodes, outputs: Iterable[str]) -> Nodes:
    """Return the nodes that an output depends on."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if node["output"] in needed:
            needed.update(node["inputs"])
            kept.append(node)
    return kept[::-1]


def fold(nodes: Nodes, tensors: dict[str, Tensor], outputs: Iterable[str]) -> tuple[Nodes, dict[str, Tensor]]:
    """Multiply every ``scale`` into the layer before it, where nobody else reads that layer's output.

    Rows are multiplied whole, so a weight that is zero stays zero. A tensor that other nodes read too is
    left to them, and the folded one gets a name of its own.
    """
    tensors, made = dict(tensors), []
    readers = _readers(nodes, outputs)
    users = Counter(name for node in nodes for name in (node.get("weight"), node.get("bias")) if name)
    layers: dict[str, dict[str, Any]] = {}
    for node in nodes:
        layer = layers.get(node["inputs"][0])
        # The output of a linear layer has its features last, and a scale is of dim 1.
        plain = layer is not None and (layer["op"] == "conv" or len(layer["shape"]) == 1)
        if node["op"] != "scale" or layer is None or not plain or readers[layer["output"]] > 1:
            made.append(dict(node))
            if node["op"] in _LAYERS:
                layers[node["output"]] = made[-1]
            continue
        before = None if layer["bias"] is None else tensors[layer["bias"]]
        scale, shift = tensors[node["scale"]], tensors[node["shift"]]
        weight, bias = scaled(tensors[layer["weight"]], before, scale, shift)
        names = {"weight": layer["weight"], "bias": layer["bias"] or _sibling(layer["weight"])}
        for key, folded in (("weight", weight), ("bias", bias)):
            name = names[key]
            if users[name] > 1 or (name in tensors and name != layer[key]):
                name = f"{name}.{layer['output']}"
            layer[key] = name
            tensors[name] = folded
        layer["output"] = node["output"]  # what was read as the scale's result is now the layer's
        layers[layer["output"]] = layer
    return made, tensors


def fuse(nodes: Nodes, outputs: Iterable[str]) -> Nodes:
    """Make an activation an attribute of the layer before it, where nobody else reads that layer's output."""
    made: Nodes = []
    readers = _readers(nodes, outputs)
    layers: dict[str, dict[str, Any]] = {}
    for node in nodes:
        layer = layers.pop(node["inputs"][0], None)
        if node["op"] not in ACTIVATIONS or layer is None or readers[layer["output"]] > 1:
            made.append(dict(node))
            if node["op"] in _LAYERS:
                layers[node["output"]] = made[-1]
            continue
        layer.update({key: value for key, value in node.items() if key not in ("op", "inputs", "shape")})
        layer["activation"] = node["op"]
    return made


def _readers(nodes: Nodes, outputs: Iterable[str]) -> Counter[str]:
    return Counter([*(name for node in nodes for name in node["inputs"]), *outputs])


def _sibling(weight: str) -> str:
    stem, _, leaf = weight.rpartition(".")
    return f"{stem}.bias" if leaf == "weight" and stem else f"{weight}.bias"
