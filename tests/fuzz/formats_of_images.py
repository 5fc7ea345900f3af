"""Pictures: CIFAR-10's archives, binary and of JPEG files, and folders of images."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from formats import Files, Opened, Special
from formats_of_data import zipped
from mutations import TEXTS, Chance, changed
from PIL import Image

from secateur.data import load_data
from secateur.data.cifar import BATCHES, CLASSES, RECORD, read_binary, read_images

# -- CIFAR-10's archives -----------------------------------------------------------------------------


def archives(folder: Path) -> Opened:
    binary = [
        (f"cifar-10-batches-bin/{name}", bytes([number % 10] + [7] * (RECORD - 1)) * 2)
        for number, name in enumerate(BATCHES)
    ] + [("cifar-10-batches-bin/batches.meta.txt", "\n".join(CLASSES).encode())]
    images = [
        (f"cifar10/{part}/{name}/{number:04}.jpg", _picture("JPEG", (32, 32), number))
        for number, (part, name) in enumerate((part, name) for part in ("train", "test") for name in CLASSES)
    ]
    sets = [binary, images]

    def mutate(chance: Chance) -> Files:
        which = chance.randrange(2)
        data = _tar(list(sets[which]), chance)
        if chance.random() < 0.2:
            data = changed(data, chance)
        return {"kind": bytes([which]), "archive.tar.gz": zipped(data, chance)}

    def read(place: Path) -> None:
        if (place / "kind").read_bytes() == b"\0":
            read_binary(place / "archive.tar.gz", 2)
        else:
            read_images(place / "archive.tar.gz", {"train": 1, "test": 1})

    originals: list[Files] = [
        {"kind": bytes([which]), "archive.tar.gz": gzip.compress(_tar(sets[which], None), 1)}
        for which in (0, 1)
    ]
    return Opened(mutate, read, originals)


_KINDS = (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"x", b"g", b"L", b"K", b"D", b"V", b"\0", b"9")


def _tar(members: list[tuple[str, bytes]], chance: Chance | None) -> bytes:
    buffer = io.BytesIO()
    changes = (
        set() if chance is None else {chance.randrange(len(members)) for _ in range(chance.choice((0, 1, 2)))}
    )
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, (name, data) in enumerate(members):
            info, content = tarfile.TarInfo(name), data
            if chance is not None and number in changes:
                content = _change_a_member(info, data, chance)
                if content is None:
                    continue
            if info.size == 0:
                info.size = len(content)
            try:
                text = info.tobuf(chance.choice((0, 1, 2)) if chance else 2, "utf-8", "surrogateescape")
            except ValueError:  # what this format has no room for
                continue
            buffer.write(text + content + bytes(-len(content) % 512))
        archive.offset = buffer.tell()
    return buffer.getvalue()


def _change_a_member(info: tarfile.TarInfo, data: bytes, chance: Chance) -> bytes | None:
    kind = chance.randrange(8)
    if kind == 0:
        info.type = chance.choice(_KINDS)
        info.linkname = chance.choice(("/etc/passwd", "../x", info.name, ""))
    elif kind == 1:
        info.name = chance.choice(
            ("../x", "/x", "a/../b", "a\\b", "", ".", "/", "x" * 300, "é\udc80", "nul\x01")
        )
    elif kind == 2:
        return None
    elif kind == 3:
        info.size = chance.choice((1, len(data) - 1, len(data) + 1, 2**20, 2**31, 2**33 - 1, 2**62))
    elif kind == 4:
        info.pax_headers = chance.choice(
            ({"size": "99999999999999999999"}, {"size": "-5"}, {"path": "../x"}, {"GNU.sparse.map": "0,1,2"},
             {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 30},
             {"hdrcharset": "x"},
             {"mtime": "nan"}, {"uid": "x"}, {"GNU.sparse.size": "99", "GNU.sparse.numblocks": "x"})
        )  # fmt: skip
    elif kind == 5:
        info.mtime, info.uid, info.mode = chance.choice(((-1, -1, 0), (2**40, 2**40, 0o7777), (1e300, 0, 0)))
        info.mtime = int(min(info.mtime, 2**60))
    else:
        return changed(data, chance)
    return data


# -- folders of images -------------------------------------------------------------------------------

_PICTURES = (
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "PPM",
    "ICO",
    "TGA",
    "JPEG2000",
    "DDS",
    "PCX",
    "SGI",
    "ICNS",
)


def image_folders(folder: Path) -> Opened:
    pictures = {
        kind: _picture(kind, (9, 7), number) for number, kind in enumerate(_PICTURES) if _writes(kind)
    }
    kinds = list(pictures)
    whole = {
        f"own/train/{name}/{number}.png": _picture("PNG", (9, 7), number)
        for name in "ab"
        for number in range(3)
    }

    def mutate(chance: Chance) -> Files:
        files: Files = dict(whole)
        place = chance.choice(list(files))
        kind = chance.randrange(10)
        if kind < 7:
            data = pictures[chance.choice(kinds)]
            other = pictures[chance.choice(kinds)]
            chunked = data[:4] == b"\x89PNG" and chance.random() < 0.7
            files[place] = _chunks(data, chance) if chunked else changed(data, chance, other)
        elif kind == 7:
            files[place] = chance.choice(_specials(place))
        elif kind == 8:
            name = chance.choice([text for text in TEXTS if text and "\0" not in text and len(text) < 200])
            name = name.encode("utf-8", "replace").decode().replace("/", "_").strip(".") or "x"
            files[f"own/{chance.choice(('train', 'test'))}/{name}/1.png"] = files[place]
        else:
            for name in chance.sample(list(files), chance.choice((1, 3, 6))):
                del files[name]
        return files

    def read(place: Path) -> None:
        load_data("image-folder", path=str(place / "own"), size=4, validation=2)

    return Opened(mutate, read, [dict(whole)], wiped=True)


def _specials(place: str) -> list[bytes | Special]:
    return [
        *(
            Special("link", target)
            for target in ("/dev/zero", "/etc/passwd", "/nowhere", Path(place).name, "..")
        ),
        *(Special("fifo"), Special("folder"), b"", b"x", b"\x89PNG\r\n\x1a\n", gzip.compress(bytes(10**6))),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch evil) (w) file\n",
    ]


def _writes(kind: str) -> bool:
    try:
        _picture(kind, (9, 7), 0)
    except (OSError, KeyError, ValueError):
        return False
    return True


def _picture(kind: str, size: tuple[int, int], seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image = image.resize((16, 16)) if kind in ("ICNS",) else image
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _chunks(data: bytes, chance: Chance) -> bytes:
    """Change a chunk of a PNG file, or bring one in, with the right checksum."""
    at, chunks = 8, []
    while at + 12 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number = chance.randrange(len(chunks))
    name, content = chunks[number]
    if name == b"IHDR" and chance.random() < 0.8:
        width, height = chance.choice(_SIDES), chance.choice(_SIDES)
        content = struct.pack(">II", width, height) + changed(content[8:], chance)[:5]
        chunks[number] = (name, content)
    elif chance.random() < 0.4:
        new = chance.choice(
            (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"fdAT", b"gAMA")
        )
        inside = b"name\0\0" + chance.choice((zlib.compress(bytes(10**7)), b"\xff" * 9, b"", b"\0" * 300))
        chunks.insert(1 + number % max(1, len(chunks) - 1), (new, inside))
    else:
        chunks[number] = (name, changed(content, chance))
    text = b"".join(
        struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))
        for name, inside in chunks
    )
    return data[:8] + text


_SIDES = (0, 1, 7, 9, 100, 4000, 8192, 8193, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)

FORMATS = {"archives": archives, "images": image_folders}
