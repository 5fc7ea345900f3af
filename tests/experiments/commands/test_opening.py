"""Whatever can name a network on the command line, opened; and the examples that it is run on."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import DataError, ModelError, RecipeError, StorageError
from secateur.experiments.commands.examples import bound, dataset_named, examples_of, read_inputs
from secateur.experiments.commands.opening import open_network
from secateur.models import build_model
from secateur.storage import save_tensors
from secateur.training.checkpoint import load_network, save_weights

OWN = """
import torch
from torch import nn

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)
    def forward(self, x, y, scale=None):
        h = torch.relu(self.a(x) + self.b(y))
        return self.c(h if scale is None else h * scale)

def trained():
    net = nn.Linear(2, 2)
    nn.init.ones_(net.weight)
    return net
"""


class Pair(nn.Module):
    def forward(self, x, y, scale=None):
        return x


class Many(nn.Module):
    def forward(self, *parts):
        return parts[0]


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "own_pair.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_pair", raising=False)
    return tmp_path


def test_a_factory_may_bring_its_weights_and_a_bare_name_may_not(place):
    network, reshaped = open_network("own_pair:trained", None, trained=True)
    assert not reshaped
    assert bool((network.weight == 1).all())
    with pytest.raises(RecipeError, match=r"--model lenet-5: its weights are random; give trained ones with"):
        open_network("lenet-5", None, trained=True)
    assert open_network("lenet-5", None)[0] is not None
    with pytest.raises(RecipeError, match="its weights are an option of their own"):
        open_network({"name": "lenet-5", "weights": "w"}, None)


@pytest.fixture
def bert(tmp_path):
    """A folder as transformers writes one, and its network."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=3, **sizes)
    torch.manual_seed(0)
    network = transformers.BertForSequenceClassification(config).eval()
    network.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert", network


def test_a_folder_of_transformers_opens_by_its_architecture(bert):
    folder, network = bert
    found, _ = open_network(str(folder), None, trained=True)
    tokens = torch.randint(0, 50, (2, 7))
    assert type(found) is type(network)
    assert torch.equal(found.eval()(tokens).logits, network(tokens).logits)


def test_a_folder_of_fewer_heads_than_a_configuration_can_say_opens_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    tokens = torch.arange(8).view(1, 8)
    torch.manual_seed(0)
    small, _ = sc.prune_to(transformers.GPT2LMHeadModel(config), {"input_ids": tokens}, parameters=0.7)
    assert sc.save_pretrained(small, tmp_path / "small", proof=False).remote_code
    found, _ = open_network(str(tmp_path / "small"), None, trained=True)
    assert torch.allclose(found(tokens).logits, small.eval()(tokens).logits, atol=1e-5)


def test_older_names_are_read_as_torch_reads_them(tmp_path):
    """Of ``torch.nn.utils.weight_norm`` and of batch norms without a counter."""
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    network = nn.Sequential(layer, nn.BatchNorm1d(3))
    state = network.state_dict()
    older = {
        "0.bias": state["0.bias"],
        "0.weight_g": 2 * state["0.parametrizations.weight.original0"],
        "0.weight_v": state["0.parametrizations.weight.original1"],
        **{name: value for name, value in state.items() if name.startswith("1.") and "num" not in name},
    }
    wanted = 2 * layer.weight.detach()
    save_tensors(tmp_path / "older.safetensors", older, {})
    assert not load_network(tmp_path / "older.safetensors", network)
    assert torch.allclose(layer.weight, wanted)
    save_tensors(tmp_path / "lacks.safetensors", {n: v for n, v in older.items() if n != "0.bias"}, {})
    with pytest.raises(StorageError, match=r"lacks '0\.bias', which Sequential has"):
        load_network(tmp_path / "lacks.safetensors", network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["Evil"], "auto_map": {"AutoModel": "evil.Evil"}},
            "code that comes with a folder",
        ),
        ({"architectures": ["AutoModel"]}, "'AutoModel' is no network of transformers"),
        ({"architectures": None}, "names no class"),
        ({"num_labels": 5, "id2label": None, "label2id": None}, "have 'classifier.bias' of another size"),
        ({"num_hidden_layers": 2}, "its weights lack 'bert.encoder.layer.1"),
    ],
)
def test_a_folder_that_is_no_model_is_one_error(bert, change, message):
    folder, _ = bert
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises((ModelError, StorageError), match=message) as caught:
        open_network(str(folder), None)
    assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists()


def test_folders_without_a_config_or_with_pickled_weights(tmp_path, bert):
    folder, network = bert
    (folder / "model.safetensors").unlink()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(StorageError, match=r"pytorch_model\.bin may hold code; \*\.safetensors are right"):
        open_network(str(folder), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=r"a folder without config\.json; one of save_pretrained is right"):
        open_network(str(tmp_path / "empty"), None)
    with pytest.raises(ModelError, match=r"there is no such folder; one with a config\.json is right"):
        open_network(str(tmp_path / "nowhere"), None)


