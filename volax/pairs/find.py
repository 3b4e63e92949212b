"""The search for units in a program: ``find_groups`` and ``find_pairs``."""

from typing import Any

import jax
import jax.numpy as jnp

from volax import masks
from volax.pairs import terms
from volax.pairs.adapters import Traceable, traceable
from volax.pairs.grouping import Given, Grouping, state_like
from volax.pairs.result import Groups
from volax.pairs.tape import DATA, WEIGHT, Tape, Value
from volax.pairs.trace import interpret


def find_groups(
    fn: Any,
    *args: Any,
    state_args: int | tuple[int, ...] = (),
    state_outputs: int | tuple[int, ...] = (),
) -> Groups:
    """Finds every set of parameter axes that share their units.

    The function is traced, not run, and no array is allocated: ``params`` and
    ``inputs`` may be ``jax.ShapeDtypeStruct``. Pass the forward pass, not the loss: a
    penalty reads every weight. Only what is proven is reported; the rest is listed in
    ``refused``, with the reason and the line of your code.

    Args:
      fn: ``fn(params, *inputs)``; or an ``nnx.Module`` or Equinox module (then only
        the inputs follow), or a Linen module or its ``apply`` (then the variables and
        the inputs follow).
      *args: the parameters and the inputs. Arrays that are not trained (running
        statistics) should be inputs too: what ``fn`` closes over cannot be cut.
      state_args: places among the inputs that hold state, which may be cut together
        with the parameters. Trees whose arrays carry nothing but units are found
        without it.
      state_outputs: places in the returned tuple that only write state back.

    Returns:
      The groups, pairs among them, in the order of the parameters.

    Raises:
      ValueError: ``fn`` cannot be traced, or uses none of the parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.gelu(x @ params["w1"]) @ params["w2"]
      >>> params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
      >>> groups = find_groups(mlp, params, jnp.ones((1, 3)))
      >>> groups[0].name, groups[0].homogeneous
      ('w1 -> w2', False)
    """
    given = traceable(fn, args, state_args, state_outputs, "find_groups")
    return _search(given, "find_groups")


def find_pairs(
    fn: Any,
    *args: Any,
    state_args: int | tuple[int, ...] = (),
    state_outputs: int | tuple[int, ...] = (),
) -> Groups:
    """Finds the pairs: groups whose units can be rescaled for free.

    Args:
      fn: as in :func:`find_groups`.
      *args: as in :func:`find_groups`.
      state_args: as in :func:`find_groups`.
      state_outputs: as in :func:`find_groups`.

    Returns:
      The pairs, ready for ``path_prox``; ``refused`` also lists the groups that are no
      pairs.

    Raises:
      ValueError: ``fn`` cannot be traced, or uses none of the parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"]
      >>> params = {"w1": jnp.ones((3, 8)), "b1": jnp.ones(8), "w2": jnp.ones((8, 2))}
      >>> print(find_pairs(mlp, params, jnp.ones((1, 3))))
      units  producer  consumers  through
      8      w1        w2         add relu
      <BLANKLINE>
      refused:
        w2 axis 1: the units reach the output (...)
    """
    given = traceable(fn, args, state_args, state_outputs, "find_pairs")
    return _search(given, "find_pairs").pairs


def _search(given: Traceable, what: str) -> Groups:
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
    named = masks.named_leaves(given.params)
    params = {path: _value(tape, leaf, path) for path, leaf in named.items()}
    if not params:
        raise ValueError(f"{what}: params holds no arrays")
    states, trees, data = [], {}, []
    arrays = list(params.values())
    for k, tree in enumerate(given.inputs):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = masks.key_path(path)
            value = tape.value(jnp.shape(leaf), DATA)
            value.name = f"input {k} {name}" if name else f"input {k}"
            arrays.append(value)
            if k in given.states:
                states.append((name or value.name, value))
            elif path:
                trees.setdefault(k, []).append((name, value))
            else:
                data.append(value)
    outs = interpret(tape, closed.jaxpr, closed.consts, arrays)
    _mark_outputs(tape, outs, result, given.state_outputs)
    tape.read |= {v for v in outs if v is not None}
    read = {v for op in tape.ops for v in op.ins} | tape.read
    if not read & set(params.values()):
        some = ", ".join(list(params)[:3])
        raise ValueError(f"{what}: fn uses none of its parameters, such as {some}")
    made = {
        leaf for v in params.values() for t in v.axes if t for leaf in terms.leaves(t)
    }
    inferred = _state_trees(trees, made, data)
    for k, tree in trees.items():
        if k in inferred:
            states += tree
        else:
            data += [value for _, value in tree]
    data += [v for v in tape.values if v.name == "a captured array"]
    trained = {path: v for path, v in params.items() if v.kind == WEIGHT}
    return Grouping(tape, Given(trained, states, data)).groups()


def _state_trees(
    trees: dict[int, list[tuple[str, Value]]], made: set[terms.Term], data: list[Value]
) -> set[int]:
    """The trees among the inputs that are state, if the others hold the data.

    All arrays of such a tree carry nothing but axes of parameters. Some other input
    has to have an axis of its own: an example without a batch axis is no state.
    """
    alike = {
        k
        for k, tree in trees.items()
        if len(state_like([v for _, v in tree], made)) == len(tree)
    }
    rest = [v for k, tree in trees.items() if k not in alike for _, v in tree]
    others = [v for v in (*data, *rest) if v.shape]
    return alike if len(state_like(others, made)) < len(others) else set()


def _value(tape: Tape, leaf: Any, path: str) -> Value:
    """A parameter; what is no floating-point array is not trained."""
    dtype = getattr(leaf, "dtype", None)
    dtype = jnp.result_type(leaf) if dtype is None else dtype
    trained = jnp.issubdtype(dtype, jnp.floating)
    shape = jnp.shape(leaf)
    own = tuple(n != 1 for n in shape)
    return tape.value(shape, WEIGHT if trained else DATA, name=path, own=own)


def _mark_outputs(tape: Tape, outs: Any, result: Any, state_outputs: Any) -> None:
    """Units that reach an output are refused, unless it writes state back."""
    flat = jax.tree_util.tree_flatten_with_path(result)[0]
    count = len(result) if isinstance(result, tuple | list) else 1
    places = {k % count for k in state_outputs}
    for (path, _), value in zip(flat, outs):
        if path and getattr(path[0], "idx", None) in places:
            continue
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        why = "the units reach the output" + (f" {where}" if where else "")
        for term in value.axes:
            tape.poison(term, why, _maker(tape, value))


def _maker(tape: Tape, value: Value) -> Any:
    return next((op.eqn for op in reversed(tape.ops) if op.out is value), None)
