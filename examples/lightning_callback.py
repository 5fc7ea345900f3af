"""Prune with Lightning, its averaged weights included: the zeros are in what is shipped.

pip install 'secateur[lightning,lab]'
"""

import logging

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur.integrations.lightning import Pruning

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
inputs, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
inputs = inputs.float() / 16


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))

    def training_step(self, batch, number):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def fitted(*callbacks: lightning.Callback) -> tuple[Digits, float]:
    lightning.seed_everything(0, verbose=False)
    module = Digits()
    batches = DataLoader(TensorDataset(inputs[:1200], labels[:1200]), batch_size=50, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=12, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, batches)
    return module, (module.net(inputs[1200:]).argmax(1) == labels[1200:]).float().mean().item()


def pruning() -> Pruning:
    return Pruning(sc.Magnitude(), sc.Global(0.95), sc.Cubic(steps=10), every=15, part="net")


if __name__ == "__main__":
    rows = {
        "dense": fitted(),
        "pruned": fitted(pruning()),
        "pruned, weights averaged": fitted(pruning(), EMAWeightAveraging(decay=0.98)),
    }
    for name, (module, right) in rows.items():
        print(f"{name:<26} {sc.sparsity(module.net):6.1%} zeros   {right:6.1%} right on 597 test digits")
