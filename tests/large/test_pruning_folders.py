"""Folders pruned where they lie: the same bits as in memory, over shards, in their own dtype; or nothing."""

import json
import shutil

import pytest
import torch

import secateur as sc
from secateur.errors import BudgetError, ModelError, NonFiniteError, StorageError, TargetError
from secateur.large import pruning
from secateur.storage import sha256_of

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(tied=False, dtype=torch.float32):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=64, tie_word_embeddings=tied, dtype=dtype, **SIZES)
    return transformers.LlamaForCausalLM(config).to(dtype)


@pytest.fixture
def folder(tmp_path):
    def write(model, size="40KB"):
        model.save_pretrained(tmp_path / "dense", max_shard_size=size)
        (tmp_path / "dense" / "tokenizer.json").write_text("{}")
        return tmp_path / "dense"

    return write


def files(folder):
    return {path.name: sha256_of(path) for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "budget",
    [sc.Global(0.6), sc.Uniform(0.37), sc.Uniform(0.5, per="row"), sc.NM(2, 4), sc.ERK(0.5)],
    ids=str,
)
def test_the_same_bits_as_in_memory(budget, dtype, folder, tmp_path):
    model = llama(dtype=dtype)
    source = folder(model)
    assert len([*source.glob("*.safetensors")]) > 1
    before = files(source)
    done = sc.prune_folder(source, tmp_path / "pruned", sc.Magnitude(), budget, exclude="lm_head*")
    masks = sc.prune(model, sc.Magnitude(), budget, exclude="lm_head*")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype="auto")
    assert opened.dtype == dtype
    for name, value in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value), name
    assert done.kept == {name: (int(mask.sum()), mask.numel()) for name, mask in masks.items()}
    assert done.sparsity == pytest.approx(masks.sparsity)
    assert files(source) == before
    after = files(tmp_path / "pruned")
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] == before[name]} >= {"config.json", "tokenizer.json"}
    assert str(done.folder) in repr(done).splitlines()[0]
    assert repr(done).splitlines()[1].split() == ["tensor", "weights", "kept", "sparsity"]


def test_tied_embeddings_stay_tied_and_one_file_is_enough(folder, tmp_path):
    source = folder(llama(tied=True), "1GB")
    assert [*source.glob("*.safetensors")] == [source / "model.safetensors"]
    done = sc.prune_folder(source, tmp_path / "pruned", sc.Magnitude(), sc.Global(0.5))
    assert "lm_head.weight" not in done.kept
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert opened.lm_head.weight.all()


def test_a_failure_leaves_nothing_under_the_name(folder, tmp_path, monkeypatch):
    source = folder(llama())
    before = files(source)
    with pytest.raises(BudgetError, match="cannot be met"):
        sc.prune_folder(source, tmp_path / "pruned", sc.Magnitude(), sc.Global(1.0, min_kept=5))

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pruning, "notes_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        sc.prune_folder(source, tmp_path / "pruned", sc.Magnitude(), sc.Global(0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    assert files(source) == before


def broken(change):
    def edit(folder):
        file = sorted(folder.glob("*.safetensors"))[0]
        file.write_bytes(change(file.read_bytes()))

    return edit


def index(change):
    def edit(folder):
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return edit


DAMAGE = [
    (broken(lambda data: data[:-100]), StorageError, "not a complete safetensors file"),
    (broken(lambda data: data[:5]), StorageError, "not a complete safetensors file"),
    (broken(lambda data: b"\xff" * 8 + data[8:]), StorageError, "not a complete safetensors file"),
    (broken(lambda data: data.replace(b'"F32"', b'"F33"')), StorageError, "not a complete safetensors file"),
    (broken(lambda data: data.replace(b"q_proj", b"q_prox")), StorageError, "lack 'model.layers.*q_proj"),
    (
        index(lambda found: {"weight_map": {"a": "../x.safetensors"}}),
        StorageError,
        "is no file of the folder",
    ),
    (index(lambda found: []), StorageError, "names no shards"),
    (lambda folder: (folder / "config.json").unlink(), StorageError, r"without config\.json"),
    (lambda folder: (folder / "config.json").write_text('{"architectures": ["Evil"]}'), ModelError, "Evil"),
    (lambda folder: (folder / "secateur.json").write_text("{}"), StorageError, "secateur.from_pretrained"),
]


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_folder_is_one_error(damage, error, message, folder, tmp_path):
    source = folder(llama())
    damage(source)
    with pytest.raises(error, match=message) as caught:
        sc.prune_folder(source, tmp_path / "pruned", sc.Magnitude(), sc.Global(0.5))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pruned").exists()


def test_what_cannot_be_pruned_is_one_error(folder, tmp_path):
    source = folder(llama())
    with pytest.raises(TargetError, match="nothing\\*"):
        sc.prune_folder(source, tmp_path / "pruned", sc.Magnitude(), sc.Global(0.5), include="nothing*")
    with pytest.raises(StorageError, match="is there already"):
        sc.prune_folder(source, source, sc.Magnitude(), sc.Global(0.5))
    with pytest.raises(StorageError, match=r"without config.json"):
        sc.prune_folder(tmp_path / "none", tmp_path / "pruned", sc.Magnitude(), sc.Global(0.5))
    spoilt = llama()
    with torch.no_grad():
        spoilt.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    shutil.rmtree(source)
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj"):
        sc.prune_folder(folder(spoilt), tmp_path / "pruned", sc.Magnitude(), sc.Global(0.5))
    assert not (tmp_path / "pruned").exists()
