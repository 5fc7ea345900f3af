"""Networks for each construct, and of transformers: each gets smaller and stays equal to the masked one."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from networks import judged
from networks.comparing import snapshot, unchanged
from networks.hf import HF
from networks.small import SMALL
from networks.small.indexing import INDEXING
from networks.small.values import VALUES

ZOO = {network.name: network for network in (*SMALL, *HF)}


# -- whole networks ----------------------------------------------------------------------------------

FAMILIES = [
    "residual_projection",
    "dense_concat",
    "grouped_conv",
    "depthwise_separable",
    "transposed_conv",
    "grouped_transposed",
    "shuffle_net",
    "squeeze_excite",
    "pixel_shuffle",
    "uneven_split",
    "flatten_nhwc",
    "group_norm_net",
    "gated_unit",
    "swiglu_block",
    "einsum_layers",
    "raw_linear",
    "multihead_batch_first",
    "encoder_layer",
    "grouped_query_repeat",
    "llama_block",
    "fused_even",
    "fused_three_inside",
    "gpt2_block",
    "lstm_bidirectional",
    "gru_cell_loop",
    "weight_norm_hook",
    "weight_norm_parametrization",
    "spectral_norm_hook",
    "spectral_norm_parametrization",
    "tied_embedding",
    "shared_conv",
    "two_inputs_two_outputs",
    "dict_output",
    "keyword_film",
    *(network.name for network in (*VALUES, *INDEXING)),
]
TRANSFORMERS = ["hf_llama", "hf_gpt2", "hf_bert"]


def prove(name: str) -> None:
    case = judged.prepare(ZOO[name])
    model, (args, kwargs) = case.model, case.draws[0]
    structure = sc.trace(model, args, kwargs=kwargs)
    masks = sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    before = snapshot(model)
    with torch.no_grad():
        masked = [model(*a, **k) for a, k in case.draws]
    small, proof = sc.compact(model, args, kwargs=kwargs, structure=structure, masks=masks)
    with torch.no_grad():
        outputs = [small(*a, **k) for a, k in case.draws]
    worst = max(judged.relative_error(m, s) for m, s in zip(masked, outputs, strict=True))
    assert worst <= case.tolerance
    assert proof.parameters[1] <= 0.9 * proof.parameters[0]
    assert proof.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert type(small) is type(model)
    assert set(small.state_dict()) == set(before)
    assert unchanged(model, before)
    assert proof.masks.model is small
    proof.masks.check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_construct_gets_smaller_and_stays_equal(name):
    prove(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    prove(name)
