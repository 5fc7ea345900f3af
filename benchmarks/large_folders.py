"""What pruning a folder costs beside copying it: seconds over those of ``cp``, and memory that is no cache.

Makes a random Llama in bf16, shard by shard, if --folder does not hold one; then copies and prunes it in
turn, each in a process of its own, and prints the ratio of every round and the most memory of its own that
pruning had.

    python benchmarks/large_folders.py --folder /tmp/llama-7b                 # 13.5 GB
    python benchmarks/large_folders.py --folder /tmp/llama-1b --layers 4 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

PRUNING = """
import sys, threading, time
import secateur as sc

most = 0
def watch():
    global most
    while True:
        lines = open("/proc/self/status").read().splitlines()
        most = max(most, int(next(line for line in lines if line.startswith("RssAnon")).split()[1]))
        time.sleep(0.05)

import transformers
from transformers.models.llama import modeling_llama  # what any use of it imports
threading.Thread(target=watch, daemon=True).start()
time.sleep(0.2)
before, start = most, time.perf_counter()
budget = sc.Global(0.5) if sys.argv[3] == "global" else sc.Uniform(0.5)
done = sc.prune_folder(sys.argv[1], sys.argv[2], sc.Magnitude(), budget, exclude="lm_head*")
print(time.perf_counter() - start, (most - before) / 1024, done.sparsity)
"""


def make(folder: Path, layers: int, width: int, ffn: int, vocabulary: int) -> None:
    """Write a random Llama, one layer a file."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=width // 128, dtype=torch.bfloat16, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = transformers.LlamaForCausalLM(config).state_dict()
    parts: dict[str, list[str]] = {}
    for name in shapes:
        parts.setdefault(name.split(".")[2] if ".layers." in name else "outer", []).append(name)
    where: dict[str, str] = {}
    for number, names in enumerate(parts.values(), 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        tensors = {name: torch.randn(shapes[name].shape).mul_(0.02).bfloat16() for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--ffn", type=int, default=11008)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    if not (options.folder / "config.json").exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        make(options.folder, options.layers, options.width, options.ffn, options.vocabulary)
    size = sum(file.stat().st_size for file in options.folder.iterdir())
    print(f"{options.folder}: {size / 1e9:.2f} GB")
    other = options.folder.with_name(options.folder.name + "-other")
    ratios: dict[str, list[float]] = {"global": [], "uniform": []}
    for _ in range(options.rounds):
        shutil.rmtree(other, ignore_errors=True)
        start = time.perf_counter()
        subprocess.run(["cp", "-r", str(options.folder), str(other)], check=True)
        copied = time.perf_counter() - start
        for budget, found in ratios.items():
            shutil.rmtree(other, ignore_errors=True)
            command = [sys.executable, "-c", PRUNING, str(options.folder), str(other), budget]
            done = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            seconds, memory, sparsity = map(float, done)
            found.append(seconds / copied)
            print(
                f"cp {copied:.1f} s, {budget} {seconds:.1f} s, {memory:.0f} MB, {sparsity:.2%} zeros",
                flush=True,
            )
    shutil.rmtree(other, ignore_errors=True)
    for budget, found in ratios.items():
        print(f"{budget}: {statistics.median(found):.2f} times cp")


if __name__ == "__main__":
    main()
