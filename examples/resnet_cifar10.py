"""A ResNet on CIFAR-10 to half its multiply-adds: filters removed for real, proved equal, trained on.

Reads a part of CIFAR-10, halved to 16 x 16, from $SECATEUR_DATA; where it is not, scikit-learn's digits.
"""

import torch
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

import secateur as sc
from secateur.data import load_data

torch.manual_seed(0)


def images():
    """Return (training, test) pairs of 3 x 16 x 16 images and labels."""
    try:
        data = load_data("cifar10", download=False)
        parts = data.train.drawn(2000, seed=0), data.test.drawn(1000, seed=0)
        return [(avg_pool2d(part.inputs, 2), part.labels) for part in parts]
    except sc.DataError:
        parts = load_data("digits").train, load_data("digits").test
        return [(interpolate(part.inputs, size=16).expand(-1, 3, -1, -1), part.labels) for part in parts]


def train(model, x, y, epochs, lr):
    steps = epochs * (len(x) // 128 + 1)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            flipped = x[batch].flip(-1) if torch.rand(()) < 0.5 else x[batch]
            optimizer.zero_grad()
            cross_entropy(model(flipped), y[batch]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model, x, y):
    return 100 * (model.eval()(x).argmax(1) == y).float().mean().item()


(x, y), test = images()
dense = sc.build_model("resnet-20", width=0.5, shortcut="conv")
train(dense, x, y, epochs=4, lr=0.2)

small, proof = sc.prune_to(dense, x[:2], macs=0.5)  # L2 norms, all layers in one ranking
print(proof)
cut = accuracy(small, *test)
sc.recalibrate(small, [x[:1000]])  # the batch norms' statistics are still the dense network's
recalibrated = accuracy(small, *test)
train(small, x, y, epochs=2, lr=0.1)

was, now = (sc.profile(net, x[:64]) for net in (dense, small))
print(f"multiply-adds: dense {was.macs:,}, pruned {now.macs:,}")
print(f"64 images: dense {was.latency_ms:.1f} ms, pruned {now.latency_ms:.1f} ms")
print(f"accuracy: dense {accuracy(dense, *test):.1f} %, pruned {cut:.1f} %, ", end="")
print(f"recalibrated {recalibrated:.1f} %, trained on {accuracy(small, *test):.1f} %")
