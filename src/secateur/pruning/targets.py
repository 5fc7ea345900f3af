"""Which tensors of a network may be pruned, under names that wrappers do not change."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from secateur.errors import BudgetError, TargetError
from secateur.graph.names import adapter_parameters, canonical_modules, canonical_parameters
from secateur.shards import count, settle
from secateur.structure.computed import stays_finite
from secateur.structure.layers import layer_view, stored_weights
from secateur.text import nearest, shown


@dataclass(frozen=True)
class Target:
    """A parameter that may be pruned.

    ``name`` is canonical (no ``module.`` of DDP, no ``_orig_mod.`` of torch.compile), ``module`` the
    layer that it belongs to, ``input_dim`` the dim of ``weight`` that runs over the layer's inputs.
    ``of``: which weight of the layer it is, or is what that one is computed from; empty where it is none.
    """

    name: str
    module: nn.Module
    weight: nn.Parameter
    input_dim: int = 1
    of: str = ""

    @property
    def stacked(self) -> bool:
        """Whether it is a stack of matrices (experts, outputs, inputs), and no layer's weight."""
        return not self.of and self.weight.dim() == 3


@dataclass(frozen=True)
class Targets(Mapping[str, Target]):
    """The targets of ``model`` by canonical name, and why its other weights are ``protected``."""

    model: nn.Module
    found: dict[str, Target]
    protected: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Target:
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


@dataclass(frozen=True)
class _Owner:
    """A module that holds a parameter: ``of`` and ``refused`` as ``Stored`` says of a layer's weight."""

    module: nn.Module
    of: str = ""
    refused: str = ""


_Owners = dict[int, list[_Owner]]


