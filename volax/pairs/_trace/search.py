"""Searches a traced program for units: reads it onto a tape and groups its leaves."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from volax import _paths, masks
from volax._types import Leaf, Selection, Tree
from volax.pairs._trace import terms
from volax.pairs._trace.count import products
from volax.pairs._trace.groups import Given, Grouping
from volax.pairs._trace.interpret import interpret
from volax.pairs._trace.models import Traceable, as_parameters
from volax.pairs._trace.state import (
    tie_averages,
    tie_outputs,
    unit_trees,
    unread_beside,
)
from volax.pairs._trace.tape import DATA, WEIGHT, Tape, Value
from volax.pairs._trace.widths import Program, marked
from volax.pairs.records import CAPTURED, RANDOM, Group
from volax.pairs.result import Groups, Refusal


def search(given: Traceable, what: str, ignore: Selection = ()) -> Groups[Group]:
    """All groups of a model in one form; ``what`` names who asks, for errors."""
    try:
        closed, result = jax.make_jaxpr(given.fn, return_shape=True)(
            given.params, *given.inputs
        )
    except Exception as error:
        raise ValueError(
            f"{what}: fn(params, *inputs) cannot be traced: {type(error).__name__}: "
            f"{error}"
        ) from error
    tape = Tape()
    named = _paths.named_leaves(given.params)
    left_out = _ignored(ignore, named, what)
    params = {
        path: _value(tape, leaf, path, path in left_out) for path, leaf in named.items()
    }
    if not left_out and all(v.kind == DATA for v in params.values()):
        raise ValueError(
            f"{what}: params holds no floating-point array; {as_parameters(what)}"
        )
    states, declared, trees, data = [], {}, {}, []
    arrays = list(params.values())
    for k, tree in enumerate(given.inputs):
        for path, leaf in _paths.flatten_with_path(tree):
            name = _paths.key_path(path)
            value = tape.value(jnp.shape(leaf), DATA)
            value.name = f"input {k} {name}" if name else f"input {k}"
            arrays.append(value)
            if k in given.states:
                states.append((name or value.name, value))
                declared.setdefault(k, []).append((name, value))
            elif path:
                trees.setdefault(k, []).append((name, value))
            else:
                data.append(value)
    results = interpret(tape, closed.jaxpr, closed.consts, arrays)
    outs = [v for v in results if v is not None]  # none is: every result is wanted
    read = {v for op in tape.ops for v in op.ins} | tape.read
    unread = set(arrays) - read
    written = _mark_outputs(tape, outs, result, given.state_outputs, what)
    tape.read |= set(outs)
    captured = _captured(tape, read | tape.read, what)
    if not (read | tape.read) & set(params.values()):
        some = ", ".join(list(params)[:3])
        raise ValueError(
            f"{what}: fn uses none of its parameters, such as {some}"
            + (f"; it {captured}" if captured else "")
        )
    inputs = {k: trees[k] for k in trees} | {k: declared[k] for k in declared}
    tied = tie_outputs(tape, inputs, written)
    for tree in inputs.values():
        tie_averages(tape, tree)
    made = {
        leaf for v in params.values() for t in v.axes if t for leaf in terms.leaves(t)
    }
    inferred = tied | unit_trees(
        {k: tree for k, tree in trees.items() if k not in tied}, made, data
    )
    for k, tree in trees.items():
        if k in inferred:
            states += tree
        else:
            data += [value for _, value in tree]
    data += [v for v in tape.values if v.name in (CAPTURED, RANDOM)]
    data += [v for v in params.values() if v.kind == DATA]
    trained = {path: v for path, v in params.items() if v.kind == WEIGHT}
    back = {v for tree in written for _, v in tree}
    grouping = Grouping(
        tape,
        Given(
            trained,
            states,
            data,
            unread_beside(states, unread),
            [v for v in outs if v not in back],
            list(back),
        ),
    )
    found = grouping.groups()
    if captured and not found:
        # A function of one array alone, lambda x: model(x), holds its own parameters.
        if not given.inputs and jax.tree_util.all_leaves([given.params]):
            raise ValueError(
                f"{what}: the one array that was given is taken for the parameters, "
                f"and no units lie in it; fn {captured}"
            )
        said = Refusal(f"fn {captured}", CAPTURED)
        found = dataclasses.replace(found, refused=(*found.refused, said))
    ours = {v for _, v in states} | set(trained.values())
    program = Program(
        given,
        closed,
        arrays,
        frozenset(v for v in arrays if v not in ours),
        {path: v.shape for path, v in (*params.items(), *states)},
        tape.reads,
    )
    # What carries an array that cannot be cut is not cut, whatever its width is in.
    cut = [k for k, group in enumerate(found) if not group.carries]
    done = marked(program, [found[k] for k in cut], [grouping.last[k] for k in cut])
    groups = list(found.groups)
    for k, group in zip(cut, done):
        groups[k] = group
    units = {terms.find(leaf): k for k, leaf in enumerate(grouping.last)}
    counted = products(closed.jaxpr, params, tape, units)
    return dataclasses.replace(found, groups=tuple(groups), products=counted)


def _captured(tape: Tape, read: set[Value], what: str) -> str:
    """What to say of matrices that a function closes over; they may be parameters."""
    found = [v.shape for v in tape.values if v.name == CAPTURED and v in read]
    matrices = [shape for shape in found if len(shape) > 1]
    if not matrices:
        return ""
    return (
        f"closes over arrays that are data to the search, such as one of shape "
        f"{matrices[0]}; if they are those of a model, {as_parameters(what)}"
    )


def _ignored(ignore: Selection, named: Mapping[str, Leaf], what: str) -> set[str]:
    """The key paths that a user's choice of parameters to leave alone covers."""
    if isinstance(ignore, masks.Mask):
        chosen = {path for path, leaf in named.items() if ignore.selects(path, leaf)}
        if not chosen:
            raise ValueError(f"{what}: ignore: {ignore!r} selects no parameter")
        return chosen
    keys = (ignore,) if isinstance(ignore, str) else ignore
    if not isinstance(keys, Iterable) or not all(isinstance(k, str) for k in keys):
        raise ValueError(
            f"{what}: ignore must be key paths or a mask such as "
            f"volax.path_matches(...), got {ignore!r}"
        )
    found = {key: {p for p in named if _paths.is_above(key, p)} for key in keys}
    for key, paths in found.items():
        if not key or not paths:
            raise ValueError(
                f"{what}: ignore: {key!r} is not in the tree; "
                f"{_paths.nearest(key, named)}"
            )
    return set().union(*found.values())


