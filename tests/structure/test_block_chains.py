import pytest
import torch
from torch import nn

import secateur as sc
from networks.hf import HF
from secateur.structure.chains import find_chains


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x, mask):
        return x + self.b(self.a(x).relu()) * mask


class Stack(nn.Module):
    """``leak``: the block whose result is read at the end too."""

    def __init__(self, leak=None):
        super().__init__()
        self.blocks, self.leak = nn.ModuleList([Block() for _ in range(4)]), leak
        self.head = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        mask, kept = (x > 0).to(x), 0
        for number, block in enumerate(self.blocks):
            x = block(x, mask)
            kept = x if number == self.leak else kept
        return self.head(x + kept)


def blocks(net, *inputs):
    return [list(chain.blocks) for chain in find_chains(sc.trace(net, inputs))]


def test_each_is_fed_by_the_one_before():
    chains = find_chains(sc.trace(Stack(), torch.randn(2, 6)))
    assert [list(chain.blocks) for chain in chains] == [
        [f"blocks.{n}" for n in range(4)],
        ["head.0", "head.1"],
    ]
    assert len(chains[0]) == 4
    assert len(chains[0].beside) == 2  # the mask, and what the first block reads


@pytest.mark.parametrize(("leak", "wanted"), [(1, [[0, 1], [2, 3]]), (0, [[1, 2, 3]]), (3, [[0, 1, 2, 3]])])
def test_what_is_read_beyond_the_next_ends_a_chain(leak, wanted):
    found = [chain for chain in blocks(Stack(leak), torch.randn(2, 6)) if chain[0].startswith("blocks")]
    assert found == [[f"blocks.{n}" for n in numbers] for numbers in wanted]


def test_a_block_that_runs_twice_or_not_at_all_is_none():
    class Shared(Stack):
        def forward(self, x):
            mask = torch.ones(6)
            for block in (*self.blocks[:2], *self.blocks[:2]):
                x = block(x, mask)
            return x

    assert blocks(Shared(), torch.randn(2, 6)) == []


LAYERS = {
    "hf_llama": [["model.layers.0", "model.layers.1"]],
    "hf_gpt2": [["transformer.h.0", "transformer.h.1"]],
    "hf_bert": [["encoder.layer.0", "encoder.layer.1"]],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_transformers_are_found_without_their_names(name):
    network = next(n for n in HF if n.name == name)
    args, kwargs = network.inputs()
    chains = find_chains(sc.trace(network.build().eval(), args, kwargs=kwargs))
    found = [list(chain.blocks) for chain in chains]
    assert [chain for chain in found if chain[0].count(".") > 1 or "layer" in chain[0]] == LAYERS[name]
