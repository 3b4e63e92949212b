"""Operations that move entries: every axis of the result is some axis of before."""

from collections.abc import Sequence
from typing import Unpack

from jax.extend.core import JaxprEqn

from volax.pairs._trace import terms
from volax.pairs._trace.compat import primitives, unlisted
from volax.pairs._trace.rules.registry import rule, same, shape_of
from volax.pairs._trace.tape import Role, Scaling, Tape, Value
from volax.pairs._trace.terms import Term


@rule(primitives("transpose"), params="permutation")
def transpose(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Permutes the axes."""
    order = eqn.params["permutation"]
    links = {i: (k, 0) for i, k in enumerate(order) if x.axes[k] is not None}
    axes = [x.axes[k] for k in order]
    return tape.op(eqn, [x], axes, [links], known=x.known)


@rule(primitives("broadcast_in_dim"), params="shape broadcast_dimensions sharding")
def broadcast(tape: Tape, eqn: JaxprEqn, x: Value, *_: Value) -> Value:
    """New axes repeat the same entries, whatever their number."""
    shape, places = shape_of(eqn), eqn.params["broadcast_dimensions"]
    if not places and x.shape:  # written without the axes when the rank stays
        places = tuple(range(len(x.shape)))
    links = {i: (k, 0) for k, i in enumerate(places) if x.axes[k] is not None}
    axes = [x.axes[links[i][0]] if i in links else None for i in range(len(shape))]
    return tape.op(eqn, [x], axes, [links], known=x.known)


@rule(primitives("squeeze"), params="dimensions")
def squeeze(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Drops axes of size 1."""
    gone = {k % len(x.shape) for k in eqn.params["dimensions"]}
    kept = [k for k in range(len(x.shape)) if k not in gone]
    links = {i: (k, 0) for i, k in enumerate(kept) if x.axes[k] is not None}
    return tape.op(eqn, [x], [x.axes[k] for k in kept], [links], known=x.known)


@rule(primitives("reshape"), params="new_sizes dimensions sharding")
def reshape(tape: Tape, eqn: JaxprEqn, x: Value, *_: Value) -> Value:
    """Runs of axes with equal products become a product of terms, or come from one."""
    if eqn.params["dimensions"] is not None:
        raise ValueError("dimensions are permuted")
    shape = shape_of(eqn)
    axes: list[Term | None] = [None] * len(shape)
    links: dict[int, tuple[int, int]] = {}
    merges, mixed = [], []
    for before, after in _groups(x.shape, shape):
        if len(before) == 1 and len(after) == 1:
            axes[after[0]] = x.axes[before[0]]
            links[after[0]] = (before[0], 0)
            continue
        fresh = [Term(shape[i]) for i in after]
        old = terms.product([x.axes[k] for k in before])  # pyright: ignore
        for i, term in zip(after, fresh):
            axes[i] = term
        if terms.unify(old, terms.product(fresh)):
            merges.append((before, after))
        else:
            mixed += [(0, k) for k in before]
    why = "a reshape mixes the units with other axes"
    return tape.op(
        eqn,
        [x],
        axes,
        [links],
        known=x.known,
        merges=tuple(merges),
        mixed=tuple(mixed),
        why=why,
    )


def _groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The smallest runs of axes, longer than 1, that hold the same entries."""
    old = [k for k, n in enumerate(before) if n != 1]
    new = [k for k, n in enumerate(after) if n != 1]
    found = []
    while old or new:
        left, right = [old.pop(0)], [new.pop(0)]
        a, b = before[left[0]], after[right[0]]
        while a != b:
            if a < b:
                left.append(old.pop(0))
                a *= before[left[-1]]
            else:
                right.append(new.pop(0))
                b *= after[right[-1]]
        found.append((tuple(left), tuple(right)))
    return found


def cut(
    tape: Tape,
    eqn: JaxprEqn,
    x: Value,
    starts: Sequence[int],
    stops: Sequence[int],
    *,
    steps: Sequence[int] | None = None,
    more: tuple[Value, ...] = (),
    role: Role = "scale",
    gone: tuple[int, ...] = (),
    shape: Sequence[int] | None = None,
    **law: Unpack[Scaling],
) -> Value:
    """Takes a part of some axes; a term is cut where the part begins and ends."""
    axes, links, mixed, i = [], {}, [], 0
    starts, stops = [int(n) for n in starts], [int(n) for n in stops]
    for k, n in enumerate(x.shape):
        step = steps[k] if steps else 1
        part = None
        if x.axes[k] is not None:
            whole = starts[k] == 0 and stops[k] == n
            if step == 1 or stops[k] - starts[k] == 1:
                part = terms.window(x.axes[k], starts[k], stops[k])  # pyright: ignore
            if part is None or (step != 1 and not whole):
                mixed.append((0, k))
                part = None
            elif k not in gone and part.size != 1:
                links[i] = (k, -starts[k])
            elif part.size == 1:
                links[-1 - k] = (k, -starts[k])  # one unit, followed no further
        if k not in gone:
            axes.append(part if part is not None and part.size != 1 else None)
            i += 1
    why = "a part of the units is taken that cannot be followed"
    return tape.op(
        eqn,
        [x, *more],
        axes,
        [links, *({} for _ in more)],
        mixed=tuple(mixed),
        why=why,
        known=x.known,
        role=role,
        shape=shape,
        **law,
    )


@rule(primitives("slice"), params="start_indices limit_indices strides")
def slice_(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """A part of each axis."""
    p = eqn.params
    return cut(tape, eqn, x, p["start_indices"], p["limit_indices"], steps=p["strides"])


@rule(primitives("dynamic_slice"), params="slice_sizes")
def dynamic_slice(tape: Tape, eqn: JaxprEqn, x: Value, *starts: Value) -> Value:
    """A part of each axis that begins at an index; only known indices are followed."""
    sizes = eqn.params["slice_sizes"]
    lower, steps = [], []
    for n, size, start in zip(x.shape, sizes, starts):
        known = start.known if start.known is not None else -1
        followed = size == n or 0 <= known <= n - size
        lower.append(0 if size == n or not followed else int(known))
        steps.append(1 if followed else 2)
    upper = [a + size for a, size in zip(lower, sizes)]
    mixed = any(s == 2 for s in steps)
    return cut(
        tape,
        eqn,
        x,
        lower,
        upper,
        steps=steps,
        more=starts if mixed else (),
        role="producer",
        law="sum",
        weights=(1,) + (0,) * len(starts),
    )


@rule(unlisted("split"), params="sizes axis")
def split(tape: Tape, eqn: JaxprEqn, x: Value) -> list[Value]:
    """Consecutive parts of one axis."""
    axis, offset, found = eqn.params["axis"], 0, []
    for k, size in enumerate(eqn.params["sizes"]):
        starts = [offset if i == axis else 0 for i in range(len(x.shape))]
        stops = [offset + size if i == axis else n for i, n in enumerate(x.shape)]
        found.append(cut(tape, eqn, x, starts, stops, shape=shape_of(eqn, k)))
        offset += size
    return found


@rule(unlisted("unstack"), params="axis")
def unstack(tape: Tape, eqn: JaxprEqn, x: Value) -> list[Value]:
    """The slices of one axis, without it."""
    axis, found = eqn.params["axis"], []
    for k in range(x.shape[axis]):
        starts = [k if i == axis else 0 for i in range(len(x.shape))]
        stops = [k + 1 if i == axis else n for i, n in enumerate(x.shape)]
        found.append(
            cut(tape, eqn, x, starts, stops, gone=(axis,), shape=shape_of(eqn, k))
        )
    return found


@rule(primitives("concatenate"), params="dimension")
def concatenate(tape: Tape, eqn: JaxprEqn, *ins: Value) -> Value:
    """A sum of terms along one axis; the other axes are lined up."""
    return _joined(tape, eqn, ins, eqn.params["dimension"])


@rule(unlisted("stack"), params="axis")
def stack(tape: Tape, eqn: JaxprEqn, *ins: Value) -> Value:
    """A new axis, one index for each operand."""
    axis = eqn.params["axis"]
    shape = shape_of(eqn)
    axes: list[Term | None] = [None] * len(shape)
    links = []
    for v in ins:
        link = {}
        for k, term in enumerate(v.axes):
            i = k + (k >= axis)
            if term is not None:
                axes[i] = axes[i] or term
                tape.unify(axes[i], term, eqn)
                link[i] = (k, 0)
        links.append(link)
    if shape[axis] != 1:
        axes[axis] = terms.total([Term(1) for _ in ins])
    return tape.op(eqn, ins, axes, links, role="bias", known=_all_known(ins))


def _all_known(ins: Sequence[Value]) -> float | None:
    return ins[0].known if len({v.known for v in ins}) == 1 else None


def _joined(tape: Tape, eqn: JaxprEqn, ins: Sequence[Value], axis: int) -> Value:
    shape = shape_of(eqn)
    axes: list[Term | None] = [None] * len(shape)
    parts, links, offset = [], [], 0
    for v in ins:
        link = {}
        for k, term in enumerate(v.axes):
            if k == axis:
                parts.append(term or Term(v.shape[k]))
                if term is not None or v.shape[k] == 1:
                    link[k] = (k, offset)
                offset += v.shape[k]
            elif term is not None:
                axes[k] = axes[k] or term
                tape.unify(axes[k], term, eqn)
                link[k] = (k, 0)
        links.append(link)
    axes[axis] = terms.total(parts) if shape[axis] != 1 else None
    return tape.op(eqn, ins, axes, links, role="bias", known=_all_known(ins))


@rule(primitives("pad"), params="padding_config")
def pad(tape: Tape, eqn: JaxprEqn, x: Value, fill: Value) -> Value:
    """Puts new indices around an axis; the filling has to scale like the rest."""
    axes, links, mixed = [], {}, []
    for k, (low, high, inner) in enumerate(eqn.params["padding_config"]):
        low, high = int(low), int(high)
        term = x.axes[k]
        if (low, high, inner) == (0, 0, 0):
            axes.append(term)
            if term is not None:
                links[k] = (k, 0)
        elif min(low, high) < 0 or inner or term is None:
            axes.append(None)
            if term is not None:
                mixed.append((0, k))
        else:
            around = [Term(low), term, Term(high)]
            axes.append(terms.total(around))
            links[k] = (k, low)
    known = x.known if x.known == fill.known else None
    why = "padding inside or off the units' axis"
    return tape.op(
        eqn,
        [x, fill],
        axes,
        [links, {}],
        mixed=tuple(mixed),
        why=why,
        quiet=True,
        role="bias",
        known=known,
    )


@rule(unlisted("tile"), params="reps")
def tile(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Repeats an axis as a whole."""
    repeated = [k for k, n in enumerate(eqn.params["reps"]) if n != 1]
    axes = [None if k in repeated else t for k, t in enumerate(x.axes)]
    mixed = tuple((0, k) for k in repeated)
    why = "the units are tiled"
    return tape.op(
        eqn, [x], axes, [same(x, *repeated)], known=x.known, mixed=mixed, why=why
    )


@rule(primitives("rev"), params="dimensions")
def reverse(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Turns axes around, which no unit survives."""
    turned = eqn.params["dimensions"]
    axes = [None if k in turned else t for k, t in enumerate(x.axes)]
    mixed = tuple((0, k) for k in turned)
    why = "the units are put in reverse order"
    return tape.op(
        eqn, [x], axes, [same(x, *turned)], mixed=mixed, why=why, known=x.known
    )
