"""Processes that compute together over gloo, each from a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_SECONDS = 300


def launch(number: int, folder: Path) -> list[dict[str, Any]]:
    """Run the cases of ``refits_by_ranks`` and ``shards_by_ranks`` in so many processes at once, and return
    what each found; where one fails, say what all said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(number), folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(number)
    ]
    try:
        said = [process.communicate(timeout=_SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(said)
    return [torch.load(folder / f"found{rank}", weights_only=True) for rank in range(number)]


def main() -> None:
    """Be one of the processes of ``launch``."""
    import refits_by_ranks
    import shards_by_ranks

    rank, number, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=number,
        timeout=timedelta(seconds=60),
    )
    found = {
        "refits": refits_by_ranks.found_by(rank, number),
        "shards": shards_by_ranks.found_by(rank, number, folder),
    }
    torch.save(found, folder / f"found{rank}")


if __name__ == "__main__":
    main()