def test_a_network_of_timm_by_name(monkeypatch):
    """A stand-in of its two functions: what is asked of them, and that nothing is downloaded unasked."""
    asked = {}
    fake = type(sys)("timm")
    fake.is_model = lambda name: name == "tiny"
    fake.list_models = lambda: ["tiny"]
    fake.create_model = lambda name, **options: asked.update(name=name, **options) or nn.Linear(2, 2)
    monkeypatch.setitem(sys.modules, "timm", fake)
    open_network({"name": "timm:tiny", "num_classes": 3}, None)
    assert asked == {"name": "tiny", "num_classes": 3}
    with pytest.raises(ModelError, match="timm has no such network; did you mean 'tiny'"):
        open_network("timm:tini", None)
    with pytest.raises(RecipeError, match="timm:tiny: its weights are random"):
        open_network("timm:tiny", None, trained=True)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'secateur\[timm\]'"):
        open_network("timm:tiny", None)


X, Y = np.arange(24, dtype=np.float32).reshape(4, 6), np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"arg0": X}, "tensor"),
        ({"arg1": Y, "arg0": X}, "tuple"),
        ({"x": X, "y": Y}, "dict"),
        ({"arg0": X, "y": Y}, "dict"),
    ],
)
def test_arrays_become_arguments(tmp_path, arrays, found):
    file = tmp_path / "x.npz"
    np.savez(file, **arrays)
    network = nn.Identity() if found == "tensor" else Pair()
    inputs = bound(read_inputs(file), network, file)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    if found == "tensor":
        assert torch.equal(inputs, x)
    elif found == "tuple":
        assert torch.equal(inputs[0], x)
        assert torch.equal(inputs[1], y)
    else:
        assert set(inputs) == {"x", "y"}
        assert torch.equal(inputs["x"], x)
        assert torch.equal(inputs["y"], y)
    np.savez(file, **arrays, more=np.zeros(3))
    with pytest.raises(DataError, match="batch, as long in all of them"):
        read_inputs(file)


def test_more_of_them_than_names_and_one_array_alone(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(">f4"))
    assert torch.equal(read_inputs(tmp_path / "x.npy")[0][0], torch.from_numpy(X))
    np.savez(tmp_path / "m.npz", arg0=X, arg1=X, arg2=Y)
    inputs = bound(read_inputs(tmp_path / "m.npz"), Many(), tmp_path / "m.npz")
    assert [tuple(part.shape) for part in inputs] == [(4, 6), (4, 6), (4, 4)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arg0": X, "arg2": Y}, "holds arg0, arg2; positional arguments count from arg0"),
        ({"arg0": X, "z": Y}, r"'z' is no argument.*; Pair.forward takes \(x, y, scale=...\)"),
        ({"arg0": X, "x": X, "y": Y}, "'x' and one of arg0, ... are the same argument"),
        ({"arg0": X}, "lacks 'y'; Pair.forward takes"),
        ({"arg0": X, "arg1": Y, "arg2": Y, "arg3": Y}, "holds 4 positional arguments"),
    ],
)
def test_arguments_that_the_forward_does_not_take(tmp_path, arrays, message):
    file = tmp_path / "x.npz"
    np.savez(file, **arrays)
    with pytest.raises(DataError, match=message):
        bound(read_inputs(file), Pair(), file)


def test_a_file_that_holds_more_than_numbers(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects, which only pickle can read"):
        read_inputs(tmp_path / "o.npy")
    np.savez(tmp_path / "o.npz", arg0=np.array([{}, {}], dtype=object))
    with pytest.raises(DataError, match="arg0: Python objects"):
        read_inputs(tmp_path / "o.npz")
    (tmp_path / "t.npy").write_text("x")
    with pytest.raises(DataError, match=r"not a whole \.npy file"):
        read_inputs(tmp_path / "t.npy")
    with pytest.raises(DataError, match=r"no such file; the path of an \.npz is right"):
        read_inputs(tmp_path / "no.npz")


def test_examples_are_fitted_to_or_compared_and_never_both(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(10, dtype=np.float32)[:, None])
    given = examples_of(nn.Linear(1, 1), inputs=tmp_path / "x.npy")
    fitted = torch.cat([inputs for inputs, _ in given.fitting(100)])
    held = torch.cat([inputs for inputs, _ in given.held()])
    assert fitted.flatten().tolist() == list(range(8))
    assert held.flatten().tolist() == [8, 9]
    np.save(tmp_path / "one.npy", np.ones((1, 1), np.float32))
    alone = examples_of(nn.Linear(1, 1), inputs=tmp_path / "one.npy")
    assert alone.fitting(100) == []
    assert len(alone.held()) == 1


def test_a_bare_path_as_data_hears_how_it_is_written(place):
    (place / "images").mkdir()
    with pytest.raises(
        RecipeError, match=r"is a path; say what it is: --data '\{name: image-folder, path: im"
    ):
        dataset_named("images")
    with pytest.raises(RecipeError, match=r"\{name: npz, path: /no/a\.npz\}"):
        dataset_named("/no/a.npz")
    with pytest.raises(DataError, match="unknown data set 'digit'"):
        dataset_named("digit")


def test_a_network_that_forgets_its_weights_is_found_by_build_model(place):
    save_weights(place / "w.safetensors", build_model("own_pair:Pair"))
    network, _ = open_network("own_pair:Pair", place / "w.safetensors", trained=True)
    assert sc.trace(network, (torch.zeros(2, 6), torch.zeros(2, 4))).groups
