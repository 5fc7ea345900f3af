"""Half of the units of a convolutional network removed, then ONNX in float32 and int8: bytes, time, accuracy.

onnxruntime runs the files, each checked against PyTorch when it is written.
"""

import time
from pathlib import Path

import onnxruntime
import torch
from torch.nn.functional import cross_entropy

import secateur as sc
from secateur.data import load_data

torch.manual_seed(0)
data = load_data("digits")
x, y, test = data.train.inputs, data.train.labels, data.test
example = x[:2]


def train(model, epochs, lr=2e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def figures(path):
    """Bytes, milliseconds of one image (the median of 300), and accuracy of an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, times = session.get_inputs()[0].name, []
    for image in test.inputs[:300].numpy():
        start = time.perf_counter()
        session.run(None, {name: image[None]})
        times.append(time.perf_counter() - start)
    chosen = session.run(None, {name: test.inputs.numpy()})[0].argmax(1)
    accuracy = 100 * (torch.from_numpy(chosen) == test.labels).float().mean().item()
    return f"{Path(path).stat().st_size:>9,} bytes {1e3 * sorted(times)[150]:.3f} ms {accuracy:6.2f} %"


layers = [torch.nn.Conv2d(1, 48, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
layers += [torch.nn.Conv2d(48, 96, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
dense = train(torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(384, 10)), 8)
small, proof = sc.prune_to(dense, example, macs=0.3)
train(small, 6, lr=1e-3)
calibration = list(x[:512].split(64))
for name, network, options in (
    ("dense", dense, {}),
    ("small", small, {}),
    ("small, int8", small, {"int8": True, "data": calibration}),
):
    written = sc.export_onnx(network, example, f"{name}.onnx", **options)
    print(f"{name:<12} {figures(f'{name}.onnx')}, off by {written.max_error:.1e}")
