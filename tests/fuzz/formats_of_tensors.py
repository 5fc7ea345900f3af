"""Files of tensors: networks, state dicts, training checkpoints, masks, and packed files."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from formats import Files, Opened
from mutations import NUMBERS, TEXTS, Chance, changed, edited, json_text, nasty
from subjects import fresh, smaller
from torch import nn

import secateur as sc
from secateur.deploy.packing import pack, unpack, unpack_tensors
from secateur.errors import SecateurError
from secateur.pruning.masks import Masks
from secateur.runtime.contents import MAGIC, PRELUDE
from secateur.runtime.streams import FileError, Stream
from secateur.runtime.unpacking import read as read_packed
from secateur.storage import digest_of, load_tensors
from secateur.structure import saved
from secateur.training.checkpoint import load_network, load_run, save_run, save_weights
from secateur.training.fit import Epoch, _progress_of

_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_RARE = (
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "C64",
    "U16",
    "U32",
    "U64",
    "F128",
    "",
    "f32",
    4,
    None,
    ["F32"],
)
_NOT_FINITE = (float("nan"), float("inf"), -float("inf"))


@dataclass
class Parts:
    """A safetensors file taken apart: (dtype, shape, bytes) by name, and its metadata decoded."""

    tensors: dict[str, tuple[Any, Any, bytes]]
    metadata: Any


def parts_of(data: bytes) -> Parts:
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    metadata = {key: json.loads(text) for key, text in header.pop("__metadata__", {}).items()}
    return Parts(
        {
            name: (item["dtype"], item["shape"], body[slice(*item["data_offsets"])])
            for name, item in header.items()
        },
        metadata,
    )


def written(parts: Parts, chance: Chance) -> bytes:
    """Put a file together whose offsets fit, its metadata as texts of JSON; now and then a forged header."""
    header: dict[str, Any] = {}
    if isinstance(parts.metadata, dict):
        texts = {key: json_text(value, chance) for key, value in parts.metadata.items()}
        header["__metadata__"] = {key: text.decode("utf-8", "replace") for key, text in texts.items()}
    else:
        header["__metadata__"] = parts.metadata
    at, body = 0, []
    for name, (dtype, shape, content) in parts.tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
        body.append(content)
    if chance.random() < 0.1:
        header = edited(header, chance)
    text = json_text(header, chance)
    text += b" " * (-len(text) % 8)
    size = len(text) if chance.random() < 0.98 else chance.choice((0, 1, 2**20, 2**63, 2**64 - 1))
    return struct.pack("<Q", size) + text + b"".join(body)


def rewritten(data: bytes, chance: Chance, digest: bool = False) -> bytes:
    """Change tensors or metadata so that the file is whole; ``digest``: with the right one for a model."""
    parts = parts_of(data)
    for _ in range(chance.choice((1, 1, 1, 2))):
        if chance.random() < 0.6:
            parts.metadata = edited(parts.metadata, chance)
        else:
            _change_a_tensor(parts.tensors, chance)
    found = written(parts, chance)
    if digest and isinstance(parts.metadata, dict):
        try:
            tensors = safetensors.torch.load(found)
            parts.metadata.pop("sha256", None)
            parts.metadata["sha256"] = digest_of(tensors, parts.metadata)
            found = written(parts, random.Random(1))
        except Exception:  # what cannot be hashed goes as it is
            return found
    return found


def _change_a_tensor(tensors: dict[str, tuple[Any, Any, bytes]], chance: Chance) -> None:
    if not tensors:
        return
    name = chance.choice(list(tensors))
    dtype, shape, content = tensors[name]
    kind = chance.randrange(9)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[str(chance.choice([*TEXTS, name + "_", name.upper()]))] = tensors.pop(name)
    elif kind == 2:  # another dtype, at the size that fits it, or at this one
        new = chance.choice([*_DTYPES, *_DTYPES, *_RARE])
        size = _DTYPES.get(str(new), 1) * (len(content) // _DTYPES[dtype] if dtype in _DTYPES else 1)
        tensors[name] = (new, shape, (content * 8)[:size] if chance.random() < 0.8 else content)
    elif kind == 3:
        number = len(content) // _DTYPES.get(str(dtype), 1)
        tensors[name] = (dtype, chance.choice(([number], [1, number], [number, 1], [], shape[::-1])), content)
    elif kind == 4 and isinstance(shape, list):
        tensors[name] = (dtype, [*shape, 0], b"")
    elif kind == 5 and dtype in ("F32", "F64"):
        form = "<f" if dtype == "F32" else "<d"
        at = chance.randrange(max(1, len(content) // struct.calcsize(form))) * struct.calcsize(form)
        value = struct.pack(form, chance.choice(_NOT_FINITE))
        tensors[name] = (dtype, shape, content[:at] + value + content[at + len(value) :])
    elif kind == 6:
        tensors[name] = (dtype, edited(shape, chance), content)
    elif kind == 7:
        other = chance.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    else:
        tensors[name] = (dtype, shape, changed(content, chance))


def _mixed(
    contents: list[bytes], chance: Chance, digest: bool = False, name: str = "file.safetensors"
) -> Files:
    data = chance.choice(contents)
    if chance.random() < 0.25:
        return {name: changed(data, chance, chance.choice(contents))}
    return {name: rewritten(data, chance, digest)}


def fingerprint(model: nn.Module) -> str:
    """Return a hash of all that loading may touch: classes, attributes and tensors."""
    digest = hashlib.sha256()
    for path, module in model.named_modules(remove_duplicate=False):
        plain = {key: value for key, value in vars(module).items() if not key.startswith("_flat_weight")}
        for key in ("_parameters", "_buffers", "_modules"):
            plain[key] = {name: id(inner) for name, inner in plain[key].items()}
        digest.update(f"{path} {type(module)} {module.training} {plain}".encode())
    for name, tensor in saved.all_tensors(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Subject:
    """Keeps a model to load into, made anew where loading succeeded, and says whether an error changed it."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self.original = make()
        self.dtypes = {name: tensor.dtype for name, tensor in saved.all_tensors(self.original)}
        self.renew()

    def renew(self) -> None:
        self.model = copy.deepcopy(self.original)
        self.before = fingerprint(self.model)

    def load(self, load: Callable[[nn.Module], Any], alone: bool = True) -> None:
        """Run ``load`` on the model; raise AssertionError for what it left behind."""
        try:
            load(self.model)
        except SecateurError:
            if fingerprint(self.model) != self.before:
                self.renew()
                raise AssertionError("the model was changed before the error") from None
            raise
        except BaseException:
            self.renew()
            raise
        model = self.model
        self.renew()
        for name, tensor in saved.all_tensors(model):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise AssertionError(f"{name} is not finite, and nobody was told")
            if tensor.dtype != self.dtypes.get(name, tensor.dtype):
                raise AssertionError(f"{name} has become {tensor.dtype}, and nobody was told")


