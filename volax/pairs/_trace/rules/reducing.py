"""Reductions, windows, sorts: what they do to the axes they do not run over."""

from typing import Unpack

from jax import lax
from jax.extend.core import JaxprEqn

from volax.pairs._trace.compat import primitives, unlisted
from volax.pairs._trace.rules.registry import rule, same, shape_of
from volax.pairs._trace.tape import (
    ACTIVATION,
    CONST,
    DATA,
    WEIGHT,
    Kind,
    Scaling,
    Tape,
    Value,
)
from volax.pairs._trace.terms import Term

_OVER = "{} runs over the units"


def _reduce(tape: Tape, eqn: JaxprEqn, x: Value, **law: Unpack[Scaling]) -> Value:
    over = tuple(k % len(x.shape) for k in eqn.params["axes"])
    kept = [k for k in range(len(x.shape)) if k not in over]
    links = {i: (k, 0) for i, k in enumerate(kept) if x.axes[k] is not None}
    mixed = tuple((0, k) for k in over)
    why = _OVER.format(eqn.primitive.name)
    return tape.op(
        eqn, [x], [x.axes[k] for k in kept], [links], mixed=mixed, why=why, **law
    )


@rule(primitives("reduce_sum", "reduce_max", "reduce_min"), params="axes out_sharding")
def reduce_keeping(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Sums and extremes over other axes scale as their operand does."""
    return _reduce(tape, eqn, x)


@rule(
    primitives("reduce_prod", "reduce_and", "reduce_or", "reduce_xor"),
    params="axes out_sharding",
)
def reduce_breaking(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Products over other axes are not followed as powers."""
    return _reduce(tape, eqn, x, law="zero", zero="lost")


@rule(
    primitives("psum", "pmax", "pmin"),
    unlisted("psum_invariant"),
    params="axes axis_index_groups",
)
def over_devices(tape: Tape, eqn: JaxprEqn, *ins: Value) -> list[Value]:
    """Sums and extremes over the devices of a mesh, entry by entry."""
    if not all(isinstance(name, str) for name in eqn.params["axes"]):
        raise ValueError("an axis of the array is reduced along with the mesh")
    return [tape.op(eqn, [v], v.axes, [same(v)], shape=v.shape) for v in ins]


@rule(primitives("argmax", "argmin"), params="axes index_dtype")
def reduce_to_index(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """The place of an extreme does not scale."""
    return _reduce(tape, eqn, x, law="drop", zero="lost")


@rule(primitives("cumsum", "cummax", "cummin"), params="axis reverse")
def cumulative(tape: Tape, eqn: JaxprEqn, x: Value, **law: Unpack[Scaling]) -> Value:
    """Running sums and extremes along another axis."""
    k = eqn.params["axis"]
    axes = [None if i == k else t for i, t in enumerate(x.axes)]
    why = _OVER.format(eqn.primitive.name)
    mixed = ((0, k),)
    return tape.op(eqn, [x], axes, [same(x, k)], mixed=mixed, why=why, **law)


@rule(primitives("cumprod", "cumlogsumexp"), params="axis reverse")
def cumulative_breaking(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Running products along another axis."""
    return cumulative(tape, eqn, x, law="zero", zero="lost")


@rule(
    primitives("reduce_window_sum", "reduce_window_max", "reduce_window_min"),
    params="window_dimensions window_strides padding base_dilation window_dilation",
)
def pooling(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Pooling along some axes; the others pass."""
    p = eqn.params
    axes, links, mixed = list(x.axes), {}, []
    for k, term in enumerate(x.axes):
        trivial = (
            p["window_dimensions"][k] == 1
            and p["window_strides"][k] == 1
            and tuple(p["padding"][k]) == (0, 0)
            and p["base_dilation"][k] == 1
        )
        if trivial:
            if term is not None:
                links[k] = (k, 0)
            continue
        mixed.append((0, k))
        axes[k] = None
    out = tape.op(
        eqn,
        [x],
        axes,
        [links],
        mixed=tuple(mixed),
        why="positions of a window",
        quiet=True,
    )
    for _, k in mixed:
        tape.poison(out.axes[k], "positions of a window", eqn, quiet=True)
    return out


@rule(primitives("sort"), params="dimension is_stable num_keys")
def sort(tape: Tape, eqn: JaxprEqn, *ins: Value) -> list[Value]:
    """Sorting along another axis: each column by itself, whatever its scale."""
    k = eqn.params["dimension"]
    axes = [None if i == k else t for i, t in enumerate(ins[0].axes)]
    for v in ins[1:]:
        for a, b in zip(axes, v.axes):
            tape.unify(a, b, eqn)
    why = _OVER.format("sort")
    found = []
    for i, v in enumerate(ins):
        weights = tuple(int(j == i) for j in range(len(ins)))
        found.append(
            tape.op(
                eqn,
                ins,
                axes,
                [same(u, k) for u in ins],
                shape=v.shape,
                law="sum",
                weights=weights,
                mixed=tuple((j, k) for j in range(len(ins))),
                why=why,
            )
        )
    return found


@rule(primitives("top_k"), params="k axis is_stable")
def top_k(tape: Tape, eqn: JaxprEqn, x: Value) -> list[Value]:
    """The largest values along an axis, and their places."""
    k = eqn.params.get("axis", len(x.shape) - 1) % len(x.shape)
    axes = [None if i == k else t for i, t in enumerate(x.axes)]
    why = _OVER.format("top_k")
    return [
        tape.op(
            eqn,
            [x],
            axes,
            [same(x, k)],
            shape=shape_of(eqn, i),
            law="sum",
            weights=(1 - i,),
            zero=("all", "lost")[i],
            mixed=((0, k),),
            why=why,
        )
        for i in range(2)
    ]


@rule(
    primitives("gather"),
    params="dimension_numbers slice_sizes mode fill_value indices_are_sorted "
    "unique_indices",
)
def gather(tape: Tape, eqn: JaxprEqn, x: Value, index: Value) -> Value:
    """A look-up: whole axes pass, looked-up axes are not followed.

    A slice as long as its axis can only begin at 0, whatever the index says.

    An index out of bounds is moved inside, or gives the filling instead: zero, NaN and
    infinity scale like everything else, another number does not.
    """
    filling = _filling(eqn)
    d, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = shape_of(eqn)
    axes: list[Term | None] = [None] * len(shape)
    links: tuple[dict, dict] = ({}, {})
    places = [i for i in range(len(shape)) if i not in d.offset_dims]
    for k, i in enumerate(places):
        term = index.axes[k]
        if term is not None:
            axes[i], links[1][i] = term, (k, 0)
        if k in d.start_indices_batching_dims:
            j = d.operand_batching_dims[d.start_indices_batching_dims.index(k)]
            if x.axes[j] is not None:
                tape.unify(term, x.axes[j], eqn)
                links[0][i] = (j, 0)
    gone = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    mixed = [(1, len(index.shape) - 1)]
    rest = iter(d.offset_dims)
    for j, term in enumerate(x.axes):
        i = None if j in gone else next(rest)
        if i is not None and sizes[j] == x.shape[j]:
            if term is not None:
                axes[i], links[0][i] = term, (j, 0)
        elif j not in d.operand_batching_dims:
            mixed.append((0, j))
    out = tape.op(
        eqn,
        [x, index],
        axes,
        links,
        law="sum",
        weights=(1, 0),
        role="producer",
        mixed=tuple(mixed),
        why="looked up by index",
        kind=_looked_up(x, index),
        zero=0,
    )
    if filling is None:
        return out
    number = tape.value((), CONST, known=filling)
    return tape.op(eqn, [out, number], out.axes, [same(out), {}], role="bias")


_IN_BOUNDS = (
    lax.GatherScatterMode.CLIP,
    lax.GatherScatterMode.PROMISE_IN_BOUNDS,
)


def _filling(eqn: JaxprEqn) -> float | None:
    """What stands for an entry whose index is out of bounds, None if there is none."""
    mode, fill = eqn.params["mode"], eqn.params["fill_value"]
    if mode in _IN_BOUNDS:
        return None
    if mode != lax.GatherScatterMode.FILL_OR_DROP:
        raise ValueError(f"unknown mode {mode}")
    # Without a number it is NaN, which scales like everything else and which no unit
    # could be spared for, or for integers, which do not scale, the largest.
    return None if fill is None or fill != fill else float(fill)


def _looked_up(x: Value, index: Value) -> Kind | None:
    """A row of a parameter, looked up by data, is what this example's units are."""
    return ACTIVATION if {x.kind, index.kind} == {DATA, WEIGHT} else None


@rule(primitives("dynamic_update_slice"))
def update_slice(
    tape: Tape, eqn: JaxprEqn, x: Value, update: Value, *starts: Value
) -> Value:
    """Writes a part; axes that are written whole pass."""
    links: tuple[dict, dict] = ({}, {})
    axes, mixed = [], []
    for k, term in enumerate(x.axes):
        if term is not None and update.shape[k] == x.shape[k]:
            tape.unify(term, update.axes[k], eqn)
            links[0][k] = links[1][k] = (k, 0)
            axes.append(term)
        else:
            axes.append(None)
            mixed += [(0, k), (1, k)]
    more = [{} for _ in starts]
    why = "a part of the units is written to"
    return tape.op(
        eqn,
        [x, update, *starts],
        axes,
        [*links, *more],
        law="update",
        role="bias",
        mixed=tuple(mixed),
        why=why,
    )


@rule(
    primitives("scatter", "scatter_add", "scatter_max", "scatter_min"),
    params="dimension_numbers mode update_jaxpr update_consts indices_are_sorted "
    "unique_indices",
)
def scatter(tape: Tape, eqn: JaxprEqn, x: Value, index: Value, update: Value) -> Value:
    """The mirror of a look-up: whole axes pass, axes written by index are mixed.

    A window as long as its axis can only begin at 0, whatever the index says.
    """
    if eqn.primitive.name == "scatter" and eqn.params["update_jaxpr"] is not None:
        raise ValueError("a function of the user's is applied to what is written")
    d = eqn.params["dimension_numbers"]
    links: tuple[dict, dict, dict] = ({}, {}, {})
    axes: list[Term | None] = [None] * len(x.shape)
    places = [i for i in range(len(update.shape)) if i not in d.update_window_dims]
    mixed = [(2, len(index.shape) - 1)]
    for k, i in enumerate(places):
        tape.unify(index.axes[k], update.axes[i], eqn)
        if k in d.scatter_indices_batching_dims:
            j = d.operand_batching_dims[d.scatter_indices_batching_dims.index(k)]
            for n, (v, a) in enumerate(((x, j), (update, i), (index, k))):
                tape.unify(x.axes[j], v.axes[a], eqn)
                if v.axes[a] is not None:
                    links[n][j] = (a, 0)
            axes[j] = x.axes[j]
        else:
            mixed += [(1, i), (2, k)]
    rest = iter(d.update_window_dims)
    for j, term in enumerate(x.axes):
        if j in d.operand_batching_dims:
            continue
        i = None if j in d.inserted_window_dims else next(rest)
        if i is not None and update.shape[i] == x.shape[j]:
            tape.unify(term, update.axes[i], eqn)
            if term is not None:
                axes[j] = term
                links[0][j], links[1][j] = (j, 0), (i, 0)
        else:
            mixed += [(0, j)] if i is None else [(0, j), (1, i)]
    return tape.op(
        eqn,
        [x, update, index],
        axes,
        links,
        law="update",
        role="producer" if x.fits_any else "bias",
        mixed=tuple(mixed),
        why="written to by index",
    )
