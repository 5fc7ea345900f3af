"""``save_pretrained`` and ``from_pretrained``: what was made smaller opens again, by transformers alone where
its configuration can say it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import secateur as sc
from networks import hf
from secateur.errors import ModelError, StorageError
from secateur.graph.compare import difference
from secateur.running import run_once

TEXT: dict[str, Any] = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
TEXT |= {"num_attention_heads": 8, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1}
TEXT |= {"eos_token_id": 2}
GROUPED = TEXT | {"num_key_value_heads": 4}
NARROW = GROUPED | {"head_dim": 12}
IMAGE = TEXT | {"image_size": 16, "patch_size": 4, "num_labels": 5}
STOCK_FILES = {"config.json", "model.safetensors", "generation_config.json"}
HEADS = {"num_attention_heads": (8, 4), "num_key_value_heads": (4, 2)}
FFN = {"intermediate_size": (96, 48)}
EXPLICIT = {"head_dim": (None, 8)}

# By class: sizes, and what the configuration says of half of every block. Phi-3 reads the number of heads in
# its configuration while it runs, so compact has changed that one already.
STOCK: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LlamaForCausalLM": (GROUPED, HEADS | FFN),
    "Qwen2ForCausalLM": (GROUPED, HEADS | EXPLICIT | FFN),
    "Qwen3ForCausalLM": (NARROW, HEADS | FFN),
    "GemmaForCausalLM": (NARROW, HEADS | FFN),
    "Gemma2ForCausalLM": (NARROW, HEADS | FFN),
    "Gemma3ForCausalLM": (NARROW, HEADS | FFN),
    "MistralForCausalLM": (GROUPED, HEADS | FFN),
    "Phi3ForCausalLM": (GROUPED, {"num_key_value_heads": (4, 2)} | EXPLICIT | FFN),
    "ViTForImageClassification": (IMAGE, {"num_attention_heads": (8, 4)} | EXPLICIT | FFN),
    "MixtralForCausalLM": (
        GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
        HEADS | EXPLICIT | FFN,
    ),
}
BERT = TEXT | {"num_labels": 5}
UNEVEN = sc.Global(0.4, min_kept=1)
SMALL_T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
PLANNED: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"vocab_size": 99, "n_positions": 40, "n_embd": 32, "n_layer": 3, "n_head": 4},
    "OPTForCausalLM": TEXT | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "BloomForCausalLM": {"vocab_size": 99, "hidden_size": 64, "n_layer": 3, "n_head": 8},
    "T5ForConditionalGeneration": SMALL_T5 | {"decoder_start_token_id": 0},
    "BertForSequenceClassification": BERT,
}


def built(name: str, sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return kind(kind.config_class(**sizes)).eval()


def inputs_for(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    if name.startswith("ViT"):
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    ids = {"input_ids": torch.randint(3, 99, (2, 9))}
    return ids | ({"decoder_input_ids": torch.randint(3, 99, (2, 7))} if name.startswith("T5") else {})


def cut(model: Any, inputs: Any, budget: Any, **options: Any) -> Any:
    structure = sc.trace(model, inputs)
    sc.prune(model, sc.L2Norm(), budget, structure=structure, **options)
    return sc.compact(model, inputs, structure=structure)[0]


def opened(written: sc.WrittenFolder) -> Any:
    auto = getattr(transformers, written.opened_by)
    return auto.from_pretrained(written.folder, trust_remote_code=written.remote_code)


def off(one: Any, other: Any, inputs: Any) -> float:
    return difference(run_once(one, inputs), run_once(other, inputs))


@pytest.fixture(autouse=True)
def own_modules(monkeypatch, tmp_path):
    """Code of folders is copied here when it is opened, not into the home of who tests."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


# -- a configuration says it --------------------------------------------------------------------------


def some_slow(names: Any, fast: tuple[str, ...]) -> list[Any]:
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some_slow(STOCK, ("Phi3ForCausalLM", "ViTForImageClassification")))
def test_blocks_cut_alike_open_by_their_auto_class_alone(name, tmp_path):
    sizes, changed = STOCK[name]
    inputs = inputs_for(name)
    small = cut(built(name, sizes), inputs, sc.Uniform(0.5), alike=True)
    written = sc.save_pretrained(small, tmp_path / "small", inputs, proof=False)
    assert not written.remote_code
    assert dict(written.changed) == changed
    assert {"config.json", "model.safetensors"} <= set(written.files) <= STOCK_FILES
    assert off(small, opened(written), inputs) <= 1e-5
    assert off(small, sc.from_pretrained(written.folder), inputs) <= 1e-5


def test_what_an_encoder_says_is_cut_alike(tmp_path):
    """Fewer heads of the same size are no numbers of its configuration; neurons are."""
    inputs = inputs_for("Bert")
    model = built("BertForSequenceClassification", BERT)
    small = cut(model, inputs, sc.Uniform(0.5), alike=True, include="*intermediate*")
    written = sc.save_pretrained(small, tmp_path / "small", inputs, proof=False)
    assert dict(written.changed) == FFN
    assert off(small, opened(written), inputs) <= 1e-5