def _value(tape: Tape, leaf: Leaf, path: str, ignored: bool) -> Value:
    """A parameter; what is ignored or no floating-point array is not trained."""
    dtype = getattr(leaf, "dtype", None)
    dtype = jnp.result_type(leaf) if dtype is None else dtype
    trained = jnp.issubdtype(dtype, jnp.floating)
    shape = jnp.shape(leaf)
    varies = tuple(n != 1 for n in shape)
    kind = WEIGHT if trained and not ignored else DATA
    value = tape.value(shape, kind, name=path, varies=varies)
    if ignored:
        for term in value.axes:
            tape.poison(term, f"{path} lies along the units and is ignored", None)
    return value


def _mark_outputs(
    tape: Tape,
    outs: Sequence[Value],
    result: Tree,
    state_outputs: Sequence[int],
    what: str,
) -> list[list[tuple[str, Value]]]:
    """Refuses units that reach an output; returns the trees that write state back."""
    flat = jax.tree_util.tree_flatten_with_path(result)[0]
    count = len(result) if isinstance(result, tuple | list) else 0
    for place in state_outputs:
        if not -count <= place < count:
            raise ValueError(
                f"{what}: state_outputs: {place} is no place in what fn returns, "
                + (f"a tuple of {count}" if count else "which is no tuple")
            )
    places = {k % count for k in state_outputs}
    written: dict[int, list[tuple[str, Value]]] = {k: [] for k in places}
    for (path, _), value in zip(flat, outs):
        place = getattr(path[0], "idx", None) if path else None
        if place is not None and place in places:
            written[place].append((_paths.key_path(path[1:]), value))
            continue
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        why = "the units reach the output" + (f" {where}" if where else "")
        for term in value.axes:
            tape.poison(term, why, _maker(tape, value))
    return list(written.values())


def _maker(tape: Tape, value: Value) -> JaxprEqn | None:
    return next((op.eqn for op in reversed(tape.ops) if op.out is value), None)