def models(folder: Path) -> Opened:
    contents = _kept(
        folder, "models", [lambda path: sc.save(smaller(), path), lambda path: sc.save(fresh(), path)]
    )
    subject = Subject(fresh)

    def read(place: Path) -> None:
        subject.load(lambda model: sc.load(model, place / "file.safetensors"))

    def mutate(chance: Chance) -> Files:
        return _mixed(contents, chance, digest=chance.random() < 0.9)

    return Opened(mutate, read, [{"file.safetensors": data} for data in contents])


def graphs(folder: Path) -> Opened:
    def write(path: Path) -> None:
        small, _ = sc.compact(smaller(), torch.randn(2, 2, 6, 6), form="graph")
        sc.save(small, path)

    contents = _kept(folder, "graphs", [write])

    def read(place: Path) -> None:
        model = sc.load_graph(place / "file.safetensors")
        for node in model.graph.nodes:
            called = getattr(node.target, "__module__", "")
            if node.op == "call_function" and called not in ("torch._ops.aten", "_operator"):
                raise AssertionError(f"it calls {node.target} of {called}")
        for name, tensor in model.state_dict().items():
            if name[:10] != "constants." and tensor.is_floating_point() and not tensor.isfinite().all():
                raise AssertionError(f"{name} is not finite, and nobody was told")

    def mutate(chance: Chance) -> Files:
        return _mixed(contents, chance, digest=chance.random() < 0.9)

    return Opened(mutate, read, [{"file.safetensors": data} for data in contents])


def states(folder: Path) -> Opened:
    contents = _kept(folder, "states", [lambda path: save_weights(path, fresh(1), epoch=3)])
    contents += _kept(
        folder, "models", [lambda path: sc.save(smaller(), path), lambda path: sc.save(fresh(), path)]
    )
    subject = Subject(fresh)

    def read(place: Path) -> None:
        subject.load(lambda model: load_network(place / "file.safetensors", model))

    def mutate(chance: Chance) -> Files:
        return _mixed(contents, chance, digest=True)

    return Opened(mutate, read, [{"file.safetensors": data} for data in contents])


