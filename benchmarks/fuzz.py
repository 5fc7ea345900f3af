"""Fuzz everything that secateur reads, for an hour or a million inputs, and print how every format fared.

    python benchmarks/fuzz.py --out runs/fuzz --inputs 1000000 --processes 2
    python benchmarks/fuzz.py --out runs/fuzz --formats masks --only 12345      # one mutant again

Stopped and started again with the same ``--out`` it goes on where it was. Findings, each once with the files
that made it, lie in ``--out``/findings.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).resolve().parents[1] / "tests" / "fuzz"
sys.path.insert(0, str(FUZZ))

from campaign import FORMATS, Campaign, lines_of, table_of  # noqa: E402


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--seconds", type=float, default=1e7, help="how long altogether")
    parser.add_argument("--inputs", type=int, default=1 << 40, help="altogether, the same of each format")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the index of one mutant of one format")
    options = parser.parse_args()
    names = tuple(options.formats.split(","))
    if options.only is not None:
        command = [sys.executable, str(FUZZ / "worker.py"), str(options.out), "--formats", options.formats]
        command += ["--seed", str(options.seed), "--only", str(options.only)]
        sys.exit(subprocess.run(command, check=False).returncode)
    each = -(-options.inputs // len(names))
    campaign = Campaign(options.out, names, options.seconds, each, options.processes, options.seed)
    try:
        campaign.run()
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
    counts = campaign.counts()
    print(table_of(counts))
    for line in lines_of(counts, names):
        print(line)
    sys.exit(1 if lines_of(counts, names) else 0)


if __name__ == "__main__":
    main()
