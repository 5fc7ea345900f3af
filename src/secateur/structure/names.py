"""Names of modules and parameters that wrappers (DDP, AveragedModel, torch.compile) do not change."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

_WRAPPERS = (DistributedDataParallel, DataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DDP, AveragedModel and torch.compile."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def canonical_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (canonical name, module), each module once; DDP, AveragedModel and torch.compile
    leave no trace."""
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        if isinstance(module, _WRAPPERS):
            yield from walk(name, module.module)
        elif "_orig_mod" in module._modules:
            yield from walk(name, module._modules["_orig_mod"])  # type: ignore[arg-type]
        else:
            yield name, module
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
