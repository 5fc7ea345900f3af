"""The streams of a packed file, decompressed piece by piece."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from typing import Any

CODECS = ("raw", "zstd", "lzma0", "lzma1", "lzma2", "lzma3", "lzma4")
LARGEST_WINDOW = 1 << 23


class FileError(ValueError):
    """A file that is damaged, of another kind, or larger than allowed."""


def lzma_filters(codec: str, size: int) -> list[dict[str, Any]]:
    """Return what ``lzma`` takes for ``codec`` and a stream of ``size`` bytes."""
    window = min(max(size, 4096), LARGEST_WINDOW)
    return [{"id": lzma.FILTER_LZMA2, "dict_size": window, "lc": int(codec[4:]), "lp": 0, "pb": 0}]


class Stream:
    """Decompresses piece by piece, never more than is asked for."""

    def __init__(self, name: str, codec: str, data: memoryview, size: int) -> None:
        self.name, self.data, self.failures = name, data, (lzma.LZMAError,)
        self.decoder: Any = None
        self.next: Callable[[int], Any] = self._raw if codec == "raw" else self._lzma
        if codec == "zstd":
            try:
                import zstandard
            except ImportError as error:
                raise ImportError("the file is compressed with zstd: pip install zstandard") from error
            self.next = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).stream_reader(data).read
            self.failures = (zstandard.ZstdError,)
        elif codec != "raw":
            self.decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(codec, size))

    def _raw(self, size: int) -> memoryview:
        part, self.data = self.data[:size], self.data[size:]
        return part

    def _lzma(self, size: int) -> bytes:
        data, self.data = self.data, self.data[:0]
        return b"" if self.decoder.eof else self.decoder.decompress(data, size)

    def take(self, size: int, last: bool = False) -> bytes | memoryview:
        """Return the next ``size`` bytes, or raise FileError; after the ``last`` none may be left."""
        parts, missing = [], size
        try:
            while missing and len(part := self.next(missing)):
                parts.append(part)
                missing -= len(part)
            bad = missing or (last and len(self.next(1)))
        except self.failures as error:
            raise FileError(f"stream {self.name} cannot be decompressed: {error}") from error
        ended = self.decoder is None or (self.decoder.eof and not self.decoder.unused_data)
        if bad or (last and not ended):
            raise FileError(f"stream {self.name} is not as long as its tensors need; the file is damaged")
        return parts[0] if len(parts) == 1 else b"".join(parts)
