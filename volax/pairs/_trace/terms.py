"""Axes as terms: what an axis of a traced value is made of.

A term is a leaf of some size, a product (a reshape put several axes into one) or a
sum (a concatenation). Two axes that the program lines up are unified; unification
refines leaves until both sides agree, so the leaves that remain at the end are the
smallest sets of units that the program treats alike.

What cannot be refined is *poisoned*: nothing that touches such a leaf is ever
reported as a group. Poison is the only failure there is, so giving up is safe.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from jax.extend.core import JaxprEqn

Form = Literal["leaf", "product", "sum"]
PIECES = 128  # a sum of more pieces is poisoned: nobody's layer is cut that finely


@dataclasses.dataclass(frozen=True)
class Poison:
    """Why the units of a leaf are refused.

    Attributes:
      reason: the reason, as text.
      eqn: the equation, where there is one.
      quiet: whether nobody would expect units here (windows, positions, data).
      alone: whether the other factors of the same axis are judged by themselves: the
        channels of queries and keys are no units, but their heads may be.
    """

    reason: str
    eqn: JaxprEqn | None = None
    quiet: bool = False
    alone: bool = False


class Term:
    """A node of the union-find: a leaf, or bound to another term."""

    __slots__ = ("form", "parts", "poison", "rank", "size", "to")
    _ranks = itertools.count()

    def __init__(self, size: int, form: Form = "leaf", parts: Sequence["Term"] = ()):
        self.size = size
        self.form = form
        self.parts = tuple(parts)
        self.to: Term | None = None
        self.poison: Poison | None = None
        self.rank = next(Term._ranks)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of an axis in normal form: ``offset + sum_k strides[k] * i[k]``."""

    offset: int
    leaves: tuple[Term, ...]
    strides: tuple[int, ...]

    def moved(self, shift: int) -> "Piece":
        """The piece at another offset."""
        return Piece(self.offset + shift, self.leaves, self.strides)


def find(term: Term) -> Term:
    """The term that a term is bound to."""
    root = term
    while root.to is not None:
        root = root.to
    while term is not root:
        term.to, term = root, term.to  # pyright: ignore[reportAssignmentType]
    return root


def product(parts: Sequence[Term]) -> Term:
    """The term of an axis that runs over several terms, the last one fastest."""
    parts = [p for p in parts if p.size != 1]
    if len(parts) == 1:
        return parts[0]
    return Term(math.prod(p.size for p in parts), "product" if parts else "leaf", parts)


def total(parts: Sequence[Term]) -> Term:
    """The term of an axis that holds several terms one after another."""
    parts = [p for p in parts if p.size]
    if len(parts) == 1:
        return parts[0]
    return Term(sum(p.size for p in parts), "sum", parts)


def leaves(term: Term) -> list[Term]:
    """The leaves of a term."""
    term = find(term)
    if term.form == "leaf":
        return [term]
    return [leaf for part in term.parts for leaf in leaves(part)]


def poison(term: Term, cause: Poison) -> None:
    """Refuses all units of a term; a reason that people want to read wins."""
    for leaf in leaves(term):
        if leaf.poison is None or (leaf.poison.quiet and not cause.quiet):
            leaf.poison = cause


def unify(a: Term, b: Term) -> bool:
    """Makes two terms one; on failure both are left for the caller to poison."""
    a, b = find(a), find(b)
    if a is b:
        return True
    if a.size != b.size:
        return False
    if a.form == "leaf" or b.form == "leaf":
        if a.form != "leaf" or (b.form == "leaf" and a.rank < b.rank):
            a, b = b, a
        _bind(a, b)
        return True
    if a.form == "product" and b.form == "product":
        return _unify_products(a, b)
    if a.form == "sum" and b.form == "sum":
        return _unify_sums(a, b)
    return _unify_sum_product(*((a, b) if a.form == "sum" else (b, a)))


def _bind(leaf: Term, term: Term) -> None:
    """Puts a term in the place of a leaf, which hands its poison on."""
    leaf.to = term
    if leaf.poison is not None:
        poison(term, leaf.poison)


def _flat(term: Term, form: Form) -> list[Term]:
    """The factors of a product, or the parts of a sum, however they are nested."""
    term = find(term)
    if term.form != form:
        return [term]
    return [t for part in term.parts for t in _flat(part, form)]


