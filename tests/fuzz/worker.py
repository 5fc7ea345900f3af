"""One process that fuzzes: mutant after mutant, counted, every finding kept once with its files.

    python tests/fuzz/worker.py OUT --formats masks,npz --seconds 60 [--seed 0] [--part 0/2] [--only 12345]

A mutant is named by the seed, its format and its index. Run again in the same folder, it goes on from there.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import mmap
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import guard
from campaign import read_counts, write_counts
from counts import CLOCK, Count
from formats import Files, Opened, all_formats

import secateur
from secateur.errors import SecateurError

SLICE = 5.0  # seconds with one format before the next one's turn


class Worker:
    """Keeps the counts, and the folder in which mutants lie while they are read."""

    def __init__(self, out: Path, names: list[str], seed: int, part: int, parts: int) -> None:
        self.out, self.names, self.seed, self.part, self.parts = out, names, seed, part, parts
        fast = Path("/dev/shm")
        self.sandbox = Path(tempfile.mkdtemp(prefix="secateur-fuzz-", dir=fast if fast.is_dir() else None))
        planted = self.sandbox / "working"
        guard.plant(planted)
        self.mark = planted / "imported"
        self.guard = guard.Guard(self.sandbox, Path(secateur.__file__).parent)
        (out / "findings").mkdir(parents=True, exist_ok=True)
        self.state = out / f"worker-{part}.json"
        self.counts = {name: Count(next=part) for name in names}
        self.counts |= read_counts(self.state)
        clock = out / f"worker-{part}.clock"
        clock.write_bytes(bytes(CLOCK.size))
        with clock.open("r+b") as file:
            self.clock = mmap.mmap(file.fileno(), CLOCK.size)
        formats = all_formats()
        self.opened = {name: formats[name].open(out / "seeds") for name in names}

    def place_of(self, name: str) -> Path:
        place = self.sandbox / name
        if not place.exists():
            put(self.opened[name].always or {}, place)
        return place

    def warm_up(self) -> None:
        """Read what was not changed: the product must take it, and what it imports lazily is there then."""
        for name, opened in self.opened.items():
            for original in opened.originals:
                put(original, self.place_of(name))
                try:
                    opened.read(self.place_of(name))
                except SecateurError as error:
                    raise SystemExit(f"{name}: a file that nobody changed is refused: {error}") from error
            shutil.rmtree(self.place_of(name))
        gc.collect()
        gc.freeze()
        sys.path[:] = self.guard.path
        os.chdir(self.mark.parent)
        self.guard.limit_memory()

    def run(self, seconds: float, each: int) -> None:
        """Give every format its turn until the time is over, or ``each`` mutants of every one were read."""
        end = time.monotonic() + seconds
        share = min(SLICE, seconds / len(self.names))
        more = True
        while more:  # each has its turn in the first round, however long another took
            enough = [self.slice(name, share, each) for name in self.names]
            more = not all(enough) and time.monotonic() < end
            self.save()

    def slice(self, name: str, seconds: float, each: int) -> bool:
        """Read mutants of one format; return whether it has had enough."""
        opened, count = self.opened[name], self.counts[name]
        start = saved = time.monotonic()
        number = self.names.index(name)
        while (now := time.monotonic()) < start + seconds and count.next < each:
            CLOCK.pack_into(self.clock, 0, number, count.next, now)
            self.one(name, opened, count.next)
            count.next += self.parts
            if now > saved + 2:
                count.seconds, saved = count.seconds + now - saved, now
                self.save()
        count.seconds += time.monotonic() - saved
        CLOCK.pack_into(self.clock, 0, -1, 0, 0.0)
        return count.next >= each

    def one(self, name: str, opened: Opened, index: int) -> str:
        """Read one mutant; return how it ended."""
        count, place = self.counts[name], self.place_of(name)
        files = opened.mutate(random.Random(f"{self.seed} {name} {index}"))
        if opened.wiped:
            shutil.rmtree(place, ignore_errors=True)
        put(files, place)
        try:
            self.guard.watched(lambda: opened.read(place))
        except SecateurError as error:
            problem = _wrong_message(error)
            if problem is None:
                count.refused += 1
                return "refused"
            return self.found(name, index, files, problem, error)
        except (KeyboardInterrupt, SystemExit) as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return self.found(name, index, files, "SystemExit", error)
        except BaseException as error:
            return self.found(name, index, files, type(error).__name__, error)
        if self.mark.exists():
            self.mark.unlink()
            return self.found(name, index, files, "imported a planted module", RuntimeError())
        count.accepted += 1
        return "accepted"

    def found(self, name: str, index: int, files: Files, what: str, error: BaseException) -> str:
        """Keep a finding, once for each place in the product where it came from."""
        frames = traceback.extract_tb(error.__traceback__)
        product = str(Path(secateur.__file__).parent)
        own = [f"{Path(f.filename).relative_to(product)}:{f.lineno} in {f.name}" for f in frames
               if f.filename.startswith(product)]  # fmt: skip
        signature = f"{what} at {own[-1] if own else frames[-1].name if frames else '?'}"
        if isinstance(error, (guard.Seen, AssertionError)):
            signature += f": {error}"[:90]
        findings = self.counts[name].findings
        findings[signature] = findings.get(signature, 0) + 1
        folder = self.out / "findings" / name / hashlib.sha256(signature.encode()).hexdigest()[:12]
        if not folder.exists():
            folder.mkdir(parents=True)
            text = "".join(traceback.format_exception(error))[-6000:]
            again = f"--formats {name} --seed {self.seed} --only {index}"
            note = f"{signature}\n{again}\n\n{text}"
            (folder / "finding.txt").write_text(note, encoding="utf-8", errors="backslashreplace")
            put(files, folder / "files")
        return signature

    def save(self) -> None:
        write_counts(self.state, self.counts)

    def close(self) -> None:
        os.chdir("/")
        shutil.rmtree(self.sandbox, ignore_errors=True)


def _wrong_message(error: SecateurError) -> str | None:
    """An error is one short text that a terminal can print."""
    text = str(error)
    if not text or len(text) > 3100:
        return f"a message of {len(text)} characters"
    bad = next((c for c in text if not (c.isprintable() or c == "\n")), None)
    return None if bad is None else f"a message with U+{ord(bad):04X}"


def put(files: Files, place: Path) -> None:
    """Write files below a folder."""
    for name, content in files.items():
        path = place / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content.kind == "link":
                path.symlink_to(content.target)
            elif content.kind == "fifo":
                os.mkfifo(path)
            else:
                path.mkdir()
        except OSError:  # a name that this disk does not take
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--formats")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--each", type=int, default=1 << 62)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    part, parts = map(int, options.part.split("/"))
    names = options.formats.split(",") if options.formats else list(all_formats())
    out = options.out.resolve()
    worker = Worker(out, names, options.seed, part, parts)
    try:
        worker.warm_up()
        if options.only is not None:
            for name in names:
                print(name, worker.one(name, worker.opened[name], options.only))
        else:
            worker.run(options.seconds, options.each)
            worker.save()
    finally:
        worker.close()


if __name__ == "__main__":
    sys.setrecursionlimit(1000)
    main()
