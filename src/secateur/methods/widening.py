"""A network beside itself: every chosen group of channels gets a narrow branch, mixed in by alpha.

With z what a layer makes of a group's C channels, the branch holds C' = ratio C channels ``down z``; both
go through whatever stands before the next layers (norms of their own, activations, pools), and these
read alpha B + (1 - alpha) ``up`` P. As all of that works channel by channel, the network is the same
module with C + C' channels, whose weights are products of the model's with ``down``, ``up`` and alpha.
(While it is trained, a spatial convolution takes its two matrices in turn: see ``SplitConv``.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.copying import copied
from secateur.errors import ModelError
from secateur.graph.capture import first_names, tensor_of
from secateur.graph.compare import difference
from secateur.methods.split_layers import SplitConv, SplitNorm
from secateur.running import call
from secateur.structure.attributes import Sizes, adjust, sizes_by_module
from secateur.structure.layers import layer_view
from secateur.structure.surgery import set_attributes
from secateur.structure.units import Group, Slice, Structure
from secateur.text import first_line

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LEARNING = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
PRODUCER, READER, OWN = "producer", "reader", "own"


@dataclass(frozen=True)
class Part:
    """One dim of one tensor that a group runs over, ``entries`` a unit. ``role``: the tensor makes the
    units, reads them, or has something of its own for each (a norm, a depthwise convolution)."""

    group: str
    tensor: str
    dim: int
    entries: int
    role: str


def parts_of(structure: Structure, name: str, group: Group) -> list[Part] | str:
    """Return the parts of a group, or why it cannot have a branch."""
    found = []
    firsts = list(first_names(structure.model).values())
    for part in group.slices:
        number, entries = part.indices.shape
        size = tensor_of(structure.model, part.name).shape[part.dim]
        if size != number * entries or (part.indices != np.arange(size).reshape(number, entries)).any():
            return f"its units are not all that there is in dim {part.dim} of {part.name}, in order"
        if firsts.count(part.name) > 1:
            return f"{part.name} is shared by several layers"
        role = _role(structure.model, part)
        if role is None:
            return f"no branch can stand beside {part.name} of a {_kind(structure.model, part.name)}"
        found.append(Part(name, part.name, part.dim, entries, role))
    roles = {part.role for part in found}
    return found if {PRODUCER, READER} <= roles else "no plain layer makes its units, or none reads them"


def _role(model: nn.Module, part: Slice) -> str | None:
    path, _, leaf = part.name.rpartition(".")
    module: Any = model.get_submodule(path)
    view = layer_view(module)
    known = view is not None and not view.registered and view.multiplies
    plain = view is not None and known and not view.transposed and view.groups == 1
    if plain and leaf == "weight" and part.dim == 1 and part.reads:
        return READER
    if plain and leaf in ("weight", "bias") and part.dim == 0 and not part.reads:
        return PRODUCER
    deep = _convolves(module) and module.groups == module.in_channels == module.out_channels
    normal = type(module) in _NORMS and module.momentum is not None  # None: counts a network's batches
    return OWN if (deep or normal or isinstance(module, nn.PReLU)) and part.dim == 0 else None


def _convolves(module: nn.Module) -> bool:
    view = layer_view(module)
    return view is not None and view.product == "windows"


def _kind(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(_module(name))).__name__


class Widened(nn.Module):
    """A model with a branch beside each of ``groups``, called like it; ``alphas`` by group.

    Its parameters are the model's (a copy's), by group an ``up`` (C, C') without a bias, so that it
    commutes with the padding of what reads it, by layer a ``down`` (C', C), and the branches' own norms.
    With ``frozen`` the model's parameters and the statistics of its norms stay as they are. A
    ``state_dict`` holds the alphas and ``frozen`` too.
    """

    def __init__(
        self, structure: Structure, parts: Mapping[str, list[Part]], widths: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.model = copied(structure.model)
        self.trainable = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self.widths = dict(widths)
        self.parts: dict[str, dict[int, Part]] = {}
        for part in (part for group in parts.values() for part in group):
            self.parts.setdefault(part.tensor, {})[part.dim] = part
        self.alphas = dict.fromkeys(parts, 1.0)
        self.frozen = False
        self.up, self.down, self.own = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for name, group in parts.items():
            units = len(structure.groups[name])
            like = tensor_of(self.model, group[0].tensor)
            self.up[key(name)] = nn.Parameter(like.new_zeros(units, widths[name]))
            for part in group:
                tensor = tensor_of(self.model, part.tensor)
                if part.role == PRODUCER:
                    self.down[key(_module(part.tensor))] = nn.Parameter(like.new_zeros(widths[name], units))
                elif part.role == OWN and isinstance(tensor, nn.Parameter):
                    size = (widths[name] * part.entries, *tensor.shape[1:])
                    self.own[key(part.tensor)] = nn.Parameter(tensor.new_zeros(size))
        first = first_names(self.model)
        places = [(f"{path}.", module) for path, module in self.model.named_modules()]  # each module once
        names = [f"{path}{leaf}".removeprefix(".") for path, m in places for leaf in m._parameters]
        self.names = {name: first[name] for name in names if name in first}
        self.wide = self._skeleton()
        self.training = self.model.training

    def _skeleton(self) -> nn.Module:
        """The module that runs: a copy with wide buffers, whose parameters are given at each call."""
        work = copied(self.model)
        for path, module in list(work.named_modules()):
            parts = [
                self.parts.get(f"{path}.{leaf}".lstrip("."), {}).get(0) for leaf in ("running_mean", "weight")
            ]
            part = next((part for part in parts if part is not None), None)
            if part is not None and isinstance(module, _NORMS):
                work.set_submodule(path, SplitNorm(module, self.widths[part.group]))
            elif self._split(path, module):
                work.set_submodule(path, SplitConv(module))
            elif part is not None and part.role == OWN and _convolves(module):
                conv: Any = module
                conv.groups = conv.in_channels = conv.out_channels = conv.groups + self.widths[part.group]
        for module in work.modules():
            for leaf in [leaf for leaf, tensor in module._parameters.items() if tensor is not None]:
                del module._parameters[leaf]
                setattr(module, leaf, torch.empty(0))  # functional_call puts a tensor here
        return work

    def _split(self, path: str, module: Any) -> bool:
        """Whether a layer is a convolution over positions that makes units or reads them, one each."""
        parts = self.parts.get(f"{path}.weight".lstrip("."), {}).values()
        plain = _convolves(module) and module.groups == 1 and module.weight[0, 0].numel() > 1
        return plain and bool(parts) and all(part.entries == 1 for part in parts)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.wide, self._running(), args, kwargs)

    def train(self, mode: bool = True) -> Widened:
        super().train(mode)
        if self.frozen:  # statistics of the model's own norms stay, those of branches are learnt
            for module in self.wide.modules():
                if isinstance(module, LEARNING):
                    module.eval()
        return self

    def freeze(self, frozen: bool) -> None:
        """Keep the model's parameters and its norms' statistics as they are, or train them too."""
        self.frozen = frozen
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.trainable[name] and not frozen)
            if frozen:
                parameter.grad = None
        for norm in self.norms():
            norm.frozen = frozen
        self.train(self.training)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([*self.alphas.values(), float(self.frozen)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        *alphas, frozen = state.tolist()
        self.alphas.update(zip(self.alphas, alphas, strict=True))
        if bool(frozen) != self.frozen:
            self.freeze(bool(frozen))

    def norms(self) -> list[SplitNorm]:
        """The norms that learn statistics for a branch."""
        return [module for module in self.wide.modules() if isinstance(module, SplitNorm)]

    def tensors(self) -> dict[str, Tensor]:
        """Return the wide network's parameters, under each of their names."""
        with torch.autocast(self._device(), enabled=False):  # what fold multiplies is what was trained
            made = {name: self._wide(name, tensor) for name, tensor in self.model.named_parameters()}
        return {name: made[first] for name, first in self.names.items()}

    def _running(self) -> dict[str, Tensor]:
        """Return what ``tensors`` does, as the module that runs takes it."""
        given: dict[str, Tensor] = {}
        wide: dict[str, Tensor] = {}  # by first name, each once
        with torch.autocast(self._device(), enabled=False):
            for name, first in self.names.items():
                path, _, leaf = name.rpartition(".")
                tensor = self.model.get_parameter(first)
                if not isinstance(self.wide.get_submodule(path), SplitConv):
                    if first not in wide:
                        wide[first] = self._wide(first, tensor)
                    given[name] = wide[first]
                    continue
                given[f"{path}.conv.{leaf}"] = tensor.view_as(tensor)
                if leaf == "weight":
                    given[f"{path}.mix"], given[f"{path}.spread"] = self._matrices(first, tensor)
        return given

    def _matrices(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two matrices around a layer's own weight, (alpha I, (1 - alpha) up) before it and
        (I, down) after it; empty where no branch is read or made."""
        mix = spread = weight.new_empty(0)
        parts = self.parts[name]
        if 1 in parts:
            alpha, up = self.alphas[parts[1].group], self.up[key(parts[1].group)]
            mix = torch.cat([alpha * _eye(len(up), up), (1 - alpha) * up], 1)
        if 0 in parts:
            down = self.down[key(_module(name))]
            spread = torch.cat([_eye(down.shape[1], down), down])
        return mix, spread

    def _device(self) -> str:
        return next(self.up.parameters()).device.type

    def _wide(self, name: str, tensor: Tensor) -> Tensor:
        parts = self.parts.get(name, {})
        reader, maker = parts.get(1), parts.get(0)
        if reader is not None:
            alpha = self.alphas[reader.group]
            by_unit = tensor.unflatten(1, (-1, reader.entries)).movedim(1, -1)
            branch = (by_unit @ self.up[key(reader.group)]).movedim(-1, 1).flatten(1, 2)
            tensor = torch.cat([alpha * tensor, (1 - alpha) * branch], 1)
        if maker is not None and maker.role == PRODUCER:
            down = self.down[key(_module(name))]
            by_unit = tensor.unflatten(0, (-1, maker.entries))
            tensor = torch.cat([tensor, torch.tensordot(down, by_unit, 1).flatten(0, 1)])
        elif maker is not None:
            tensor = torch.cat([tensor, self.own[key(name)]])
        return tensor.view_as(tensor)  # no parameter itself, which the wide module would take for its own

    def settle(self, structure: Structure) -> None:
        """Find the sizes that the forward keeps as attributes and that must grow; to be called with
        anything but zeros in the branches, at alpha 1, where the outputs are the model's.

        Raises ModelError where there is no set of them with which they are."""
        args, kwargs = structure.captured.args, structure.captured.kwargs
        wanted = call(copied(structure.model), args, kwargs)
        rounding = max(torch.finfo(p.dtype).eps for p in self.up.parameters())
        equal = max(1e-4, 8 * rounding)  # relative to the largest |output|
        _, attempt = adjust(
            self.wide,
            _grown_sizes(structure, self.widths),
            lambda: call(self, args, kwargs),
            lambda found: difference(wanted, found) <= equal,
        )
        if attempt.error is None and difference(wanted, attempt.outputs) <= equal:
            return
        where = f" in {attempt.stack[-1]!r}" if attempt.stack and attempt.stack[-1] else ""
        why = "it computes something else" if attempt.error is None else first_line(attempt.error)
        raise ModelError(
            f"{type(structure.model).__name__} cannot have branches beside {', '.join(self.widths)}: its "
            f"forward does not follow more channels{where} ({why}); leave such a group out with exclude="
        )

    @torch.no_grad()
    def grown(self) -> nn.Module:
        """Return the wide network as an ordinary module of the model's class."""
        tensors = self.tensors()
        work = copied(self.wide)
        for path, module in list(work.named_modules()):
            if isinstance(module, SplitNorm):
                work.set_submodule(path, module.joined(self.model.get_submodule(path)))
            elif isinstance(module, SplitConv):
                work.set_submodule(path, module.conv)
        made: dict[str, nn.Parameter] = {}
        for name, tensor in tensors.items():
            first = self.names[name]
            if first not in made:
                made[first] = nn.Parameter(tensor.detach().clone(), requires_grad=self.trainable[first])
            module = work.get_submodule(_module(name))
            leaf = name.rpartition(".")[2]
            module.__dict__.pop(leaf, None)
            module._parameters[leaf] = made[first]
        for path, module in work.named_modules():
            set_attributes(module, path, {}, self.names)
        return work


def _grown_sizes(structure: Structure, widths: Mapping[str, int]) -> dict[str, Sizes]:
    """Return by module path the sizes that grow in it, old -> new, innermost and around."""
    more = np.zeros(len(structure.classes.frozen))  # channels of a branch that come with one of a class
    for name, width in widths.items():
        part = structure.groups[name].slices[0]
        more[structure.classes_of(part)[:, 0]] = width / len(part.indices)
    return sizes_by_module(structure, lambda own: len(own) + round(float(more[own].sum())))


def key(name: str) -> str:
    """Return a name as torch allows it in a ParameterDict."""
    return name.replace(".", "/")


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _module(name: str) -> str:
    return name.rpartition(".")[0]
