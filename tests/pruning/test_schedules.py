"""The way to a budget: exact amounts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import secateur as sc
from secateur.errors import BudgetError
from secateur.pruning.schedules import budgets_along

# -- amounts ---------------------------------------------------------------------------------------


def test_one_shot():
    assert sc.OneShot()(0.9) == [0.9]


def test_iterative_keeps_the_same_share_of_what_is_left():
    assert sc.Iterative(3)(1 - 0.8**3) == pytest.approx([0.2, 0.36, 0.488])
    assert sc.Iterative(2, initial=0.5)(0.875) == pytest.approx([0.75, 0.875])
    assert sc.Iterative(1)(0.9) == [0.9]


def test_cubic_is_zhu_and_guptas():
    assert sc.Cubic(4)(0.8) == pytest.approx([0.8 - 0.8 * (3 / 4) ** 3, 0.7, 0.8 - 0.8 / 64, 0.8])
    assert sc.Cubic(2, initial=0.4)(0.8) == pytest.approx([0.75, 0.8])


@pytest.mark.parametrize("kind", [sc.Iterative, sc.Cubic])
@given(steps=st.integers(1, 40), final=st.floats(0, 0.999), data=st.data())
def test_amounts_rise_and_end_exactly_at_the_budget(kind, steps, final, data):
    initial = data.draw(st.floats(0, final))
    way = kind(steps, initial)(final)
    assert len(way) == steps
    assert way[-1] == final
    assert all(initial - 1e-12 <= a <= b + 1e-12 for a, b in itertools.pairwise(way))


def test_impossible_schedules():
    for kind in (sc.Iterative, sc.Cubic):
        with pytest.raises(BudgetError, match=r"steps=0.*: steps count from 1"):
            kind(0)
        for initial in (-0.1, 1.0, float("nan")):
            with pytest.raises(
                BudgetError, match=r"initial is the sparsity to begin from, from 0 to under 1"
            ):
                kind(3, initial)
        with pytest.raises(BudgetError, match=r"begins at 0\.9, past the budget of 0\.5"):
            kind(3, 0.9)(0.5)
    with pytest.raises(BudgetError, match=r"never reaches 1: it keeps a share of what is left"):
        sc.Iterative(3)(1)
    assert sc.Cubic(2)(1.0) == pytest.approx([0.875, 1.0])


# -- budgets on the way ------------------------------------------------------------------------------


def test_each_budget_has_the_amount_that_a_schedule_raises():
    cubic = sc.Cubic(2)
    for budget in (sc.Uniform(0.8), sc.ERK(0.8), sc.LAMP(0.8), sc.Global(0.8, min_kept=3)):
        way = budgets_along(budget, cubic)
        assert [b.sparsity for b in way] == pytest.approx([0.7, 0.8])
        assert way[-1] == budget
    assert budgets_along(sc.Global(0.8, min_kept=3), cubic)[0].min_kept == 3
    assert [b.sensitivity for b in budgets_along(sc.Std(1.6, living=True), cubic)] == pytest.approx(
        [1.4, 1.6]
    )
    assert [b.threshold for b in budgets_along(sc.Threshold(0.8), cubic)] == pytest.approx([0.7, 0.8])
    way = budgets_along(sc.PerLayer({"0": 0.8, "2": 0.4}), cubic)
    assert [b.sparsity["0"] for b in way] == pytest.approx([0.7, 0.8])
    assert [b.sparsity["2"] for b in way] == pytest.approx([0.35, 0.4])


def test_nm_goes_in_one_shot_only(mlp):
    with pytest.raises(BudgetError, match=r"NM\(keep=2, of=4\) has no amount .* use OneShot\(\)"):
        sc.gradually(mlp(), sc.Magnitude(), sc.NM(2, 4), sc.Cubic(3))
    (masks,) = sc.gradually(mlp(), sc.Magnitude(), sc.NM(2, 4), sc.OneShot())
    assert masks.sparsity == 0.5
