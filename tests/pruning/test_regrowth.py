import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import BudgetError


def thin(sparsity: float = 0.5) -> tuple[nn.Module, sc.Masks]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    return net, sc.prune(net, sc.Random(seed=1), sc.Uniform(sparsity))


@given(st.floats(0, 1), st.floats(0.05, 0.95), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_each_tensor_keeps_its_count_and_the_dead_are_zero(share, sparsity, seed):
    net, masks = thin(sparsity)
    before = {name: int(mask.sum()) for name, mask in masks.items()}
    old = dict(masks.kept)
    moved = sc.regrow(masks, share, seed=seed)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == before
    masks.check()
    assert moved == sum(int((masks[name] & ~old[name]).sum()) for name in old)
    assert all(net.get_parameter(name)[masks[name] & ~old[name]].eq(0).all() for name in old)


def test_the_smallest_die_and_the_largest_gradients_come_to_life():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 0.1, 5.0, 7.0]])
    masks = sc.Masks(layer, {"weight": torch.tensor([[True, True, False, False]])}).apply()
    x, y = torch.tensor([[1.0, 1.0, 2.0, 8.0]]), torch.zeros(1, 1)
    moved = sc.regrow(masks, 0.5, data=[(x, y)], loss=nn.functional.mse_loss)
    assert moved == 1
    assert masks["weight"].tolist() == [[True, False, False, True]]
    assert layer.weight.tolist() == [[3.0, 0.0, 0.0, 0.0]]


def test_inside_a_training_that_holds_them_the_new_masks_are_held():
    net, masks = thin()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    with masks.held(optimizer):
        for step in range(35):
            x = torch.randn(16, 6)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), x.argmax(1) % 4).backward()
            optimizer.step()
            if step % 10 == 9:
                old = dict(masks.kept)
                sc.regrow(masks, 0.3, data=[(x, x.argmax(1) % 4)], optimizer=optimizer)
                for name, weight in masks.parameters().items():
                    born = masks[name] & ~old[name]
                    assert born.any()
                    assert optimizer.state[weight]["exp_avg"][born].eq(0).all()
    assert sc.sparsity(net) == pytest.approx(0.5)


def test_what_cannot_be_is_refused():
    _, masks = thin()
    with pytest.raises(BudgetError, match="share is 2"):
        sc.regrow(masks, 2)
    with pytest.raises(BudgetError, match=r"seed is 0\.5"):
        sc.regrow(masks, 0.5, seed=0.5)
