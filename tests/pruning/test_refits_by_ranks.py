"""Ranks that read different data choose and refit the same weights, those of one process that reads all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from refits_by_ranks import BATCHES, batches, cases, chosen_alone

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
CASES = (
    "sparsegpt", "sparsegpt 2:4", "a part that few ranks run", "reconstruct", "reconstruct from few rows",
    "Reconstruction",
)  # fmt: skip


@pytest.fixture(scope="module", params=[2, 4])
def found(request, by_ranks) -> list[dict[str, Any]]:
    return [rank["refits"] for rank in by_ranks(request.param)]


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Any]]:
    return cases(range(BATCHES), lambda net: net)


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_end_with_the_same_bits(found, case):
    for other in found[1:]:
        assert other[case].keys() == found[0][case].keys()
        assert all(torch.equal(tensor, other[case][name]) for name, tensor in found[0][case].items())


@pytest.mark.parametrize("case", CASES)
def test_as_one_process_that_reads_all(found, whole, case):
    """Sums are rounded in another order: the same entries, and weights that differ by rounding."""
    ours, one = found[0][case], whole[case]
    assert ours.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def test_one_process_alone_would_choose_otherwise(found):
    alone = found[0]["alone"]
    first = chosen_alone(batches(range(BATCHES // len(found))))
    assert all(torch.equal(alone[name], mask) for name, mask in first.items())
    assert any((alone[name] != found[0]["sparsegpt"][f"mask of {name}"]).any() for name in alone)


def test_what_goes_wrong_is_said_on_all_ranks(found):
    first, *others = [rank["said"] for rank in found]
    assert first["bad data"].startswith(
        "CriterionError, unchanged: rank 1 failed, so that no rank prunes: ModelError"
    )
    for other in others:
        assert other["bad data"].startswith("ModelError, unchanged: Sequential does not run")
    for rank in found:
        assert rank["said"]["no batch"].startswith("CriterionError, unchanged: sparsegpt was given data wi")
