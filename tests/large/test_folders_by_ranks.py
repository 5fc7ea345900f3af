"""Processes that share the text of a folder prune as one process does with all of it."""

import os
import subprocess
import sys

import numpy as np
import pytest

import secateur as sc

transformers = pytest.importorskip("transformers")
from architectures import network, tokens  # noqa: E402

from secateur.large.mapped import tensors_in_file  # noqa: E402


@pytest.mark.parametrize("number", [2, 4])
def test_torchrun_splits_the_text(number, tmp_path):
    network("Llama").save_pretrained(tmp_path / "dense")
    np.save(tmp_path / "tokens.npy", tokens(8).numpy())
    options = ["--units", "0.25", "--method", "sparsegpt", "--sparsity", "0.5", "--text", "tokens.npy"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    command += ["-m", "secateur", "prune-folder", "dense", "--out", "ranks", "--no-proof", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("opened by AutoModelForCausalLM") == 1
    one = sc.prune_folder(
        tmp_path / "dense", tmp_path / "one", sc.sparsegpt, sc.Uniform(0.5), units=0.25, proof=False,
        text=tmp_path / "tokens.npy",
    )  # fmt: skip
    here = tensors_in_file(one.folder / "model.safetensors")
    there = tensors_in_file(tmp_path / "ranks" / "model.safetensors")
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert ((tensor == 0) == (there[name] == 0)).all(), name
        assert (tensor - there[name]).abs().max() < 1e-3 * tensor.abs().max(), name
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
