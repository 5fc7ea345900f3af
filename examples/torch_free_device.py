"""A pruned network on a device without PyTorch: a folder that numpy alone runs, tried where torch cannot be
imported. Prints accuracy, bytes and time there beside PyTorch's here."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import secateur as sc
from secateur.data import load_data

torch.manual_seed(0)
torch.set_num_threads(1)
data = load_data("digits")
x, y, test = data.train.inputs, data.train.labels, data.test

DEVICE = """
import sys, time
sys.modules["torch"] = None  # importing it fails
sys.path.insert(0, "net")
import numpy as np
from run import Network
network = Network("net/model.secateur")
images = np.load("images.npy")
np.save("outputs.npy", network.run(images))
times = []
for image in images[:300]:
    start = time.perf_counter()
    network.run(image[None])
    times.append(time.perf_counter() - start)
print(1e3 * sorted(times)[150])
"""


def train(model, epochs, masks=None):
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def accuracy(outputs):
    return 100 * float((outputs.argmax(1) == test.labels.numpy()).mean())


dense = train(sc.build_model("digits-mlp", hidden=256), 10)
small, proof = sc.prune_to(dense, x[:2], parameters=0.25)
train(small, 8)
sc.write_folder(small, x[:2], "net")
np.save("images.npy", test.inputs.numpy())
done = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True, check=True)
with torch.no_grad():
    start = time.perf_counter()
    for image in test.inputs[:300]:
        dense(image[None])
    here = 1e3 * (time.perf_counter() - start) / 300
    outputs = dense(test.inputs).numpy()
    same = np.abs(np.load("outputs.npy") - small(test.inputs).numpy()).max()
size = sum(parameter.numel() for parameter in dense.parameters()) * 4
print(f"dense, PyTorch here:      {size:>9,} bytes {here:.3f} ms {accuracy(outputs):.2f} %")
file = Path("net/model.secateur").stat().st_size
print(f"small, numpy over there:  {file:>9,} bytes {float(done.stdout):.3f} ms", end=" ")
print(f"{accuracy(np.load('outputs.npy')):.2f} %, off by {same:.1e} from PyTorch")
