"""A network whose weights are multiplied by factors: one a unit where it is read, one a residual block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.copying import copied
from secateur.graph.capture import tensor_of
from secateur.pruning.shrinkage import soft_threshold
from secateur.structure.dead import summed_elsewhere
from secateur.structure.units import Group, Structure


@dataclass(frozen=True)
class Site:
    """Where a factor acts: on all of a parameter, or on the entries of ``dim`` that each unit has."""

    factor: str
    parameter: str
    dim: int | None = None
    entries: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # (units, entries)


class Scaled(nn.Module):
    """``model``, called the same way, with weights multiplied by factors in each forward.

    The product lives for one forward (``torch.func.functional_call``): the model itself keeps its
    weights, names and hooks. Its parameters are the model's. Factors and their velocities are buffers
    with the group's name, so that a ``state_dict`` holds the whole state of the training.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        super().__init__()
        self.model = model
        self.sites = tuple(sites)
        self.training = model.training
        for number, site in enumerate(sites):
            weight = tensor_of(model, site.parameter)
            dtype = torch.promote_types(weight.dtype, torch.float32)
            size = 1 if site.dim is None else len(site.entries)
            self.register_buffer(f"entries {number}", site.entries.to(weight.device), persistent=False)
            if _key("factor", site.factor) not in self._buffers:
                ones = torch.ones(size, dtype=dtype, device=weight.device, requires_grad=True)
                self.register_buffer(_key("factor", site.factor), ones)
                self.register_buffer(_key("velocity", site.factor), torch.zeros_like(ones).detach())

    @property
    def factors(self) -> dict[str, Tensor]:
        """The factors by name of their group (one a unit) or block (one)."""
        names = dict.fromkeys(site.factor for site in self.sites)
        return {name: self.get_buffer(_key("factor", name)) for name in names}

    def velocity(self, name: str) -> Tensor:
        return self.get_buffer(_key("velocity", name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, self.scaled(), args, kwargs)

    def scaled(self) -> dict[str, Tensor]:
        """Return by parameter its product with all factors that act on it."""
        factors = self.factors
        scales: dict[str, Tensor] = {}
        for number, site in enumerate(self.sites):
            weight = tensor_of(self.model, site.parameter)
            scale = factors[site.factor].to(weight.device)
            if site.dim is not None:
                entries = self.get_buffer(f"entries {number}")
                spread = scale.repeat_interleave(entries.shape[1]) if entries.shape[1] > 1 else scale
                scale = scale.new_ones(weight.shape[site.dim]).index_copy(0, entries.flatten(), spread)
                scale = scale.view(-1, *[1] * (weight.dim() - 1 - site.dim))
            earlier = scales.get(site.parameter)
            scales[site.parameter] = scale if earlier is None else earlier * scale
        found = {name: (tensor_of(self.model, name), scale) for name, scale in scales.items()}
        return {name: (weight * scale).to(weight.dtype) for name, (weight, scale) in found.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scaled:
        super()._apply(fn, recurse)
        return self._leaves()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._leaves()

    def _leaves(self) -> Scaled:
        """Make the factors leaves again after something (``to``, ``load_state_dict``) replaced them, and
        wide enough for their small steps."""
        for name, factor in self.factors.items():
            dtype = torch.promote_types(factor.dtype, torch.float32)
            if not (factor.is_leaf and factor.requires_grad and factor.dtype == dtype):
                self._buffers[_key("factor", name)] = factor.detach().to(dtype).requires_grad_()
            self._buffers[_key("velocity", name)] = self.velocity(name).to(dtype)
        return self


def _key(kind: str, name: str) -> str:
    return f"{kind} {name.replace('.', '/')}"  # torch allows no dot in the name of a buffer


def folded(network: Scaled, factors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model with these factors in its weights."""
    work: Any = copied(network)
    for name, factor in work.factors.items():
        factor.copy_(factors[name])
    for name, product in work.scaled().items():
        tensor_of(work.model, name).copy_(product)
    return work.model


@torch.no_grad()
def proximal_step(
    factor: Tensor, velocity: Tensor, gradient: Tensor, lr: float, penalty: float, momentum: float
) -> None:
    """Take one step of the paper's accelerated proximal gradient (see StructureSelection), in place."""
    near = soft_threshold(factor - lr * gradient, lr * penalty)
    velocity.mul_(momentum).add_(near - factor)
    factor.copy_(near + momentum * velocity)


def columns(structure: Structure, chosen: Mapping[str, Group]) -> tuple[list[Site], dict[str, str]]:
    """Return the columns that read each chosen group, and why others have no factor."""
    walk, elsewhere = structure.walk, summed_elsewhere(structure)
    readers: dict[tuple[str, int], set[Any]] = {}
    for read in walk.reads:
        readers.setdefault((read.weight, read.weight_dim), set()).add(read.node)
    users: dict[str, set[Any]] = {}
    for node, name in walk.named.items():
        users.setdefault(name, set()).update(user for user in node.users if "_assert" not in str(user.target))

    def reason(group: Group) -> str:
        parts = [part for part in group.slices if part.reads]
        if elsewhere[group.name]:
            return "its units are also summed over by a grouped convolution, a computed weight or a mean"
        if not parts:
            return "no weight reads its units"
        for part in parts:
            if isinstance(structure.model.get_submodule(part.name.rpartition(".")[0]), nn.RNNBase):
                return f"{part.name} belongs to a recurrent layer, which keeps its weights in a list"
            if users.get(part.name) != readers.get((part.name, part.dim)):
                return f"{part.name} is used in another way too"
        return ""

    why = {name: reason(group) for name, group in chosen.items()}
    sites = [
        Site(name, part.name, part.dim, torch.from_numpy(part.indices.copy()))
        for name, group in chosen.items()
        if not why[name]
        for part in group.slices
        if part.reads
    ]
    return sites, {name: text for name, text in why.items() if text}
