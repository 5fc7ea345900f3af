import torch
from torch import nn

import secateur as sc
from secateur.experiments.commands.making import smaller_graph


class Written(nn.Module):
    """Its own class knows the number of its channels; nothing else does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 4)

    def forward(self, x):
        return self.last(self.first(x).relu().view(-1, 8 * 36))


class Plain(Written):
    def forward(self, x):
        return self.last(self.first(x).relu().flatten(1))


def halved(build):
    torch.manual_seed(0)
    net, x = build().eval(), torch.randn(2, 1, 8, 8)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x), removable_only=False)
    return net, x, sc.compact(net, x)


def test_formats_without_a_forward_lose_what_its_sizes_keep():
    net, x, (_, proof) = halved(Written)
    assert not proof.removed
    found = smaller_graph(net, x, proof)
    assert found is not None
    small, left = found
    assert left == sum(p.numel() for p in small.parameters()) < proof.parameters[1] * 0.6
    assert torch.allclose(small(x), net(x), atol=1e-6)


def test_where_the_modules_lose_everything_there_is_no_graph():
    net, x, (_, proof) = halved(Plain)
    assert proof.removed
    assert smaller_graph(net, x, proof) is None
