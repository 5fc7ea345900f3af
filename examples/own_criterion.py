"""A criterion of your own in five lines, beside the package's: pruned at once, nothing retrained.

A criterion returns a score for each entry of each tensor; the budget then takes the lowest.
"""

import copy
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

import secateur as sc
from secateur.data import load_data

torch.manual_seed(0)


@dataclass(frozen=True)
class Moved:
    """How far a weight has come from where its training began, with the size that it has now."""

    start: dict

    def __call__(self, targets, data=None, loss=None):
        return {name: (t.weight - self.start[name]).abs() * t.weight.abs() for name, t in targets.items()}


data = load_data("digits")
x, y = data.train.inputs, data.train.labels
dense = sc.build_model("digits-mlp", hidden=256)
start = {name: target.weight.detach().clone() for name, target in sc.find_targets(dense).items()}

optimizer = torch.optim.Adam(dense.parameters(), lr=2e-3)
for batch in (part for _ in range(15) for part in torch.randperm(len(x)).split(64)):
    optimizer.zero_grad()
    cross_entropy(dense(x[batch]), y[batch]).backward()
    optimizer.step()


def accuracy(model):
    return 100 * (model(data.test.inputs).argmax(1) == data.test.labels).float().mean().item()


shares = (0.8, 0.9, 0.95)
print(f"dense {accuracy(dense):.1f} %; test accuracy with so many of the weights pruned:")
print(f"{'':12}" + "".join(f"{share:8.0%}" for share in shares))
for criterion in (Moved(start), sc.Magnitude(), sc.Wanda(), sc.Taylor(), sc.Random()):
    cells = []
    for share in shares:
        model = copy.deepcopy(dense)
        sc.prune(model, criterion, sc.Uniform(share), data=[(x, y)])
        cells.append(f"{accuracy(model):6.1f} %")
    print(f"{type(criterion).__name__:12}" + "".join(cells))
