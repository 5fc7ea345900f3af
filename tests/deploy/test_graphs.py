"""Of a forward with sizes written into it everything goes out of the graph, which every format takes."""

import numpy as np
import pytest
import torch

import secateur as sc
from networks.hf import HF
from secateur.deploy.onnx import run_onnx
from secateur.graph.compare import tensors_in
from secateur.runtime.runner import Network

KEPT = ("hf_swin", "hf_beit_relative", "hf_olmo2")


@pytest.mark.parametrize("name", KEPT)
def test_heads_go_out_of_every_format(name, tmp_path):
    network = next(n for n in HF if n.name == name)
    torch.manual_seed(0)
    model, (args, kwargs) = network.build().eval(), network.inputs()
    structure = sc.trace(model, args, kwargs=kwargs)
    sc.prune(model, sc.Random(0), sc.Uniform(0.5), structure=structure, removable_only=False)
    small, proof = sc.compact(model, args, kwargs=kwargs, structure=structure, form="graph")
    assert not proof.kept
    assert proof.removed.keys() == structure.groups.keys()
    assert proof.max_error <= 1e-9
    inputs = args or kwargs
    file = sc.export_onnx(small, inputs, tmp_path / "small.onnx")
    assert file.max_error < 1e-4
    folder = sc.write_folder(small, inputs, tmp_path / "folder")
    args, kwargs = network.inputs()
    with torch.no_grad():
        wanted = [t.numpy() for t in tensors_in(model(*args, **kwargs))]
    given = [t.numpy() for t in (*args, *kwargs.values())]
    found = Network(folder / "model.secateur").run(*given)
    for outputs in (found, run_onnx(file.path, args or kwargs)):
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        for one, other in zip(wanted, outputs, strict=True):
            assert np.allclose(one, other, atol=1e-4 * max(1.0, float(np.abs(one).max())))
