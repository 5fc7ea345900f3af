"""Tensors that several processes hold together, each a part of them (DTensor: FSDP2, tensor parallel).

Whatever speaks to the other processes says so: all that hold the tensor call it, in the same order. Nothing
here imports torch.distributed before a tensor is sharded, which would slow down every start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.copying import copied
from secateur.errors import ModelError, TargetError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")


def sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, of which this process holds a part."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def any_sharded(model: nn.Module) -> bool:
    """Whether a network has parameters of which this process holds a part, whether they are gathered for a
    forward just now or not."""
    settle(model)
    return isinstance(model, nn.Module) and any(map(sharded, model.parameters()))


def refuse_sharded(model: nn.Module, who: str) -> None:
    """Raise TargetError for a network that lies on several processes."""
    if any_sharded(model):
        raise TargetError(
            f"{who} reads whole parameters, and those of {_written_as(model).__name__} are sharded over "
            "processes; use it before they are sharded"
        )


def settle(model: nn.Module) -> None:
    """Let FSDP2 put the sharded parameters in their places again, where a forward has gathered them."""
    if "torch.distributed.fsdp" in sys.modules and isinstance(model, nn.Module):  # else others say it
        for module in model.modules():
            if _written_as(module) is not type(module):
                module.reshard()  # type: ignore[operator]


# -- this process's part -------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: memory shared with it, without a history."""
    return tensor.detach().to_local() if sharded(tensor) else tensor  # type: ignore[attr-defined]


def places(tensor: Tensor) -> list[Tensor]:
    """Return by dim the indices of a sharded tensor that this process holds: its part is their product."""
    found = [torch.arange(size) for size in tensor.shape]
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    coordinate = mesh.get_coordinate()
    for along, placement in enumerate(tensor.placements):  # type: ignore[attr-defined]
        if _cuts(placement):
            shape = [-1 if dim == placement.dim else 1 for dim in range(tensor.dim())]
            indices = found[placement.dim].view(shape)
            parts, _ = placement._split_tensor(
                indices, mesh.size(along), with_padding=False, contiguous=False
            )
            found[placement.dim] = parts[coordinate[along]].reshape(-1)
    return found


def own(whole: Tensor, like: Tensor) -> Tensor:
    """Return of a tensor of the whole shape (or of 1 in some dims) the part where ``like`` lies here."""
    if not sharded(like):
        return whole
    for dim, index in enumerate(places(like)):
        if whole.shape[dim] == like.shape[dim] != len(index):
            whole = whole.index_select(dim, index.to(whole.device))
    return whole


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor sharded as ``like`` is."""
    return as_sharded(own(whole, like), like)


def as_sharded(part: Tensor, like: Tensor) -> Tensor:
    """Return this process's part as a tensor sharded as ``like`` is."""
    if not sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    strides = torch.empty(like.shape, device="meta").stride()
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(
        part.contiguous(), mesh, placements, run_check=False, shape=like.shape, stride=strides
    )


def fitted(tensor: Tensor, like: Tensor) -> Tensor:
    """Return of a tensor of the same shape, sharded or not, the part that goes with ``local(like)``, on its
    device. Speaks to the others where both are sharded in different ways, or it alone is."""
    if sharded(tensor):
        if sharded(like) and tensor.placements == like.placements:  # type: ignore[attr-defined]
            return local(tensor).to(local(like).device)
        tensor = whole(tensor)
    return own(tensor, like).to(local(like).device)


def _cuts(placement: Any) -> bool:
    return getattr(placement, "dim", None) is not None  # Shard, and what FSDP2 lays over tensor parallel


# -- all parts together --------------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes, to which it speaks."""
    if not sharded(tensor):
        return tensor
    if tensor.dtype == torch.bool:  # not every backend gathers these
        return whole(as_sharded(local(tensor).to(torch.uint8), tensor)).bool()
    return tensor.detach().full_tensor()  # type: ignore[attr-defined]


