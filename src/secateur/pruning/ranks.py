"""Ranks that train together prune alike: what they read is added up, and their masks are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from secateur.errors import CriterionError, MaskError
from secateur.graph.names import canonical_parameters
from secateur.shards import any_sharded, local, places, sharded

_ALIKE = (
    "give all ranks the same criterion, budget and masks, and read data through secateur's own criteria, or "
    "pass group=False where each rank is to prune a network of its own"
)


class Peers:
    """The ranks that prune one network together, or this process alone; ``over`` once one has failed.

    Every rank takes the same steps in the same order. One that fails says so in place of its next step,
    so that none waits for it.
    """

    def __init__(self, group: Any = None, number: int = 1) -> None:
        self.group = group
        self.number = number
        self.over = False

    def gather(self, said: Any, step: str = "") -> list[Any]:
        """Return what each rank says, by rank. Raises CriterionError where one of them failed before this,
        MaskError where one has come to another ``step``."""
        return [told for told, _, _ in self._exchange((said, None, step))]

    def failed(self, error: Exception) -> None:
        """Tell the others that this rank goes no further, unless they know that it is over."""
        if not self.over:
            self.over = True
            self._exchange((None, f"{type(error).__name__}: {error}", ""))

    @property
    def rank(self) -> int:
        """The number of this process among them."""
        return dist.get_rank(self.group) if self.number > 1 else 0

    def add(self, tensors: list[Tensor]) -> None:
        """Add up tensors over the ranks, in place; they have the same shapes on all."""
        if self.number > 1:
            nccl = dist.get_backend(self.group) == "nccl"
            for tensor in tensors:
                shared = tensor.cuda() if nccl else tensor
                dist.all_reduce(shared, group=self.group)
                if shared is not tensor:
                    tensor.copy_(shared)

    def compare(self, what: Mapping[str, Tensor]) -> None:
        """Raise MaskError where the ranks would not mask the same entries."""
        if self.number == 1:
            return
        digests = self.gather({name: _digest([mask]) for name, mask in what.items()}, "compare")
        for rank, others in enumerate(digests):
            for name in digests[0] | others:
                if others.get(name) != digests[0].get(name):
                    self.over = True
                    raise MaskError(f"{name}: rank {rank} would prune other entries than rank 0; {_ALIKE}")

    def _exchange(self, told: tuple[Any, str | None, str]) -> list[tuple[Any, str | None, str]]:
        if self.number == 1:
            return [told]
        heard: list[Any] = [None] * self.number
        dist.all_gather_object(heard, told, group=self.group)
        failures = {rank: why for rank, (_, why, _) in enumerate(heard) if why is not None}
        if failures and told[1] is None:
            self.over = True
            rank, why = next(iter(failures.items()))
            raise CriterionError(f"rank {rank} failed, so that no rank prunes: {why}")
        if not failures and (other := next((r for r, h in enumerate(heard) if h[2] != heard[0][2]), 0)):
            self.over = True
            raise MaskError(f"rank {other} would not prune as rank 0 does; {_ALIKE}")
        return heard


_PEERS: ContextVar[Peers | None] = ContextVar("peers", default=None)


@contextmanager
def together(model: nn.Module, group: Any = None) -> Iterator[Peers]:
    """Yield the ranks that hold this same network, for the whole of one pruning: the outermost call counts.

    ``group``: their process group; by default DistributedDataParallel's, else the default one where all its
    ranks hold equal parameters; False for this process alone.
    """
    if (outer := _PEERS.get()) is not None:
        yield outer
        return
    peers = _find(model, group)
    token = _PEERS.set(peers)
    try:
        yield peers
    except Exception as error:
        peers.failed(error)
        raise
    finally:
        _PEERS.reset(token)


def _find(model: nn.Module, group: Any) -> Peers:
    if group is False or not (dist.is_available() and dist.is_initialized()):
        return Peers()
    shards = any_sharded(model)
    wrapped = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
    if wrapped and not shards:  # those that share shards may be more than those that share gradients
        group = group or wrapped[0].process_group
    if dist.get_world_size(group) == 1:
        return Peers()
    peers = Peers(group, dist.get_world_size(group))
    if shards or not wrapped:
        parameters = canonical_parameters(model)
        if not _agree(peers.gather({n: (*where_of(p), _digest([p])) for n, p in parameters.items()})):
            return Peers()  # each rank has a network of its own
    return peers


def where_of(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    """Return the shape of a tensor, and which part of it this process holds, in a word."""
    held = _digest(places(tensor)) if sharded(tensor) else ""
    return tuple(tensor.shape), held


def _agree(told: list[dict[str, tuple[Any, ...]]]) -> bool:
    """Whether what ranks say of their parameters are parts of one network: those who hold the same part hold
    the same numbers."""
    first = told[0]
    numbers: dict[Any, str] = {}
    return all(
        parts.keys() == first.keys()
        and all(
            shape == first[name][0] and numbers.setdefault((name, where), digest) == digest
            for name, (shape, where, digest) in parts.items()
        )
        for parts in told
    )


def _digest(tensors: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        plain = local(tensor).detach().cpu().contiguous()
        digest.update(f"{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
