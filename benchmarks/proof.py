"""Seconds and memory of ``trace``, ``prune`` and ``compact`` with its proof, on whole networks.

Half of every group goes. Each network is measured in a process of its own on one thread: seconds of the
processor, and the peak of resident memory beyond what was resident when the model stood ready, as a multiple
of the weights in their own dtype.

    python benchmarks/proof.py
    python benchmarks/proof.py --only llama lstm --json out.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from networks.packages import imported, timm, vision

MiB = 1 << 20


class Steps(nn.Module):
    """A cell of an LSTM over every step of a sequence, and a whole LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.layer, self.head = nn.LSTMCell(32, 64), nn.LSTM(64, 48), nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, outputs = None, []
        for step in x:
            state = self.cell(step, state)
            outputs.append(state[0])
        return self.head(self.layer(torch.stack(outputs))[0])


def llama() -> nn.Module:
    """A Llama of half a billion weights in bf16."""
    transformers = imported("transformers")
    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=8, vocab_size=32000, max_position_embeddings=512,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else nn.init.ones_(parameter)
    return model


def image() -> torch.Tensor:
    return torch.randn(1, 3, 224, 224)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "resnet50": (vision("resnet50"), image),
    "vit_b_16": (vision("vit_b_16"), image),
    "swin_t": (vision("swin_t"), image),
    "densenet201": (vision("densenet201"), image),
    "beit_base": (timm("beit_base_patch16_224"), image),
    "nf_resnet50": (timm("nf_resnet50"), image),
    "lstm_160": (Steps, lambda: torch.randn(160, 2, 32)),
    "llama_0.5b_bf16": (llama, lambda: torch.randint(32000, (1, 16))),
}


def resident(field: str) -> int:
    """A field of what the kernel says of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def child(name: str) -> dict[str, Any]:
    import secateur as sc

    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, inputs = NETWORKS[name]
    model, x = build().eval(), inputs()
    with torch.no_grad():
        model(x)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident("VmRSS")
    times = [time.process_time()]
    structure = sc.trace(model, x)
    times.append(time.process_time())
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    times.append(time.process_time())
    _, proof = sc.compact(model, x, structure=structure)
    times.append(time.process_time())
    seconds = dict(zip(("trace", "prune", "compact"), (b - a for a, b in pairwise(times)), strict=True))
    return {
        "seconds": seconds | {"all": times[-1] - times[0]},
        "peak": (resident("VmHWM") - before) / weights,
        "weights": weights / MiB,
        "left": proof.parameters[1] / proof.parameters[0],
        "kept": len(proof.kept),
        "error": proof.max_error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="SUBSTRING")
    parser.add_argument("--limit", type=float, default=900, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        warnings.simplefilter("ignore")
        print(json.dumps(child(args.child)))
        return
    found: dict[str, Any] = {}
    print(f"{'':18}{'trace':>8}{'prune':>8}{'compact':>9}{'all':>8}  s  peak/weights  left  kept  error")
    for name in (n for n in NETWORKS if not args.only or any(part in n for part in args.only)):
        command = [sys.executable, __file__, "--child", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit, check=False)
        except subprocess.TimeoutExpired:
            print(f"{name:18} not done in {args.limit:.0f} s", flush=True)
            continue
        if done.returncode:
            print(f"{name:18} {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        one = found[name] = json.loads(done.stdout.splitlines()[-1])
        s = one["seconds"]
        print(
            f"{name:18}{s['trace']:8.1f}{s['prune']:8.1f}{s['compact']:9.1f}{s['all']:8.1f}"
            f"{one['peak']:16.2f}{one['left']:6.0%}{one['kept']:6}{one['error']:8.0e}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
