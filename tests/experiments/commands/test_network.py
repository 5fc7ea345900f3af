"""Checkpoints of one's own, read, pruned and refused."""

import copy
import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from networks.drawn import numbers
from secateur.errors import ModelError, RecipeError, SecateurError, StorageError
from secateur.experiments.commands.network import inspect_model, open_network, prune_checkpoint
from secateur.experiments.commands.shrinking import shrink_checkpoint
from secateur.measure.size import count_parameters
from secateur.models import build_model
from secateur.training.checkpoint import load_network, save_weights

NETS = """
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(50, 24), nn.Linear(24, 40), nn.Linear(40, 7)
    def forward(self, x):
        return self.b(torch.relu(self.a(self.table(x).mean(1))))

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 5)
    def forward(self, x):
        return self.a(x)

class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)
    def forward(self, x):
        return self.b(self.a(x).relu().view(-1, 12))

class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = (nn.ModuleList(nn.Linear(*size) for _ in "ab") for size in [(4, 12), (12, 4)])
        self.up[1].weight.data *= 1.3
    def forward(self, x):
        for up, down in zip(self.up, self.down):
            x = x + down(up(x).relu())
        return x

class Pairs(Whole):
    def forward(self, x):
        return self.a(x.view(-1, 2, 4))

class Odd(Whole):
    def forward(self, x):
        raise ZeroDivisionError("odd")

def lazy():
    return nn.LazyLinear(3)

def inferred():
    with torch.inference_mode():
        return Whole()

def inferred_buffer():
    with torch.inference_mode():
        norm = nn.BatchNorm1d(4, affine=False)
    return nn.Sequential(norm, nn.Linear(4, 5))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a module of networks, as a user has one, and weights of lenet-5."""
    (tmp_path / "own_networks.py").write_text(NETS)
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('broken')")
    (tmp_path / "own_script.py").write_text("raise SystemExit(2)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_networks", "own_broken", "own_script"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    save_weights("in.safetensors", build_model("lenet-5", seed=3))
    return tmp_path


def pruned(place, out="out.safetensors", model="lenet-5", weights="in.safetensors", **options):
    step = {
        k: options.pop(k)
        for k in ("criterion", "budget", "units", "round_to", "exclude", "alike")
        if k in options
    }
    return prune_checkpoint(model=model, weights=place / weights, out=place / out, step=step, **options)


UNITS = {"units": True, "sparsity": 0.5, "input_shape": (1, 1, 28, 28)}


def test_a_reshaped_file_is_pruned_further_and_stays_one(place):
    """Single weights of a smaller network: the file that comes out has its shapes too."""
    pruned(place, "half.safetensors", **UNITS)
    text = pruned(place, "again.safetensors", weights="half.safetensors", sparsity=0.9)
    assert "secateur.load(" in text
    network, reshaped = open_network("lenet-5", place / "again.safetensors")
    assert reshaped
    assert network.fc1.weight.shape == (250, 400)
    assert (network.fc1.weight != 0).float().mean() < 0.2
    pruned(place, "quarter.safetensors", weights="half.safetensors", **UNITS)
    assert open_network("lenet-5", place / "quarter.safetensors")[0].conv2.weight.shape == (13, 5, 5, 5)


def test_the_file_computes_what_the_library_does(place):
    """The same criterion and budget in Python give the same smaller network."""
    text = pruned(place, criterion="l1_norm", budget="global", round_to=4, **UNITS)
    assert "to keep a multiple of 4" in text
    found, _ = open_network("lenet-5", place / "out.safetensors")
    model, x = build_model("lenet-5", seed=3), torch.randn(2, 1, 28, 28)
    with pytest.warns(sc.errors.SecateurWarning):
        sc.prune(model, sc.L1Norm(), sc.Global(0.5), structure=sc.trace(model, x), round_to=4)
    assert count_parameters(found) == count_parameters(sc.compact(model, x)[0])
    assert torch.allclose(found.eval()(x), model.eval()(x), atol=1e-5)


@pytest.mark.parametrize("alike", [True, False])
def test_like_groups_lose_as_many_units_each(place, alike):
    save_weights(place / "twins.safetensors", open_network("own_networks:Twins", None)[0])
    options = {"model": "own_networks:Twins", "weights": "twins.safetensors", "input_shape": (2, 4)}
    pruned(place, budget="global", units=True, sparsity=0.5, alike=alike, **options)
    small, _ = open_network("own_networks:Twins", place / "out.safetensors")
    assert (small.up[0].out_features == small.up[1].out_features == 6) is alike


@pytest.mark.parametrize("criterion", ["l2_norm", "l1_norm", "bn_scale", "activation_norm", "magnitude"])
def test_criteria_on_units_find_them_on_data_too(place, criterion):
    """Without an input shape the data set's own examples are what the network runs on."""
    network = {"name": "digits-mlp", "hidden": 32}
    save_weights(place / "own.safetensors", build_model("digits-mlp", hidden=32))
    options = {"model": network, "weights": "own.safetensors", "units": True, "sparsity": 0.5}
    if criterion == "bn_scale":
        with pytest.raises(SecateurError, match="no norm scales the units"):
            pruned(place, criterion=criterion, data="digits", **options)
        return
    assert "32 of 64 units removed" in pruned(place, criterion=criterion, data="digits", **options)
    loaded, _ = open_network(network, place / "out.safetensors")
    assert [tuple(p.shape) for p in loaded.parameters() if p.dim() > 1] == [(16, 64), (16, 16), (10, 16)]


def test_costs_are_of_one_example_or_of_the_input_that_was_given(place):
    np.save(place / "x.npy", np.zeros((9, 1, 28, 28), "f"))
    one = inspect_model("lenet-5", None, inputs=place / "x.npy")
    assert "multiply-adds 2,293,000, " in one
    assert one.endswith("\nmultiply-adds, latency and memory: of one example")
    given = inspect_model("lenet-5", None, (4, 1, 28, 28))
    assert "multiply-adds 9,172,000, " in given
    assert given.endswith("\nmultiply-adds, latency and memory: of an input of shape 4x1x28x28")
    text = pruned(place, units=True, sparsity=0.5, inputs=place / "x.npy")
    assert "2,293,000 -> 646,500 MACs" in text
    assert ["multiply-adds", "2,293,000", "646,500"] in [line.split() for line in text.splitlines()]
    assert "multiply-adds, latency and memory: of one example, on one thread" in text


def test_of_a_network_that_runs_on_no_single_example_costs_are_of_two(place):
    np.save(place / "x.npy", np.zeros((9, 4), "f"))
    said = inspect_model("own_networks:Pairs", None, inputs=place / "x.npy")
    assert "multiply-adds 40, " in said
    assert said.endswith("memory: of a batch of 2, as one alone does not run")


@pytest.mark.parametrize("refit", [None, True, False])
def test_units_are_refitted_where_there_are_examples_unless_told_not_to(place, refit):
    network = {"name": "digits-mlp", "hidden": 16}
    save_weights(place / "own.safetensors", build_model("digits-mlp", hidden=16))
    options = {"model": network, "weights": "own.safetensors", "units": True, "sparsity": 0.5}
    text = pruned(place, data="digits", refit=refit, **options)
    assert ("refitted on " in text) is (refit is not False)


@pytest.mark.parametrize("labels", ["classes", "numbers"])
def test_first_choices_are_compared_where_labels_are_classes(place, labels):
    x = np.random.default_rng(0).standard_normal((200, 10)).astype("f")
    np.savez(place / "d.npz", x=x, y=x[:, :2] if labels == "numbers" else (x[:, 0] > 0).astype(int))
    data = {"name": "npz", "path": str(place / "d.npz"), "labels": labels}
    model = {"name": "mlp", "features": 10, "outputs": 2}
    save_weights(place / "own.safetensors", build_model("mlp", features=10, outputs=2))
    given = {
        "model": model,
        "weights": place / "own.safetensors",
        "data": data,
        "out": place / "s.safetensors",
    }
    said = [
        prune_checkpoint(**given, step={"units": True}, sparsity=0.5),
        shrink_checkpoint(**given, goals={"macs": 0.5}, epochs=0),
    ]
    for text in said:
        assert "outputs differ by" in text
        assert ("same largest output" in text) is (labels == "classes")


def test_compacting_after_single_weights_and_its_masks(place):
    """What the zeros left dead goes for real; the masks written fit the network written."""
    text = pruned(
        place, sparsity=0.995, removing=True, input_shape=(2, 1, 28, 28), masks_out=place / "m.safetensors"
    )
    assert "units removed" in text
    small, reshaped = open_network("lenet-5", place / "out.safetensors")
    assert reshaped
    assert small.fc1.weight.shape[0] < 500
    masks = sc.Masks.load(place / "m.safetensors", small)
    before = copy.deepcopy(small.state_dict())
    masks.apply()
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())


