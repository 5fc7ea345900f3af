"""PEFT's adapters on networks that were made smaller: trained, kept beside the folder, merged, and opened
again each way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import secateur as sc
from secateur.errors import ModelError
from secateur.graph.compare import difference
from secateur.running import run_once

peft = pytest.importorskip("peft")

TEXT: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "max_position_embeddings": 20, "pad_token_id": 0}
IDS = {"input_ids": torch.randint(3, 61, (4, 9), generator=torch.Generator().manual_seed(0))}
LABELS = {"BertForSequenceClassification": torch.tensor([0, 1, 2, 3])}
LORA: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"},
    "BertForSequenceClassification": {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS"},
}
# By what opens the folder: the class, the budget, and whether its blocks are cut alike. BERT's configuration
# knows no fewer heads, and Llama's no blocks of their own sizes.
SMALL = {
    "stock": ("LlamaForCausalLM", sc.Uniform(0.5), True),
    "blocks of their own": ("LlamaForCausalLM", sc.Global(0.5, min_kept=1), False),
    "encoder": ("BertForSequenceClassification", sc.Uniform(0.5), False),
}


@pytest.fixture(autouse=True)
def own_modules(monkeypatch, tmp_path):
    """Code of folders is copied here when it is opened, not into the home of who tests."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def smaller(kind: str) -> Any:
    name, budget, alike = SMALL[kind]
    torch.manual_seed(0)
    factory = getattr(transformers, name)
    return cut(factory(factory.config_class(**TEXT, num_labels=4)).eval(), budget, alike)


def cut(model: Any, budget: Any, alike: bool) -> Any:
    structure = sc.trace(model, IDS)
    sc.prune(model, sc.L2Norm(), budget, structure=structure, alike=alike)
    small, proof = sc.compact(model, IDS, structure=structure)
    assert proof.parameters[1] < 0.8 * proof.parameters[0]
    return small


def adapted(model: Any, steps: int = 3) -> Any:
    """Put adapters on a network and train them, and nothing else, for a few steps."""
    name = model.config.architectures[0] if model.config.architectures else type(model).__name__
    network = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=64, **LORA[name]))
    trained = [p for p in network.parameters() if p.requires_grad]
    assert sum(map(torch.numel, trained)) < sum(p.numel() for p in network.parameters()) / 2
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    for _ in range(steps):
        network(**IDS, labels=LABELS.get(name, IDS["input_ids"])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


def off(one: Any, other: Any) -> float:
    return difference(run_once(one, IDS), run_once(other, IDS))


def opened(written: sc.WrittenFolder) -> Any:
    auto = getattr(transformers, written.opened_by)
    return auto.from_pretrained(written.folder, trust_remote_code=written.remote_code)


@pytest.mark.parametrize("kind", SMALL)
def test_adapters_that_were_kept_apart_open_on_the_folder(kind, tmp_path):
    small = smaller(kind)
    written = sc.save_pretrained(small, tmp_path / "small", IDS, proof=False)
    network = adapted(small)
    network.save_pretrained(tmp_path / "adapters")
    for base in (sc.from_pretrained(written.folder), opened(written)):
        again = peft.PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
        assert off(network, again) == 0
    assert off(network, sc.from_pretrained(written.folder)) > 1e-2  # they have learnt something


@pytest.mark.parametrize("kind", SMALL)
def test_what_was_merged_is_a_folder_of_the_same_kind(kind, tmp_path):
    network = adapted(smaller(kind))
    merged = network.merge_and_unload()
    with torch.no_grad():
        wanted = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    written = sc.save_pretrained(merged, tmp_path / "merged", IDS, proof=False)
    assert written.remote_code == (kind != "stock")
    for again in (sc.from_pretrained(written.folder), opened(written)):
        assert not any("lora" in name for name, _ in again.named_modules())
        assert again.state_dict().keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.state_dict().items())
        assert off(merged, again) == 0
    assert off(smaller(kind), merged) > 1e-2


@pytest.mark.parametrize("kind", ["stock", "blocks of their own"])
def test_an_opened_folder_is_adapted_merged_and_written_by_transformers_alone(kind, tmp_path):
    """Whoever opens it has no secateur: the sizes that no configuration says come along again."""
    written = sc.save_pretrained(smaller(kind), tmp_path / "small", IDS, proof=False)
    merged = adapted(opened(written)).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    auto = getattr(transformers, written.opened_by)
    again = auto.from_pretrained(tmp_path / "merged", trust_remote_code=written.remote_code)
    assert off(merged, again) == 0
    assert off(merged, sc.from_pretrained(tmp_path / "merged")) == 0


def test_what_was_merged_is_made_smaller_once_more(tmp_path):
    merged = adapted(smaller("stock")).merge_and_unload().requires_grad_(True)
    less = cut(merged, sc.Uniform(0.5), alike=True)
    written = sc.save_pretrained(less, tmp_path / "less", IDS, proof=False)
    assert not written.remote_code
    assert off(less, opened(written)) <= 1e-5


def test_adapters_that_are_still_on_are_refused(tmp_path):
    network = adapted(smaller("stock"), steps=1)
    with pytest.raises(ModelError, match="merge"):
        sc.save_pretrained(network, tmp_path / "x", IDS, proof=False)
    assert not (tmp_path / "x").exists()
