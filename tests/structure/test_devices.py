"""On a GPU the same units go as on the CPU, and what is made for a network lies where it lies."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree

import secateur as sc
from networks.comparing import error
from networks.small import SMALL

# Convolutions that a GPU rounds or not by their channels, indices that a graph holds, weights made once.
NETWORKS = ("upsample_unet", "feature_pyramid", "grouped_shuffle", "interleaved_gate", "standardized_conv")


@pytest.mark.parametrize("form", ["modules", "graph"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_units_go(name, form, device):
    drawn = next(network for network in SMALL if network.name == name)

    def halved(device):
        torch.manual_seed(0)
        net = drawn.build().eval().to(device)
        args, kwargs = _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), drawn.inputs())
        structure = sc.trace(net, args, kwargs=kwargs, form=form)
        sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
        return sc.compact(net, args, kwargs=kwargs, form=form)

    (_, here), (small, there) = halved("cpu"), halved(device)
    assert (there.removed, there.parameters, there.macs) == (here.removed, here.parameters, here.macs)
    assert {tensor.device.type for tensor in small.state_dict().values()} == {device}


def test_a_graph_takes_batches_of_any_size(device):
    net = sc.build_model("resnet-20", width=0.25).double().eval().to(device)
    x = torch.randn(2, 3, 32, 32, device=device, dtype=torch.float64)
    structure = sc.trace(net, x, form="graph")
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, _ = sc.compact(net, x, form="graph")
    assert error(net, small, x.repeat(3, 1, 1, 1).flip(0)) < 1e-9


def test_branches_stand_beside_wide_layers(device):
    net = sc.build_model("vgg-16-bn").eval().to(device)
    branches = sc.BranchAnnealing(net, torch.randn(2, 3, 32, 32, device=device), start="random")
    assert len(branches.network.widths) == 13
