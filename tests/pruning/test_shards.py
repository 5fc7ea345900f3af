"""Masks of a network that several processes hold together are those of one process that holds the whole, to
the bit, however the parameters are laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from shards_by_ranks import BY_DATA, BY_WEIGHTS, SOME, THOROUGH, Net, batches, by_data, by_weights, trained
from torch import Tensor

import secateur as sc

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
BY_TWO = ["columns", "replicated", "some", "fsdp", "tensor parallel"]
BY_FOUR = ["fsdp", "rows and columns", "rows twice", "part of the processes", "hybrid", "both"]
RUNNING = {"fsdp", "tensor parallel", "hybrid", "both"}
LAYOUTS = [*((2, name) for name in BY_TWO), *((4, name) for name in BY_FOUR)]


@pytest.fixture(scope="module")
def found(by_ranks) -> dict[int, list[dict[str, Any]]]:
    return {number: [rank["shards"] for rank in by_ranks(number)] for number in (2, 4)}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The same from one process that holds the whole network and sees all data."""
    folder, alone = tmp_path_factory.mktemp("whole"), lambda net: net
    return by_weights(alone, folder, BY_WEIGHTS) | by_data(alone, folder, batches(range(4)))


def equal(here: dict[str, Any], there: dict[str, Any]) -> bool:
    return here.keys() == there.keys() and all(
        torch.equal(value, there[name]) if isinstance(value, Tensor) else value == there[name]
        for name, value in here.items()
    )


@pytest.mark.parametrize(("number", "layout"), LAYOUTS)
def test_as_one_process_that_holds_the_whole(found, one, number, layout):
    cases = found[number][0][layout]
    wanted = one.keys() if layout in THOROUGH[number] else {*SOME, "saved", *BY_DATA}
    wanted = wanted if layout in RUNNING else wanted - BY_DATA.keys()
    assert cases.keys() == wanted
    for case in wanted:
        for rank in found[number]:
            assert equal(rank[layout][case], one[case]), case


@pytest.mark.parametrize("number", [2, 4])
def test_zeros_hold_while_shards_are_trained(found, number):
    first, *others = (rank["trained"] for rank in found[number])
    assert all(equal(first, other) for other in others)
    assert first["now"] == 0.75
    assert first["zeros"] == 162  # of 13 x 8, 8 x 13 and 8
    for name in ("first.weight", "second.weight", "last.weight"):
        left = first[f"{name} left"]
        assert not left[~first[name]].any()
        assert not torch.equal(left, Net().get_parameter(name) * first[name])  # it was trained


def test_training_shards_is_training_the_whole(found, tmp_path):
    """Two ranks that see the same batch train as one process does."""
    whole = trained(lambda net: net, tmp_path, batches(range(1)))
    assert whole["zeros"] == found[2][0]["trained"]["zeros"]


@pytest.mark.parametrize("number", [2, 4])
def test_parameters_gathered_by_a_forward_are_pruned_in_their_shards(found, one, number):
    assert equal(found[number][0]["after a forward"], one["Global"])


def test_what_the_saved_file_holds(found, tmp_path):
    (tmp_path / "net").write_bytes(bytes(found[4][0]["both"]["saved"]["bytes"]))
    net = Net()
    for parameter in net.parameters():
        parameter.data.zero_()
    sc.load(net, tmp_path / "net")
    assert all(torch.equal(value, Net().state_dict()[name]) for name, value in net.state_dict().items())


ON_ONE = {
    "a NaN on one rank": (
        "CriterionError: rank 1 failed, so that no rank prunes: NonFiniteError: second.weight",
        "NonFiniteError: second.weight: its weights or scores hold a NaN",
    ),
    "bad data": (
        "CriterionError: rank 1 failed, so that no rank prunes: ModelError: Net does not run",
        "ModelError: Net does not run on a batch of data=",
    ),
    "nowhere to write": (
        "WriteError: /dev/null/net: cannot be written by the first of the processes",
        "WriteError: /dev/null/net: cannot be written: ",
    ),
}
ON_ALL = {
    "alone": "TargetError: first.weight: sharded over processes, and those that prune together hold",
    "other budgets": "MaskError: rank 1 would not prune as rank 0 does",
    "no room": "ModelError: the whole of Net does not fit on each of the processes that hold it",
    "units": "TargetError: structure= reads whole parameters",
    "sparsegpt": "ModelError: FSDPNet is sharded over processes, and this works on a whole copy",
    "trace": "ModelError: FSDPNet is sharded over processes, and this works on a whole copy",
    "share_weights": "TargetError: share_weights reads whole parameters",
    "load": "TargetError: load reads whole parameters",
    "zeros that came alive": "MaskError: first.weight: 92 masked weights are not zero",
}


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("case", ON_ALL)
def test_what_cannot_be_is_said_on_all_ranks(found, number, case):
    assert all(rank["said"][case].startswith(ON_ALL[case]) for rank in found[number])


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("case", ON_ONE)
def test_what_goes_wrong_on_one_rank_is_said_on_all(found, number, case):
    failed = 0 if case == "nowhere to write" else 1
    for rank, each in enumerate(found[number]):
        assert each["said"][case].startswith(ON_ONE[case][rank == failed])
