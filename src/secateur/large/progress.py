"""What is done of a folder, on the disk: work that was interrupted goes on from the last block."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.large.mapped import shards_of, tensors_in_file
from secateur.large.ranks import Ranks
from secateur.large.treatment import Treated
from secateur.storage import digest_of, load_json, locked, save_json
from secateur.structure.saved import load, save


@dataclass(frozen=True)
class Progress:
    """The blocks that are done, in a folder beside the one that is being made."""

    place: Path

    def gone(self) -> list[str] | None:
        """Return the blocks that go whole, where that has been found."""
        file = self.place / "gone.json"
        return load_json(file) if file.exists() else None

    def remember(self, gone: list[str]) -> None:
        """Write down which blocks go whole."""
        save_json(self.place / "gone.json", gone)

    def has(self, number: int) -> bool:
        return self._file(number).exists()

    def keep(self, number: int, treated: Treated) -> None:
        """Write a block, in the dtypes that it has, and what was done to it: whole, or not at all."""
        said = dict(asdict(replace(treated, block=nn.Identity())).items())
        del said["block"]
        save_json(self.place / f"{number:05}.json", said)
        save(treated.block, self._file(number))

    def restored(self, number: int, block: nn.Module) -> Treated:
        """Return a block that was written; ``block``, the one it was made of, becomes it. Its tensors are
        pages of its file."""
        block = load(block, self._file(number), allow_nonfinite=True)
        block.load_state_dict(tensors_in_file(self._file(number)), strict=False, assign=True)
        for parameter in block.parameters():
            parameter.requires_grad_(False)
        said = load_json(self.place / f"{number:05}.json")
        pairs = {what: {n: tuple(pair) for n, pair in said[what].items()} for what in ("kept", "units")}
        return Treated(
            block.eval(),
            **pairs,
            errors=tuple(said["errors"]),
            notes=tuple(said["notes"]),
            experts=said["experts"],
        )

    def _file(self, number: int) -> Path:
        return self.place / f"{number:05}.safetensors"


@contextmanager
def in_progress(target: Path, settings: Mapping[str, Any], ranks: Ranks) -> Iterator[Progress]:
    """Yield what is done towards ``target`` with these settings; it is removed when the work is complete.
    What was done with others is thrown away. The first of the ranks keeps it for all."""
    place = target.with_name(f".{target.name}.secateur")
    if not ranks.first:
        ranks.wait()
        yield Progress(place)
        return
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / "lock"):
        said = place / "settings.json"
        if not said.exists() or load_json(said) != settings:
            for file in place.iterdir():
                if file.name != "lock":
                    file.unlink()
            save_json(said, dict(settings))
        ranks.wait()
        yield Progress(place)
        shutil.rmtree(place)


def settings_of(source: Path, batches: Sequence[Mapping[str, Any]], options: Sequence[Any]) -> dict[str, Any]:
    """Return what decides the bytes of a result: the files, the text and what was asked for."""
    files = {name: (source / name).stat() for name in shards_of(source)}
    text = {
        f"{number}.{name}": value
        for number, batch in enumerate(batches)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }
    return {
        "source": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()},
        "text": digest_of(text, {}),
        "options": [repr(value) for value in options],
    }
