import sys

import pytest
import torch

from secateur.errors import MissingExtraError, ModelError
from secateur.models import MODELS, build_model

PARAMETERS = {
    "lenet-300-100": (266_610, (1, 28, 28)),
    "lenet-5": (431_080, (1, 28, 28)),
    "tabular-256": (3_073, (10,)),
    "fashion-mlp": (2_386_000, (1, 28, 28)),
    "digits-mlp": (26_122, (1, 8, 8)),
    "convnet-25": (592_933, (3, 25, 25)),
    "vgg-16-bn": (14_728_266, (3, 32, 32)),
    "resnet-20": (269_722, (3, 32, 32)),
    "resnet-56": (853_018, (3, 32, 32)),
    "mlp": (4_929, (10,)),
    "unet": (30_011, (3, 32, 32)),
    "llama": (918_656, (7,)),
    "gpt2": (842_496, (7,)),
    "mixtral": (2_692_224, (7,)),
}
SHAPES = {
    "tabular-256": (2, 1),
    "convnet-25": (2, 5),
    "mlp": (2, 1),
    "unet": (2, 11, 32, 32),
    "llama": (2, 7, 256),
    "gpt2": (2, 7, 256),
    "mixtral": (2, 7, 256),
}


def test_every_network_is_checked_here():
    assert set(PARAMETERS) == set(MODELS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_sources_sizes(name):
    parameters, shape = PARAMETERS[name]
    model = build_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    tokens = name in ("llama", "gpt2", "mixtral")
    outputs = model(torch.zeros(2, *shape, dtype=torch.int64 if tokens else torch.float32))
    assert getattr(outputs, "logits", outputs).shape == SHAPES.get(name, (2, 10))


def test_transformers_networks_are_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"'transformers' is not installed.*secateur\[transformers\]"):
        build_model("llama")


def test_the_seed_determines_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (build_model("digits-mlp", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.layers[0].weight, same.layers[0].weight)
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)


def test_options_reach_the_factory():
    assert build_model("vgg-16-bn", width=0.25).classifier.in_features == 128
    assert build_model("tabular-256", features=30).layers[0].in_features == 30


def test_resnets_with_projections_are_the_plain_ones_and_two_shortcuts():
    plain, projected = (build_model("resnet-20", shortcut=kind) for kind in ("pad", "conv"))
    extra = projected.state_dict().keys() - plain.state_dict().keys()
    assert {name.partition(".projection")[0] for name in extra} == {"blocks.3", "blocks.6"}
    weights = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert sum(p.numel() for p in projected.parameters()) == 269_722 + weights
    assert sum(p.numel() for p in build_model("resnet-56", shortcut="conv").parameters()) == 853_018 + weights
    assert plain.state_dict().keys() == build_model("resnet-20").state_dict().keys()
    block = projected.blocks[3].eval()
    x, read = torch.randn(2, 16, 8, 8), []
    block.projection.register_forward_hook(lambda m, a, out: read.append(out))
    y = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    out = block(x)
    assert torch.equal(out, (read[0] + y).relu())
    with pytest.raises(ModelError, match="shortcut is 'b'; it is 'pad' or 'conv'"):
        build_model("resnet-20", shortcut="b")


def test_the_convnet_with_batch_norms_is_the_plain_one_and_a_norm_after_each_conv():
    plain, normed = (build_model("convnet-25", batch_norm=norm) for norm in (False, True))
    extra = normed.state_dict().keys() - plain.state_dict().keys()
    assert {name.partition(".")[0] for name in extra} == {"norm1", "norm2", "norm3", "norm4"}
    assert sum(p.numel() for p in normed.parameters()) == 592_933 + 2 * (32 + 32 + 64 + 64)
    assert all(torch.equal(t, normed.state_dict()[n]) for n, t in plain.state_dict().items())
    x, read = torch.randn(2, 3, 25, 25), []
    for conv, norm in (("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3"), ("conv4", "norm4")):
        normed.get_submodule(conv).register_forward_hook(lambda m, a, out: read.append(out))
        normed.get_submodule(norm).register_forward_hook(lambda m, a, out: read.append(a[0]))
    normed.eval()(x)
    assert len(read) == 8
    assert all(made is given for made, given in zip(read[::2], read[1::2], strict=True))


def test_a_users_own_factory(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def tiny(width=3):\n    return nn.Linear(width, 1)\n"
        "def wrong():\n    return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert build_model("mynets:tiny", width=5).in_features == 5
    with pytest.raises(ModelError, match=r"gave a int; a factory returns a torch.nn.Module"):
        build_model("mynets:wrong")
    with pytest.raises(ModelError, match=r"mynets has no function 'tyni'; known: tiny, wrong"):
        build_model("mynets:tyni")
    with pytest.raises(ModelError, match=r"no option 'widht'; did you mean 'width'"):
        build_model("mynets:tiny", widht=5)


def test_unknown_networks_are_one_clear_error():
    with pytest.raises(ModelError, match=r"unknown network 'lenet'; did you mean 'lenet-5'"):
        build_model("lenet")
    with pytest.raises(ModelError, match="cannot import 'no_such_package'"):
        build_model("no_such_package:factory")


OPTIONS = {
    "lenet-300-100": {"classes": 10, "hidden": [30, 10]},
    "lenet-5": {"classes": 10},
    "tabular-256": {"features": 10},
    "fashion-mlp": {"classes": 10},
    "digits-mlp": {"hidden": 8, "classes": 10},
    "convnet-25": {"classes": 5, "dropout": 0.5, "batch_norm": True},
    "vgg-16-bn": {"classes": 10, "width": 0.25},
    "resnet-20": {"classes": 10, "width": 0.25, "shortcut": "conv"},
    "resnet-56": {"classes": 10, "width": 0.25, "shortcut": "pad"},
    "mlp": {"features": 10, "hidden": [8, 4], "outputs": 1},
    "unet": {"classes": 11, "channels": 3, "width": 8, "depth": 2},
    "llama": {"vocabulary": 66, "context": 64, "width": 64, "layers": 2, "heads": 4, "ffn": 96},
    "gpt2": {"vocabulary": 66, "context": 64, "width": 64, "layers": 2, "heads": 4, "ffn": 96},
    "mixtral": {"vocabulary": 66, "width": 64, "layers": 2, "heads": 4, "ffn": 96, "experts": 4, "chosen": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_checked_before_anything_is_made(name):
    """`hidden: true` once made a network of one neuron, and a width of thousands took all memory."""
    assert set(OPTIONS) == set(MODELS)
    build_model(name, **OPTIONS[name])
    for option, right in OPTIONS[name].items():
        wrong = [-1, 0, 10**18, float("nan"), "x", None, [], [True, 1], [1, 2, 3]]
        wrong += [1, "true"] if isinstance(right, bool) else [True, False]
        for value in wrong:
            if option == "dropout" and value == 0 and not isinstance(value, bool):
                continue
            if name == "mlp" and option == "hidden" and value == [1, 2, 3]:
                continue  # it has as many layers as are listed
            with pytest.raises(ModelError, match=rf"{option}.* is "):
                build_model(name, **{option: value})