@pytest.mark.parametrize("units", [True, False], ids=["units", "single weights"])
def test_examples_in_a_file_say_how_far_it_agrees_with_the_dense_network(place, units):
    """On those that nothing was fitted to: of 40 the last ten, whose outputs are compared here once more."""
    x = numbers(40, 1, 28, 28)
    np.save("x.npy", x.numpy())
    text = pruned(place, sparsity=0.5, units=units or None, inputs=place / "x.npy")
    (said,) = [line for line in text.splitlines() if line.startswith("agreement with the dense network: ")]
    small, _ = open_network("lenet-5", place / "out.safetensors")
    with torch.no_grad():
        wanted, found = build_model("lenet-5", seed=3).eval()(x[30:]), small.eval()(x[30:])
    same = int((wanted.argmax(1) == found.argmax(1)).sum())
    assert f"the same largest output in {same} of 10 examples ({10 * same}.00 %); " in said
    error = float((wanted - found).norm() / wanted.norm())
    assert error > 0.01
    assert said.endswith(f"outputs differ by {100 * error:.2g} %")
    assert ("refitted on 30 examples" in text) == units
    assert ("secateur.load(" in text) == units


def test_units_without_examples_are_not_compared_and_it_says_so(place):
    text = pruned(place, **UNITS)
    assert "agreement" not in text
    assert "neither refitted nor compared with the dense network: that takes --data, or examples" in text
    text = pruned(place, sparsity=0.9)
    assert "agree" not in text
    assert "compared" not in text


