"""The calls that a proof compares: examples, methods, training mode, and what none of them reads."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import secateur as sc
from networks.comparing import error, wide
from networks.drawn import IMAGES, ROWS
from networks.parts import After
from networks.plain import Coder, mlp
from networks.pruned import halved
from secateur.errors import ModelError
from secateur.structure.runs import Run, Undisturbed, in_training, runs_of, same_random_state


class Auxiliary(nn.Module):
    """As GoogLeNet and Inception: heads inside that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Conv2d(10, 12, 1)
        self.aux, self.head = nn.Linear(10, 4), nn.Linear(12, 4)

    def forward(self, x):
        x = self.body(self.stem(x).relu()).relu()
        aux = self.aux(x.mean((2, 3))) if self.training else None
        y = self.head(self.last(x).relu().mean((2, 3)))
        return (y, aux) if self.training else y


def test_what_an_auxiliary_head_reads_stays():
    net = Auxiliary()
    halved(net, IMAGES)
    small, proof = sc.compact(net, IMAGES)
    assert proof.removed == {"stem -> body": (4, 8), "last -> head": (6, 12)}
    assert "breaks the training forward: RuntimeError" in proof.kept["body -> last"]
    for mode in (net.train(), small.train()):
        mode(IMAGES)
    assert error(net, small, IMAGES) < 1e-12
    assert error(net.eval(), small.eval(), IMAGES) < 1e-12


def test_a_norm_of_training_alone_keeps_what_it_reads():
    net = After(
        lambda net, x: (
            net.b(F.layer_norm(h, h.shape[-1:]) if net.training else h)
            if (h := net.a(x).relu()) is not None
            else None
        ),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 2),
    )
    halved(net, ROWS)
    small, proof = sc.compact(net, ROWS)
    assert proof.removed == {}
    assert "breaks the training forward: its outputs are off by" in proof.kept["a -> b"]
    assert error(net.train(), small.train(), ROWS) < 1e-12


def test_a_slice_of_training_alone_keeps_what_it_reads():
    """Silently off by half: the first four channels are others in the small network."""
    net = After(
        lambda net, x: net.b(net.a(x).relu()) + (net.a(x)[:, :4].sum(1, keepdim=True) if net.training else 0),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 2),
    )
    halved(net, ROWS)
    assert "the training forward" in sc.compact(net, ROWS)[1].kept["a -> b"]


NOISE = {
    "module": lambda net, h: net.drop(h),
    "function": lambda net, h: F.dropout(h, 0.5, net.training),
    "in place": lambda net, h: F.dropout(h.clone(), 0.5, net.training, inplace=True),
    "alpha": lambda net, h: F.alpha_dropout(h, 0.2, net.training),
    "multiplied": lambda net, h: h * torch.rand_like(h) if net.training else h,
    "added": lambda net, h: h * (1 + torch.randn(h.shape[-1], dtype=h.dtype)) if net.training else h,
    "bernoulli": lambda net, h: h * torch.empty_like(h).bernoulli_(0.8) if net.training else h,
    "depth": lambda net, h: h * h.new_empty(len(h), 1).bernoulli_(0.8) if net.training else h,
    "python": lambda net, h: h * random.random() if net.training else h,
    "numpy": lambda net, h: h * float(np.random.rand()) if net.training else h,  # noqa: NPY002
}


@pytest.mark.parametrize("noise", NOISE)
def test_the_noise_of_training_keeps_nothing(noise):
    net = After(
        lambda net, x: net.b(NOISE[noise](net, net.a(x).relu())),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 2),
        drop=nn.Dropout(0.5),
    )
    halved(net, ROWS)
    before = torch.get_rng_state(), random.getstate()
    _, proof = sc.compact(net, ROWS)
    assert (proof.removed, proof.kept, proof.notes) == ({"a -> b": (4, 8)}, {}, ())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_the_dropout_inside_attention_and_recurrent_layers_keeps_nothing():
    net = After(
        lambda net, x: net.c(net.lstm(net.mha(h, h, h)[0] if (h := net.a(x)) is not None else h)[0]),
        a=nn.Linear(3, 8),
        mha=nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True),
        lstm=nn.LSTM(8, 6, num_layers=2, dropout=0.4, batch_first=True),
        c=nn.Linear(6, 2),
    )
    x = ROWS.reshape(2, 3, 3)
    halved(net, x)
    _, proof = sc.compact(net, x)
    assert proof.removed
    assert (proof.kept, proof.notes) == ({}, ())
    assert (net.mha.dropout, net.lstm.dropout) == (0.3, 0.4)


