"""Networks as people have them, dense and with units removed, as programs: numpy's and the compiled engine's
outputs are torch's, on more examples than the program was made with."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.deploy.program.export import program_of
from secateur.graph.compare import tensors_in
from secateur.runtime.runner import execute


class Tagger(nn.Module):
    """A tag for each token."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 12)
        self.lstm = nn.LSTM(12, 16, 2, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(32, 5)

    def forward(self, tokens):
        return self.tags(self.lstm(self.words(tokens))[0])


class Logits(nn.Module):
    """A network of transformers as one deploys it: tensors in, one tensor out."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, first, mask=None):
        masked = {} if mask is None else {"attention_mask": mask}
        return self.inner(first, **masked)[0]


SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def gpt2(transformers):
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=24, n_layer=2, n_head=4, n_positions=16, use_cache=False
    )
    return Logits(transformers.GPT2LMHeadModel(config)), [tokens]


def bert(transformers):
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=16, **SMALL)
    return Logits(transformers.BertForSequenceClassification(config)), [tokens, mask]


def vit(transformers):
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=5, **SMALL)
    return Logits(transformers.ViTForImageClassification(config)), [images]


def tokens(number):
    return torch.randint(1, 40, (number, 9), generator=torch.Generator().manual_seed(number))


def mask(number):
    return (torch.arange(9) < torch.arange(number).remainder(5)[:, None] + 4).long()


def images(number):
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(number))


def of_transformers(make):
    return lambda: make(pytest.importorskip("transformers"))


NETWORKS = {
    "unet": lambda: (sc.build_model("unet", classes=2, width=4), [images]),
    "tagger": lambda: (Tagger(), [tokens]),
    "gpt2": of_transformers(gpt2),
    "bert with a mask": of_transformers(bert),
    "vit": of_transformers(vit),
}


@pytest.mark.parametrize("pruned", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network_is_a_program(name, pruned):
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]()
    network.eval()
    example = tuple(make(2) for make in inputs)
    if pruned:
        before = sum(parameter.numel() for parameter in network.parameters())
        network, proof = sc.prune_to(network, example, parameters=0.75)
        assert proof.parameters[1] <= 0.75 * before
    program = program_of(network, example)
    given = [make(5) for make in inputs]
    with torch.no_grad():
        (wanted,) = tensors_in(network(*given))
    engines = ["numpy", *(["compiled"] if importlib.util.find_spec("numba") else [])]
    for engine in engines:
        found = ran(engine, program, [value.numpy() for value in given])
        scale = float(wanted.abs().max())
        assert np.abs(found - wanted.numpy()).max() <= 1e-5 * scale, engine


def ran(engine, program, given):
    if engine == "numpy":
        (found,) = execute(program.graph, program.arrays(), given)
    else:
        from secateur.runtime.mixed import Mixed

        (found,) = Mixed(program.graph, program.arrays())(given)
    return found
