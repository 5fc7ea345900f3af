"""Workers started, watched and started again where a mutant ended one; their counts added up in a table."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from counts import CLOCK, Count

FORMATS = (
    *("recipes", "settings", "report", "choose", "deploy", "deploy-scratch"),
    *("masks", "models", "graphs", "states", "trainings", "tensors", "packed"),
    *("idx", "npz", "archives", "images"),
)
_HERE = Path(__file__).parent
_STUCK = 60  # seconds: longer than the worker's own alarm, which compiled code does not hear
_LOST = "the process ended"


@dataclass(frozen=True)
class Campaign:
    """What is to be run: ``seconds`` altogether, or until ``each`` mutants of every format were read."""

    out: Path
    formats: tuple[str, ...]
    seconds: float
    each: int
    processes: int = 1
    seed: int = 0

    def run(self) -> dict[str, Count]:
        """Run to the end, or on from where it was, and return the counts by format."""
        self.out.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + self.seconds
        workers = {part: self._start(part, end) for part in range(self.processes)}
        try:
            while workers:
                time.sleep(0.2)
                for part, worker in list(workers.items()):
                    if worker.poll() is None and self._stuck(part):
                        worker.kill()
                        worker.wait()
                    if worker.poll() == 0:
                        del workers[part]
                    elif worker.poll() is not None:
                        self._lost(part, worker)
                        workers[part] = self._start(part, end)
        finally:
            for worker in workers.values():
                worker.kill()
        return self.counts()

    def counts(self) -> dict[str, Count]:
        total = {name: Count() for name in self.formats}
        for part in range(self.processes):
            for name, count in read_counts(self._state(part)).items():
                if name in total:
                    total[name].add(count)
        return total

    def _start(self, part: int, end: float) -> subprocess.Popen[bytes]:
        """Start a worker away from the working folder, with nothing that would write beside its imports."""
        command = [sys.executable, "-B", str(_HERE / "worker.py"), str(self.out)]
        command += ["--formats", ",".join(self.formats), "--seconds", str(max(1.0, end - time.monotonic()))]
        command += ["--each", str(self.each), "--seed", str(self.seed), "--part", f"{part}/{self.processes}"]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with (self.out / f"worker-{part}.log").open("ab") as log:
            return subprocess.Popen(command, env=os.environ | threads, stdout=log, stderr=log)

    def _state(self, part: int) -> Path:
        return self.out / f"worker-{part}.json"

    def _clock(self, part: int) -> tuple[int, int, float]:
        try:
            return CLOCK.unpack((self.out / f"worker-{part}.clock").read_bytes())
        except (OSError, struct.error):
            return -1, 0, 0.0

    def _stuck(self, part: int) -> bool:
        since = self._clock(part)[2]
        return bool(since) and time.monotonic() > since + _STUCK

    def _lost(self, part: int, worker: subprocess.Popen[bytes]) -> None:
        """Count the mutant that ended a worker as a finding, and go on after it."""
        number, index, since = self._clock(part)
        log = (self.out / f"worker-{part}.log").read_text(encoding="utf-8", errors="replace")
        if not since:
            raise RuntimeError(f"a worker failed before its first mutant:\n{log[-3000:]}")
        name = self.formats[number]
        counts = {format_: Count(next=part) for format_ in self.formats} | read_counts(self._state(part))
        signature = f"{_LOST} with {worker.returncode}"
        counts[name].findings[signature] = counts[name].findings.get(signature, 0) + 1
        counts[name].next = index + self.processes
        write_counts(self._state(part), counts)
        folder = self.out / "findings" / name / f"ended-{index}"
        folder.mkdir(parents=True, exist_ok=True)
        again = f"--formats {name} --seed {self.seed} --only {index}"
        (folder / "finding.txt").write_text(f"{signature}\n{again}\n\n{log[-3000:]}", encoding="utf-8")


def read_counts(path: Path) -> dict[str, Count]:
    if not path.exists():
        return {}
    return {name: Count(**count) for name, count in json.loads(path.read_text()).items()}


def write_counts(path: Path, counts: Mapping[str, Count]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({name: asdict(count) for name, count in counts.items()}))
    temporary.replace(path)


def table_of(counts: Mapping[str, Count]) -> str:
    rows = [("format", "inputs", "accepted", "refused", "findings", "inputs/s")]
    for name, count in counts.items():
        rows.append(_row(name, count))
    total = Count()
    for count in counts.values():
        total.add(count)
    rows.append(_row("all", total))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines: list[str] = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _row(name: str, count: Count) -> tuple[str, ...]:
    findings = sum(count.findings.values())
    rate = count.inputs / count.seconds if count.seconds else 0.0
    return name, *(f"{n:,}" for n in (count.inputs, count.accepted, count.refused, findings)), f"{rate:.0f}"


def lines_of(counts: Mapping[str, Count], names: Sequence[str]) -> list[str]:
    """Return a line for each finding of the formats named."""
    return [f"{name}: {what} ({n}x)" for name in names for what, n in counts[name].findings.items()]
