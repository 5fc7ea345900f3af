"""Batches of transformers are read as they are: what a collator, a tokenizer or a Trainer's loader gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BatchEncoding,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    default_data_collator,
)

import secateur as sc
from integrations.tiny_bert import VOCABULARY, bert, sentences, settings
from secateur.errors import CriterionError

TINY: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_positions=6, n_embd=16, n_layer=2, n_head=2, **TINY))


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, **TINY, decoder_start_token_id=0, pad_token_id=0))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=3, layer_type="basic"
    )
    return ResNetForImageClassification(config)


def collated() -> DataLoader:
    return DataLoader(sentences(24), batch_size=8, collate_fn=default_data_collator)


def of_a_trainer() -> DataLoader:
    return Trainer(bert(), settings("out"), train_dataset=sentences(24)).get_train_dataloader()


def texts(labelled: bool = True) -> list[dict[str, Any]]:
    own = [batch["input_ids"] for batch in collated()]
    return [{"input_ids": ids, "labels": ids} if labelled else {"input_ids": ids} for ids in own]


def pictures() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "pixel_values": torch.randn(6, 3, 16, 16, generator=generator),
            "labels": torch.randint(0, 3, (6,), generator=generator),
        }
        for _ in range(2)
    ]


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "a loader": (bert, collated),
    "encodings": (bert, lambda: [BatchEncoding(batch) for batch in collated()]),
    "a trainer's": (bert, of_a_trainer),
    "language": (gpt2, texts),
    "encoder and decoder": (t5, texts),
    "pictures": (resnet, pictures),
}


@pytest.mark.parametrize(
    "criterion",
    [
        sc.Wanda(),
        sc.Taylor(),
        *(pytest.param(c, marks=pytest.mark.slow) for c in (sc.Fisher(), sc.SynFlow())),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_criteria(kind, criterion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, data = KINDS[kind]
    net = make()
    masks = sc.prune(net, criterion, sc.Uniform(0.5), data=data())
    assert masks.sparsity == pytest.approx(0.5, abs=1e-3)
    masks.check()


def test_the_loss_is_the_models_own():
    """Scores are |w g|, g of the loss that the model returns."""
    net, batches = gpt2(), texts()
    scores = sc.Taylor()(sc.find_targets(net), batches, None)
    net.eval()
    for batch in batches:
        (net(**batch).loss / len(batches)).backward()
    for name, weight in net.named_parameters():
        if name in scores:
            found = scores[name](slice(0, len(weight))) if callable(scores[name]) else scores[name]
            torch.testing.assert_close(found, (weight * weight.grad).abs(), rtol=1e-4, atol=1e-9)
    with pytest.raises(CriterionError, match="needs batches of \\(inputs, labels\\); got inputs alone"):
        sc.prune(gpt2(), sc.Taylor(), sc.Uniform(0.5), data=texts(labelled=False))


@pytest.mark.parametrize("kind", ["a loader", "encodings", "language"])
def test_refitting(kind):
    """Refitting the halved network on these batches brings its outputs nearer the dense one's."""
    make, data = KINDS[kind]
    batch = next(iter(data()))
    example = {name: value for name, value in batch.items() if name != "labels"}
    net, dense = make().eval(), make().eval()
    structure = sc.trace(net, example)
    sc.prune(net, sc.ActivationNorm(), sc.Uniform(0.5), structure=structure, data=data())
    before = (net(**example).logits - dense(**example).logits).norm()
    sc.reconstruct(net, dense, structure, data())
    assert (net(**example).logits - dense(**example).logits).norm() < before


def test_recalibrating():
    net = resnet()
    norm = net.resnet.embedder.embedder.normalization
    sc.recalibrate(net, pictures())
    convolved = torch.cat([net.resnet.embedder.embedder.convolution(b["pixel_values"]) for b in pictures()])
    torch.testing.assert_close(norm.running_mean, convolved.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_sensitivity():
    data = list(collated())

    def judge(net: nn.Module) -> tuple[float, float]:
        loss = float(sum(net(**batch).loss for batch in data))
        return -loss, loss

    found = sc.sensitivity(bert(), judge, criterion=sc.Wanda(), levels=(0.5, 0.9), data=data)
    assert "classifier.weight" in repr(found)


def test_columns_that_the_forward_lets_pass_change_nothing():
    data = [{**batch, "idx": torch.arange(8), "text": ["some"] * 8} for batch in collated()]
    one, other = (sc.prune(bert(), sc.Wanda(), sc.Uniform(0.5), data=d) for d in (data, collated()))
    assert one == other


def test_the_loss_that_a_plain_dict_holds_is_the_models_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x, labels=None):
            found = self.layer(x)[:, 0]
            return {"loss": (found - labels).square().mean(), "found": found}

    model = Own()
    data = [{"x": torch.randn(6, 4), "labels": torch.randn(6)}]
    masks = sc.prune(model, sc.Taylor(), sc.Uniform(0.5), data=data)
    assert masks.sparsity == 0.5
