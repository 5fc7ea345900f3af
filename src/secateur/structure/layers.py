"""What a layer is, and which way its matrix lies: one table, open to users by ``register_layer``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from secateur.copying import copied
from secateur.errors import ModelError
from secateur.structure.computed import Stored, behind, computed, stores
from secateur.text import nearest

Size = int | tuple[tuple[str, int | None], ...]
"""Where a size stands: a dim of the weight, or the first of some (tensor, dim) that the module has; a dim
that is None is the whole shape."""


@dataclass(frozen=True)
class LayerView:
    """A module read as a layer.

    ``cls``: the class that the table knows it by; ``registered``: by a user; ``plain``: its forward is that
    class's own. ``weights`` and ``bias``: names of the matrices and of what is added to their product.
    ``output_dim`` and ``input_dim``: dims of a weight; in ``groups`` dim 1 runs over one group. ``kernel``:
    how many last dims of a weight run over positions. ``channels``: the dim, from the end, of the input and
    of the output that runs over channels. ``product``: what is multiplied, "rows" of channels or "windows"
    of a convolution; the "steps" of a recurrent layer; None where it is something else. ``sizes``:
    attributes that say a size.
    """

    cls: type[nn.Module]
    weights: tuple[str, ...] = ("weight",)
    bias: str | None = "bias"
    output_dim: int = 0
    input_dim: int = 1
    groups: int = 1
    kernel: int = 0
    channels: int = -1
    product: Literal["rows", "windows", "steps"] | None = "rows"
    sizes: Mapping[str, Size] = field(default_factory=dict)
    registered: bool = False
    plain: bool = True

    @property
    def transposed(self) -> bool:
        """Whether the weight is (inputs, outputs)."""
        return self.output_dim > self.input_dim

    @property
    def multiplies(self) -> bool:
        """Whether outputs are one product of inputs and the weight, plus the bias."""
        return self.product in ("rows", "windows")

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight, or a mask of one, as a matrix (outputs, inputs and kernel)."""
        return weight.movedim(self.output_dim, 0).flatten(1)

    def unmatrix(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Return what ``matrix`` made, in the shape of ``like`` again."""
        turned = like.movedim(self.output_dim, 0).shape
        return matrix.reshape(turned).movedim(0, self.output_dim)

    def number_of_inputs(self, weight: Tensor) -> int:
        """Return how many channels a layer with this weight reads."""
        return weight.shape[self.input_dim] * (self.groups if self.input_dim == 1 else 1)

    def reads_input(self, weight: str) -> bool:
        """Whether one of the weights multiplies what the layer is called with, not an inner state."""
        return self.product != "steps" or weight in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse")


def _convolutions() -> Iterator[LayerView]:
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    turned = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for kernel, (conv, transposed) in enumerate(zip(plain, turned, strict=True), 1):
        row = LayerView(conv, kernel=kernel, channels=-1 - kernel, product="windows")
        yield replace(row, sizes={"out_channels": 0, "in_channels": 1})
        row = replace(row, cls=transposed, output_dim=1, input_dim=0, product=None)
        yield replace(row, sizes={"out_channels": 1, "in_channels": 0})


_RECURRENT: dict[str, Size] = {
    "hidden_size": (("weight_hr_l0", 1), ("weight_hh_l0", 1)),  # with projections the state is smaller
    "proj_size": (("weight_hr_l0", 0),),
    "input_size": (("weight_ih_l0", 1),),
}
_CELL: dict[str, Size] = {"hidden_size": (("weight_hh", 1),), "input_size": (("weight_ih", 1),)}
LAYERS: dict[type[nn.Module], LayerView] = {
    row.cls: row
    for row in (
        LayerView(nn.Linear, sizes={"out_features": 0, "in_features": 1}),
        *_convolutions(),
        *(
            LayerView(cls, (), None, product="steps", sizes=_RECURRENT)
            for cls in (nn.RNNBase, nn.RNN, nn.LSTM, nn.GRU)
        ),
        *(
            LayerView(cls, ("weight_ih", "weight_hh"), None, product="steps", sizes=_CELL)
            for cls in (nn.RNNCellBase, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
        ),
    )
}
# Sizes of modules that are no layers: they have no matrix that is pruned by default.
SIZES: dict[type[nn.Module], Mapping[str, Size]] = {
    nn.modules.batchnorm._NormBase: {"num_features": (("weight", 0), ("running_mean", 0))},
    nn.GroupNorm: {"num_channels": 0},
    nn.LayerNorm: {"normalized_shape": (("weight", None),)},
    nn.RMSNorm: {"normalized_shape": (("weight", None),)},
    nn.Embedding: {"num_embeddings": 0, "embedding_dim": 1},
    nn.EmbeddingBag: {"num_embeddings": 0, "embedding_dim": 1},
    nn.PReLU: {"num_parameters": 0},
    nn.Bilinear: {"out_features": 0, "in1_features": 1, "in2_features": 2},
}
_REGISTERED: dict[type[nn.Module], LayerView] = {}


def register_layer(
    cls: type[nn.Module],
    *,
    weight: str = "weight",
    bias: str | None = "bias",
    output_dim: int = 0,
    input_dim: int = 1,
    channels: int = -1,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Say which way the matrix of a layer class of your own lies, so that it is pruned as a Linear layer is.

    Its weight is a target, Wanda reads its inputs, ``compact`` sets its sizes, and ``reconstruct`` refits it
    where its output is the product of its input and its weight, plus the bias, which is tried.

    Args:
        cls: the class; its subclasses are meant too.
        weight: name of the parameter that holds the matrix.
        bias: name of the parameter that is added to the output; None where there is none.
        output_dim: dim of the weight that runs over outputs.
        input_dim: dim of the weight that runs over inputs.
        channels: dim, counted from the end, of the layer's first argument and of its output that runs over
            channels.
        sizes: names of attributes that say a size, each with the dim of the weight that has it.

    Raises:
        ModelError: for what is no class of modules, or dims and names that cannot be.

    Example:
        >>> import torch, secateur as sc
        >>> class Dense(torch.nn.Module):
        ...     def __init__(self, inputs, units):
        ...         super().__init__()
        ...         self.units, self.kernel = units, torch.nn.Parameter(torch.ones(inputs, units))
        ...
        ...     def forward(self, x):
        ...         return x @ self.kernel
        >>> sc.register_layer(
        ...     Dense, weight="kernel", bias=None, output_dim=1, input_dim=0, sizes={"units": 1}
        ... )
        >>> list(sc.find_targets(torch.nn.Sequential(Dense(4, 3), Dense(3, 2))))
        ['0.kernel', '1.kernel']
        >>> sc.forget_layer(Dense)
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ModelError(f"register_layer: {cls!r} is no class of layers, a subclass of torch.nn.Module")
    who, sizes = f"register_layer({cls.__name__})", dict(sizes or {})
    for name, value in (("output_dim", output_dim), ("input_dim", input_dim), *sizes.items()):
        if type(value) is not int or value < 0:
            raise ModelError(f"{who}: {name} is {value!r}; it is a dim of the weight, from 0")
    if output_dim == input_dim:
        raise ModelError(f"{who}: output_dim and input_dim are both {input_dim}")
    if type(channels) is not int or channels >= 0:
        raise ModelError(f"{who}: channels is {channels!r}; it is a dim counted from the end, like -1")
    row = LayerView(cls, (weight,), bias, output_dim, input_dim, channels=channels, sizes=sizes)
    _REGISTERED[cls] = replace(row, registered=True)


def forget_layer(cls: type[nn.Module]) -> None:
    """Take back what ``register_layer`` was told of a class.

    A class that it was not told of is no error.

    Args:
        cls: the class.

    Example:
        >>> import torch, secateur as sc
        >>> sc.forget_layer(torch.nn.Bilinear)
    """
    _REGISTERED.pop(cls, None)


def layer_view(module: nn.Module) -> LayerView | None:
    """Return how a module is read as a layer; None where it is none that the table knows.

    Raises ModelError for a registered layer that lacks what it was registered with.
    """
    row = next((row for kind in type(module).__mro__ if (row := _row(kind)) is not None), None)
    if row is None:
        return None
    # A weight that is computed is not among the parameters, but it keeps its place in this list.
    listed = tuple(name for name in getattr(module, "_flat_weights_names", ()) if name.startswith("weight"))
    view = replace(
        row,
        weights=listed or row.weights,
        bias=row.bias if row.bias and getattr(module, row.bias, None) is not None else None,
        groups=module.groups if row.kernel else 1,  # type: ignore[arg-type]
        plain=type(module).forward is row.cls.forward or (row.cls is nn.Linear and _gives_product(module)),
    )
    if view.registered:
        _check_registered(module, view, row.bias)
    return view


@torch.no_grad()
def _gives_product(module: nn.Module) -> bool:
    """Whether a Linear layer of somebody's, with a forward of its own, gives what torch's would: a copy is
    tried, in both modes."""
    weight = module._parameters.get("weight")
    if weight is None or weight.is_meta or not weight.is_floating_point() or is_lazy(weight):
        return False
    try:
        work = copied(module, shared=module.parameters())
        x = torch.linspace(-1.0, 1.0, weight.shape[1]).to(weight)[None]
        wanted = nn.functional.linear(x, weight, work._parameters.get("bias"))
        return all(torch.allclose(work.train(mode)(x), wanted) for mode in (True, False))
    except Exception:  # whatever a forward of one's own raises on what is no input of its network
        return False


def _row(kind: type) -> LayerView | None:
    if kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."):  # a Linear, turned
        return LayerView(kind, output_dim=1, input_dim=0, sizes={"nf": 1, "nx": 0})
    return _REGISTERED.get(kind) or LAYERS.get(kind)


def _check_registered(module: nn.Module, view: LayerView, bias: str | None) -> None:
    weight, here = view.weights[0], [name for name, _ in module.named_parameters(recurse=False)]
    if weight not in here and not stores(module, weight):
        raise ModelError(
            f"{view.cls.__name__} is registered with weight={weight!r}, and a module of it has no such "
            f"parameter{nearest(weight, here)}"
        )
    if bias not in (None, "bias") and not hasattr(module, bias):  # the default names one that there may be
        raise ModelError(
            f"{view.cls.__name__} is registered with bias={bias!r}, and a module of it has no such "
            f"parameter{nearest(bias, here)}"
        )
    shape = None if any(map(is_lazy, module.parameters(recurse=False))) else _shape(module, weight)
    own_dims = {"output_dim": view.output_dim, "input_dim": view.input_dim, **view.sizes}
    for name, dim in own_dims.items():
        if shape is not None and isinstance(dim, int) and dim >= len(shape):
            raise ModelError(
                f"{view.cls.__name__} is registered with {name} {dim}, and {weight} of a module of it has "
                f"{len(shape)} dims, {tuple(shape)}"
            )
    own = [name for name, value in vars(module).items() if type(value) is int]
    for attribute in view.sizes:
        if not hasattr(module, attribute):
            raise ModelError(
                f"{view.cls.__name__} is registered with a size {attribute!r}, and a module of it has no "
                f"such attribute{nearest(attribute, own)}"
            )


# -- sizes -----------------------------------------------------------------------------------------


def set_sizes(module: nn.Module) -> None:
    """Set the attributes in which a layer, norm or embedding says the sizes of its tensors."""
    view = layer_view(module)
    kinds = type(module).__mro__
    sizes = view.sizes if view else next((SIZES[kind] for kind in kinds if kind in SIZES), {})
    for attribute, size in sizes.items():
        places = ((view.weights[0] if view else "weight", size),) if isinstance(size, int) else size
        for name, dim in places:
            shape = _shape(module, name)
            if shape is not None:
                groups = view.groups if view and dim == 1 else 1
                setattr(module, attribute, tuple(shape) if dim is None else shape[dim] * groups)
                break


def _shape(module: nn.Module, name: str) -> torch.Size | None:
    # What a hook computes before each forward has the shape of the last one, so ask what it is made of.
    for leaf in (name, f"{name}_v", f"{name}_orig"):
        if (parameter := module._parameters.get(leaf)) is not None:
            return parameter.shape
    tensor = getattr(module, name, None)
    return tensor.shape if isinstance(tensor, Tensor) else None


def stored_weights(module: nn.Module) -> Iterator[Stored]:
    """Yield the parameters that stand behind the weights of a layer: the weights themselves, or what a
    parametrization (or a hook of the old weight_norm and spectral_norm) makes them of."""
    view = layer_view(module)
    for name in view.weights if view else ():
        parameter = module._parameters.get(name)
        if parameter is not None:
            yield Stored(name, parameter)
        else:
            yield from behind(module, name)


@torch.no_grad()
def multiplied(module: nn.Module, parameter: Tensor) -> Tensor:
    """Return the weight by which a layer multiplies: a parameter of it, or what is computed from that."""
    name = next((s.weight for s in stored_weights(module) if s.parameter is parameter), None)
    return computed(copied(module), name) if name and stores(module, name) else parameter