def test_units_of_examples_that_are_not_to_be_refitted(place):
    np.save("x.npy", numbers(40, 1, 28, 28).numpy())
    text = pruned(place, sparsity=0.5, units=True, inputs=place / "x.npy", refit=False)
    assert "refitted" not in text
    assert "agreement with the dense network: the same largest output in " in text


def test_without_removing_the_file_is_a_state_dict(place):
    text = pruned(place, sparsity=0.9)
    assert "secateur.load" not in text
    load_network(place / "out.safetensors", build_model("lenet-5"))


def test_networks_that_read_tokens(place):
    with pytest.raises(ModelError, match=r"are its inputs integers\? --input-dtype int64"):
        inspect_model("own_networks:Words", None, (2, 6))
    assert "multiply-adds 2,480" in inspect_model("own_networks:Words", None, (2, 6), "int64")
    save_weights(place / "words.safetensors", open_network("own_networks:Words", None)[0])
    options = {"model": "own_networks:Words", "weights": "words.safetensors", "input_shape": (2, 6)}
    text = pruned(place, units=True, sparsity=0.5, input_dtype="int64", **options)
    assert "32 of 64 units removed" in text
    smaller, _ = open_network("own_networks:Words", place / "out.safetensors")
    assert smaller.table.weight.shape == (50, 12)


def test_files_of_other_kinds_are_told_apart(place):
    network = build_model("lenet-5")
    sc.prune(network, sc.Magnitude(), sc.Global(0.5)).save(place / "masks.safetensors")
    torch.save(network.state_dict(), place / "old.pt")
    pruned(place, "half.safetensors", **UNITS)
    cases = [
        ("lenet-5", "masks.safetensors", StorageError, "holds masks, not a network"),
        ("lenet-5", "old.pt", StorageError, "a pickle checkpoint"),
        ("lenet-5", "no.safetensors", StorageError, "no such file"),
        ("lenet-300-100", "half.safetensors", ModelError, "load it into a secateur.models.lenet.LeNet5"),
        ("lenet-300-100", "in.safetensors", StorageError, "fc1.weight has shape .* there and"),
    ]
    for model, weights, kind, message in cases:
        with pytest.raises(kind, match=message):
            open_network(model, place / weights)
        with pytest.raises(kind, match=message):
            pruned(place, "never.safetensors", model=model, weights=weights, sparsity=0.5)
    assert not (place / "never.safetensors").exists()


MODELS = [
    ("own_broken:x", "cannot import 'own_broken': RuntimeError: broken"),
    ("own_script:x", "cannot import 'own_script': SystemExit: 2"),
    ("own_networks:wrods", "has no function 'wrods'"),
    (["lenet-5"], r"--model \['lenet-5'\]: a name, or a mapping like"),
    ({"name": "digits-mlp", "hiden": 3}, "no option 'hiden'; did you mean 'hidden'"),
    ({"name": "lenet-5", "weights": "in.safetensors"}, "an option of their own: --weights"),
    ("own_networks:lazy", "weight has no shape before the first forward"),
]


@pytest.mark.parametrize(("model", "message"), MODELS, ids=lambda value: str(value)[:30])
def test_models_that_cannot_be_had(place, model, message):
    with pytest.raises(SecateurError, match=message):
        inspect_model(model, None, None)


def test_inputs_on_which_nothing_runs(place):
    with pytest.raises(
        ModelError, match=r"Odd does not run on .*\(2, 4\) of float32: ZeroDivisionError: odd"
    ):
        inspect_model("own_networks:Odd", None, (2, 4))
    with pytest.raises(RecipeError, match=r"--input-shape .*no such tensor can be made"):
        inspect_model("lenet-5", None, (10**30, 4))


