"""Files and states of masks are data: whatever is wrong with them is one line, and changes nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur as sc
from secateur.errors import MaskError, SecateurError, StorageError
from secateur.storage import load_tensors

TABLES = ("shapes", "requested", "units", "dense")
FIELDS = ("secateur", *TABLES, "requested_overall", "notes")
WRONG: list[Any] = [
    None, True, False, 0, -1, 1, 3.5, 2**63, 10**400, float("nan"), float("inf"), "", "x", "\x1b[2J",
    "0.weight", [], [[]], [0], [True, 8], [-16, -8], [16, 8],
    [8, 16], [16.0, 8.0], [2**40, 2**40], [0, 2**70], ["16", "8"], {},
    {"a": 1}, {"0.weight": None}, {"0.weight": [True, 8]}, {"0.weight": 1}, {"0.weight": -1}, {"\x07": 1},
    {"0.weight": {}}, {"0.weight": "x"}, ["line\nline"], [1], [None],
    {"0.weight": [5, 3]}, {"0.weight": [1, 2, 3]},
]  # fmt: skip


def make() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.fixture
def masks() -> sc.Masks:
    net = make()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75), exclude="0.bias")
    return sc.Masks(
        net,
        masks.kept,
        requested=masks.requested,
        requested_overall=0.75,
        notes=masks.notes,
        units={"0 -> 2": (4, 16)},
        dense={"0.weight": 256},
    )


def altered(metadata: dict[str, Any], draw: random.Random) -> dict[str, str]:
    """Metadata as text with one thing wrong: a field, an entry of a table, or the text itself."""
    metadata = json.loads(json.dumps(metadata))
    way = draw.randrange(4)
    if way == 0:
        metadata[draw.choice(FIELDS)] = draw.choice(WRONG)
    elif way == 1:
        metadata[draw.choice(TABLES)]["0.weight"] = draw.choice(WRONG)
    elif way == 2:
        del metadata[draw.choice(FIELDS)]
    text = {key: json.dumps(value) for key, value in metadata.items()}
    if way == 3:
        key = draw.choice(FIELDS)
        cut = draw.randrange(len(text[key]) + 1)
        text[key] = (
            text[key][:cut] + draw.choice(["", "[", "}", '"', "\x00", "1e999", "NaN"]) + text[key][cut + 1 :]
        )
    return text


def mutations(masks: sc.Masks, path: Path, number: int, seed: int) -> Iterator[None]:
    """Write, one after the other, files of masks with something wrong with each."""
    masks.save(path)
    whole = path.read_bytes()
    tensors, metadata = load_tensors(path)
    draw = random.Random(seed)
    for _ in range(number):
        if draw.random() < 0.5:
            content = bytearray(whole)
            for _ in range(draw.choice([1, 1, 2, 8])):
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(
                content[: draw.choice([len(content), len(content), draw.randrange(len(content))])]
            )
        else:
            kept: dict[str, Tensor] = dict(tensors)
            if draw.random() < 0.2:
                name = draw.choice(list(kept))
                kept[name] = draw.choice(
                    [
                        kept[name][:-1],
                        kept[name].float(),
                        kept[name][None],
                        kept[name].to(torch.int8),
                        kept[name][:0],
                    ]
                )
            save_file(kept, path, metadata=altered(metadata, draw))
        yield


def outcome(call: Callable[[], sc.Masks]) -> str:
    """What loading gives: an error of ours, or masks that can be shown, saved and applied."""
    try:
        masks = call()
    except SecateurError as error:
        return type(error).__name__ if str(error).isprintable() else f"{error!r}, which is no line"
    assert repr(masks).replace("\n", "").isprintable()
    assert 0 <= masks.sparsity <= 1
    masks.state_dict()
    masks.apply()
    return "masks"


def tried(masks: sc.Masks, path: Path, number: int, seed: int) -> dict[str, int]:
    seen: dict[str, int] = {}
    for _ in mutations(masks, path, number, seed):
        net = make()
        kind = outcome(lambda net=net: sc.Masks.load(path, net))
        seen[kind] = seen.get(kind, 0) + 1
        if kind != "masks":
            assert all(map(torch.equal, net.parameters(), make().parameters()))
    return seen


def test_mutated_files_are_masks_or_one_line(masks, tmp_path):
    seen = tried(masks, tmp_path / "m", 600, seed=0)
    assert {"masks", "StorageError"} <= seen.keys() <= {"masks", "StorageError", "MaskError"}
    assert seen["StorageError"] > 200


@pytest.mark.slow
def test_more_mutated_files(masks, tmp_path):
    tried(masks, tmp_path / "m", 25_000, seed=1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shapes", {"0.weight": [True, 128], "2.weight": [4, 16]}, "its shapes are not lists of sizes"),
        ("shapes", {"0.weight": [-16, -8], "2.weight": [4, 16]}, "its shapes are not lists of sizes"),
        ("requested", {"0.weight": "much"}, r"its 'requested' is \{'0\.weight': 'much'\}; a share by"),
        ("requested_overall", True, "its 'requested_overall' is True; a share or null is right"),
        ("requested_overall", float("nan"), "its 'requested_overall' is 'NaN'"),
        ("notes", ["\x1b[2J"], r"its 'notes' is \['\\x1b\[2J'\]; a list of printable lines"),
        ("notes", "line", "its 'notes' is 'line'"),
        ("units", {"0 -> 2": [5, 4]}, r"its 'units' is .*; \[kept, of how many\] by group is right"),
        ("units", {"0 -> 2": 5}, "its 'units' is"),
        ("dense", {"0.weight": 100}, r"its 'dense' gives '0\.weight' 100 entries, fewer than its mask has"),
        ("dense", {"1.weight": 100}, "its 'dense' gives '1.weight'"),
    ],
)
def test_metadata_that_masks_never_have(masks, tmp_path, field, value, message):
    tensors, metadata = masks._packed()
    text = {key: json.dumps(v) for key, v in (metadata | {field: value}).items()}
    save_file(tensors, tmp_path / "m", metadata=text)
    with pytest.raises(StorageError, match=message):
        sc.Masks.load(tmp_path / "m", make())


# -- states ----------------------------------------------------------------------------------------------


def test_a_state_is_a_flat_dict_of_tensors(masks, tmp_path):
    state = masks.state_dict()
    assert all(type(t) is Tensor and t.dtype == torch.uint8 and t.dim() == 1 for t in state.values())
    torch.save({"masks": state}, tmp_path / "pickled")
    save_file(state, tmp_path / "flat")
    for back in (
        torch.load(tmp_path / "pickled", weights_only=True)["masks"],
        load_tensors(tmp_path / "flat")[0],
    ):
        fresh = sc.Masks(make(), {})
        fresh.load_state_dict(back)
        assert fresh == masks
        assert repr(fresh) == repr(masks)
        assert sc.sparsity(fresh.model) == 0
        fresh.apply().check()


def test_accelerate_saves_masks_and_loads_them(masks, tmp_path):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.register_for_checkpointing(masks)
    accelerator.save_state(str(tmp_path))
    before = sc.Masks(masks.model, dict(masks))
    masks.load_state_dict(sc.Masks(make(), {}).state_dict())
    assert masks != before
    accelerator.load_state(str(tmp_path))
    assert masks == before


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda s: None, StorageError, "the state is not one of masks"),
        (lambda s: {"0.weight": s["0.weight"]}, StorageError, "it has no tensor 'secateur.masks' of bytes"),
        (
            lambda s: {**s, "0.weight": s["0.weight"][:3]},
            StorageError,
            r"the state: 0\.weight: packed mask has 3",
        ),
        (lambda s: {**s, "0.weight": [1]}, StorageError, r"the state: 0\.weight is a list, not a tensor"),
        (
            lambda s: {**s, "secateur.masks": s["secateur.masks"][:9]},
            StorageError,
            "state of masks is damaged",
        ),
        (
            lambda s: sc.prune(nn.Linear(3, 3), sc.Magnitude(), sc.Uniform(0.5)).state_dict(),
            MaskError,
            "no parameter",
        ),
    ],
)
def test_states_that_are_not_of_these_masks(masks, change, kind, message):
    before = repr(masks)
    with pytest.raises(kind, match=message):
        masks.load_state_dict(change(masks.state_dict()))
    assert repr(masks) == before
