"""Exact selection: against sorting, whatever the dtype, the ties, the chunks and the device."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import BudgetError, MaskError, NonFiniteError
from secateur.pruning import selection
from secateur.pruning.selection import Cut, PatternCut, RowCut, Scores, apportion, count_below, cut_globally

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def scores(tensor: Tensor, name: str = "w", masked: Tensor | None = None) -> Scores:
    return Scores(name, tuple(tensor.shape), tensor.__getitem__, masked)


def doomed_of(tensors: list[Tensor], count: int, masked: list[Tensor | None] | None = None) -> list[Tensor]:
    masked = masked or [None] * len(tensors)
    given_ = [scores(t, str(i), m) for i, (t, m) in enumerate(zip(tensors, masked, strict=True))]
    cuts = cut_globally(given_, count)
    for s in given_:
        assert count_below(s, cuts[s.name]) == cuts[s.name].pruned(s).count_nonzero()
    return [cuts[s.name].pruned(s) for s in given_]


def assert_lowest(tensors: list[Tensor], pruned: list[Tensor], count: int) -> None:
    """The reference: sort everything; what is under the k-th goes, what is over it stays."""
    values = torch.cat([t.double().flatten() for t in tensors])
    gone = torch.cat([d.flatten() for d in pruned])
    assert int(gone.count_nonzero()) == count
    if count:
        kth = values.sort().values[count - 1]
        assert gone[values < kth].all()
        assert not gone[values > kth].any()


KINDS = ["normal", "magnitudes", "any bits", "few values", "both zeros", "all equal"]


def tensor(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    torch.manual_seed(seed)
    match kind:
        case "normal":
            return torch.randn(shape).to(dtype)
        case "magnitudes":
            return (torch.randn(shape, dtype=torch.float64) * 0.05).to(dtype).abs()
        case "any bits":
            integer = BITS[dtype.itemsize]
            info = torch.iinfo(integer)
            bits = torch.randint(info.min, info.max, shape, dtype=integer)
            return bits.view(dtype).nan_to_num(0, 0, 0)
        case "few values":
            return torch.randint(-2, 3, shape).to(dtype) * 0.1
        case "both zeros":
            return torch.tensor([-0.0, 0.0, -1e-7, 1e-7, 1.0])[torch.randint(0, 5, shape)].to(dtype)
        case _:
            return torch.full(shape, -0.3, dtype=dtype)


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[torch.dtype] = FLOATS, most: int = 4) -> list[Tensor]:
    shapes = draw(
        st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), min_size=1, max_size=most)
    )
    return [
        tensor(draw(st.sampled_from(KINDS)), s, draw(st.sampled_from(dtypes)), draw(st.integers(0, 99)))
        for s in shapes
    ]


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
def test_selection_equals_sorting(dtype, data):
    given_ = data.draw(tensors([dtype]))
    count = data.draw(st.integers(0, sum(t.numel() for t in given_)))
    assert_lowest(given_, doomed_of(given_, count), count)


@given(data=st.data())
def test_selection_equals_sorting_over_mixed_dtypes(data):
    given_ = data.draw(tensors())
    count = data.draw(st.integers(0, sum(t.numel() for t in given_)))
    assert_lowest(given_, doomed_of(given_, count), count)


def test_float64_among_float32_is_not_rounded():
    # float32(0.1) is a little more than float64 0.1: comparing in float32 would make them tie.
    narrow, wide = torch.tensor([0.1, 0.3]), torch.tensor([0.1, 0.3], dtype=torch.float64)
    assert [d.tolist() for d in doomed_of([narrow, wide], 1)] == [[False, False], [True, False]]
    assert [d.tolist() for d in doomed_of([narrow, wide], 2)] == [[True, False], [True, False]]
    assert [d.tolist() for d in doomed_of([narrow, wide], 3)] == [[True, False], [True, True]]
    # float32(0.7) is a little less than float64 0.7, and must go before it.
    narrow, wide = torch.tensor([0.7, 0.9]), torch.tensor([0.7, 0.9], dtype=torch.float64)
    assert [d.tolist() for d in doomed_of([narrow, wide], 1)] == [[True, False], [False, False]]
    assert [d.tolist() for d in doomed_of([narrow, wide], 2)] == [[True, False], [True, False]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_hand_made(dtype):
    values = torch.tensor([[3.0, -1.0], [0.5, 2.0]], dtype=dtype)
    assert doomed_of([values], 2)[0].tolist() == [[False, True], [True, False]]
    assert cut_globally([scores(values)], 2)["w"] == Cut(0.5, ties=1, tied=1)


def test_minus_zero_and_zero_are_one_value():
    values = torch.tensor([-0.0, 0.0] * 200)
    (pruned,) = doomed_of([values], 200)
    assert 60 < int(pruned[::2].count_nonzero()) < 140  # not the minus zeros first


@pytest.mark.parametrize("chunk", [1, 7, 64])
@given(data=st.data())
def test_chunks_do_not_matter(chunk, data):
    given_ = data.draw(tensors())
    count = data.draw(st.integers(0, sum(t.numel() for t in given_)))
    masked: list[Tensor | None] = [torch.rand(t.shape) < 0.2 for t in given_]
    whole = doomed_of(given_, count, masked)
    with patch.object(selection, "CHUNK", chunk):
        assert all(torch.equal(a, b) for a, b in zip(whole, doomed_of(given_, count, masked), strict=True))


def test_chunks_cover_the_rows_once():
    values = torch.arange(35.0).view(7, 5)
    with patch.object(selection, "CHUNK", 12):
        parts = list(scores(values).chunks())
    assert [(r.start, r.stop) for r, _ in parts] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert torch.equal(torch.cat([p for _, p in parts]), values)


@given(data=st.data())
def test_masked_entries_go_first(data):
    given_ = data.draw(tensors())
    torch.manual_seed(data.draw(st.integers(0, 99)))
    masked = [torch.rand(t.shape) < 0.3 for t in given_]
    already = sum(int(m.count_nonzero()) for m in masked)
    total = sum(t.numel() for t in given_)
    more = data.draw(st.integers(0, total - already))
    pruned = doomed_of(given_, already + more, list(masked))
    assert all((d | ~m).all() for d, m in zip(pruned, masked, strict=True))
    alive = [t[~m] for t, m in zip(given_, masked, strict=True)]
    left = [d[~m] for d, m in zip(pruned, masked, strict=True)]
    assert_lowest(alive, left, more)


# -- ties ---------------------------------------------------------------------------------------


def splitmix(position: int) -> int:
    """The finaliser of splitmix64, in plain integers, read as a signed number."""
    full = (1 << 64) - 1
    h = position * 0x9E3779B97F4A7C15 & full
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & full
    h = (h ^ h >> 27) * 0x94D049BB133111EB & full
    h ^= h >> 31
    return h - (1 << 64) if h >> 63 else h


def test_ties_fall_by_the_hash_of_their_position(device):
    values = torch.full((40, 5), 0.25, device=device)
    (pruned,) = doomed_of([values], 60)
    assert sorted(pruned.flatten().nonzero().flatten().tolist()) == sorted(
        sorted(range(200), key=splitmix)[:60]
    )


def test_the_hash_is_splitmix64_as_published():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [splitmix(i) % 2**64 for i in (1, 2, 3)] == published
    assert [h % 2**64 for h in selection._hash(torch.tensor([1, 2, 3])).tolist()] == published


@pytest.mark.parametrize("dtype", FLOATS)
def test_ties_spread_over_rows_and_columns(dtype):
    (pruned,) = doomed_of([torch.zeros(100, 100, dtype=dtype)], 5000)
    for dim in (0, 1):
        share = pruned.float().mean(dim)
        assert share.min() > 0.25
        assert share.max() < 0.75


def test_ties_are_shared_out_over_tensors_in_proportion():
    pruned = doomed_of([torch.zeros(300), torch.zeros(100), torch.ones(50)], 200)
    assert [int(d.count_nonzero()) for d in pruned] == [150, 50, 0]


@given(st.dictionaries(st.text(max_size=2), st.integers(0, 50), min_size=1, max_size=6), st.data())
def test_apportion(sizes, data):
    total = sum(sizes.values())
    number = data.draw(st.integers(0, total))
    shares = apportion(number, sizes)
    assert sum(shares.values()) == number
    for name, share in shares.items():
        assert 0 <= share <= sizes[name]
        assert total == 0 or abs(share - number * sizes[name] / total) < 1


# -- cuts by value, patterns, errors -------------------------------------------------------------


def test_a_cut_by_value_is_strict_and_leaves_ties():
    values = torch.tensor([0.1, 0.2, 0.3])
    cut = Cut(float(values[1]))
    assert cut.pruned(scores(values)).tolist() == [True, False, False]
    assert count_below(scores(values), cut) == 1


def test_a_cut_is_not_rounded_to_bfloat16():
    values = torch.tensor([0.5, 0.50390625, 0.25], dtype=torch.bfloat16)
    # 0.502 would round to 0.50390625 in bfloat16; neither it nor 0.5 must change sides.
    assert Cut(0.502).pruned(scores(values)).tolist() == [True, False, True]
    assert Cut(0.504).pruned(scores(values)).tolist() == [True, True, True]


def test_pattern_cut_keeps_the_best_of_each_group_along_its_dim():
    values = torch.tensor([[1.0, 4.0, 2.0, 3.0, 9.0, 0.0, 0.0, 8.0]])
    assert PatternCut(2, 4, 1).pruned(scores(values)).tolist() == [
        [True, False, True, False, False, True, True, False]
    ]
    assert PatternCut(2, 4, 0).pruned(scores(values.T)).flatten().tolist() == [
        True, False, True, False, False, True, True, False,
    ]  # fmt: skip


def test_pattern_cut_breaks_ties_by_hash_in_each_group():
    pruned = PatternCut(1, 2, 1).pruned(scores(torch.ones(200, 8)))
    assert (pruned.view(-1, 2).sum(1) == 1).all()
    assert 0.4 < pruned[:, ::2].float().mean() < 0.6


def test_row_cut_takes_as_many_of_each_output():
    values = torch.tensor([[1.0, 4.0, 2.0, 3.0], [40.0, 10.0, 30.0, 20.0]])
    wanted = [[True, False, True, False], [False, True, False, True]]
    assert RowCut(2, 1).pruned(scores(values)).tolist() == wanted
    assert RowCut(2, 0).pruned(scores(values.T)).T.tolist() == wanted
    kernels = values.view(2, 2, 2).transpose(0, 1)  # (inputs, outputs, positions) of a transposed layer
    assert RowCut(2, 0).pruned(scores(kernels)).transpose(0, 1).reshape(2, 4).tolist() == wanted
    assert not RowCut(0, 1).pruned(scores(values)).any()
    assert RowCut(4, 1).pruned(scores(values)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, 1])
def test_row_cut_breaks_ties_by_hash_whatever_the_chunks(dtype, dim):
    values = torch.randint(0, 3, (40, 40), generator=torch.Generator().manual_seed(0)).to(dtype)
    pruned = RowCut(13, dim).pruned(scores(values))
    assert (pruned.sum(dim) == 13).all() if dim == 0 else (pruned.sum(1) == 13).all()
    with patch.object(selection, "CHUNK", 80):
        assert torch.equal(RowCut(13, dim).pruned(scores(values)), pruned)
    ones = RowCut(1, dim).pruned(scores(torch.ones(200, 2).T if dim == 0 else torch.ones(200, 2)))
    assert 0.4 < ones.float().argmax(dim).float().mean() < 0.6


def test_row_cut_takes_what_is_masked_first():
    masked = torch.tensor([[False, True, False, False], [True, True, False, False]])
    values = torch.tensor([[1.0, torch.nan, 2.0, 3.0], [9.0, 9.0, 1.0, 2.0]])
    one = Scores("w", (2, 4), values.__getitem__, masked)
    assert RowCut(2, 1).pruned(one).tolist() == [[True, True, False, False], [True, True, False, False]]
    with pytest.raises(MaskError, match=r"^w: 2 weights of one output are masked already .* takes 1 of each"):
        RowCut(1, 1).pruned(one)


def test_non_contiguous_scores():
    values = torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last)
    (pruned,) = doomed_of([values], 100)
    assert torch.equal(pruned, doomed_of([values.contiguous()], 100)[0])
    ties = torch.zeros(4, 6, 3, 3).to(memory_format=torch.channels_last)
    assert torch.equal(doomed_of([ties], 50)[0], doomed_of([ties.contiguous()], 50)[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_non_finite_scores_are_refused_by_name(dtype, bad):
    good, rotten = torch.randn(5).to(dtype), torch.randn(3, 3).to(dtype)
    rotten[1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"^rotten: .*NaN or an infinity"):
        cut_globally([scores(good, "good"), scores(rotten, "rotten")], 3)
    with pytest.raises(NonFiniteError, match=r"^rotten: "):
        Cut(0.1).pruned(scores(rotten, "rotten"))
    with pytest.raises(NonFiniteError, match=r"^rotten: "):
        PatternCut(1, 3, 1).pruned(scores(rotten, "rotten"))
    with pytest.raises(NonFiniteError, match=r"^rotten: "):
        RowCut(1, 1).pruned(scores(rotten, "rotten"))


def test_non_finite_scores_that_are_masked_are_not_looked_at():
    values = torch.tensor([torch.nan, 1.0, torch.inf, 2.0])
    masked = torch.tensor([True, False, True, False])
    assert doomed_of([values], 3, [masked])[0].tolist() == [True, True, True, False]


@pytest.mark.parametrize("count", [-1, 5])
def test_impossible_counts(count):
    with pytest.raises(BudgetError, match=f"cannot take {count} of 4 entries"):
        cut_globally([scores(torch.ones(4))], count)


def test_integer_scores_cannot_be_ranked():
    with pytest.raises(BudgetError, match=r"dtype torch.int64 cannot be ranked"):
        cut_globally([scores(torch.arange(4))], 2)


@pytest.mark.parametrize("count", [0, 1, 500, 999, 1000])
def test_on_each_device_the_same(device, count):
    torch.manual_seed(3)
    values = torch.randn(20, 50).bfloat16()
    (here,), (there,) = doomed_of([values], count), doomed_of([values.to(device)], count)
    assert there.device.type == device
    assert torch.equal(here, there.cpu())
