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
import subprocess
import sys
from pathlib import Path
from typing import Any

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
        subprocess.run(command(recipe, whole, 1), check=True)
    expected = kept(whole)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    kills = sum(row["killed"] for row in rows)
    while kills < options.kills:
        draw, workers = random.Random(kills), 1 + len(rows) % 2
        row: dict[str, Any] = {"workers": workers, "killed": 0}
        while True:
            process = subprocess.Popen(command(recipe, out, workers), start_new_session=True)
            try:
                process.wait(draw.uniform(2.0, 12.0))
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                row["killed"] += 1
        found = kept(out)
        row |= {"status": process.returncode, "same": found == expected}
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
    return [sys.executable, "-m", "secateur.cli", "run", str(recipe), "--out", str(out), "--quiet",
            "--workers", str(workers)]  # fmt: skip


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