def trainings(folder: Path) -> Opened:
    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=1e-3)

    def write(path: Path) -> None:
        model = fresh(2)
        optimizer = optimizer_of(model)
        model(torch.randn(2, 2, 6, 6)).square().sum().backward()
        optimizer.step()
        row = Epoch(1, 1e-3, 0.5, 0.9, 0.4, 2.0)
        progress = {"epochs": [asdict(row)], "best_epoch": 1, "best_score": (0.9, -0.4)}
        save_run(path, model, optimizer, model.state_dict(), progress)

    contents = _kept(folder, "trainings", [write])
    subject = Subject(fresh)

    def load(model: nn.Module, path: Path) -> None:
        optimizer = optimizer_of(model)
        try:
            load_run(path, model, optimizer, _progress_of)
        except SecateurError:
            if optimizer.state:
                raise AssertionError("the optimizer was changed before the error") from None
            raise

    def read(place: Path) -> None:
        subject.load(lambda model: load(model, place / "file.safetensors"))

    return Opened(
        lambda chance: _mixed(contents, chance), read, [{"file.safetensors": data} for data in contents]
    )


def masks(folder: Path) -> Opened:
    def one(path: Path) -> None:
        sc.prune(fresh(), sc.Magnitude(), sc.Global(0.5)).save(path)

    def units(path: Path) -> None:
        model = fresh()
        structure = sc.trace(model, torch.zeros(2, 2, 6, 6))
        sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure).save(path)

    contents, model = _kept(folder, "masks", [one, units]), fresh()

    def read(place: Path) -> None:
        found = Masks.load(place / "file.safetensors", model)
        repr(found), found.sparsity, found.layers()

    return Opened(
        lambda chance: _mixed(contents, chance), read, [{"file.safetensors": data} for data in contents]
    )


def tensors(folder: Path) -> Opened:
    """What every file of tensors goes through, and metadata of other tools."""
    contents = _kept(folder, "states", [lambda path: save_weights(path, fresh(1), epoch=3)])

    def read(place: Path) -> None:
        load_tensors(place / "file.safetensors")

    return Opened(
        lambda chance: _mixed(contents, chance), read, [{"file.safetensors": data} for data in contents]
    )


def _kept(folder: Path, name: str, writers: list[Callable[[Path], Any]]) -> list[bytes]:
    """Return what the writers write, written once."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number, write in enumerate(writers):
        if not (folder / name / str(number)).exists():
            torch.manual_seed(number)
            write(folder / name / str(number))
    return [(folder / name / str(number)).read_bytes() for number in range(len(writers))]


# -- packed files ------------------------------------------------------------------------------------


def packed(folder: Path) -> Opened:
    few = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    given = {
        "a": few * (few > 1),
        "b": few.sign(),
        "c": few.half(),
        "d": torch.arange(9),
        "e": few.bfloat16(),
    }
    contents = _kept(
        folder,
        "packed",
        [
            lambda path: pack(smaller(), path),
            lambda path: pack(fresh(), path, values=4, compression="zstd", smallest=8, metadata={"a": [1]}),
            lambda path: pack(given, path),
            lambda path: pack(fresh().state_dict(), path, values="float16", smallest=8),
        ],
    )
    subject = Subject(fresh)

    def mutate(chance: Chance) -> Files:
        data = chance.choice(contents)
        return {"file.secateur": changed(data, chance) if chance.random() < 0.05 else _repacked(data, chance)}

    def read(place: Path) -> None:
        path = place / "file.secateur"
        with suppress(FileError):  # its own kind of error, without the rest of secateur
            read_packed(path, limit=1 << 26, sparse=True)
        found, _ = unpack_tensors(path, limit=1 << 26)
        if "conv.weight" in found:
            subject.load(lambda model: unpack(model, path, limit=1 << 26))

    return Opened(mutate, read, [{"file.secateur": data} for data in contents])


def _repacked(data: bytes, chance: Chance) -> bytes:
    """Change the header or the streams and put the file together with the right checksum."""
    _, _, stored, size = PRELUDE.unpack_from(data)
    body = data[PRELUDE.size :]
    text: bytes = bytes(body[:stored])
    if stored != size:
        text = bytes(Stream("header", "lzma3", memoryview(text), size).take(size, last=True))
    streams = body[stored:]
    if chance.random() < 0.25:
        streams = changed(streams, chance)
    else:
        header = json.loads(text)
        if chance.random() < 0.5 and header["tensors"]:
            entry = chance.choice(header["tensors"])
            key = chance.choice([*entry, "kept", "gaps", "mask", "column", "codebook", "bits", "stored"])
            entry[key] = chance.choice((chance.choice(NUMBERS), nasty(chance), chance.randrange(1000)))
        elif chance.random() < 0.6 and "model" in header:
            header["model"] = edited(header["model"], chance)
        else:
            header = edited(header, chance)
        text = json_text(header, chance)
    if chance.random() < 0.05:
        text = changed(text, chance)
    body = text + streams
    return PRELUDE.pack(MAGIC, zlib.crc32(body), len(text), len(text)) + body


FORMATS = {
    "masks": masks,
    "models": models,
    "graphs": graphs,
    "states": states,
    "trainings": trainings,
    "tensors": tensors,
    "packed": packed,
}
