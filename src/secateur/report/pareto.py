"""Which points nothing beats: the score against sparsity, multiply-adds and measured latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from secateur.report.aggregate import (
    Column,
    Figure,
    Group,
    check_one_score,
    columns_unit,
    filled,
    front,
    scored,
    which_of,
)


@dataclass(frozen=True)
class Axis:
    """What the score is held against: a metric, or its ratio ``over`` another in the same trial, times
    ``scale``."""

    name: str
    title: str
    column: str
    metric: str
    over: str | None = None
    scale: float = 100.0
    larger_is_better: bool = False

    def of(self, group: Group) -> float | None:
        """Return the mean over the group's trials; None where it was not measured."""
        figure = group.figure(self.metric, self.over)
        return None if figure is None else self.scale * figure.mean

    def text(self, group: Group) -> str:
        """Return the figure as a cell of a table: percents to two places, others to four digits."""
        x = self.of(group)
        return "" if x is None else f"{x:.2f}" if self.scale == 100 else f"{x:.4g}"


SPARSITY = Axis("sparsity", "sparsity, %", "sparsity %", "sparsity", larger_is_better=True)
MACS = Axis("MACs", "multiply-adds left, % of the dense network's", "MACs %", "macs", "macs_dense")
MACS_ABSOLUTE = Axis("MACs", "multiply-adds left, millions", "MACs, M", "macs", scale=1e-6)
_LATENCY = "measured latency, batch of one, % of the dense network's"
LATENCY = Axis("latency", _LATENCY, "latency %", "latency_ms", "latency_dense_ms")


@dataclass(frozen=True)
class Spot:
    """One point of a method in the plane of a front: its place on the axis and its test score, both means
    over seeds."""

    group: Group
    x: float
    y: Figure

    @property
    def better(self) -> float:
        """The mean score so that larger is better."""
        return self.group.scale.oriented(self.y.mean)


@dataclass(frozen=True)
class Front:
    """Every point on one axis; of them ``best``, that no other beats, along the axis; and the knee.

    ``missing`` points have a score and no figure on the axis.
    """

    axis: Axis
    spots: tuple[Spot, ...]
    best: tuple[Spot, ...]
    knee: Spot | None
    missing: int


def fronts_of(groups: Sequence[Group]) -> dict[str, Front]:
    """Return the fronts that the groups can fill, by title; each data set has its own.

    Those by MACs and by latency are left out where nothing was removed for real.
    """
    data_sets = list(dict.fromkeys(group.data for group in groups))
    fronts: dict[str, Front] = {}
    for data in data_sets:
        members = [group for group in groups if group.data == data]
        of_data = f", {data or 'unnamed data'}" if len(data_sets) > 1 else ""
        for axis in (SPARSITY, *_axes_of_removal(members)):
            found = front_of(members, axis)
            if found is not None:
                fronts[f"Pareto front by {axis.name}{of_data}"] = found
    return fronts


def _axes_of_removal(groups: Sequence[Group]) -> tuple[Axis, ...]:
    """Return the axes of MACs and latency where some network was made smaller, else none.

    Results from before the dense network's MACs were kept give MACs as they are.
    """
    counted = [group for group in groups if group.figure("macs")]
    shares = [share for group in counted if (share := MACS.of(group)) is not None]
    if len(shares) == len(counted):
        return (MACS, LATENCY) if any(share != MACS.scale for share in shares) else ()
    for study in {group.study for group in counted}:
        if len({MACS_ABSOLUTE.of(group) for group in counted if group.study == study}) > 1:
            return (MACS_ABSOLUTE, LATENCY)
    return ()


def front_of(groups: Sequence[Group], axis: Axis) -> Front | None:
    """Return the front of the groups on ``axis``; None for fewer than two points."""
    known = [(group, axis.of(group), y) for group in groups if (y := group.figure(group.final))]
    spots = [Spot(group, x, y) for group, x, y in known if x is not None]
    if len(spots) < 2:
        return None
    sign = 1 if axis.larger_is_better else -1
    best = [spots[i] for i in front([(sign * spot.x, spot.better) for spot in spots])]
    best.sort(key=lambda spot: spot.x)
    index = knee([(spot.x, spot.better) for spot in best])
    chosen = None if index is None else best[index]
    return Front(axis, tuple(spots), tuple(best), chosen, len(known) - len(spots))


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Return the index of a front's knee: the point farthest beyond the chord between its two ends.

    ``points`` are a front's, along x; both axes are scaled to 0..1 between the ends, and beyond is the
    side of the higher y. None for fewer than three points, or where none lies beyond the chord.
    """
    if len(points) < 3:
        return None
    (x0, y0), (x1, y1) = points[0], points[-1]
    low, height = min(y0, y1), abs(y1 - y0)
    start, slope = (y0 - low) / height, (y1 - y0) / height
    beyond = [(y - low) / height - start - slope * (x - x0) / (x1 - x0) for x, y in points]
    farthest = max(range(len(points)), key=lambda i: beyond[i])
    return farthest if beyond[farthest] > 1e-9 else None


def front_table(fronts: Mapping[str, Front]) -> tuple[list[str], list[list[str]]]:
    """Return (header, rows) of the points on any front, the best first."""
    groups = {id(spot.group): spot.group for found in fronts.values() for spot in found.best}
    shown = sorted(groups.values(), key=lambda group: (group.data, -group.scale.oriented(_final(group).mean)))
    axes = {found.axis.column: found.axis for found in fronts.values()}
    scale = check_one_score(shown)
    columns: list[Column] = [
        *which_of(shown, "study"),
        ("method", lambda group: group.method),
        ("setting", lambda group: group.settings),
        *((column, axis.text) for column, axis in axes.items()),
        (f"test {scale.name}{columns_unit(scale)}", lambda group: scored(_final(group), group.scale)),
        ("on the front by", lambda group: _names(fronts, lambda front: front.best, group)),
        ("knee of", lambda group: _names(fronts, lambda front: [front.knee] if front.knee else [], group)),
    ]
    return filled(columns, shown)


def _final(group: Group) -> Figure:
    figure = group.figure(group.final)
    assert figure is not None  # a point without one is on no front
    return figure


def _names(fronts: Mapping[str, Front], spots: Callable[[Front], Sequence[Spot]], group: Group) -> str:
    return ", ".join(f.axis.name for f in fronts.values() if any(s.group is group for s in spots(f)))
