import torch
from torch import nn

import secateur as sc


def test_fisher_is_the_square_of_weight_times_the_mean_squared_gradient():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -3.0]]))
    data = [(torch.tensor([[1.0, 2.0]]), torch.zeros(1)), (torch.tensor([[3.0, 0.5]]), torch.zeros(1))]
    scores = sc.Fisher()(sc.find_targets(model), data, lambda outputs, labels: outputs.sum())
    # the gradients are the inputs: mean squares (1 + 9) / 2 and (4 + 0.25) / 2
    torch.testing.assert_close(scores["weight"](slice(0, 1)), torch.tensor([[4 * 5.0, 9 * 2.125]]))


def test_opposite_gradients_do_not_cancel_as_they_do_in_taylor():
    model = nn.Linear(1, 1, bias=False)
    data = [(torch.tensor([[1.0]]), torch.zeros(1)), (torch.tensor([[-1.0]]), torch.zeros(1))]
    targets, total = sc.find_targets(model), lambda outputs, labels: outputs.sum()
    assert float(sc.Taylor()(targets, data, total)["weight"](slice(0, 1)).detach()) == 0
    assert float(sc.Fisher()(targets, data, total)["weight"](slice(0, 1)).detach()) > 0


def test_gradients_of_complex_weights():
    model = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0 + 1.0j, 3.0j]]))
    targets, data = sc.find_targets(model), [(torch.tensor([[1.0, 2.0]]).cfloat(), torch.zeros(1))]

    def real(outputs, labels):
        return outputs.real.sum()

    # the loss is the real part of w x: only the real part of a weight can change it
    taylor = sc.Taylor()(targets, data, real)["weight"](slice(0, 1))
    torch.testing.assert_close(taylor, torch.tensor([[2.0, 0.0]]))
    fisher = sc.Fisher()(targets, data, real)["weight"](slice(0, 1))
    torch.testing.assert_close(fisher, torch.tensor([[5.0, 9.0 * 4.0]]))
