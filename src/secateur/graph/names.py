"""Names of modules and parameters that wrappers (DDP, AveragedModel, torch.compile, PEFT) do not change."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from secateur.copying import check_network

_WRAPPERS = (DistributedDataParallel, DataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DDP, AveragedModel and torch.compile."""
    check_network(model)
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def network_of(model: nn.Module) -> nn.Module:
    """Return the module inside all of ``unwrapped``'s wrappers and PEFT's: the one whose forward the
    others pass their arguments on to."""
    while (inner := _inside(model)) is not None or (inner := _tuned(model)) is not None:
        model = inner
    return model


def canonical_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (canonical name, module), each module once; DDP, AveragedModel, torch.compile and PEFT's
    wrappers leave no trace. A layer under PEFT's adapters has the name it had; they have names below it.
    """
    check_network(model)
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        inner = _inside(module)
        base = _tuned(module) if inner is None else inner
        if base is None:
            yield name, module
        else:
            yield from walk(name, base)
        if inner is None:
            for child_name, child in module.named_children():
                yield from walk(f"{name}.{child_name}" if name else child_name, child)

    return walk("", model)


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by canonical name; a shared one stands under its first name alone."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for module_name, module in canonical_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{module_name}.{name}" if module_name else name] = parameter
    return found


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Return the canonical names of the parameters by those that ``named_parameters`` gives, children that
    are compiled as they were before."""
    canonical = {id(parameter): name for name, parameter in canonical_parameters(model).items()}
    found = {name: canonical[id(p)] for name, p in model.named_parameters() if id(p) in canonical}
    return {name.replace("_orig_mod.", ""): own for name, own in found.items()}


def adapter_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters of adapters: PEFT's, and whatever is called ``lora_...``."""
    found = {id(p) for n, p in model.named_parameters() if any(w.startswith("lora_") for w in n.split("."))}
    for module in model.modules():
        if (base := _tuned(module)) is not None:
            found |= {id(p) for p in module.parameters()} - {id(p) for p in base.parameters()}
    return found


def _inside(module: nn.Module) -> nn.Module | None:
    """The module inside a wrapper that changes nothing of its forward."""
    if isinstance(module, _WRAPPERS):
        return module.module
    compiled = _is(module, "torch._dynamo", "OptimizedModule")
    return module._modules.get("_orig_mod") if compiled else None


def _tuned(module: nn.Module) -> nn.Module | None:
    """The module inside one of PEFT's wrappers: the one that trains, where there are two."""
    if _is(module, "peft", "PeftModel"):
        return module._modules.get("base_model")
    if _is(module, "peft", "BaseTuner"):
        return module._modules.get("model")
    if _is(module, "peft", "BaseTunerLayer"):
        return module._modules.get("base_layer")
    if _is(module, "peft", "ModulesToSaveWrapper"):
        copies, active = module.modules_to_save, module.active_adapters
        return copies[active[0]] if active and active[0] in copies else module._modules.get("original_module")  # type: ignore[index,operator]
    return None


def _is(module: nn.Module, package: str, name: str) -> bool:
    """Whether a module is of a class that may not be installed, or that would be slow to import."""
    return any(
        kind.__name__ == name and f"{kind.__module__}.".startswith(f"{package}.")
        for kind in type(module).__mro__
    )