def test_a_network_without_units_says_what_protects_them(place):
    save_weights(place / "whole.safetensors", nn.ModuleDict({"a": nn.Linear(4, 5)}))
    options = {"model": "own_networks:Whole", "weights": "whole.safetensors", "input_shape": (2, 4)}
    with pytest.raises(ModelError, match=r"no whole unit that can go; a\.weight dim 0: model output"):
        pruned(place, units=True, sparsity=0.5, **options)


PRUNINGS = [
    ({"units": True, "input_shape": (1, 1, 28, 28)}, "how much should go"),
    ({"sparsity": 0.5, "input_shape": (1, 1, 28, 28)}, "it goes with --units or --compact"),
    ({"sparsity": 0.5, "removing": True}, "--compact runs the network: give --input-shape"),
    ({"sparsity": 0.5, "round_to": 8}, "round_to, min_kept and alike count whole units: add --units"),
    ({**UNITS, "budget": "erk"}, "ERK does not go with whole units"),
    ({**UNITS, "exclude": ["conv7"]}, "exclude pattern 'conv7' matches no group"),
    ({**UNITS, "criterion": "activation_norm"}, "ActivationNorm reads data: name a data set with --data"),
    ({"sparsity": 0.5, "criterion": ["wanda"]}, "--criterion .'wanda'.: a name, or a mapping like"),
    ({"sparsity": 0.5, "data": {"name": "digits", "validation": "x"}}, "--data: validation.* is 'x'"),
    ({"sparsity": 0.5, "out": "in.safetensors/x"}, "in.safetensors is a file, not a folder"),
]


@pytest.mark.parametrize(("options", "message"), PRUNINGS, ids=lambda value: str(value)[:50])
def test_prunings_that_cannot_be(place, options, message):
    with pytest.raises(SecateurError, match=message):
        pruned(place, **options)
    assert not (place / "out.safetensors").exists()


def test_tensors_of_inference_mode_are_said_before_anything_changes(place):
    save_weights(place / "whole.safetensors", open_network("own_networks:Whole", None)[0])
    for model, name in (("inferred", "a.weight"), ("inferred_buffer", "0.running_mean")):
        model, message = (
            f"own_networks:{model}",
            f"{name} was made in inference mode, .* clones of its tensors",
        )
        with pytest.raises(ModelError, match=message):
            pruned(place, model=model, weights="whole.safetensors", sparsity=0.5)
        for shape in (None, (2, 4)):
            with pytest.raises(ModelError, match=message):
                inspect_model(model, None, shape)


def test_no_file_is_written_over_the_weights(place):
    before = (place / "in.safetensors").read_bytes()
    (place / "link.safetensors").symlink_to("in.safetensors")
    (place / "hard.safetensors").hardlink_to(place / "in.safetensors")
    os.mkfifo(place / "pipe")
    for name in ("in.safetensors", "link.safetensors", "hard.safetensors"):
        with pytest.raises(RecipeError, match=r"--out .*: is the file of --weights"):
            pruned(place, out=name, sparsity=0.5)
        with pytest.raises(RecipeError, match=r"--masks .*: is the file of --weights"):
            pruned(place, masks_out=place / name, sparsity=0.5)
    with pytest.raises(RecipeError, match=r"--out .*pipe: is not a file"):
        pruned(place, out="pipe", sparsity=0.5)
    with pytest.raises(StorageError, match=r"^\S*pipe: is a pipe, a socket or a device, not a file$"):
        pruned(place, weights="pipe", sparsity=0.5)
    assert (place / "in.safetensors").read_bytes() == before


def test_masks_do_not_overwrite_the_network(place):
    with pytest.raises(RecipeError, match="is the file of --out"):
        pruned(place, sparsity=0.5, masks_out=place / "out.safetensors")


def test_out_of_its_graph_go_units_that_a_size_in_the_forward_keeps(place):
    sys.path.insert(0, str(place))
    from own_networks import Sized

    torch.manual_seed(0)
    net, x = Sized(), torch.randn(5, 4)
    save_weights("sized.safetensors", net)
    options = {"units": True, "sparsity": 0.5, "input_shape": (2, 4)}
    options |= {"model": "own_networks:Sized", "weights": "sized.safetensors"}
    with pytest.raises(SecateurError, match="--graph"):
        pruned(place, **options)
    said = pruned(place, "graph.safetensors", graph=True, **options)
    assert "6 of 12 units removed" in said
    assert "secateur.load_graph(" in said
    small = sc.load_graph("graph.safetensors")
    assert count_parameters(small) == 5 * 6 + 7 * 3
    assert small(x).shape == (5, 3)
    with pytest.raises(RecipeError, match="--graph: nothing is removed here"):
        pruned(place, graph=True, sparsity=0.5)
