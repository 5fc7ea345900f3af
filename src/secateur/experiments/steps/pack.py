"""``pack``: the network written to a small file, and the one read back from it in its place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import nn

from secateur.deploy.encoding import Squeeze
from secateur.deploy.packing import Packed, pack, unpack
from secateur.errors import StorageError
from secateur.experiments.claim import PACKED
from secateur.experiments.state import fresh_network
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.share import number_of_values
from secateur.experiments.work import Work
from secateur.text import shown


def _checked(values: int | str | None) -> int | str | None:
    if isinstance(values, int):
        return number_of_values(values)
    if values not in (None, "lossless", "float16"):
        raise ValueError(
            f"values is {shown(values)!r}; it is null (lossless), float16 or a number of shared values"
        )
    return values


class Pack(Step):
    """The network is written to a small file, and goes on as it is read back from there."""

    timed_as: ClassVar[str] = "pack"
    keeps_shared: ClassVar[bool] = True
    ends: ClassVar[bool] = True

    values: Annotated[int | str | None, AfterValidator(_checked)] = Field(
        None, description="Null keeps each value, bit for bit; float16 or a number of shared ones loses some."
    )
    compression: Literal["lzma", "zstd"] = Field("lzma", description="How the file is compressed.")

    @model_validator(mode="after")
    def check(self) -> Self:
        """Say what the compression lacks before anything is trained."""
        Squeeze(self.compression)
        return self

    def run(self, work: Work, id: str) -> None:
        state, path = work.state, work.claim.part("state-packed")
        packed = self._packed(state.model, path)
        unpacked = _unpacked(path, work)
        if self._kept == "lossless":
            _check_equal(unpacked, state.model)
        else:
            scale, split = work.task.score, work.data.validation
            before, after = (work.score(model).score for model in (state.model, unpacked))
            cost = {"examples": len(split), scale.name: after, f"{scale.name}_lossless": before}
            packed = self._packed(state.model, path, {"validation": cost})
            unpacked = _unpacked(path, work)
            change = f"{scale.number(after - before, '+')} {scale.points}, on validation"
            state.notes[id] = [f"packed with values {self._kept}: {change}"]
        state.model, state.packed, state.bytes_packed = unpacked, path, packed.bytes
        if state.masks is not None:
            state.masks = state.masks.bind(unpacked)
        if not state.retrained:
            work.cut(copy.deepcopy(unpacked))

    @property
    def _kept(self) -> int | str:
        return "lossless" if self.values is None else self.values

    def _packed(self, model: nn.Module, path: Path, metadata: Any = None) -> Packed:
        return pack(model, path, values=self._kept, compression=self.compression, metadata=metadata)


def _unpacked(path: Path, work: Work) -> nn.Module:
    fresh = fresh_network(work.plan, work.seed, work.dense, work.state.options)
    return unpack(fresh, path).to(next(work.state.model.parameters()).device)


def _check_equal(unpacked: nn.Module, model: nn.Module) -> None:
    found = unpacked.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in found or not torch.equal(found[name], tensor):
            raise StorageError(f"{PACKED}: {name} is not unpacked as it was packed; please report it")