def test_a_batch_norm_of_one_example_is_no_obstacle():
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    halved(net, ROWS[:1])
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    _, proof = sc.compact(net, ROWS[:1])
    assert (proof.removed, proof.notes) == ({"0 -> 3": (3, 6)}, ())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.named_buffers())


def test_a_power_iteration_of_training_is_no_obstacle():
    """A parametrized weight changes wherever it is looked at in training mode."""
    net = nn.Sequential(spectral_norm(nn.Linear(3, 8)), nn.ReLU(), nn.Linear(8, 2)).double().train()
    with torch.no_grad():
        net[2].weight[:, [1, 4]] = 0
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small, proof = sc.compact(net, ROWS, examples=[ROWS + 1])
    assert proof.max_error < 1e-12
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in small.modules())


def test_each_module_keeps_its_mode():
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    halved(net, ROWS)
    net.train()[1].eval()
    small, _ = sc.compact(net, ROWS)
    assert [module.training for module in small.modules()] == [module.training for module in net.modules()]


class Detector(nn.Module):
    """In training it wants targets, and a head runs that reads the body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.extra = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 5)

    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("in training mode, targets should be passed")
        h = self.body(x).relu()
        return self.head(h) if targets is None else (self.head(h) - targets, self.extra(h))


def test_a_training_forward_that_does_not_run_is_said_and_what_it_reads_named():
    net = Detector()
    halved(net, ROWS)
    _, proof = sc.compact(net, ROWS)
    assert proof.removed == {"body -> head": (4, 8)}
    assert proof.notes == (
        "the training forward was not compared: ValueError: in training mode, targets should be passed",
    )
    assert proof.unseen == ("extra.weight",)
    assert "no example ran what reads extra.weight" in repr(proof)


def test_another_example_takes_another_path():
    net = Detector()
    halved(net, ROWS)
    targets = torch.zeros(6, 2, dtype=torch.float64)
    small, proof = sc.compact(net, ROWS, examples=[(ROWS, targets)])
    assert (proof.removed, proof.unseen) == ({}, ())
    assert "breaks examples[0]: RuntimeError" in proof.kept["body -> head"]
    assert small(ROWS, targets)[1].shape == (6, 5)


def test_a_list_of_keywords_is_an_example_too():
    net = Detector()
    halved(net, ROWS)
    keywords = {"x": ROWS, "targets": torch.zeros(6, 2, dtype=torch.float64)}
    assert "examples[0]" in sc.compact(net, ROWS, examples=[keywords])[1].kept["body -> head"]


def test_methods_by_name():
    net = Coder()
    halved(net, ROWS)
    both, proof = sc.compact(net, ROWS, methods=("forward", "encode"))
    assert proof.removed == {"a -> b": (4, 8)}  # what encode returns is an output
    assert "breaks encode()" in proof.kept["b -> c"]
    assert torch.allclose(both.encode(ROWS), net.encode(ROWS), atol=1e-12)


def test_methods_with_inputs_of_their_own():
    net = Coder()
    halved(net, ROWS)
    code = torch.randn(4, 6, dtype=torch.float64)
    _, proof = sc.compact(net, ROWS, methods={"decode": code})
    assert "breaks decode()" in proof.kept["b -> c"]
    assert "a -> b" in proof.removed


def test_a_method_that_is_not_there_is_an_error():
    with pytest.raises(ModelError, match=r"has no method 'encod'; did you mean 'encode'"):
        sc.compact(Coder(), ROWS.float(), methods=("encod",))


def test_an_example_that_does_not_run_is_an_error():
    with pytest.raises(ModelError, match=r"Coder does not run on examples\[1\]: RuntimeError"):
        sc.compact(Coder(), ROWS.float(), examples=[ROWS.float(), torch.zeros(2, 5)])


def test_examples_that_are_no_list_are_an_error():
    with pytest.raises(ModelError, match="examples is a int; it is a list"):
        sc.compact(Coder(), ROWS.float(), examples=3)


def test_inputs_and_the_random_state_are_left_alone():
    cache: dict[str, torch.Tensor] = {}

    def forward(net, x, kept):
        kept["seen"] = x.sum()
        return net(x.sub_(1))

    x = ROWS.clone()
    runs = runs_of(After(forward), (x, cache), examples=[(x, cache)])
    with same_random_state():
        for run in (*runs, *map(in_training, runs)):
            run.on(After(lambda own, x, kept: forward(mlp(3, 2).double(), x, kept)))
    assert cache == {}
    assert torch.equal(x, ROWS)


def test_labels_say_which_call():
    net = Coder()
    runs = runs_of(net, ROWS, examples=[ROWS], methods=("forward", "encode"))
    assert [run.label for run in runs] == ["", "examples[0]", "encode()", "encode() on examples[0]"]
    assert [in_training(run).label for run in runs] == [
        "the training forward",
        "the training forward on examples[0]",
        "encode() in training",
        "encode() on examples[0] in training",
    ]


def test_undisturbed_draws_do_not_depend_on_the_size():
    with same_random_state(), Undisturbed():
        assert torch.rand(3).tolist() == [0.5] * 3
        assert torch.empty(2, 2).bernoulli_(0.1).tolist() == [[1, 1], [1, 1]]
        assert F.dropout(torch.ones(4), 0.5, True).tolist() == [1] * 4


def test_a_run_in_training_keeps_the_statistics_of_a_batch_norm():
    norm = nn.BatchNorm1d(3)
    Run((ROWS.float(),), training=True).on(norm)
    assert torch.equal(norm.running_mean, torch.zeros(3))


def test_a_network_whose_outputs_do_not_hear_its_inputs_is_said():
    net = After(lambda net, x: net.b(net.a(x * 1e-12).relu()), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    halved(net, ROWS)
    assert "what was compared says little" in " ".join(sc.compact(net, ROWS)[1].notes)


def test_a_signal_that_dies_on_the_way_is_proved_all_the_same():
    """Initial weights this small leave nothing of the input in the output: the proof gives them a size."""
    net = mlp(3, 40, 40, 40, 40, 40, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1e-3 if parameter.dim() > 1 else 1)
    halved(net, ROWS)
    masked = wide(net)
    assert error(masked, lambda x: masked(x + 1), ROWS) < 1e-9
    _, proof = sc.compact(net, ROWS)
    assert proof.notes == ()
    assert proof.max_error_randomised < 1e-12


# -- memory formats and compiled children ------------------------------------------------------------


def test_channels_last_survives():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 2))
    net = net.to(memory_format=torch.channels_last)
    halved(net, IMAGES)
    small, _ = sc.compact(net, IMAGES)
    for layer in (small[0], small[2]):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.weight.is_contiguous()


def test_compiled_children_are_cut_and_said():
    plain = mlp(3, 8, 6, 2).double()
    net = nn.Sequential(torch.compile(plain[:3], backend="eager"), *plain[3:])
    halved(net, ROWS)
    small, proof = sc.compact(net, ROWS)
    assert sum(gone for gone, _ in proof.removed.values()) == 7
    assert any("0 is compiled, and its copy is not" in note for note in proof.notes)
    assert error(net, small, ROWS) < 1e-12


@functools.lru_cache(maxsize=4)
def table(size: int) -> torch.Tensor:
    return torch.arange(size).float()


def test_a_table_that_all_share_keeps_its_dtype():
    """Proofs run in float64 and at other sizes: what a cache keeps from them is still float32."""
    table.cache_clear()
    net = After(
        lambda net, x: net.b((net.a(x) * 0 + net.c).relu()) + table(x.shape[0])[:, None].to(x.dtype),
        a=nn.Linear(3, 6),
        b=nn.Linear(6, 2),
        c=nn.Parameter(torch.tensor([1.0, 0, 2, 0, 3, 0])),
    )
    sc.compact(net, ROWS.float())
    for size in (3, 6, 12):
        assert type(table(size)) is torch.Tensor
        assert table(size).dtype == torch.float32
