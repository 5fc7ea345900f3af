"""Folders pruned block by block: any architecture, the same bytes after a kill, opened by its auto class."""

import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import secateur as sc
from secateur.errors import BudgetError, CriterionError, DataError, ModelError, StorageError
from secateur.storage import sha256_of

transformers = pytest.importorskip("transformers")
from architectures import CONFIGS, network, tokens  # noqa: E402

QUICK = {"proof": False}


@pytest.fixture
def folder(tmp_path):
    def write(model, **options):
        model.save_pretrained(tmp_path / "dense", **options)
        return tmp_path / "dense"

    return write


def files(folder):
    return {path.name: sha256_of(path) for path in folder.iterdir() if path.suffix != ".py"}


def opened(done, **options):
    kind = getattr(transformers, done.opened_by)
    return kind.from_pretrained(done.folder, trust_remote_code=done.remote_code, **options).eval()


@torch.no_grad()
def perplexity(model, windows):
    named = {"input_ids": windows}
    if model.config.is_encoder_decoder:
        half = windows.shape[1] // 2
        named = {"input_ids": windows[:, :half], "decoder_input_ids": windows[:, half:]}
    logits, told = model(**named).logits, [*named.values()][-1]
    return math.exp(F.cross_entropy(logits[:, :-1].flatten(0, 1), told[:, 1:].flatten()))


@pytest.mark.parametrize("name", CONFIGS)
def test_units_and_weights_of_any_architecture(name, folder, tmp_path):
    source = folder(network(name))
    done = sc.prune_folder(
        source, tmp_path / "small", sc.Wanda(), sc.Uniform(0.5, per="row"), units=0.5, text=tokens(), **QUICK
    )
    model = opened(done)
    assert done.parameters[0] == network(name).num_parameters()
    assert done.parameters[1] == model.num_parameters() < done.parameters[0]
    assert done.units
    assert all(left < of for left, of in done.units.values())
    assert done.sparsity == pytest.approx(0.5, abs=0.03)
    assert done.max_error < 1e-6
    weights = dict(model.named_parameters())
    for place, (left, of) in done.kept.items():
        assert (int(weights[place].count_nonzero()), weights[place].numel()) == (left, of)
    found = sc.evaluate_folder(done.folder, tokens(6, 12, seed=1))
    assert found.perplexity[12] == pytest.approx(perplexity(model, tokens(6, 12, seed=1)), rel=1e-4)
    assert found.parameters == model.num_parameters()