def _unify_products(a: Term, b: Term) -> bool:
    """Matches factors, fastest first: ``2 * 12`` and ``6 * 4`` as ``2 * 3 * 4``."""
    left, right = _flat(a, "product"), _flat(b, "product")
    while left and right:
        p, q = left.pop(), right.pop()
        if p.size < q.size:
            left, right, p, q = right, left, q, p
        if p.size > q.size:
            if p.size % q.size or not factor(p, p.size // q.size):
                return False
            left += _flat(p, "product")
            right.append(q)
        elif not unify(p, q):
            return False
    return not left and not right


def _unify_sums(a: Term, b: Term) -> bool:
    """Matches parts from the first on: ``2 + 6`` and ``5 + 3`` as ``2 + 3 + 3``."""
    left, right = _flat(a, "sum")[::-1], _flat(b, "sum")[::-1]
    if max(len(left), len(right)) > PIECES:
        return False
    for _ in range(4 * PIECES):
        if not left or not right:
            return not left and not right
        p, q = left.pop(), right.pop()
        if p.size > q.size:
            left, right, p, q = right, left, q, p
        if p.size < q.size:
            if not cut(q, [p.size, q.size - p.size]):
                return False
            left.append(p)
            right += _flat(q, "sum")[::-1]
        elif not unify(p, q):
            return False
        # Unifying may have cut terms that still wait.
        left = [t for part in left for t in _flat(part, "sum")[::-1]]
        right = [t for part in right for t in _flat(part, "sum")[::-1]]
    return False


def _unify_sum_product(a: Term, b: Term) -> bool:
    """Parts a product as the sum is: ``4 + 8`` and ``6 * 2`` as ``(2 + 4) * 2``."""
    major, *rest = _flat(b, "product")
    minor = math.prod(t.size for t in rest)
    parts = _flat(a, "sum")
    if any(p.size % minor for p in parts):
        return False
    heads = [Term(p.size // minor) for p in parts]
    done = unify(major, total(heads)) and all(
        unify(p, product([h, *rest])) for p, h in zip(parts, heads)
    )
    if done and find(a) is not find(b):
        find(a).to = find(b)
    return done


def factor(term: Term, major: int) -> bool:
    """Refines a term to a product whose first factor has size ``major``."""
    minor = term.size // major
    return unify(term, product([Term(major), Term(minor)]))


def cut(term: Term, sizes: Sequence[int]) -> bool:
    """Refines a term to a sum with pieces of the given sizes."""
    return unify(term, total([Term(n) for n in sizes if n]))


def window(term: Term, start: int, stop: int) -> Term | None:
    """The part of a term from ``start`` to ``stop``, or None if it cannot be cut."""
    if start == 0 and stop == term.size:
        return term
    middle = Term(stop - start)
    around = total([Term(start), middle, Term(term.size - stop)])
    return middle if unify(term, around) else None


def pieces(term: Term) -> tuple[Piece, ...] | None:
    """The normal form of a term: its pieces by offset, or None if there are too many.

    Factors are sorted by stride and those of size 1 are left out, so two terms that
    were unified have equal pieces.
    """
    found = _pieces(find(term))
    if found is None:
        return None
    return tuple(sorted(found, key=lambda p: p.offset))


def _pieces(term: Term) -> list[Piece] | None:
    """The pieces of a root term, None where they are too many."""
    if term.form == "leaf":
        return [Piece(0, (term,), (1,))]
    found: list[Piece] = []
    if term.form == "sum":
        offset = 0
        for part in term.parts:
            inner = _pieces(find(part))
            if inner is None:
                return None
            found += [p.moved(offset) for p in inner]
            offset += part.size
    else:
        found = [Piece(0, (), ())]
        for part in term.parts:
            inner = _pieces(find(part))
            if inner is None or len(found) * len(inner) > PIECES:
                return None
            found = [join(p, part.size, q) for p in found for q in inner]
    return found if len(found) <= PIECES else None


def join(a: Piece, size: int, b: Piece) -> Piece:
    """The piece of a product axis whose faster factor has the given size."""
    return Piece(
        a.offset * size + b.offset,
        a.leaves + b.leaves,
        tuple(s * size for s in a.strides) + b.strides,
    )
