"""An LSTM that reads digits row by row: half of its hidden state removed, the rest refitted and trained on.

Reads a part of MNIST from $SECATEUR_DATA; where it is not, scikit-learn's digits.
"""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import secateur as sc
from secateur.data import load_data

torch.manual_seed(0)


class RowReader(nn.Module):
    def __init__(self, columns, hidden):
        super().__init__()
        self.lstm = nn.LSTM(columns, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def train(model, x, y, epochs, lr=5e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for batch in (part for _ in range(epochs) for part in torch.randperm(len(x)).split(64)):
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def accuracy(model):
    return 100 * (model(test_x).argmax(1) == test.labels).float().mean().item()


try:
    data = load_data("mnist", download=False)
except sc.DataError:
    data = load_data("digits")
part, test = data.train.drawn(4000, seed=0), data.test.drawn(2000, seed=0)
x, y, test_x = part.inputs[:, 0], part.labels, test.inputs[:, 0]  # (images, rows, columns)

dense = RowReader(x.shape[2], hidden=128)
train(dense, x, y, epochs=5)

model = copy.deepcopy(dense)
structure = sc.trace(model, x[:2])
print(structure)  # a unit of an LSTM is four rows of each matrix, and a column of all that reads it
sc.prune(model, sc.Taylor(), sc.Uniform(0.5), structure=structure, data=[(x[:1000], y[:1000])])
pruned = accuracy(model)
print(sc.reconstruct(model, dense, structure, [x[:1000]]))
refitted = accuracy(model)
small, proof = sc.compact(model, x[:2])
print(proof)
train(small, x, y, epochs=3, lr=2e-3)
print(f"accuracy: dense {accuracy(dense):.1f} %, pruned {pruned:.1f} %, ", end="")
print(f"refitted {refitted:.1f} %, trained on {accuracy(small):.1f} %")
