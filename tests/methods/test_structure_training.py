"""Structure selection in training: its state, resuming, and what is refused."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks.comparing import apart, same, snapshot
from networks.drawn import randn
from networks.plain import mlp
from networks.selected import assign, quadratic, selection, stepped
from secateur.errors import BudgetError, ModelError, NonFiniteError, TargetError
from secateur.methods import scaling
from secateur.methods.scaling import Scaled
from secateur.methods.structure_selection import Selected, StructureSelection
from secateur.structure.proof import Proof

# -- training and state --------------------------------------------------------------------------------


def steps(chosen, optimizer, number, seed):
    with chosen.trained(optimizer) as network:
        network.train()
        for at in range(number):
            x = randn(*chosen._inputs[0][0].shape, seed=seed + at)
            optimizer.zero_grad()
            quadratic(network, x).backward()
            optimizer.step()


@pytest.mark.parametrize("name", ["mlp", "post", "encoder"])
def test_resumed_training_is_the_same_bit_for_bit(name):
    def fresh():
        _, _, chosen = selection(name, penalty=0.01)
        return chosen, torch.optim.SGD(chosen.network.parameters(), lr=0.02, momentum=0.9)

    whole, optimizer = fresh()
    steps(whole, optimizer, 3, 10)
    file = io.BytesIO()
    torch.save((whole.network.state_dict(), optimizer.state_dict()), file)
    steps(whole, optimizer, 3, 20)
    again, optimizer = fresh()
    held = again.network.factors
    file.seek(0)
    for target, saved in zip((again.network, optimizer), torch.load(file, weights_only=True), strict=True):
        target.load_state_dict(saved)
    assert all(again.network.factors[n] is f and f.requires_grad for n, f in held.items())
    steps(again, optimizer, 3, 20)
    assert same(snapshot(whole.network), snapshot(again.network))
    assert not all((f == 1).all() for f in again.factors.values())


def test_a_deep_copy_goes_its_own_way():
    model, x, chosen = selection("mlp")
    other = copy.deepcopy(chosen)
    before = snapshot(chosen.network)
    steps(other, torch.optim.SGD(other.network.parameters(), lr=0.1), 3, 1)
    assert same(before, snapshot(chosen.network))
    assert not same(before, snapshot(other.network))
    steps(chosen, torch.optim.SGD(model.parameters(), lr=0.1), 3, 1)
    assert same(snapshot(other.network), snapshot(chosen.network))
    twin = copy.deepcopy(chosen.network)
    with torch.no_grad():
        twin.factors["0 -> 2"].zero_()
    assert apart(twin, chosen.network, x) > 0.01


@pytest.mark.parametrize(
    "change", [lambda n: n.float(), lambda n: n.bfloat16(), lambda n: n.float().double()]
)
def test_factors_stay_trainable_and_wide(change):
    _, x, chosen = selection("mlp")
    network = change(chosen.network)
    weight = network.model[0].weight
    quadratic(network, x.to(weight.dtype)).backward()
    for name, factor in network.factors.items():
        assert factor.is_leaf
        assert factor.requires_grad
        assert factor.grad.abs().sum() > 0
        assert (
            factor.dtype == torch.promote_types(weight.dtype, torch.float32) == network.velocity(name).dtype
        )


def test_assigned_states_stay_trainable():
    _, _, chosen = selection("mlp")
    chosen.network.load_state_dict(snapshot(chosen.network), assign=True)
    assert all(f.requires_grad for f in chosen.network.factors.values())


def test_hooks_and_gradients_are_gone_afterwards():
    model, x, chosen = selection("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken():
        with chosen.trained(optimizer):
            quadratic(chosen.network, x).backward()
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not optimizer._optimizer_step_post_hooks
    assert all(f.grad is None for f in chosen.network.factors.values())
    before = chosen.factors["0 -> 2"].clone()
    quadratic(chosen.network, x).backward()
    optimizer.step()
    assert torch.equal(chosen.factors["0 -> 2"], before)


def test_a_larger_penalty_leaves_fewer_units():
    """Labels that depend on two of six inputs."""
    x = randn(120, 6)
    y = ((x[:, 0] + 0.5 * x[:, 1]) > 0).long()
    left, hits = [], []
    for penalty in (0.0, 6e-3, 2e-2):
        model = mlp(6, 16, 2, seed=0).double()
        chosen = StructureSelection(model, x, penalty=penalty)
        optimizer = torch.optim.SGD(chosen.network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        with chosen.trained(optimizer) as network:
            for _ in range(200):
                optimizer.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimizer.step()
        small, selected = chosen.fold()
        assert torch.equal(small(x).argmax(1), chosen.network(x).argmax(1))
        left.append(selected.units["0 -> 2"][0])
        hits.append(float((small(x).argmax(1) == y).double().mean()))
    assert left[0] == 16 > left[1] > left[2] >= 1
    assert min(hits) > 0.9


# -- what is refused ---------------------------------------------------------------------------------


def test_layers_that_cannot_be_scaled_say_why():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.rnn = nn.Linear(5, 6), nn.LSTM(6, 7, batch_first=True)
            self.b = nn.utils.parametrizations.weight_norm(nn.Linear(7, 8))
            self.c = nn.utils.parametrizations.weight_norm(nn.Linear(8, 9))
            self.d, self.e = nn.Linear(9, 10), nn.Linear(10, 2)

        def forward(self, x):
            x = self.c(self.b(self.rnn(self.a(x).relu())[0]).relu())
            return self.e(self.d(x.relu()).relu())

    torch.manual_seed(0)
    model, x = Mixed().double(), randn(2, 3, 5)
    chosen = StructureSelection(model, x)
    assert "d -> e" in chosen.factors
    reasons = "\n".join(chosen.skipped.values())
    assert "rnn.weight_ih_l0 belongs to a recurrent layer" in reasons
    assert "a computed weight" in reasons
    assert all(reason in repr(chosen) for reason in chosen.skipped.values())
    assign(chosen, None)
    assert apart(chosen.network, chosen.fold()[0], x) < 1e-12


def test_tied_and_grouped_weights_say_why():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)
            self.head.weight = self.table.weight

        def forward(self, ids):
            x = self.table(ids)
            return self.head(x + self.b(self.a(x).relu()))

    torch.manual_seed(0)
    chosen = StructureSelection(Tied().double(), torch.randint(0, 11, (2, 4)), blocks=False)
    assert list(chosen.factors) == ["a -> b"]
    (reason,) = chosen.skipped.values()
    assert reason == "table.weight is used in another way too"
    grouped = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    chosen = StructureSelection(grouped.double(), randn(2, 3, 4, 4))
    assert any("grouped convolution" in reason for reason in chosen.skipped.values())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"penalty": -1e-3}, BudgetError, "penalty is -0.001"),
        ({"penalty": float("nan")}, BudgetError, "penalty is nan"),
        ({"lr": 0.0}, BudgetError, "lr is 0.0"),
        ({"momentum": 1.0}, BudgetError, "momentum is 1.0"),
        ({"include": "nothing"}, TargetError, "include pattern 'nothing' matches no group"),
        ({"exclude": "*"}, TargetError, "no group of units"),
        ({"units": False}, TargetError, "no units or blocks that a factor can scale"),
        ({"units": False, "include": "0.weight"}, BudgetError, "units=False"),
    ],
)
def test_impossible_settings(options, error, words):
    with pytest.raises(error, match=words):
        StructureSelection(mlp(5, 4, 2, seed=0).double(), randn(3, 5), **options)


def test_the_default_rate_goes_with_any_optimizer():
    model, x, chosen = selection("mlp")
    assert chosen.lr == 0.1
    stepped(chosen, torch.optim.Adam(model.parameters()), lambda: quadratic(chosen.network, x))
    assert any((factor != 1).any() for factor in chosen.factors.values())


def test_a_model_without_groups():
    with pytest.raises(TargetError, match="Linear has no units or blocks"):
        StructureSelection(nn.Linear(3, 2), torch.zeros(1, 3))
    model = nn.Sequential(nn.LSTM(5, 6))
    with pytest.raises(TargetError, match="Sequential has no units or blocks"):
        StructureSelection(model, torch.zeros(3, 2, 5))


def test_optimizers_that_cannot_be_followed():
    model, x, chosen = selection("mlp", lr=None)
    for optimizer, error, words in (
        (
            torch.optim.SGD(mlp(2, 2, seed=0).double().parameters(), lr=0.1),
            TargetError,
            "network.parameters()",
        ),
        (torch.optim.LBFGS(model.parameters()), BudgetError, "LBFGS takes the gradient several times"),
        (torch.optim.Adam(model.parameters()), BudgetError, "with Adam give lr=0.1"),
    ):
        with pytest.raises(error, match=words.replace("(", r"\(").replace(")", r"\)")):
            chosen.trained(optimizer).__enter__()
        assert not optimizer._optimizer_step_post_hooks
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match="no gradient reached the factors"):
        stepped(chosen, optimizer, lambda: quadratic(model, x))
    model[0].gradient_checkpointing = True
    with pytest.raises(ModelError, match="gradient checkpointing"):
        chosen.trained(optimizer).__enter__()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_scaler_of_gradients_is_refused(enabled):
    model = mlp(5, 4, 2, seed=0)
    x = randn(3, 5).float()
    chosen = StructureSelection(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=enabled)

    def train():
        with chosen.trained(optimizer):
            scaler.scale(quadratic(chosen.network, x)).backward()
            scaler.step(optimizer)

    before = snapshot(model)
    if enabled:
        with pytest.raises(ModelError, match="a GradScaler does not unscale"):
            train()
        assert (chosen.factors["0 -> 2"] == 1).all()
        assert same(before, snapshot(model))  # nor did the weights take the step
        assert not {"found_inf", "grad_scale", "_step_supports_amp_scaling"} & vars(optimizer).keys()
    else:
        train()
        assert (chosen.factors["0 -> 2"] != 1).any()


def test_a_scaler_around_a_fused_or_wrapped_optimizer_is_refused_too():
    class Around(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        param_groups = property(lambda self: self.optimizer.param_groups)

        def step(self, closure=None):
            self.optimizer.step()

    for wrap, fused in ((Around, False), (lambda o: o, True)):
        model, x = mlp(5, 4, 2, seed=0), randn(3, 5).float()
        chosen = StructureSelection(model, x)
        optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1, fused=fused))
        scaler = torch.amp.GradScaler("cpu")

        def train(chosen=chosen, optimizer=optimizer, scaler=scaler, x=x):
            with chosen.trained(optimizer):
                scaler.scale(quadratic(chosen.network, x)).backward()
                scaler.step(optimizer)

        with pytest.raises(ModelError, match="a GradScaler does not unscale"):
            train()
        assert (chosen.factors["0 -> 2"] == 1).all()


@pytest.mark.filterwarnings("ignore")
def test_a_nan_names_the_group_and_changes_no_factor():
    model, x, chosen = selection("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NonFiniteError, match="0 -> 2: the gradient of a factor"):
        stepped(chosen, optimizer, lambda: quadratic(chosen.network, x) * float("nan"))
    assert all((factor == 1).all() for factor in chosen.factors.values())
    assign(chosen, {"2 -> 4": float("inf")})
    with pytest.raises(NonFiniteError, match="2 -> 4: a factor holds a NaN or an infinity"):
        chosen.fold()
    with pytest.raises(BudgetError, match="threshold is -1"):
        chosen.fold(-1)


def test_factors_that_do_not_reach_the_weights_are_an_error(monkeypatch):
    """As in a layer that calls with a weight it keeps elsewhere."""
    _, _, chosen = selection("mlp")
    monkeypatch.setattr(
        scaling, "functional_call", lambda model, weights, args, kwargs: model(*args, **kwargs)
    )
    chosen.fold()
    assign(chosen, {"0 -> 2": [2.0, 0, 1, 1, 1, 1, 1]})
    with pytest.raises(ModelError, match="the factors do not fold"):
        chosen.fold()


def test_selected_prints_lines():
    proof = Proof(1, "float64", 0.0, 0.0, {}, (10, 4), (20, 8))
    selected = Selected({"a -> b": (2, 5)}, (), (), 0.01, 1e-16, proof, ("look here",))
    assert (selected.proofs, selected.parameters, selected.macs) == ((proof,), (10, 4), (20, 8))
    assert repr(selected).splitlines() == [
        "a -> b: 2 of 5 units kept",
        "small factors set to zero: outputs off by 1.0e-02",
        "what is zero removed: outputs off by 1.0e-16",
        "note: look here",
    ]


def test_the_state_dict_names_groups():
    _, _, chosen = selection("post")
    assert isinstance(chosen.network, Scaled)
    names = [name for name in chosen.network.state_dict() if not name.startswith("model.")]
    assert "factor x + 3/bn_b" in names
    assert "velocity 3/a -> 3/b" in names
    assert len(names) == 2 * len(chosen.factors)
