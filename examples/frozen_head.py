"""A head that must not change: the backbone is pruned, the head is frozen and keeps every weight and input.

What is left out by `exclude` is never zeroed; what is frozen is not trained either.
"""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import secateur as sc
from secateur.data import load_data

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 32)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.backbone(x))


def train(model, x, y, epochs, masks=None):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    with masks.held(optimizer) if masks else torch.enable_grad():
        for batch in (part for _ in range(epochs) for part in torch.randperm(len(x)).split(64)):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def accuracy(model):
    return 100 * (model(data.test.inputs).argmax(1) == data.test.labels).float().mean().item()


data = load_data("digits")
x, y = data.train.inputs, data.train.labels
dense = Net()
train(dense, x, y, epochs=15)

model = copy.deepcopy(dense)
model.head.requires_grad_(False)
# The last layer of the backbone stays too: its units are the inputs of the head.
structure = sc.trace(model, x[:2])
masks = sc.prune(model, sc.L2Norm(), sc.Uniform(0.6), structure=structure, exclude="backbone.5")
print(masks)
pruned = accuracy(model)
train(model, x, y, epochs=8, masks=masks)
small, proof = sc.compact(model, x[:2])
print(proof)

same = torch.equal(small.head.weight, dense.head.weight)
print(f"the head is bit for bit what it was: {same}, {tuple(small.head.weight.shape)}")
print(f"accuracy: dense {accuracy(dense):.1f} %, pruned {pruned:.1f} %, trained on {accuracy(small):.1f} %")
