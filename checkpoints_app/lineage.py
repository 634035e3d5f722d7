"""The tree of checkpoints, across runs, from pairs of an id and its parent's id.

A parent that is not among the pairs has expired or was not exported: its child is then a root.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass


def parents_of[Id: Hashable](pairs: Iterable[tuple[Id, Id | None]]) -> dict[Id, Id | None]:
    """The pairs as the mapping that the other functions read; absent parents become None."""
    parents = dict(pairs)
    return {child: parent if parent in parents else None for child, parent in parents.items()}


def children_of[Id: Hashable](parents: Mapping[Id, Id | None]) -> dict[Id, list[Id]]:
    """The children of each checkpoint that has any, in the order of the mapping."""
    children: defaultdict[Id, list[Id]] = defaultdict(list)
    for child, parent in parents.items():
        if parent is not None:
            children[parent].append(child)
    return dict(children)


def ancestors[Id: Hashable](checkpoint: Id, parents: Mapping[Id, Id | None]) -> Iterator[Id]:
    """Parent, grandparent and so on, nearest first. Raises ValueError on a cycle."""
    seen = {checkpoint}
    current = parents.get(checkpoint)
    while current is not None:
        if current in seen:
            raise ValueError(f"Checkpoint {current} is its own ancestor.")
        seen.add(current)
        yield current
        current = parents.get(current)


def nearest_common_ancestor[Id: Hashable](
    first: Id, second: Id, parents: Mapping[Id, Id | None]
) -> Id | None:
    """The last checkpoint that both lines share, which may be one of the two; None if none."""
    line = {first, *ancestors(first, parents)}
    candidates = (second, *ancestors(second, parents))
    return next((candidate for candidate in candidates if candidate in line), None)


@dataclass(frozen=True, kw_only=True)
class Place[Id: Hashable]:
    """Where a checkpoint stands in the drawn tree."""

    checkpoint: Id
    parent: Id | None
    row: int
    """Its index in the tree, from 0: parents before children, otherwise in order of creation."""
    lane: int
    """The column of its branch, from 0. Where a branch has ended, a later one may have its lane."""


def tree[Id: Hashable](parents: Mapping[Id, Id | None]) -> list[Place[Id]]:
    """The rows of the tree, `parents` being in order of creation.

    The first child goes on with its parent's branch, each later one starts a branch of its own.
    No two branches are in a lane at once, the line from the parent's row included, and with that
    there are as few lanes as can be. Raises ValueError on a cycle.
    """
    rows = {checkpoint: row for row, checkpoint in enumerate(_parents_first(parents))}
    branches: dict[Id, Id] = {}  # the checkpoint that its branch started with
    is_continued: set[Id] = set()
    ends: dict[Id, int] = {}
    for checkpoint, row in rows.items():
        parent = parents[checkpoint]
        if parent is None or parent in is_continued:
            branches[checkpoint] = checkpoint
        else:
            branches[checkpoint] = branches[parent]
            is_continued.add(parent)
        ends[branches[checkpoint]] = row
    lanes = _lanes(ends, {start: _needed_from(start, parents, rows) for start in ends})
    return [
        Place(checkpoint=id, parent=parents[id], row=row, lane=lanes[branches[id]])
        for id, row in rows.items()
    ]


def _parents_first[Id: Hashable](parents: Mapping[Id, Id | None]) -> list[Id]:
    order = {checkpoint: n for n, checkpoint in enumerate(parents)}
    checkpoints, children = list(parents), children_of(parents)
    ready = [n for n, parent in enumerate(parents.values()) if parent is None]
    found: list[Id] = []
    while ready:
        checkpoint = checkpoints[heapq.heappop(ready)]
        found.append(checkpoint)
        for child in children.get(checkpoint, []):
            heapq.heappush(ready, order[child])
    if len(found) < len(parents):
        raise ValueError(f"{len(parents) - len(found)} checkpoints are not below any root.")
    return found


def _needed_from[Id: Hashable](
    start: Id, parents: Mapping[Id, Id | None], rows: Mapping[Id, int]
) -> int:
    """The row from which on a branch needs its lane: its parent's, where its line begins."""
    parent = parents[start]
    return rows[start] if parent is None else rows[parent]


def _lanes[Id: Hashable](ends: Mapping[Id, int], starts: Mapping[Id, int]) -> dict[Id, int]:
    lanes: dict[Id, int] = {}
    taken_to: list[int] = []  # for each lane, the last row of the branch in it
    for branch in sorted(ends, key=lambda branch: starts[branch]):
        free = (lane for lane, last in enumerate(taken_to) if last < starts[branch])
        lanes[branch] = lane = next(free, len(taken_to))
        taken_to[lane : lane + 1] = [ends[branch]]
    return lanes
