"""Labels of channels, the relations between them, and the classes that can only go together.

A label stands for one index of one dim of one tensor. A *tie* says that two labels go together, a
*cell* that OR(left labels) = OR(right labels) of "goes", which is what a reshape means: channel
c = h * D + d goes where head h goes or position d goes. A *frozen* label stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Array = np.ndarray
_NONE = -1


@dataclass(frozen=True)
class Classes:
    """What ``Labels.solve`` found: each label's class, which classes stay, and why."""

    of: Array
    frozen: Array
    reasons: dict[int, str]

    def live(self, labels: Array) -> Array:
        return ~self.frozen[self.of[labels]]


class Labels:
    """The labels of one graph and the relations written down while it is walked."""

    def __init__(self) -> None:
        self.count = 0
        self._ties: list[tuple[Array, Array]] = []
        self._frozen: list[tuple[Array, str]] = []
        self._cells: list[tuple[list[Array], list[Array]]] = []
        self._outer: list[Array] = []
        self._copies: list[Array] = []

    def fresh(self, number: int) -> Array:
        """Return ``number`` new labels."""
        self.count += number
        return np.arange(self.count - number, self.count, dtype=np.int64)

    def tie(self, a: Array, b: Array) -> None:
        """Say that a[i] and b[i] go together."""
        if a is not b:
            self._ties.append((a.reshape(-1), b.reshape(-1)))

    def freeze(self, labels: Array, reason: str) -> None:
        """Say that none of ``labels`` may go."""
        self._frozen.append((labels.reshape(-1), reason))

    def cell(self, left: Sequence[Array], right: Sequence[Array]) -> None:
        """Say for every i that one of left[.][i] goes exactly when one of right[.][i] goes."""
        self._cells.append(([a.reshape(-1) for a in left], [a.reshape(-1) for a in right]))

    def outer(self, labels: Array) -> None:
        """Mark labels as attention heads: of a cell's two families these are the ones to prune."""
        self._outer.append(labels.reshape(-1))

    def copies(self, labels: Array) -> None:
        """Mark labels of copies of one thing beside each other: of a key head, for queries that share it."""
        self._copies.append(labels.reshape(-1))

    def solve(self, heads: str = "whole") -> Classes:
        """Solve the relations: classes of labels that go together, and what is frozen.

        Where a cell leaves a choice between families (heads, the same position of every head, the same copy
        of every head), one is kept and the others are frozen: heads, unless ``heads`` asks for the positions
        ("dims") or the copies ("queries").
        """
        return _Solver(self, heads).solve()


