"""Random SIGKILLs over real `secateur run` processes, one worker and two by turns.

Every study that was killed ends with the numbers and the files of one that never was.

    python benchmarks/kills.py --kills 300 --folder /tmp/kills

It goes on where it was stopped: the folder holds the uninterrupted study and the count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import secateur.experiments.study  # noqa: F401
from secateur.cli import main as main_of_secateur

RECIPE = """
name: killed
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 16}
train: {epochs: 3, lr: 2.0e-3, batch_size: 64}
measure: []
methods:
  gradual:
    steps:
      - prune:
          budget: {name: global, sparsity: 0.8}
          schedule: {name: cubic, steps: 3, retrain: {epochs: 2}}
      - retrain: {epochs: 2}
      - share: {values: 8, train: {epochs: 1}}
      - pack:
    sweep: {prune.budget.sparsity: [0.5, 0.8]}
  greedy:
    steps:
      - prune: {budget: {name: global, sparsity: 0.5}}
      - greedy: {parameters: 0.8, every: 2, examples: 50}
  selection:
    steps: [structure_selection: {penalty: 0.05, train: {epochs: 2}}]
  anneal:
    steps: [anneal: {ratio: 0.5, schedule: {step: 0.4}, calibration: 50, train: {epochs: 1}}]
  units:
    steps:
      - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}
      - refit: {calibration: 100}
      - compact:
      - retrain: {epochs: 2}
seeds: [0, 1]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path("kills"))
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    recipe, log = folder / "killed.yaml", folder / "log.jsonl"
    recipe.write_text(RECIPE)
    whole, out = folder / "whole", folder / "out"
    if not (whole / "results.json").exists():
        assert os.waitpid(begin(command(recipe, whole, 1)), 0)[1] == 0
    expected = kept(whole)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    kills = sum(row["killed"] for row in rows)
    while kills < options.kills:
        draw, workers = random.Random(kills), 1 + len(rows) % 2
        row: dict[str, Any] = {"workers": workers, "killed": 0}
        while True:
            process = begin(command(recipe, out, workers))
            if not wait(process, out, draw.uniform(0.0, 4.0)):
                break
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            row["killed"] += 1
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        found = kept(out)
        row |= {"status": status, "same": found == expected}
        row["different"] = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        rows.append(row)
        kills += row["killed"]
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if row["status"] or not row["same"]:
            sys.exit(f"not the same after {row['killed']} kills: {row}; the folder is {out}")
        shutil.rmtree(out)
        print(f"{kills} kills, {len(rows)} studies of {len(expected)} files, all the same", flush=True)


def command(recipe: Path, out: Path, workers: int) -> list[str]:
    return ["run", str(recipe), "--out", str(out), "--quiet", "--workers", str(workers)]


def begin(arguments: list[str]) -> int:
    """Run the command line in a process group of its own: forked, so that no import is waited for."""
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        sys.argv = ["secateur", *arguments]
        try:
            main_of_secateur()
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        os._exit(0)
    return process


def wait(process: int, out: Path, seconds: float) -> bool:
    """Wait until so long after a trial is begun; return whether the process still runs then."""
    before, left = owners(out), seconds
    while left > 0:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.02)
        if owners(out) - before:
            left -= 0.02
    return True


def owners(out: Path) -> set[tuple[str, str]]:
    found = set()
    for path in out.glob("*/*/owner"):
        with suppress(OSError):
            found.add((str(path), path.read_text()))
    return found


def kept(study: Path) -> dict[str, str]:
    """Return the hash of every file of a study's trials and dense networks, of JSON without its times; locks,
    which stay, have none."""
    found = {}
    for path in sorted([*study.glob("trials/**/*"), *study.glob("dense/*")]):
        if path.is_file() and path.suffix != ".lock":
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(timeless(json.loads(content)), sort_keys=True).encode()
            found[str(path.relative_to(study))] = hashlib.sha256(content).hexdigest()
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
