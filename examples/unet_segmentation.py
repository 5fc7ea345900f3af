"""A U-Net that finds digits on photographs: half of its channels go, through skip connections and all.

MNIST on CIFAR-10, from $SECATEUR_DATA; where it is not, scikit-learn's digits on noise. Draws unet.png.
"""

import copy

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.data import load_data

torch.manual_seed(0)


def convs(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = convs(3, 16), convs(16, 32), convs(32, 64)
        self.up2, self.up1, self.mask = convs(96, 32), convs(48, 16), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        up = F.interpolate(self.bottom(F.max_pool2d(second, 2)), scale_factor=2)
        up = F.interpolate(self.up2(torch.cat([second, up], 1)), scale_factor=2)
        return self.mask(self.up1(torch.cat([first, up], 1)))


def train(model, x, y, epochs, lr):
    optimizer = torch.optim.Adam(model.train().parameters(), lr=lr)
    batches = [part for _ in range(epochs) for part in torch.randperm(len(x)).split(32)]
    for index, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * (1 - index / len(batches))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x[batch]), y[batch]).backward()
        optimizer.step()


def iou(model, x, y):
    found = model.eval()(x) > 0
    return 100 * ((found & (y > 0)).sum() / (found | (y > 0)).sum()).item()


try:
    digits = load_data("mnist", download=False, normalise=False).train.inputs[:1000]
    behind = load_data("cifar10", download=False, normalise=False).train.drawn(1000, seed=0).inputs
except sc.DataError:
    digits = F.interpolate(load_data("digits").train.inputs[:1000], size=28)
    behind = torch.rand(1000, 3, 32, 32) / 2
digits = F.pad(digits, (2, 2, 2, 2))
x, y = behind * (1 - digits / 2) + digits / 2, (digits > 0.5).float()
x, test_x, y, test_y = x[:600], x[800:], y[:600], y[800:]

dense = UNet()
train(dense, x, y, epochs=7, lr=0.01)
model = copy.deepcopy(dense)
structure = sc.trace(model, x[:2])
sc.prune(model, sc.ActivationNorm(), sc.Uniform(0.5), structure=structure, data=[x[:64]])
print(f"IoU: dense {iou(dense, test_x, test_y):.1f} %, pruned {iou(model, test_x, test_y):.1f} %, ", end="")
sc.reconstruct(model, dense, structure, [x[:128]])
print(f"refitted {iou(model, test_x, test_y):.1f} %, ", end="")
small, proof = sc.compact(model, x[:2])
train(small, x, y, epochs=2, lr=0.005)
print(f"trained on {iou(small, test_x, test_y):.1f} %")
print(proof)
some = test_x[:8]
rows = [some, *(mask.expand(-1, 3, -1, -1) for mask in (test_y[:8], dense(some) > 0, small(some) > 0))]
image = torch.cat([torch.cat(list(row), 2) for row in rows], 1).float()
Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).resize((1024, 512), 0).save("unet.png")
