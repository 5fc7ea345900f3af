"""Retraining where labels are few: the pruned network learns from the dense one, on images without labels.

The zeros are held in both; three seeds, since one says little.
"""

import copy

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

import secateur as sc
from secateur.data import load_data

torch.manual_seed(0)
data = load_data("digits")
x, y = data.train.inputs, data.train.labels


def labels_loss(model, batch):
    return cross_entropy(model(x[batch]), y[batch])


def taught_by(teacher, temperature=2.0):
    """Return a loss that needs no labels: how far the softened outputs are from the teacher's."""

    def loss(model, batch):
        with torch.no_grad():
            wanted = softmax(teacher(x[batch]) / temperature, 1)
        learned = log_softmax(model(x[batch]) / temperature, 1)
        return temperature**2 * kl_div(learned, wanted, reduction="batchmean")

    return loss


def train(model, loss, examples, steps, masks=None):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with masks.held(optimizer) if masks else torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, torch.randint(examples, (64,))).backward()
            optimizer.step()


def accuracy(model):
    return 100 * (model(data.test.inputs).argmax(1) == data.test.labels).float().mean().item()


found = {"dense": [], "pruned": [], "retrained, 100 labels": [], "retrained, taught": []}
for seed in range(3):
    dense = sc.build_model("digits-mlp", hidden=256, seed=seed)
    train(dense, labels_loss, len(x), steps=300)
    found["dense"].append(accuracy(dense))
    for name, loss, examples in (
        ("retrained, 100 labels", labels_loss, 100),
        ("retrained, taught", taught_by(dense), len(x)),
    ):
        model = copy.deepcopy(dense)
        masks = sc.prune(model, sc.Magnitude(), sc.LAMP(0.95))
        before = accuracy(model)
        train(model, loss, examples, steps=300, masks=masks)
        found[name].append(accuracy(model))
    found["pruned"].append(before)
for name, scores in found.items():
    values = torch.tensor(scores)
    print(f"{name:22} {values.mean():5.1f} ± {values.std():.1f} %")
