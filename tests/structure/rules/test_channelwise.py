"""Operators that treat channels one by one let them go; those that do not are named."""

import pytest

import secateur as sc
from networks.small.operators import OPERATORS

# What sums over channels, or takes them apart in a way that no rule follows.
MIXING = "local_response_norm", "global_response_norm", "fractional_max_pool", "fold", "vmap_channels"


@pytest.mark.parametrize("network", OPERATORS, ids=lambda network: network.name)
def test_channels_before_an_operator_are_a_group(network):
    args, kwargs = network.inputs()
    structure = sc.trace(network.build(), args, kwargs=kwargs)
    free = any(part.name == "first.weight" for group in structure.groups.values() for part in group.slices)
    assert free == (network.name not in {f"op_{name}" for name in MIXING})
    if not free:
        assert any(p.name == "first.weight" and p.dim == 0 for p in structure.protected)
