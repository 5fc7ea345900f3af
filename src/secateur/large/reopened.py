"""A folder opened by transformers alone, in another process, and compared: whole, or block by block where it
is large."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.copying import copied
from secateur.errors import ModelError
from secateur.graph.compare import tensors_in
from secateur.large.mapped import Mapped
from secateur.large.writing import Written
from secateur.pretrained.inputs import inputs_of
from secateur.pretrained.opened_anew import environment, off_anew
from secateur.pretrained.skeleton import skeleton
from secateur.pretrained.writing import CLOSE
from secateur.running import forward_once
from secateur.storage import save_json, save_tensors

_WHOLE = 2 << 30  # bytes in float32 up to which a network is opened whole

_PROGRAM = """
import json, sys
sys.modules["secateur"] = None  # an import of it fails
import torch, transformers
from pathlib import Path
from safetensors import safe_open
from torch.utils import _pytree
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
said = json.loads(Path(sys.argv[1]).read_text())
folder = Path(said["folder"])
register = torch.nn.Module.register_parameter
def nowhere(module, name, parameter):
    if parameter is not None: parameter = torch.nn.Parameter(parameter.to("meta"), False)
    register(module, name, parameter)
config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=said["remote_code"])
torch.nn.Module.register_parameter = nowhere
kind = getattr(transformers, said["auto"])
remote = {"trust_remote_code": True} if said["remote_code"] else {}
from transformers.initialization import no_init_weights
with no_init_weights():
    model = kind.from_config(config, **remote).eval() if "Auto" in said["auto"] else kind(config).eval()
torch.nn.Module.register_parameter = register
index = folder / "model.safetensors.index.json"
files = ["model.safetensors"]
if index.exists(): files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
where = {}
for file in files:
    with safe_open(folder / file, "pt") as opened:
        where |= dict.fromkeys(opened.keys(), file)
own, rules = model.state_dict(), get_model_conversion_mapping(model)
renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
by_pattern = {p: rule for rule in converters for p in rule.source_patterns}
natural = lambda name: [(0, int(p)) if p.isdigit() else (1, p) for p in name.split(".")]
targets = {}
for name in sorted(where, key=natural):
    target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
    targets.setdefault(target, []).append((pattern, name))
tied, inside = set(model.all_tied_weights_keys or ()), tuple(f"{path}." for path in said["blocks"])
for name, tensor in own.items():
    if tensor.is_meta and name not in targets and name not in tied and not name.startswith(inside):
        raise SystemExit(f"{name} is in no file")
import copy
def read(name):
    with safe_open(folder / where[name], "pt") as opened: return opened.get_tensor(name)
worst = 0.0
recorded = safe_open(said["calls"], "pt")
for number, path in enumerate(said["blocks"]):
    state = {}
    for target, parts in targets.items():
        if not target.startswith(path + "."): continue
        if parts[0][0] is None:
            state[target] = read(parts[0][1])
            continue
        rule = copy.deepcopy(by_pattern[parts[0][0]])
        for pattern, name in parts: rule.add_tensor(target, name, pattern, read(name))
        made = rule.convert(target, model=model, config=config)
        state |= {n: v[0] if isinstance(v, list) else v for n, v in made.items()}
    block = model.get_submodule(path)
    block.load_state_dict({n[len(path) + 1:]: t.float() for n, t in state.items()}, assign=True, strict=False)
    block.float()
    bare = [n for n, p in block.named_parameters() if p.is_meta]
    if bare: raise SystemExit(f"{path}.{bare[0]} is in no file")
    call = said["inputs"][number]
    leaves = [recorded.get_tensor(v["tensor"]) if isinstance(v, dict) else v for v in call["leaves"]]
    kwargs = {}
    for name, place in call["arguments"].items():
        kwargs[name] = tuple(leaves[p] for p in place) if isinstance(place, list) else leaves[place]
    with torch.no_grad(): outputs = _pytree.tree_leaves(block(**kwargs))
    found = [t for t in outputs if isinstance(t, torch.Tensor)]
    for place, tensor in enumerate(found):
        wanted = recorded.get_tensor(f"{number}.out.{place}")
        worst = max(worst, float((tensor - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)))
    for holder in block.modules():
        for leaf, p in holder._parameters.items():
            if p is not None: holder._parameters[leaf] = torch.nn.Parameter(p.to("meta"), False)
print(json.dumps(worst))
"""


def reopened(
    made: Path,
    written: Written,
    opened: Mapped,
    blocks: Mapping[str, nn.Module],
    examples: Mapping[str, Mapping[str, Any]],
) -> float:
    """Return how far a written folder is from the network with these blocks, when transformers alone opens it
    in another process; raises ModelError where it does not, or is another one."""
    size = 4 * sum(p.numel() for p in opened.model.parameters())
    if size <= _WHOLE:
        off = _whole(made, written, opened, blocks)
    else:
        off = _by_blocks(made, written, blocks, examples)
    if off > CLOSE:
        raise ModelError(f"{written.auto} opens what was written as another network, off by {off:.1e}")
    return off


def _whole(made: Path, written: Written, opened: Mapped, blocks: Mapping[str, nn.Module]) -> float:
    model = skeleton(type(opened.model), opened.model.config)
    around = {n: t for n, t in opened.model.state_dict().items() if n not in opened.mergers}
    model.load_state_dict(around, strict=False, assign=True)
    for path, block in blocks.items():
        if path:
            model.set_submodule(path, copied(block))
    model.tie_weights()
    inputs = inputs_of(opened.model)
    expected = forward_once(model.float(), inputs)
    return off_anew(made, written.auto, written.remote_code, ((), inputs), tensors_in(expected))


def _by_blocks(
    made: Path, written: Written, blocks: Mapping[str, nn.Module], examples: Mapping[str, Mapping[str, Any]]
) -> float:
    tensors: dict[str, torch.Tensor] = {}
    calls: list[dict[str, Any]] = []
    for number, (path, block) in enumerate(blocks.items()):
        leaves: list[Any] = []
        arguments: dict[str, Any] = {}
        for name, value in examples[path].items():
            parts = value if isinstance(value, tuple) else (value,)
            places = [len(leaves) + place for place in range(len(parts))]
            arguments[name] = places if isinstance(value, tuple) else places[0]
            leaves += parts
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                tensors[f"{number}.{place}"] = leaf.contiguous()
        outputs = forward_once(copied(block).float(), dict(examples[path]))
        tensors |= {f"{number}.out.{n}": t.contiguous() for n, t in enumerate(tensors_in(outputs))}
        calls.append(
            {
                "arguments": arguments,
                "leaves": [
                    {"tensor": f"{number}.{n}"} if isinstance(leaf, torch.Tensor) else _plain(leaf)
                    for n, leaf in enumerate(leaves)
                ],
            }
        )
    with tempfile.TemporaryDirectory() as place:
        save_tensors(f"{place}/calls.safetensors", tensors)
        said = {
            "folder": str(made),
            "auto": written.auto,
            "remote_code": written.remote_code,
            "blocks": [*blocks],
            "inputs": calls,
            "calls": f"{place}/calls.safetensors",
        }
        save_json(f"{place}/said.json", said)
        command = [sys.executable, "-P", "-c", _PROGRAM, f"{place}/said.json"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment(Path(place))
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise ModelError(f"{written.auto} does not open the folder in a process of its own: {last}")
        return float(json.loads(done.stdout.strip().splitlines()[-1]))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else None