def total(number: int, like: Tensor) -> int:
    """Return the sum of what all processes count, each in its own part of ``like``, and once where several
    hold the same; speaks to them."""
    if not sharded(like):
        return number
    cut = [along for along, placement in enumerate(like.placements) if _cuts(placement)]  # type: ignore[attr-defined]
    return _added(number, like, cut)


def _added(number: int, like: Any, dims: Iterable[int]) -> int:
    """Return the sum of a number over the processes along some dims of the mesh that a tensor lies on."""
    mine = torch.tensor([number], device=like.device_mesh.device_type)
    for along in dims:
        torch.distributed.all_reduce(mine, group=like.device_mesh.get_group(along))
    return int(mine)


def first_of(tensors: Iterable[Tensor]) -> bool:
    """Whether this process is the first of those that hold tensors together, which is the one that writes."""
    shared = next(filter(sharded, tensors), None)
    return shared is None or torch.distributed.get_rank() == int(shared.device_mesh.mesh.min())  # type: ignore[attr-defined]


def anywhere(flag: bool, tensors: Iterable[Tensor]) -> bool:
    """Whether a process that holds a part of some tensors says so; speaks to them."""
    shared = next(filter(sharded, tensors), None)
    if shared is None:
        return flag
    return _added(int(flag), shared, range(shared.device_mesh.ndim)) > 0  # type: ignore[attr-defined]


def count(tensor: Tensor) -> int:
    """Return how many entries are not zero; speaks to the others where it is sharded."""
    return total(int(torch.count_nonzero(local(tensor))), tensor)


# -- networks ------------------------------------------------------------------------------------------


def _written_as(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module, without the one that FSDP2 puts over it."""
    kind = type(module)
    over = any(k.__name__ == "FSDPModule" and k.__module__.startswith("torch.") for k in kind.__mro__)
    return kind.__mro__[kind._orig_cls_mro_index] if over else kind  # type: ignore[attr-defined]


def _of_torch(hook: Any) -> bool:
    hook = getattr(hook, "hook", hook)  # torch wraps those of state dicts
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.")


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Inside the block the modules are of the classes that they were written as, and nothing hangs on them
    that shards or gathers."""
    if not any_sharded(model):
        yield
        return
    with ExitStack() as back:
        for module in model.modules():
            if (kind := _written_as(module)) is not type(module):
                back.callback(setattr, module, "__class__", type(module))
                module.__class__ = kind
            attributes = vars(module)
            for name in _HOOKS:
                kept = attributes[name]
                back.callback(attributes.__setitem__, name, kept)
                attributes[name] = type(kept)((k, hook) for k, hook in kept.items() if not _of_torch(hook))
            for name in [name for name in attributes if name.startswith("__composable_api")]:
                back.callback(attributes.__setitem__, name, attributes.pop(name))
        yield


def copied_whole(model: nn.Module) -> nn.Module:
    """Return a copy of a network; of a sharded one, a copy with whole parameters on every process that holds
    a part, to which it speaks.

    Raises ModelError where it cannot be copied, or does not fit on one of them.
    """
    if not any_sharded(model):
        return copied(model)
    parts = [t for t in (*model.parameters(), *model.buffers()) if sharded(t)]
    if anywhere(not _there_is_room(parts), parts):  # asked before: one that fails in between is waited for
        raise ModelError(
            f"the whole of {_written_as(model).__name__} does not fit on each of the processes that hold it; "
            "what reads data runs a copy of it there, while Magnitude and Random read one parameter at a time"
        )
    gathered = {id(part): _gathered(part) for part in parts}
    with as_written(model):
        return copied(model, instead=gathered)


def _there_is_room(parts: Iterable[Tensor]) -> bool:
    try:
        return bool([torch.empty(t.shape, dtype=t.dtype, device=local(t).device) for t in parts])
    except RuntimeError:  # out of memory
        return False


def _gathered(part: Tensor) -> Tensor:
    full = whole(part)
    return nn.Parameter(full, part.requires_grad) if isinstance(part, nn.Parameter) else full