@pytest.mark.parametrize("budget", [sc.Uniform(0.6), sc.NM(2, 4)], ids=str)
def test_sparsegpt_is_what_it_is_in_memory(budget, folder, tmp_path):
    model = network("Llama")
    source = folder(model)
    done = sc.prune_folder(source, tmp_path / "small", sc.sparsegpt, budget, text=tokens(), **QUICK)
    masks = sc.sparsegpt(model, budget, [{"input_ids": tokens()}], exclude="lm_head*")
    found = dict(opened(done).named_parameters())
    for name, mask in masks.items():
        assert torch.equal(found[name] != 0, mask & (model.get_parameter(name) != 0)), name
        assert torch.allclose(found[name], model.get_parameter(name), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtype_shards_ties_and_other_files_stay(dtype, folder, tmp_path):
    model = network("Llama", tie_word_embeddings=True, dtype=dtype).to(dtype)
    source = folder(model, max_shard_size="12KB")
    (source / "tokenizer.json").write_text("{}")
    (source / "generation_config.json").write_text('{"top_k": 3}')
    done = sc.prune_folder(source, tmp_path / "small", units=0.5, text=tokens(), **QUICK)
    assert files(done.folder).keys() == files(source).keys()
    assert len([*done.folder.glob("*.safetensors")]) > 3
    for name in ("tokenizer.json", "generation_config.json"):
        assert (done.folder / name).read_text() == (source / name).read_text()
    assert not done.remote_code
    assert done.changed["num_attention_heads"] == (8, 4)
    small = opened(done, dtype="auto")
    assert small.dtype == dtype
    assert small.lm_head.weight is small.model.embed_tokens.weight
    index = json.loads((done.folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in small.parameters())


def test_the_proof_opens_it_in_another_process_whole_or_block_by_block(folder, tmp_path, monkeypatch):
    source = folder(network("Mixtral"))
    whole = sc.prune_folder(source, tmp_path / "whole", units=0.5, experts=0.5, text=tokens())
    assert whole.max_error < 1e-6
    assert f"equal, block by block and opened in another process, to {whole.max_error:.1e}" in repr(whole)
    monkeypatch.setattr("secateur.large.reopened._WHOLE", 0)
    sc.prune_folder(source, tmp_path / "blocks", units=0.5, experts=0.5, text=tokens())
    assert files(tmp_path / "blocks") == files(tmp_path / "whole")

    monkeypatch.setattr("secateur.large.writing.stock_config", lambda *_: (network("Mixtral").config, ()))
    with pytest.raises(ModelError, match=r"does not open|another network"):
        sc.prune_folder(source, tmp_path / "wrong", units=0.5, experts=0.5, text=tokens())
    assert not (tmp_path / "wrong").exists()


def test_experts_go_by_either_score(folder, tmp_path):
    source = folder(network("Qwen3Moe"))
    for by in ("reap", "frequency"):
        done = sc.prune_folder(source, tmp_path / by, experts=0.5, experts_by=by, text=tokens(), **QUICK)
        assert [*done.changed.values()] == [(4, 2)]
        assert opened(done).config.num_experts == 2
        assert set(done.units.values()) == {(2, 4)}
    with pytest.raises(ModelError, match=r"more than|chooses"):
        sc.prune_folder(source, tmp_path / "few", experts=0.75, text=tokens(), **QUICK)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT2", "Mixtral"])
def test_the_block_that_does_nothing_goes(name, folder, tmp_path):
    model = network(name)
    blocks = next(m for _, m in model.named_modules() if isinstance(m, torch.nn.ModuleList))
    with torch.no_grad():
        for parameter in blocks[1].parameters():
            parameter.zero_()
    source = folder(model)
    options = {"blocks": 0.34, "text": tokens()}
    done = sc.prune_folder(source, tmp_path / "small", sc.Magnitude(), sc.Uniform(0.0), **options, **QUICK)
    small = opened(done)
    assert [2] in [list(pair[1:]) for pair in done.changed.values()]
    with torch.no_grad():
        assert torch.allclose(small(tokens()).logits, model(tokens()).logits, atol=1e-4)


def test_the_block_goes_without_which_the_perplexity_is_lowest(folder, tmp_path):
    source = folder(network("Llama"))
    found = {}
    for gone in range(3):
        model = network("Llama", num_hidden_layers=2)
        whole = network("Llama").state_dict()
        kept = [number for number in range(3) if number != gone]
        for new, old in enumerate(kept):
            layer = f"model.layers.{old}."
            own = {n.removeprefix(layer): t for n, t in whole.items() if n.startswith(layer)}
            model.model.layers[new].load_state_dict(own)
        around = {n: t for n, t in whole.items() if ".layers." not in n}
        model.load_state_dict(around, strict=False)
        found[perplexity(model, tokens())] = model
    done = sc.prune_folder(
        source, tmp_path / "small", blocks=0.34, blocks_by="perplexity", text=tokens(), **QUICK
    )
    best = found[min(found)].state_dict()
    assert all(torch.equal(value, best[name]) for name, value in opened(done).state_dict().items())


def noting(told):
    return lambda *said: told.append(said)


def test_what_was_killed_goes_on_to_the_same_bytes(folder, tmp_path):
    source = folder(network("Llama"))
    options = {"units": 0.5, "blocks": 0.34, "text": tokens(), **QUICK}
    weights = (sc.sparsegpt, sc.Uniform(0.5))
    sc.prune_folder(source, tmp_path / "whole", *weights, **options)
    for stop in range(3):

        def on_step(done, number, what, stop=stop):
            if done == stop and "what it changes" not in what:
                raise KeyboardInterrupt

        target = tmp_path / f"killed{stop}"
        with pytest.raises(KeyboardInterrupt):
            sc.prune_folder(source, target, *weights, **options, on_step=on_step)
        assert not target.exists()
        told = []
        sc.prune_folder(source, target, *weights, **options, on_step=noting(told))
        assert files(target) == files(tmp_path / "whole")
        assert not any("what it changes" in what for *_, what in told)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


KILLED = """
import os, signal, sys, numpy as np, torch, secateur as sc
def on_step(done, number, what):
    if done == 1: os.kill(os.getpid(), signal.SIGKILL)
options = {"text": sys.argv[3], "proof": False, "on_step": on_step}
sc.prune_folder(sys.argv[1], sys.argv[2], sc.Wanda(), sc.Uniform(0.5), **options)
"""


def test_a_process_that_is_killed_leaves_what_it_has_done(folder, tmp_path):
    source, text = folder(network("Llama")), tmp_path / "tokens.npy"
    np.save(text, tokens().numpy())
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "small"), str(text)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert (tmp_path / ".small.secateur" / "00000.safetensors").exists()
    told = []
    for target in ("small", "other"):
        sc.prune_folder(
            source, tmp_path / target, sc.Wanda(), sc.Uniform(0.5), text=text, **QUICK,
            on_step=lambda *said: told.append(said),
        )  # fmt: skip
    assert files(tmp_path / "small") == files(tmp_path / "other")


def test_other_settings_begin_anew(folder, tmp_path):
    source = folder(network("Llama"))

    def stopped(done, number, what):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sc.prune_folder(source, tmp_path / "small", units=0.5, text=tokens(), **QUICK, on_step=stopped)
    done = sc.prune_folder(source, tmp_path / "small", units=0.25, text=tokens(), **QUICK)
    assert set(done.units.values()) == {(3, 4), (36, 48)}


def test_activations_in_files_change_nothing(folder, tmp_path):
    source = folder(network("T5"))
    for name, limit in (("memory", None), ("disk", 1000)):
        sc.prune_folder(source, tmp_path / name, units=0.5, text=tokens(), ram_limit=limit, **QUICK)
    assert files(tmp_path / "memory") == files(tmp_path / "disk")


def test_what_may_be_left_is_kept_to(folder, tmp_path):
    source = folder(network("Llama"))
    for share in (0.9, 0.6):
        done = sc.prune_folder(source, tmp_path / f"{share}", parameters=share, text=tokens(), **QUICK)
        before, after = done.parameters
        assert share - 0.1 < after / before <= share
    sizes = {}
    for context in (1, 50):
        target = tmp_path / f"{context}-context"
        options = {"memory": "90KB", "context": context, "batch": 2}
        done = sc.prune_folder(source, target, text=tokens(), **options, **QUICK)
        model = opened(done)
        with torch.no_grad():
            cache = model(torch.zeros(2, context, dtype=torch.int64), use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        sizes[context] = sum(p.nbytes for p in model.parameters()) + held
        assert 70_000 < sizes[context] <= 90_000
    with pytest.raises(BudgetError, match="remove blocks too"):
        sc.prune_folder(source, tmp_path / "none", parameters=0.1, text=tokens(), **QUICK)


def test_the_refit_and_recovery_bring_it_nearer(folder, tmp_path):
    model = network("Llama")
    source = folder(model)
    off = {}
    cases = {"plain": {"refit": False}, "refit": {}, "recovered": {"recover": 3}}
    cases["adapted"] = {"recover": 3, "rank": 4}
    for name, options in cases.items():
        done = sc.prune_folder(source, tmp_path / name, units=0.5, text=tokens(32), **options, **QUICK)
        with torch.no_grad():
            off[name] = float((opened(done)(tokens(32)).logits - model(tokens(32)).logits).square().mean())
    assert off["refit"] < off["plain"]
    assert off["recovered"] < off["refit"]
    assert off["adapted"] < off["refit"]


def test_recovery_keeps_the_zeros(folder, tmp_path):
    source = folder(network("Llama"))
    weights = (sc.Wanda(), sc.Uniform(0.5))
    for rank in (None, 2):
        target = tmp_path / f"{rank}"
        done = sc.prune_folder(source, target, *weights, text=tokens(), recover=2, rank=rank, **QUICK)
        assert zeros(opened(done)) == pytest.approx(0.5)


def zeros(model):
    weights = [p for name, p in model.named_parameters() if "_proj." in name]
    return 1 - sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)


def test_texts(folder, tmp_path):
    source = folder(network("Llama"))
    (tmp_path / "text.txt").write_text("to be or not to be")
    np.save(tmp_path / "long.npy", np.full((2, 16), 999))
    np.save(tmp_path / "floats.npy", np.zeros((2, 16)))
    wrong = {
        tmp_path / "text.txt": "holds no tokenizer",
        tmp_path / "absent.txt": "no such file",
        tmp_path / "long.npy": "token 999",
        tmp_path / "floats.npy": None,
    }
    for text, message in wrong.items():
        if message is not None:
            with pytest.raises(DataError, match=message):
                sc.prune_folder(source, tmp_path / "small", units=0.5, text=text, **QUICK)
    with pytest.raises(CriterionError, match="text is missing"):
        sc.prune_folder(source, tmp_path / "small", units=0.5)
    assert not (tmp_path / "small").exists()


def test_networks_of_other_inputs_take_batches_by_name(folder, tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16,
        patch_size=4,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    source = folder(model)
    images = [{"pixel_values": torch.randn(4, 3, 16, 16)} for _ in range(2)]
    done = sc.prune_folder(source, tmp_path / "small", units=0.5, text=images, **QUICK)
    assert opened(done).num_parameters() == done.parameters[1] < done.parameters[0]


def test_quantised_folders_and_code_of_their_own_are_refused(folder, tmp_path):
    source = folder(network("Llama"))
    config = json.loads((source / "config.json").read_text())
    for method in ("fp8", "gptq", "awq", "bitsandbytes"):
        quantised = config | {"quantization_config": {"quant_method": method}}
        (source / "config.json").write_text(json.dumps(quantised))
        with pytest.raises(ModelError, match=f"quantised \\({method}\\)"):
            sc.prune_folder(source, tmp_path / "small", sc.Magnitude(), sc.Global(0.5))
    own = config | {"architectures": ["Mine"], "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}
    (source / "config.json").write_text(json.dumps(own))
    (source / "mine.py").write_text(
        "import pathlib\npathlib.Path('ran').touch()\n"
        "from transformers import LlamaForCausalLM\nclass Mine(LlamaForCausalLM):\n    pass\n"
    )
    with pytest.raises(ModelError, match="code that comes with a folder is not run"):
        sc.prune_folder(source, tmp_path / "small", units=0.5, text=tokens())


def test_code_of_its_own_runs_where_it_is_trusted(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = folder(network("Llama"))
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["Mine"], "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "mine.py").write_text(
        "from transformers import LlamaForCausalLM\nclass Mine(LlamaForCausalLM):\n    pass\n"
    )
    weights = (sc.Wanda(), sc.Uniform(0.5))
    done = sc.prune_folder(
        source, tmp_path / "small", *weights, text=tokens(), trust_remote_code=True, **QUICK
    )
    kind = transformers.AutoModelForCausalLM
    model = kind.from_pretrained(done.folder, trust_remote_code=True)
    assert type(model).__name__ == "Mine"
    assert zeros(model) == pytest.approx(0.5)


def test_what_cannot_be_asked(folder, tmp_path):
    source = folder(network("Llama"))
    cases = [
        ((), {}, BudgetError, "nothing is asked for"),
        ((sc.Wanda(),), {}, BudgetError, "budget is missing"),
        ((sc.Wanda(), sc.Global(0.5)), {"text": tokens()}, BudgetError, "over the whole network"),
        ((), {"units": 1.0, "text": tokens()}, BudgetError, "units is 1.0"),
        ((), {"blocks": 0.9, "text": tokens()}, BudgetError, "can go"),
        ((), {"units": 0.5, "parameters": 0.5, "text": tokens()}, BudgetError, "give one"),
        ((), {"memory": "much", "text": tokens()}, BudgetError, "5GB"),
        ((), {"experts": 0.5, "text": tokens()}, BudgetError, "has a mixture"),
    ]
    for args, options, error, message in cases:
        with pytest.raises(error, match=message):
            sc.prune_folder(source, tmp_path / "small", *args, **options, **QUICK)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "mine").write_text("")
    with pytest.raises(StorageError, match="is there already"):
        sc.prune_folder(source, tmp_path / "held", units=0.5, text=tokens())
