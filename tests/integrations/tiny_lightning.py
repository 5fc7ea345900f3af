"""A small network in Lightning's module, trained in several ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.integrations.lightning import Pruning

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


class Batches:
    """Eight batches of eight, in the same order each time. It knows where it stands, as Lightning asks of
    loaders that are to go on in the middle of an epoch."""

    def __init__(self) -> None:
        inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
        self.batches = list(zip(inputs.split(8), (inputs[:, 0] > 0).long().split(8), strict=True))
        self.number = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.number %= len(self)
        while self.number < len(self):
            self.number += 1
            yield self.batches[self.number - 1]

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]


class Module(lightning.LightningModule):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU(), nn.Linear(16, 2)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, number: int) -> Any:
        return self.loss(batch)

    def validation_step(self, batch: Any, number: int) -> None:
        self.log("loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.02, weight_decay=0.1)


class Manual(Module):
    """Two optimizers, stepped by hand, the second every other time."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, number: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc]
        self.manual_backward(self.loss(batch))
        for optimizer in (first, second) if number % 2 else (first,):
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[0].parameters(), lr=0.1, momentum=0.9),
            torch.optim.Adam(self.net[3].parameters(), lr=0.02),
        ]


def pruning(**options: Any) -> Pruning:
    """To 90 % in five steps, one every four of the optimizer."""
    arguments = {"criterion": sc.Magnitude(), "budget": sc.Global(0.9), "schedule": sc.Cubic(5), "every": 4}
    return Pruning(**(arguments | options))