def test_fewer_experts_are_a_number_of_the_configuration(tmp_path):
    sizes, _ = STOCK["MixtralForCausalLM"]
    inputs, model = inputs_for("Mixtral"), built("MixtralForCausalLM", sizes)
    small, _ = sc.remove_experts(model, inputs, {path: [1] for path in sc.find_experts(model, inputs)})
    written = sc.save_pretrained(small, tmp_path / "small", inputs, proof=False)
    assert not written.remote_code
    again = opened(written)
    assert again.config.num_local_experts == 3
    assert off(small, again, inputs) <= 1e-5


# -- none does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", some_slow(PLANNED, ("GPT2LMHeadModel",)))
def test_heads_that_no_configuration_says_open_with_the_folders_code_and_without(name, tmp_path):
    inputs = inputs_for(name)
    small = cut(built(name, PLANNED[name]), inputs, UNEVEN if name.startswith("T5") else sc.Uniform(0.5))
    written = sc.save_pretrained(small, tmp_path / "small", inputs, proof=False)
    assert written.remote_code
    assert {"secateur.json", "modeling_secateur.py", "config.json"} < set(written.files)
    again = opened(written)
    assert off(small, again, inputs) <= 1e-5
    data_alone = sc.from_pretrained(written.folder)
    assert type(data_alone) is type(small)
    assert off(small, data_alone, inputs) <= 1e-5
    assert [tuple(p.shape) for p in data_alone.parameters()] == [tuple(p.shape) for p in small.parameters()]


def test_blocks_of_their_own_sizes_open_and_are_written_again_by_either(tmp_path):
    inputs = inputs_for("Llama")
    small = cut(built("LlamaForCausalLM", GROUPED), inputs, UNEVEN)
    written = sc.save_pretrained(small, tmp_path / "small", inputs, proof=False)
    again = opened(written)
    with torch.no_grad():
        again.lm_head.weight += 1.0  # trained on
    again.save_pretrained(tmp_path / "trained")
    auto = transformers.AutoModelForCausalLM
    trained = auto.from_pretrained(tmp_path / "trained", trust_remote_code=True)
    assert off(again, trained, inputs) == 0
    assert off(again, sc.from_pretrained(tmp_path / "trained"), inputs) == 0
    rewritten = sc.save_pretrained(
        sc.from_pretrained(written.folder), tmp_path / "again", inputs, proof=False
    )
    assert rewritten.remote_code
    assert off(small, opened(rewritten), inputs) <= 1e-5


def test_tables_that_are_no_weights_come_along(tmp_path):
    """Without some positions of every head, the frequencies that are left are no configuration's."""
    inputs, model = inputs_for("Llama"), built("LlamaForCausalLM", GROUPED)
    structure = sc.trace(model, inputs, heads="dims")
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure, exclude="*mlp*")
    small, _ = sc.compact(model, inputs, structure=structure)
    written = sc.save_pretrained(small, tmp_path / "small", inputs, proof=False)
    plan = json.loads((written.folder / "secateur.json").read_text())
    assert "model.rotary_emb.inv_freq" in plan["buffers"]
    assert off(small, opened(written), inputs) <= 1e-5
    assert off(small, sc.from_pretrained(written.folder), inputs) <= 1e-5


def test_layers_of_low_rank_come_along(tmp_path):
    inputs, model = inputs_for("Llama"), built("LlamaForCausalLM", GROUPED)
    small = sc.low_rank(model, inputs, share=0.3, include="*down_proj*")[0]
    written = sc.save_pretrained(small, tmp_path / "small", inputs, proof=False)
    assert off(small, opened(written), inputs) <= 1e-5
    again = sc.save_pretrained(sc.from_pretrained(written.folder), tmp_path / "again", inputs, proof=False)
    assert off(small, sc.from_pretrained(again.folder), inputs) <= 1e-5


# -- another process ----------------------------------------------------------------------------------


def test_it_is_proved_in_a_process_that_has_no_secateur(tmp_path):
    inputs = inputs_for("Llama")
    small = cut(built("LlamaForCausalLM", GROUPED), inputs, UNEVEN)
    written = sc.save_pretrained(small, tmp_path / "small")
    assert written.max_error is not None
    assert written.max_error <= 1e-5
    assert "opened in another process by transformers alone" in repr(written)


OPEN = """
import sys
sys.modules["secateur"] = None
import torch, transformers
from safetensors.torch import load_file
transformers.dynamic_module_utils.HF_MODULES_CACHE = sys.argv[1]
for folder, auto in zip(sys.argv[2::2], sys.argv[3::2]):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    said = load_file(folder + "/said.safetensors")
    with torch.no_grad(): logits = model(**{n: v for n, v in said.items() if n != "logits"}).logits
    print(float((logits - said["logits"]).abs().max() / said["logits"].abs().max()))
"""


