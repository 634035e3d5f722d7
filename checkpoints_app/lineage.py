"""The tree of checkpoints, across runs, from pairs of an id and its parent's id.

A parent that is not among the pairs has expired or was not exported: its child is then a root.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping


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
