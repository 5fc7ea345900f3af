"""Networks that are trained for integers lose channels with their scales, observers running or not."""

import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization

import secateur as sc

X = torch.randn(4, 3, 8, 8)


def network(backend):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 20, 3), nn.BatchNorm2d(20), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4)
    net = nn.Sequential(quantization.QuantStub(), *layers, *head, quantization.DeQuantStub()).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.qconfig = quantization.get_default_qat_qconfig(backend)
        quantization.prepare_qat(net, inplace=True)
    net(X)
    return net.eval()


@pytest.mark.parametrize("observing", [True, False])
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])  # scales by channel, and of whole tensors
def test_fake_quantised_channels_go(backend, observing):
    net = network(backend)
    if not observing:
        net.apply(quantization.disable_observer)
    structure = sc.trace(net, X)
    assert list(structure.groups) == ["1 -> 3", "3 -> 8", "8 -> 10"]
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small, proof = sc.compact(net, X, structure=structure)
    assert not proof.kept
    assert proof.max_error < 1e-9
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    scales = [module.scale.numel() for module in small.modules() if hasattr(module, "weight_fake_quant")
              for module in [module.weight_fake_quant]]  # fmt: skip
    assert scales == ([8, 10, 6, 4] if backend == "fbgemm" else [1, 1, 1, 1])
    with torch.no_grad():
        assert torch.equal(small(X), net(X))
