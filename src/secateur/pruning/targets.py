"""Which tensors of a network may be pruned, under names that wrappers do not change."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.errors import TargetError
from secateur.graph.names import adapter_parameters, canonical_modules, canonical_parameters
from secateur.text import nearest

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRUNABLE = (nn.Linear, *_CONVS, *_TRANSPOSED)


@dataclass(frozen=True)
class Target:
    """A parameter that may be pruned.

    ``name`` is canonical (no ``module.`` of DDP, no ``_orig_mod.`` of torch.compile), ``module`` the
    layer that owns it, ``input_dim`` the dim of ``weight`` that runs over the layer's inputs.
    """

    name: str
    module: nn.Module
    weight: nn.Parameter
    input_dim: int = 1


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


def find_targets(
    model: nn.Module,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> Targets:
    """Find the tensors of ``model`` that may be pruned.

    By default the weights of every Linear and Conv layer: never biases, norms, embeddings or adapters
    (LoRA's and PEFT's others), which are listed as protected.
    ``include`` and ``exclude`` are patterns (``"features.*"``, ``"*.bias"``) matched against
    parameter names and the names of the modules that own them. ``include`` replaces the default; a
    pattern of it that names layers means their weights, and only one that ends in a parameter's own
    name (``"*.bias"``), or matches no Linear or Conv layer, reaches a bias, norm or embedding.

    Raises TargetError for a pattern that matches nothing, a network with nothing to prune, and
    parameters that are sharded, uninitialised or still wrapped by ``torch.nn.utils.prune``.
    """
    found: dict[str, Target] = {}
    protected: dict[str, str] = {}
    owners = _owners(model)
    adapters = adapter_parameters(model)
    parameters = canonical_parameters(model)
    wanted = _matching(model, parameters, include, "include")
    unwanted = _matching(model, parameters, exclude, "exclude") or set()
    for name, parameter in parameters.items():
        module = owners[id(parameter)][0]
        if name.endswith("_orig") and hasattr(module, name.rpartition(".")[2][:-5] + "_mask"):
            raise TargetError(
                f"{name}: pruned by torch.nn.utils.prune, which renamed it; "
                "take it over first with secateur.Masks.from_torch_prune(model)"
            )
        if name in unwanted:
            protected[name] = "excluded by name"
            continue
        _check_local(name, parameter)
        if wanted is not None and name not in wanted:
            protected[name] = "not included by name"
        elif wanted is None and id(parameter) in adapters:
            if parameter.dim() > 1:
                protected[name] = "part of an adapter; include it by name: include='*lora_*', say"
        elif wanted is None and not _by_default(name, module):
            if parameter.dim() > 1:
                protected[name] = f"a parameter of {type(module).__name__}; include it by name"
        elif wanted is None and (other := _tied_elsewhere(owners[id(parameter)])):
            protected[name] = f"tied to a parameter of {other}; include it by name"
        elif not parameter.is_floating_point():
            protected[name] = f"its dtype is {parameter.dtype}, not a floating-point one"
        elif not parameter.dim() or not parameter.numel():
            protected[name] = "a single number" if not parameter.dim() else "it has no entries"
        elif parameter.device.type == "meta":
            raise TargetError(f"{name}: on the meta device, so it has no values to rank; load it first")
        else:
            found[name] = Target(name, module, parameter, int(not isinstance(module, _TRANSPOSED)))
    if not found:
        raise TargetError(
            f"{type(model).__name__} has no tensor to prune: no Linear or Conv weight"
            + (" that the include and exclude patterns leave" if include or exclude else "")
        )
    return Targets(model, found, protected)


def sparsity(model: nn.Module, dense: nn.Module | None = None) -> float:
    """Return 1 - (non-zero target weights of ``model``) / (target weights of the dense network).

    ``dense`` is the network before units were removed; without it, ``model`` itself is taken to
    have its original size.
    """
    alive = sum(count_nonzero(t.weight) for t in find_targets(model).values())
    whole = sum(t.weight.numel() for t in find_targets(model if dense is None else dense).values())
    return 1 - alive / whole


def count_nonzero(tensor: Tensor) -> int:
    return int(torch.count_nonzero(tensor.detach()))


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    owners: dict[int, list[nn.Module]] = {}
    for _, module in canonical_modules(model):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    return owners


def _by_default(name: str, module: nn.Module) -> bool:
    return isinstance(module, PRUNABLE) and name.rpartition(".")[2] == "weight"


def _tied_elsewhere(owners: list[nn.Module]) -> str:
    return next((type(m).__name__ for m in owners if not isinstance(m, PRUNABLE)), "")


def _matching(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    patterns: str | Sequence[str] | None,
    which: str,
) -> set[str] | None:
    if patterns is None:
        return None
    if which == "include" and not patterns:
        raise TargetError("include is empty, so it names no tensor; leave it out for the default")
    names = _all_names(model, parameters)
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = {n for n in parameters if any(matches(alias, pattern) for alias in names[n])}
        if not hits:
            known = [*parameters, *(n for n, _ in canonical_modules(model) if n)]
            raise TargetError(f"{which} pattern {pattern!r} matches nothing{nearest(pattern, known)}")
        matched |= _meant(pattern, hits, model) if which == "include" else hits
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


def _meant(pattern: str, hits: set[str], model: nn.Module) -> set[str]:
    """Of what an include pattern matches, return what it means: one for layers means their weights;
    the biases and norms among them go only under a name of their own."""
    leaf = pattern.rpartition(".")[2]
    named = {n for n in hits if fnmatch.fnmatchcase(n.rpartition(".")[2], leaf)}
    if leaf.strip("*?") and named:
        return named
    layers = {name for name, module in canonical_modules(model) if isinstance(module, PRUNABLE)}
    weights = {n for n in hits if "weight" in n.rpartition(".")[2]}
    return {n for n in weights if n.rpartition(".")[0] in layers} or weights or hits


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` names the parameter ``name`` or a module around it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _check_local(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise TargetError(f"{name}: not initialised yet; run the model once on an example input")
    marked = hasattr(parameter, "placements") or hasattr(parameter, "ds_id")
    if marked or "_fsdp_wrapped_module" in name:
        raise TargetError(
            f"{name}: sharded over processes (FSDP, DeepSpeed or DTensor), which secateur cannot "
            "mask; prune the whole model before it is sharded"
        )
