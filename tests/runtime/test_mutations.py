"""Ten thousand damaged or forged packed files: the tensors that were packed, or one clear error."""

from __future__ import annotations

import json
import lzma
import random
import resource
import subprocess
import sys
import time
import zlib
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

NUMBER = 10_000
LIMIT = 48 << 20  # of the 100 MB, which the file, the header's objects and a decoder's window come on top of
MEMORY = 100_000_000
INTEGERS = [-1, 0, 1, 2, 3, 7, 8, 255, 256, 1 << 16, 5_000_000, 40_000_000, 1 << 31, 1 << 32, 1 << 63, 10**30]
OTHERS: list[Any] = [
    None,
    True,
    False,
    0.5,
    -1e308,
    "",
    "raw",
    "lzma4",
    "zstd",
    "float16",
    "bool",
    "é",
    [],
    {},
]


def forged(unpacking: Any, text: bytes, streams: bytes, size: int | None = None) -> bytes:
    """A file whose checksum is right."""
    body = text + streams
    size = len(text) if size is None else size
    return unpacking.PRELUDE.pack(unpacking.MAGIC, zlib.crc32(body), len(text), size) + body


def header_of(unpacking: Any, data: bytes) -> tuple[Any, bytes]:
    _, _, stored, size = unpacking.PRELUDE.unpack_from(data)
    body = data[unpacking.PRELUDE.size :]
    text = body[:stored]
    if stored != size:
        text = lzma.decompress(text, lzma.FORMAT_RAW, filters=unpacking.lzma_filters("lzma3", size))
    return json.loads(text), body[stored:]


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8, 64])):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def spliced(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Cut, drop, double or bring in a part."""
    a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    c, d = sorted(chance.randrange(len(other) + 1) for _ in range(2))
    parts = [data[:a], data[a:], data[:a] + data[b:], data[:b] + data[a:], data[:a] + other[c:d] + data[b:]]
    return chance.choice([*parts, data + other[c:d], bytes(b - a).join([data[:a], data[b:]])])


def edited(header: Any, chance: random.Random) -> Any:
    """Change one value somewhere in a header, or remove, double or rename it."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(header)
    node, key = chance.choice(places)
    value, kind = node[key], chance.randrange(7)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(chance.randrange(len(node) + 1), json.loads(json.dumps(value)))
    elif kind == 2 and isinstance(node, dict):
        del node[key]
        node[chance.choice(["kept", "gaps", "mask", "column", "codebook", "bits", "stored", "x"])] = value
    elif kind == 3 and isinstance(value, int):
        node[key] = value + chance.choice([-1, 1, 8, -8, 256])
    elif kind == 4:
        other, place = chance.choice(places)
        node[key] = (
            json.loads(json.dumps(other[place]))
            if place in (other if isinstance(other, dict) else range(len(other)))
            else 0
        )
    else:
        node[key] = chance.choice(INTEGERS if kind == 5 or isinstance(value, int) else OTHERS)
    return header


def invented(unpacking: Any, chance: random.Random) -> tuple[Any, bytes]:
    """A header of one or two tensors that may fit, with streams that may be what they say."""
    items: list[Any] = []
    sizes: dict[str, int] = {}
    for number in range(chance.choice([1, 1, 2])):
        shape = [chance.choice([0, 1, 2, 5, 300, 3000]) for _ in range(chance.randrange(3))]
        dtype = chance.choice(list(unpacking.ITEM_BYTES))
        item: dict[str, Any] = {"name": f"t{number}", "shape": shape, "dtype": dtype}
        count = 1
        for size in shape:
            count *= size
        kept = min(count, chance.choice([0, 1, 3, count // 2, count, 10**6]))
        if chance.random() < 0.7:
            item |= {"kept": kept} | chance.choice([{"mask": True}, {"gaps": kept}, {"gaps": kept + 1}])
        if chance.random() < 0.4:
            book = chance.choice([1, 2, 16, 256])
            item |= {"codebook": book, "bits": chance.choice([(book - 1).bit_length(), 8])}
        if chance.random() < 0.3:
            item["column"] = True
        items.append(item)
        known = unpacking.Entry(
            item["name"], tuple(shape), dtype, dtype, item.get("kept"), item.get("gaps"), False,
            item.get("codebook", 0), item.get("bits", 0),
        )  # fmt: skip
        for stream, size in known.pieces():
            if size:
                sizes[stream] = sizes.get(stream, 0) + size
    streams, data = {}, b""
    for name, size in sizes.items():
        longer = max(1, size + chance.choice([0, 0, 0, 0, 0, 0, 1, -1, 1 << 22]))
        raw = chance.randbytes(longer) if longer < 4096 else b""
        if raw and chance.random() < 0.5:
            streams[name] = ["raw", longer]
        else:
            raw = constant(unpacking, chance.choice([0, 0, 1, 255]), longer, size)
            streams[name] = ["lzma1", len(raw)]
        data += raw
    return {"tensors": items, "streams": streams}, data


@cache
def constant(unpacking: Any, value: int, number: int, declared: int) -> bytes:
    """So many equal bytes, compressed for a stream of ``declared`` bytes without ever holding them all."""
    filters = [unpacking.lzma_filters("lzma1", declared)[0] | {"preset": 0}]
    compressor, block = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters), bytes([value]) * (1 << 16)
    parts = [compressor.compress(block) for _ in range(number >> 16)]
    return b"".join([*parts, compressor.compress(block[: number & 0xFFFF]), compressor.flush()])


def mutated(unpacking: Any, files: list[bytes], chance: random.Random) -> tuple[str, bytes]:
    """Return what was done and the bytes; "damaged" ones have the wrong checksum."""
    data, other = chance.choice(files), chance.choice(files)
    kind = chance.choice(
        ["damaged", "damaged", "stream", "header text", "header", "header", "header", "invented"]
    )
    if kind == "damaged":
        return kind, flipped(data, chance) if chance.random() < 0.5 else spliced(data, other, chance)
    if kind == "invented":
        header, streams = invented(unpacking, chance)
        return kind, forged(unpacking, json.dumps(header).encode(), streams)
    header, streams = header_of(unpacking, data)
    if kind == "stream":
        change = chance.random() < 0.7
        streams = (
            flipped(streams, chance) if change else spliced(streams, header_of(unpacking, other)[1], chance)
        )
    elif kind == "header":
        for _ in range(chance.choice([1, 1, 2, 4])):
            header = edited(header, chance) if header else {}
    text = json.dumps(header).encode()
    if kind == "header text":
        text = flipped(text, chance) if chance.random() < 0.7 else spliced(text, text, chance)
    return kind, forged(unpacking, text, streams)


def bombs(unpacking: Any) -> list[bytes]:
    """Files that are small and ask for much: objects in the header, a header or a stream of zeros."""
    size = 1 << 27
    zeros = constant(unpacking, 0, size, size)
    objects = b"[" + b'{"":0},' * ((LIMIT >> 6) // 7 - 20) + b"0]"
    lists = b'{"metadata": [' + b"[]," * ((LIMIT >> 6) // 3 - 20) + b'0], "tensors": [], "streams": {}}'
    item = {"name": "t", "shape": [size], "dtype": "uint8"}
    small = {"tensors": [{"name": str(i), "shape": [0], "dtype": "bool"} for i in range(9000)], "streams": {}}
    found = [forged(unpacking, zeros, b"", size), forged(unpacking, zeros, b"", LIMIT >> 6)]
    found += [forged(unpacking, text, b"") for text in (objects, lists, json.dumps(small).encode())]
    for shape in ([size], [1000]):
        header = {"tensors": [item | {"shape": shape}], "streams": {"uint8:0": ["lzma1", len(zeros)]}}
        found.append(forged(unpacking, json.dumps(header).encode(), zeros))
    half = LIMIT // 130
    many = {"kept": 2 * half, "gaps": 2 * half}
    most = [(LIMIT // 10 * 2, {}), (2 * half, many), (2 * half, many | {"column": True})]
    for number, kept in most:  # as large as is read
        zeros = constant(unpacking, 0, number, number)
        item = {"name": "t", "shape": [2, number // 2], "dtype": "uint8", **kept}
        streams = {name: ["lzma1", len(zeros)] for name in ("gaps", "uint8:0") if kept or name != "gaps"}
        header = {"tensors": [item], "streams": streams}
        found.append(forged(unpacking, json.dumps(header).encode(), zeros * len(streams)))
    return found


def check(unpacking: Any, files: list[bytes], seed: int) -> dict[str, Any]:
    """Read all of them; return how they ended, the slowest, and the memory taken, by making them too."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chance = random.Random(seed)
    originals = [
        {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in unpacking.read(f)[0].items()} for f in files
    ]
    ends: Counter[str] = Counter()
    slowest, longest = 0.0, 0
    cases = bombs(unpacking)
    assert all(len(case) < 1 << 20 for case in cases)
    for index in range(NUMBER):
        kind, data = ("bomb", cases[index]) if index < len(cases) else mutated(unpacking, files, chance)
        start = time.perf_counter()
        try:
            unpacking.read(data, limit=LIMIT, sparse=index % 3 == 0)
        except unpacking.FileError as error:
            longest = max(longest, len(str(error)))
            ends[f"{kind}: refused"] += 1
        else:
            ends[f"{kind}: read"] += 1
            if kind == "damaged":
                dense = unpacking.read(data, limit=LIMIT)[0]
                same = {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in dense.items()}
                assert same in originals, "a damaged file gave other tensors"
        slowest = max(slowest, time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ends": ends, "slowest": slowest, "longest": longest, "memory": (peak - before) * 1024}


def main(folder: Path, package: str) -> None:
    """Without PyTorch, as from a folder that ``write_folder`` has written."""
    from importlib import import_module, util

    spec = util.spec_from_file_location("reader", package)
    sys.modules["reader"] = util.module_from_spec(spec)  # type: ignore[arg-type]
    unpacking: Any = ModuleType("all of it")
    for name in ("streams", "contents", "unpacking"):
        vars(unpacking).update(vars(import_module(f"reader.{name}")))
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    print(json.dumps(check(unpacking, files, seed=0)))


def test_mutations_end_in_the_tensors_or_a_clear_error(tmp_path):
    import torch

    import secateur.runtime
    from secateur.deploy.packing import pack

    chance = torch.Generator().manual_seed(0)

    def few(*shape: int, share: float = 0.1) -> torch.Tensor:
        return torch.randn(shape, generator=chance) * (torch.rand(shape, generator=chance) < share)

    shared = few(30, 40)
    given: dict[str, torch.Tensor] = {
        "gaps": few(40, 50), "mask": few(20, 20, 3, share=0.5), "dense": few(9, 8, share=1.0),
        "tall": few(20, 30) * (torch.arange(30) % 7 == 0), "shared": shared.sign() * (shared.abs() // 0.3),
        "half": few(8, 9).half(), "brain": few(7, 9).bfloat16(), "double": few(5, 5, share=1.0).double(),
        "whole": torch.arange(12), "bool": torch.rand(50, generator=chance) > 0.5, "one": torch.ones(30),
        "scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "zero": torch.zeros(20, 20),
    }  # fmt: skip
    given["tied"] = given["gaps"]
    for index, (compression, values) in enumerate([("lzma", "lossless"), ("zstd", "lossless"), ("lzma", 5)]):
        metadata = {"name": "network", "program": [1, [2, {"x": None}]]}
        pack(given, tmp_path / f"{index}", compression=compression, values=values, metadata=metadata)
    pack({"w": few(10, 12)}, tmp_path / "3")
    pack({"w": few(10, 12), "v": few(64, 64)}, tmp_path / "4", values="float16")
    command = [sys.executable, __file__, str(tmp_path), str(secateur.runtime.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    ends = result["ends"]
    assert sum(ends.values()) == NUMBER
    assert result["memory"] < MEMORY, result
    assert result["slowest"] < 10, result
    assert result["longest"] < 500, result
    for kind in ("stream", "header", "header text", "invented", "bomb"):  # the decoder itself was reached
        assert ends[f"{kind}: refused"], ends
        assert ends[f"{kind}: read"], ends
    assert ends["damaged: refused"] > 1000


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
