"""Processes that share the text of one folder: each reads its part, and the first writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """``rank``, of so many; this process alone where no group is up."""

    rank: int = 0
    number: int = 1

    @staticmethod
    def here() -> Ranks:
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks()
        return Ranks(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Return when all have come here."""
        if self.number > 1:
            dist.barrier()

    def gather(self, said: Any) -> list[Any]:
        """Return what each says, by rank."""
        if self.number == 1:
            return [said]
        heard: list[Any] = [None] * self.number
        dist.all_gather_object(heard, said)
        return heard


@contextmanager
def joined() -> Iterator[None]:
    """Join the group that torchrun started this process for, where it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