@pytest.mark.slow
def test_all_of_them_in_one_process_that_has_no_secateur(tmp_path):
    from safetensors.torch import save_file

    names: list[str] = []
    both = {name: sizes for name, (sizes, _) in STOCK.items()} | PLANNED
    for name, sizes in both.items():
        inputs = inputs_for(name)
        small = cut(built(name, sizes), inputs, sc.Uniform(0.5), alike=True)
        written = sc.save_pretrained(small, tmp_path / name, inputs, proof=False)
        logits = run_once(small, inputs).logits
        save_file(inputs | {"logits": logits.contiguous()}, tmp_path / name / "said.safetensors")
        names += [str(written.folder), written.opened_by]
    command = [sys.executable, "-P", "-c", OPEN, str(tmp_path / "modules"), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == len(both)
    assert max(map(float, done.stdout.split())) <= 1e-5


# -- what comes along, and stays as it was ----------------------------------------------------------------


def test_types_shards_ties_and_the_given_network(tmp_path):
    inputs = inputs_for("Llama")
    small = cut(built("LlamaForCausalLM", GROUPED | {"tie_word_embeddings": True}), inputs, sc.Uniform(0.5))
    small = small.to(torch.bfloat16)
    config, state = small.config.to_dict(), {n: t.clone() for n, t in small.state_dict().items()}
    written = sc.save_pretrained(small, tmp_path / "small", max_shard_size=40_000, proof=False)
    assert "model.safetensors.index.json" in written.files
    again = sc.from_pretrained(written.folder)
    assert again.dtype is torch.bfloat16
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert small.config.to_dict() == config
    assert all(torch.equal(t, state[n]) for n, t in small.state_dict().items())
    assert all(torch.equal(t, state[n]) for n, t in again.state_dict().items())


def test_a_tokenizer_is_copied_from_its_folder(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"):
        (source / name).write_text("{}")
    model = built("LlamaForCausalLM", GROUPED)
    written = sc.save_pretrained(model, tmp_path / "same", tokenizer=source, proof=False)
    assert {"tokenizer.json", "tokenizer_config.json"} < set(written.files)
    assert (written.folder / "config.json").read_text() != "{}"
    with pytest.raises(StorageError, match="no files of a tokenizer"):
        sc.save_pretrained(model, tmp_path / "other", tokenizer=tmp_path / "same" / "none", proof=False)
    assert not (tmp_path / "other").exists()


# -- what is refused ------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_refused(tmp_path):
    model = built("LlamaForCausalLM", GROUPED)
    with pytest.raises(ModelError, match=r"Linear is no model of transformers; secateur\.save"):
        sc.save_pretrained(nn.Linear(2, 2), tmp_path / "x")
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(StorageError, match="'mine'; name a new folder"):
        sc.save_pretrained(model, tmp_path)
    with pytest.raises(StorageError, match="is no folder"):
        sc.save_pretrained(model, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "kept"

    class Own(transformers.LlamaForCausalLM):
        pass

    with pytest.raises(ModelError, match="Own is a class of one's own"):
        sc.save_pretrained(Own(model.config), tmp_path / "x")
    model.model.norm.to("meta")
    with pytest.raises(ModelError, match="lies on cpu, meta"):
        sc.save_pretrained(model, tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_no_code_and_no_damage_of_a_folder_is_taken(tmp_path):
    inputs = inputs_for("GPT2")
    small = cut(built("GPT2LMHeadModel", PLANNED["GPT2LMHeadModel"]), inputs, sc.Uniform(0.5))
    folder = sc.save_pretrained(small, tmp_path / "small", inputs, proof=False).folder
    (folder / "modeling_secateur.py").write_text("raise SystemExit('ran')")
    assert off(small, sc.from_pretrained(folder), inputs) <= 1e-5
    plan = json.loads((folder / "secateur.json").read_text())
    first = next(iter(plan["shapes"]))
    for name, value in (
        ("shapes", {first: [-1, 2]}),
        ("modules", {"": {"forward": 3}}),
        ("ranks", {"lm_head": 0}),
    ):
        (folder / "secateur.json").write_text(json.dumps(plan | {name: value}))
        with pytest.raises(StorageError):
            sc.from_pretrained(folder)
    (folder / "secateur.json").write_text(json.dumps(plan | {"shapes": plan["shapes"] | {first: [3, 3]}}))
    with pytest.raises(StorageError):
        sc.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Trainer"]}))
    with pytest.raises(ModelError, match="'Trainer' is no network of transformers"):
        sc.from_pretrained(folder)
    with pytest.raises(StorageError, match="without config"):
        sc.from_pretrained(Path(tmp_path / "none"))


# -- many more --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("network", hf.NETWORKS, ids=lambda network: network.name)
def test_every_architecture_that_gets_smaller_opens(network, tmp_path):
    torch.manual_seed(0)
    model = network.build().eval()
    args, kwargs = network.inputs()
    inputs = kwargs or args
    try:
        small = cut(model, inputs, sc.Uniform(0.5), alike=True)
    except sc.TargetError as error:
        pytest.skip(str(error))
    written = sc.save_pretrained(small, tmp_path / "small", inputs, proof=False)
    assert off(small, opened(written), inputs) <= 1e-5
    assert off(small, sc.from_pretrained(written.folder), inputs) <= 1e-5
