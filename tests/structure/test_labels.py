"""Labels, ties, frozen labels and cells: what can only go together, and the choice of a family."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.structure.labels import Labels

HEADS, SIZE = 2, 3


def together(labels: Labels, *parts, inner: bool = False) -> list[set[int]]:
    """The live classes as sets of the labels in ``parts``."""
    classes = labels.solve("dims" if inner else "whole")
    found: dict[int, set[int]] = {}
    for label in np.concatenate(parts):
        if not classes.frozen[classes.of[label]]:
            found.setdefault(int(classes.of[label]), set()).add(int(label))
    return sorted(found.values(), key=min)


def reshaped() -> tuple[Labels, np.ndarray, np.ndarray, np.ndarray]:
    """Channels c = h * SIZE + d, the heads and the positions in them."""
    labels = Labels()
    x, h, d = labels.fresh(HEADS * SIZE), labels.fresh(HEADS), labels.fresh(SIZE)
    labels.cell([x], [np.repeat(h, SIZE), np.tile(d, HEADS)])
    return labels, x, h, d


def test_fresh_labels_are_new():
    labels = Labels()
    assert labels.fresh(2).tolist() == [0, 1]
    assert labels.fresh(3).tolist() == [2, 3, 4]
    assert labels.count == 5


def test_labels_without_relations_go_alone():
    labels = Labels()
    assert together(labels, labels.fresh(3)) == [{0}, {1}, {2}]


def test_nothing_to_solve():
    classes = Labels().solve()
    assert len(classes.of) == len(classes.frozen) == 0


def test_ties_are_transitive():
    labels = Labels()
    a, b, c = (labels.fresh(2) for _ in range(3))
    labels.tie(a, b)
    labels.tie(b, c)
    assert together(labels, a, b, c) == [{0, 2, 4}, {1, 3, 5}]


def test_a_frozen_label_freezes_its_class_and_keeps_the_reason():
    labels = Labels()
    a, b = labels.fresh(2), labels.fresh(2)
    labels.freeze(a[:1], "first")
    labels.freeze(b[:1], "second")
    labels.tie(a, b)
    classes = labels.solve()
    assert together(labels, a, b) == [{1, 3}]
    assert classes.reasons == {int(classes.of[0]): "first"}
    assert classes.live(a).tolist() == [False, True]


def test_a_cell_with_one_label_a_side_is_a_tie():
    labels = Labels()
    a, b = labels.fresh(2), labels.fresh(2)
    labels.cell([a], [b[::-1].copy()])
    assert together(labels, a, b) == [{0, 3}, {1, 2}]


def test_frozen_positions_leave_whole_heads():
    labels, x, h, d = reshaped()
    labels.freeze(d, "scale")
    assert together(labels, x, h, d) == [{0, 1, 2, 6}, {3, 4, 5, 7}]


def test_frozen_heads_leave_the_same_position_of_every_head():
    labels, x, h, d = reshaped()
    labels.freeze(h, "selected")
    assert together(labels, x, h, d) == [{0, 3, 8}, {1, 4, 9}, {2, 5, 10}]


def test_one_frozen_position_freezes_only_what_it_must():
    labels, x, h, d = reshaped()
    labels.freeze(d[1:], "scale")
    found = together(labels, x, h, d)
    assert all(len(unit & {0, 3}) != 1 or unit >= {0, 3} or unit & set(h.tolist()) for unit in found)


def test_a_frozen_side_freezes_the_other():
    labels, x, h, d = reshaped()
    labels.freeze(h, "why")
    labels.freeze(d, "why")
    assert together(labels, x, h, d) == []
    classes = labels.solve()
    assert classes.reasons[int(classes.of[x[0]])] == "reshaped together with a dim that stays"


def test_a_frozen_dim_freezes_both_families_it_is_reshaped_to():
    labels, x, h, d = reshaped()
    labels.freeze(x, "model output")
    assert together(labels, x, h, d) == []


def test_heads_are_units_where_both_could_be():
    labels, x, h, _ = reshaped()
    labels.outer(h)
    assert together(labels, x) == [{0, 1, 2}, {3, 4, 5}]
    assert together(labels, x, inner=True) == [{0, 3}, {1, 4}, {2, 5}]


def test_without_heads_the_larger_family():
    labels, x, _, _ = reshaped()
    assert len(together(labels, x)) == SIZE


def test_a_class_on_both_sides_does_not_drag_the_others_along():
    labels = Labels()
    h, d = labels.fresh(HEADS), labels.fresh(SIZE)
    labels.cell([np.repeat(h, SIZE)], [np.repeat(h, SIZE), np.tile(d, HEADS)])
    assert together(labels, h, d) == [{0}, {1}]


def test_solving_twice_gives_the_same():
    labels, x, h, d = reshaped()
    labels.outer(h)
    assert together(labels, x, h, d) == together(labels, x, h, d)


@st.composite
def systems(draw):
    """Random ties, frozen labels and cells over a few families of labels."""
    labels = Labels()
    families = [labels.fresh(draw(st.integers(2, 4))) for _ in range(draw(st.integers(3, 6)))]
    family = st.sampled_from(families)
    ties, frozen, cells = [], [], []
    for _ in range(draw(st.integers(0, 3))):
        a, b = draw(family), draw(family)
        number = min(len(a), len(b))
        ties.append((a[:number], b[:number]))
        labels.tie(a[:number], b[:number])
    for _ in range(draw(st.integers(0, 3))):
        some = draw(family)[: draw(st.integers(1, 2))]
        frozen.append(some)
        labels.freeze(some, "so")
    for _ in range(draw(st.integers(0, 3))):
        outer, inner = draw(family), draw(family)
        grid = [np.repeat(outer, len(inner)), np.tile(inner, len(outer))]
        other, deep = draw(family), draw(family)
        if draw(st.booleans()):
            left = [labels.fresh(len(outer) * len(inner))]
        else:
            left = [np.resize(other, len(grid[0])), np.resize(deep, len(grid[0]))]
        labels.cell(left, grid)
        cells.append((left, grid))
        if draw(st.booleans()):
            labels.outer(outer)
    return labels, ties, frozen, cells


@given(systems(), st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_live_class_alone_satisfies_every_relation(system, inner):
    labels, ties, frozen, cells = system
    classes = labels.solve("dims" if inner else "whole")
    assert all(classes.frozen[classes.of[some]].all() for some in frozen)
    for live in np.flatnonzero(~classes.frozen):
        gone = classes.of == live
        assert all((gone[a] == gone[b]).all() for a, b in ties)
        for left, right in cells:
            goes = [np.logical_or.reduce([gone[column] for column in side]) for side in (left, right)]
            assert (goes[0] == goes[1]).all()
