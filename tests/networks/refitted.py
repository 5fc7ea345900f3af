"""Networks that lost units, beside themselves before, to refit."""

import copy

import numpy as np
import torch
from torch import nn

import secateur as sc
from secateur.structure.surgery import mask_units


def pair(model, x, gone, dtype=torch.float64):
    """The model with the units ``gone`` (by group number) masked, itself before, its structure."""
    model = model.to(dtype)
    dense = copy.deepcopy(model)
    structure = sc.trace(model, x)
    names = list(structure.groups)
    doomed = {
        names[at]: np.isin(np.arange(len(structure.groups[names[at]])), units) for at, units in gone.items()
    }
    mask_units(model, structure, doomed)
    return model, dense, structure


def combined(bias):
    """Neuron 2 is 3 times neuron 0 minus half of neuron 1 (plus a constant where there are biases)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3, bias=bias), nn.Linear(3, 2, bias=bias)).double()
    with torch.no_grad():
        model[0].weight[2] = 3 * model[0].weight[0] - model[0].weight[1] / 2
    return model