def find_targets(
    model: nn.Module,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> Targets:
    """Find the tensors of ``model`` that may be pruned.

    By default the weights of every layer that is known (Linear, Conv, transposed or not, transformers'
    Conv1D, recurrent ones, and those of ``secateur.register_layer``): never biases, norms, embeddings or
    adapters (LoRA's and PEFT's others), which are listed as protected.

    A weight that a parametrization computes is pruned in what it is computed from, where zeros there are the
    zeros of the weight (weight_norm, spectral_norm, not orthogonal), which is tried; else it is protected.

    Args:
        model: the network; wrappers (DDP, torch.compile, PEFT) leave no trace in the names.
        include: patterns (``"features.*"``, ``"*.bias"``) matched against the names of parameters and of the
            modules that own them. They replace the default; one that names layers means their weights, and
            only one that ends in a parameter's own name (``"*.bias"``), or matches no layer, reaches a bias,
            norm or embedding.
        exclude: patterns of what is left out.

    Returns:
        The targets by name, with the reasons why other weights are protected.

    Raises:
        TargetError: for a pattern that matches nothing, a network with nothing to prune, and parameters that
            are uninitialised, still wrapped by ``torch.nn.utils.prune``, or sharded by FSDP1 or DeepSpeed.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.LSTM(4, 5), torch.nn.Linear(5, 2))
        >>> targets = sc.find_targets(net)
        >>> list(targets)
        ['1.weight_ih_l0', '1.weight_hh_l0', '2.weight']
        >>> targets.protected
        {'0.weight': 'a parameter of Embedding; include it by name'}
    """
    settle(model)
    owners, adapters, parameters = _owners(model), adapter_parameters(model), canonical_parameters(model)
    wanted = _matching(model, parameters, owners, include, "include")
    unwanted = _matching(model, parameters, owners, exclude, "exclude") or set()
    found: dict[str, Target] = {}
    protected: dict[str, str] = {}
    for name, parameter in parameters.items():
        owner, *others = owners[id(parameter)]
        _check_plain(name, owner.module)
        if name in unwanted:
            protected[name] = "excluded by name"
            continue
        _check_local(name, parameter)
        if wanted is None:
            why = _unexpected(parameter, owner, others, id(parameter) in adapters)
        else:
            why = "" if name in wanted else owner.refused or "not included by name"
        why = why or _unfit(parameter)
        if not why:
            _check_there(name, parameter)
            found[name] = _target(name, owner, parameter)
        elif wanted is not None or parameter.dim() > 1 or owner.of:  # nobody expects a bias to be pruned
            protected[name] = why
    if not found:
        raise TargetError(_nothing(model, protected, owners, parameters, bool(include or exclude)))
    return Targets(model, found, protected)


def _unexpected(parameter: nn.Parameter, owner: _Owner, others: list[_Owner], adapter: bool) -> str:
    """Return why a parameter is no target unless it is named; empty where it is."""
    if adapter:
        return "part of an adapter; include it by name: include='*lora_*', say"
    if not owner.of:
        return f"a parameter of {type(owner.module).__name__}; include it by name"
    other = next((type(other.module).__name__ for other in others if not other.of), "")
    return owner.refused or (f"tied to a parameter of {other}; include it by name" if other else "")


def _unfit(parameter: nn.Parameter) -> str:
    """Return why a parameter has nothing to rank, whoever names it; empty where it has."""
    if not (parameter.is_floating_point() or parameter.is_complex()):
        return f"its dtype is {parameter.dtype}, not a floating-point one"
    if not parameter.dim():
        return "a single number"
    return "" if parameter.numel() else "it has no entries"


def _target(name: str, owner: _Owner, parameter: nn.Parameter) -> Target:
    view = layer_view(owner.module) if owner.of else None
    usual = 2 if not owner.of and parameter.dim() == 3 else 1
    return Target(name, owner.module, parameter, usual if view is None else view.input_dim, owner.of)


def _nothing(
    model: nn.Module, protected: dict[str, str], owners: _Owners, parameters: Any, patterns: bool
) -> str:
    """Say that a network has no target, and why the first of its layers' weights is none."""
    text = f"{type(model).__name__} has no tensor to prune: no weight of a Linear, Conv or recurrent layer"
    text += " that the include and exclude patterns leave" if patterns else ""
    refused = [f"{n}: {why}" for n, why in protected.items() if owners[id(parameters[n])][0].refused]
    return text + "".join(f"; {line}" for line in refused[:1])


def check_computed_weights(targets: Targets, pruned: Mapping[str, Tensor]) -> None:
    """Raise BudgetError where a parametrization would divide by the norm of a row that is emptied."""
    for name, target in targets.items():
        if target.of and not stays_finite(target.module, target.of, target.weight, pruned[name]):
            raise BudgetError(
                f"{name}: a whole row would be zero, and the {target.of} that is computed from it NaN (0/0); "
                f"take less, exclude it, or make the {target.of} a plain parameter first "
                "(torch.nn.utils.parametrize.remove_parametrizations)"
            )


def sparsity(model: nn.Module, dense: nn.Module | None = None) -> float:
    """Return 1 - (non-zero target weights of ``model``) / (target weights of the dense network).

    Targets are those of ``secateur.find_targets``: biases and norms do not count. Where they are sharded over
    processes, all of these ask together.

    Args:
        model: the network.
        dense: it before units were removed; without it, ``model`` is taken to have its original size.

    Returns:
        A share from 0 to 1.

    Raises:
        TargetError: for a network without targets.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Linear(10, 10)
        >>> _ = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
        >>> sc.sparsity(net), sc.sparsity(net, dense=torch.nn.Linear(10, 20))
        (0.5, 0.75)
    """
    alive = sum(count_nonzero(t.weight) for t in find_targets(model).values())
    whole = sum(t.weight.numel() for t in find_targets(model if dense is None else dense).values())
    return 1 - alive / whole


def count_nonzero(tensor: Tensor) -> int:
    return count(tensor.detach())


def _owners(model: nn.Module) -> _Owners:
    """Return, by the id of each parameter, the modules that hold it: layers that have it as a weight or
    compute one from it, rather than the parametrization that keeps it for them."""
    owners: _Owners = {}
    for _, module in canonical_modules(model):
        stored = {id(s.parameter): _Owner(module, s.weight, s.refused) for s in stored_weights(module)}
        own = {id(p): _Owner(module) for p in module._parameters.values() if p is not None}
        for key, owner in (own | stored).items():
            if not (isinstance(module, ParametrizationList) and key in owners):
                owners.setdefault(key, []).append(owner)
    return owners


def _matching(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    owners: _Owners,
    patterns: str | Sequence[str] | None,
    which: str,
) -> set[str] | None:
    if patterns is None:
        return None
    if which == "include" and not patterns:
        raise TargetError("include is empty, so it names no tensor; leave it out for the default")
    names = _all_names(model, parameters)
    matched: set[str] = set()
    for pattern in as_patterns(which, patterns):
        hits = {n for n in parameters if any(matches(alias, pattern) for alias in names[n])}
        if not hits:
            known = [*parameters, *(n for n, _ in canonical_modules(model) if n)]
            raise TargetError(f"{which} pattern {pattern!r} matches nothing{nearest(pattern, known)}")
        weights = {n: owner for n in hits if (owner := owners[id(parameters[n])][0]).of}
        matched |= _meant(pattern, hits, weights) if which == "include" else hits
    return matched


def _all_names(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[str]]:
    """Return, by the name each parameter stands under, all its names: a tied one has several."""
    first = {id(parameter): name for name, parameter in parameters.items()}
    names: dict[str, list[str]] = {name: [] for name in parameters}
    for module_name, module in canonical_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names[first[id(parameter)]].append(f"{module_name}.{name}" if module_name else name)
    return names


def _meant(pattern: str, hits: set[str], weights: Mapping[str, _Owner]) -> set[str]:
    """Of what an include pattern matches, return what it means: one for layers means their ``weights``;
    the biases and norms among them go only under a name of their own."""
    leaf = pattern.rpartition(".")[2]
    named = {n for n in hits if fnmatch.fnmatchcase(n.rpartition(".")[2], leaf)}
    if leaf.strip("*?") and named:
        return named
    if weights:
        return {name for name, owner in weights.items() if not owner.refused}
    return {n for n in hits if "weight" in n.rpartition(".")[2]} or hits


def as_patterns(which: str, patterns: Any) -> list[str]:
    """Return patterns as a list; raises TargetError for what are none."""
    found = [patterns] if isinstance(patterns, str) or not isinstance(patterns, Iterable) else list(patterns)
    if not all(isinstance(one, str) for one in found):
        raise TargetError(f"{which} is {shown(patterns)}; it is a pattern of names, or a list of them")
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` names the parameter ``name`` or a module around it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _check_plain(name: str, module: nn.Module) -> None:
    if name.endswith("_orig") and hasattr(module, name.rpartition(".")[2][:-5] + "_mask"):
        raise TargetError(
            f"{name}: pruned by torch.nn.utils.prune, which renamed it; "
            "take it over first with secateur.Masks.from_torch_prune(model)"
        )


def _check_there(name: str, parameter: nn.Parameter) -> None:
    if parameter.device.type == "meta":
        raise TargetError(f"{name}: on the meta device, so it has no values to rank; load it first")


def _check_local(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise TargetError(f"{name}: not initialised yet; run the model once on an example input")
    if hasattr(parameter, "ds_id") or "_fsdp_wrapped_module" in name:
        raise TargetError(
            f"{name}: sharded over processes by FullyShardedDataParallel (FSDP1) or DeepSpeed, where nothing "
            "can be masked; shard by fully_shard (FSDP2), or prune the whole model before it is sharded"
        )