class _Solver:
    """The fixpoint: ties, frozen labels and open cells, until no cell says anything new."""

    def __init__(self, labels: Labels, heads: str) -> None:
        self.count = labels.count
        self.inner, self.queries = heads == "dims", heads == "queries"
        self.ties = list(labels._ties)
        self.frozen_labels = np.zeros(labels.count, dtype=bool)
        self.reason_of: dict[int, str] = {}
        self.reasons: list[tuple[Array, str]] = []
        for found, reason in labels._frozen:
            self._freeze(found, reason)
        nothing = np.zeros(0, dtype=np.int64)
        self.outer, self.copies = (np.concatenate([nothing, *m]) for m in (labels._outer, labels._copies))
        width = max((max(len(left), len(right)) for left, right in labels._cells), default=1)
        rows = [_padded(cells, group, width) for group, cells in enumerate(labels._cells)]
        self.cells = np.concatenate(rows) if rows else np.zeros((0, 2 * width + 1), dtype=np.int64)
        self.width = width

    def solve(self) -> Classes:
        while True:
            while self._settle():
                pass
            if not self._choose():
                break
        classes, frozen = self._classes()
        reasons: dict[int, str] = {}
        for found, reason in self.reasons:
            for index in np.unique(classes[found]):
                reasons.setdefault(int(index), reason)
        return Classes(classes, frozen, reasons)

    def _freeze(self, labels: Array, reason: str) -> None:
        self.frozen_labels[labels] = True
        self.reasons.append((labels, reason))

    def _classes(self) -> tuple[Array, Array]:
        if self.ties:
            a = np.concatenate([pair[0] for pair in self.ties])
            b = np.concatenate([pair[1] for pair in self.ties])
            self.ties = [(a, b)]
            graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(self.count, self.count))
            number, classes = connected_components(graph, directed=False)
            classes = classes.astype(np.int64)
        else:
            number, classes = self.count, np.arange(self.count, dtype=np.int64)
        frozen = np.zeros(number, dtype=bool)
        frozen[classes[self.frozen_labels]] = True
        return classes, frozen

    def _settle(self) -> bool:
        """Apply what the cells say for certain; return whether that changed anything."""
        if not len(self.cells):
            return False
        classes, frozen = self._classes()
        options = self.cells[:, 1:]
        ids = np.where(options >= 0, classes[options], _NONE)
        keyed = np.concatenate([self.cells[:, :1], ids], axis=1)
        _, first = np.unique(keyed, axis=0, return_index=True)
        first.sort()
        self.cells, ids = self.cells[first], ids[first]
        options = self.cells[:, 1:]
        live = (ids >= 0) & ~frozen[ids]
        left, right = live[:, : self.width], live[:, self.width :]
        done = np.zeros(len(ids), dtype=bool)
        changed = False

        for mine, other, columns in (
            (left, right, slice(self.width, None)),
            (right, left, slice(None, self.width)),
        ):
            stuck = ~mine.any(1) & other.any(1)
            if stuck.any():
                part = options[stuck][:, columns]
                self._freeze(part[other[stuck]], "reshaped together with a dim that stays")
                changed = True
            done |= ~mine.any(1)

        shared = np.zeros_like(live)
        for i in range(self.width):
            for j in range(self.width, 2 * self.width):
                same = live[:, i] & live[:, j] & (ids[:, i] == ids[:, j])
                shared[:, i] |= same
                shared[:, j] |= same
        both = shared.any(1) & ~done
        others = live & ~shared & both[:, None]
        # A family beside a class that stands on both sides would drag every member of it along.
        rest = np.where(others, ids, _NONE)
        if others.any():
            self._freeze(options[rest >= 0], "a choice that would take everything beside it along")
            changed = True
        done |= both

        single = (left.sum(1) == 1) & (right.sum(1) == 1) & ~done
        if single.any():
            a = options[single][:, : self.width][left[single]]
            b = options[single][:, self.width :][right[single]]
            if (classes[a] != classes[b]).any():
                changed = True
            self.ties.append((a, b))
            done |= single
        self.cells = self.cells[~done]
        return changed

    def _choose(self) -> bool:
        """Where a cell leaves two families open, keep one; return whether there was a choice."""
        if not len(self.cells):
            return False
        classes, frozen = self._classes()
        outer, copies = np.zeros((2, len(frozen)), dtype=bool)
        outer[classes[self.outer]] = copies[classes[self.copies]] = True
        chosen = False
        groups = np.unique(self.cells[:, 0])
        # Copies first: what they are copies of is known as heads only when that is settled.
        for group in sorted(groups, key=lambda group: not self._copied(group, classes, frozen, copies)):
            if chosen and not self._copied(group, classes, frozen, copies):
                break
            rows = self.cells[self.cells[:, 0] == group][:, 1:]
            ids = np.where(rows >= 0, classes[rows], _NONE)
            live = (ids >= 0) & ~frozen[ids]
            for start in (0, self.width):
                columns = [c for c in range(start, start + self.width) if live[:, c].any()]
                if len(columns) < 2:
                    continue
                far = [c for c in range(2 * self.width) if not start <= c < start + self.width]
                key = ids[:, far]
                worth = [self._worth(ids[:, c], live[:, c], key, outer, copies) for c in columns]
                best = columns[worth.index(max(worth))]
                for column in columns:
                    if column != best:
                        pruned = rows[:, column][live[:, column]]
                        self._freeze(pruned, "the other side of a reshape is pruned (heads, not positions)")
                        chosen = True
                break
            if chosen:
                classes, frozen = self._classes()
        return chosen

    def _copied(self, group: int, classes: Array, frozen: Array, copies: Array) -> bool:
        """Whether one of several families of a cell that are open is of copies."""
        rows = self.cells[self.cells[:, 0] == group][:, 1:]
        ids = np.where(rows >= 0, classes[rows], _NONE)
        live = (ids >= 0) & ~frozen[ids]
        sides = live[:, : self.width].any(0).sum(), live[:, self.width :].any(0).sum()
        return max(sides) > 1 and bool(copies[ids[live]].any())

    def _worth(
        self, ids: Array, live: Array, far: Array, outer: Array, copies: Array
    ) -> tuple[bool, bool, bool, int]:
        own = ids[live]
        pairs = np.unique(np.concatenate([own[:, None], far[live]], axis=1), axis=0)
        number = len(np.unique(own))
        consistent = len(pairs) == number
        return (
            bool(copies[own].any()) == self.queries,
            consistent,
            bool(outer[own].any()) != self.inner,
            number,
        )


def _padded(cells: tuple[list[Array], list[Array]], group: int, width: int) -> Array:
    rows = np.full((len(cells[0][0]), 2 * width + 1), _NONE, dtype=np.int64)
    rows[:, 0] = group
    for start, family in zip((1, 1 + width), cells, strict=True):
        for column, labels in enumerate(family, start):
            rows[:, column] = labels
    return rows
