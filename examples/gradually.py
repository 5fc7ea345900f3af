"""To 98 % zeros at once and step by step, in as many epochs, and stopped in between.

`during` tightens inside any training loop; what it saves goes on to the same weights. Draws gradually.png.
"""

import copy

import torch
from matplotlib import pyplot
from torch.nn.functional import cross_entropy

import secateur as sc
from secateur.data import load_data

torch.manual_seed(0)
data = load_data("digits")
x, y = data.train.inputs, data.train.labels
epochs = 20


def accuracy(model):
    return 100 * (model(data.test.inputs).argmax(1) == data.test.labels).float().mean().item()


def train(model, optimizer, first=0, last=epochs):
    curve = []
    for epoch in range(first, last):
        for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        curve.append(accuracy(model))
    return curve


def pruned(optimizer, model, **more):
    return sc.during(optimizer, model, sc.Magnitude(), sc.LAMP(0.98), sc.Cubic(steps=20), every=12, **more)


dense = sc.build_model("digits-mlp", hidden=256)
train(dense, torch.optim.Adam(dense.parameters(), lr=1e-3))

once = copy.deepcopy(dense)
masks, optimizer = sc.prune(once, sc.Magnitude(), sc.LAMP(0.98)), torch.optim.Adam(once.parameters(), lr=1e-3)
with masks.held(optimizer):
    at_once = train(once, optimizer)

model = copy.deepcopy(dense)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
with pruned(optimizer, model) as pruning:
    step_by_step = train(model, optimizer)

again = copy.deepcopy(dense)
optimizer = torch.optim.Adam(again.parameters(), lr=1e-3)
try:
    with pruned(optimizer, again) as pruning:
        train(again, optimizer, last=7)
        saved = pruning.state_dict()  # with the model's and the optimizer's: a checkpoint
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("stopped after 7 epochs")
with pruned(optimizer, again, state=saved):
    train(again, optimizer, first=7)
same = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
print(f"gone on from there: the same weights, bit for bit: {same}")
print(f"accuracy: dense {accuracy(dense):.1f} %, pruned at once {at_once[-1]:.1f} %, ", end="")
print(f"gradually {step_by_step[-1]:.1f} %")
pyplot.plot(at_once, label="at once")
pyplot.plot(step_by_step, label="step by step, to 98 % half way")
pyplot.axhline(accuracy(dense), color="grey", linestyle="--", label="dense")
pyplot.xlabel("epoch")
pyplot.ylabel("test accuracy, %")
pyplot.legend()
pyplot.savefig("gradually.png", dpi=120)
