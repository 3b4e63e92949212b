"""Chooses the pairs that share no weight: a heaviest independent set, found exactly."""

from collections.abc import Sequence
from typing import NamedTuple

Weight = tuple[int, ...]  # compared entry by entry, added entry by entry

# Subproblems after which the search gives up, about a second. A chain of n pairs has a
# few times n, and whatever falls apart when a few pairs are decided has few as well.
_LIMIT = 20_000


class Chosen(NamedTuple):
    """What a search chose."""

    members: frozenset[int]
    exact: bool


class _TooMany(Exception):
    pass


def heaviest(weights: Sequence[Weight], conflicts: Sequence[frozenset[int]]) -> Chosen:
    """The independent set of the largest total weight.

    Args:
      weights: of each vertex.
      conflicts: of each vertex its neighbours.

    Returns:
      The vertices, by an exact search; where that would take too long, greedily: the
      heaviest vertex first, then the heaviest one without a neighbour among those.
    """
    none = (0,) * len(weights[0]) if weights else ()
    known: dict[frozenset[int], tuple[Weight, frozenset[int]]] = {}

    def best(vertices: frozenset[int]) -> tuple[Weight, frozenset[int]]:
        total, chosen = none, frozenset()
        for part in _components(vertices, conflicts):
            if part not in known:
                if len(known) >= _LIMIT:
                    raise _TooMany
                known[part] = connected(part)
            weight, members = known[part]
            total, chosen = _plus(total, weight), chosen | members
        return total, chosen

    def connected(part: frozenset[int]) -> tuple[Weight, frozenset[int]]:
        # The vertex of the most neighbours; of a path one in the middle, which leaves
        # two halves: then n pairs need depth log n.
        degrees = {v: len(conflicts[v] & part) for v in part}
        most = [v for v in sorted(part) if degrees[v] == max(degrees.values())]
        v = most[len(most) // 2]
        weight, members = best(part - conflicts[v] - {v})
        taken = _plus(weight, weights[v]), members | {v}
        return (
            taken
            if not conflicts[v] & part
            else max(taken, best(part - {v}), key=_weight)
        )

    vertices = frozenset(range(len(weights)))
    try:
        return Chosen(best(vertices)[1], True)
    except (_TooMany, RecursionError):
        chosen: frozenset[int] = frozenset()
        for v in sorted(vertices, key=lambda v: weights[v], reverse=True):
            if not conflicts[v] & chosen:
                chosen |= {v}
        return Chosen(chosen, False)


def _weight(found: tuple[Weight, frozenset[int]]) -> Weight:
    return found[0]


def _plus(a: Weight, b: Weight) -> Weight:
    return tuple(x + y for x, y in zip(a, b))


def _components(
    vertices: frozenset[int], conflicts: Sequence[frozenset[int]]
) -> list[frozenset[int]]:
    """The connected parts of the graph on some vertices."""
    left, parts = set(vertices), []
    while left:
        seen, front = set(), {min(left)}
        while front:
            seen |= front
            front = {n for v in front for n in conflicts[v] if n in left} - seen
        parts.append(frozenset(seen))
        left -= seen
    return parts
