"""A program as ``check_groups`` runs it: arrays drawn or varied, and its outputs."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from volax import _paths
from volax._sharding import put_like
from volax._types import Leaf, Shape, Tree
from volax.pairs._trace.models import Traceable
from volax.pairs.records import Group, Member, Written

_DRAWS = 3  # of random parameters, at most, until the outputs depend on all units
_SPREAD = 0.3  # standard deviation by which the given numbers are varied


class _NotFinite(ValueError):
    """The outputs of a program are not finite."""


class Program:
    """A model as a function of a flat list of arrays: parameters, then inputs.

    Attributes:
      given: the arrays or shapes that the user gave.
      trained: how many of them are parameters.
      states: for each of them whether it is state, of the model or of a group.
    """

    def __init__(self, model: Traceable):
        whole = (model.params, model.inputs)
        paths, tree = _paths.flatten_with_path(whole), jax.tree.structure(whole)
        self.given = [leaf for _, leaf in paths]
        self.trained = len(jax.tree.leaves(model.params))
        self.states, self._params, self._inputs = [], {}, {}
        for k, (path, _) in enumerate(paths):
            if k < self.trained:
                self.states.append(False)
                self._params[_paths.key_path(path[1:])] = k
                continue
            number = path[1].idx
            self.states.append(number in model.states)
            name = _paths.key_path(path[2:]) or f"input {number}"
            # Other inputs may use the names of the state.
            if number in model.states or name not in self._inputs:
                self._inputs[name] = k

        def run(arrays: Sequence[Leaf]) -> Tree:
            params, inputs = jax.tree.unflatten(tree, arrays)
            return _outputs(model.fn(params, *inputs), model.state_outputs)

        # The inputs are arguments: nnx refuses to change state that was closed over.
        self._run, self._compiled = run, jax.jit(run)

    def place(self, member: Member) -> int:
        """The number of a member's array."""
        return (self._inputs if member.role == "state" else self._params)[member.path]

    def fit(self, group: Written) -> Group:
        """The group with every size filled in."""
        params, inputs = map(self._leaves, (self._params, self._inputs))
        fitted = group.fit(params, "check_groups: group", inputs)
        for member in fitted.states:
            self.states[self.place(member)] = True
        return fitted

    def _leaves(self, places: dict[str, int]) -> dict[str, Leaf]:
        return {path: self.given[k] for path, k in places.items()}

    def run(self, arrays: Sequence[Leaf]) -> list[np.ndarray]:
        """The outputs, float64."""
        found = [
            np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, float)
            for x in self._compiled(arrays)
        ]
        if not all(np.isfinite(x).all() for x in found):
            raise _NotFinite("check_groups: the outputs are not finite")
        return found

    def tolerance(self) -> float:
        """The square root of the coarsest precision that the program computes with."""
        # jax.extend costs a tenth of the import of Optax.
        from volax.pairs._trace.jaxprs import all_eqns

        made = [
            getattr(v.aval, "dtype", None)
            for eqn in all_eqns(jax.make_jaxpr(self._run)(self.given).jaxpr)
            for v in eqn.outvars
        ]
        floats = [d for d in made if d is not None and jnp.issubdtype(d, jnp.floating)]
        return float(max(jnp.finfo(d).eps for d in floats)) ** 0.5


def _outputs(result: Tree, state_outputs: tuple[int, ...]) -> list[jax.Array]:
    """The results that are compared: neither state that is written back nor keys."""
    if state_outputs and isinstance(result, tuple | list):
        places = {k % len(result) for k in state_outputs}
        result = [x for k, x in enumerate(result) if k not in places]
    keys = jax.dtypes.prng_key
    return [x for x in jax.tree.leaves(result) if not jnp.issubdtype(x.dtype, keys)]


def points(
    rng: np.random.Generator, program: Program
) -> Iterator[tuple[list[Leaf], list[np.ndarray]]]:
    """Arrays to run a program with, and its outputs.

    First what was given, varied so that no bias is zero and no two scales are equal;
    then random parameters with the same inputs.
    """
    given = [_drawn(rng, x, s) for x, s in zip(program.given, program.states)]
    varied = [
        _varied(rng, x, trained=k < program.trained, state=state)
        for k, (x, state) in enumerate(zip(given, program.states))
    ]
    try:
        first = varied, program.run(varied)
    except _NotFinite:
        first = given, program.run(given)
    yield first
    for _ in range(_DRAWS):
        arrays = list(first[0])
        for k in range(program.trained):
            if is_float(given[k]):
                arrays[k] = like(given[k], _normal(rng, given[k].shape))
        try:
            yield arrays, program.run(arrays)
        except _NotFinite:  # a parameter may be bound to a range, as an exponent is
            continue


def rounding(
    rng: np.random.Generator,
    program: Program,
    arrays: Sequence[Leaf],
    plain: list[np.ndarray],
) -> float:
    """The difference that one rounding error in every parameter makes."""
    moved = list(arrays)
    for k, leaf in enumerate(arrays[: program.trained]):
        if is_float(leaf):
            step = rng.choice(np.array([-1, 1], np.float32), np.shape(leaf))
            eps = float(jnp.finfo(leaf.dtype).eps)
            wide = np.asarray(leaf, np.promote_types(leaf.dtype, np.float32))
            moved[k] = like(leaf, wide + wide * step * eps)
    return difference(plain, program.run(moved))


def is_float(x: Leaf) -> bool:
    """Whether a leaf is an array of floats."""
    return jnp.issubdtype(getattr(x, "dtype", int), jnp.floating)


def like(leaf: Leaf, values: np.ndarray) -> jax.Array:
    """Values in the precision and on the devices of an array."""
    return put_like(values.astype(leaf.dtype), leaf)


def _normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Random weights ``[..., in, out]`` that keep the scale of what they multiply."""
    fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 1
    return rng.standard_normal(shape, np.float32) / np.sqrt(fan_in, dtype=np.float32)


def _drawn(rng: np.random.Generator, leaf: Leaf, state: bool) -> Leaf:
    """A random array where only a shape is given; a variance has to be positive."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return put_like(jnp.zeros(leaf.shape, leaf.dtype), leaf)
    values = _normal(rng, leaf.shape)
    values = np.abs(values) if state else values
    return put_like(jnp.asarray(values, leaf.dtype), leaf)


def _varied(
    rng: np.random.Generator, leaf: Leaf, *, trained: bool, state: bool
) -> Leaf:
    """An array near the given one, of the same signs, in which no number is special.

    Inputs stay as they are, unless all their numbers are equal.
    """
    if not is_float(leaf) or not np.size(leaf):
        return leaf
    x = np.asarray(leaf, np.float32)
    if not (trained or state) and (np.ndim(x) == 0 or np.ptp(x) > 0):
        return leaf
    around = x * np.exp(_SPREAD * rng.standard_normal(x.shape, np.float32))
    size = np.sqrt(np.mean(np.square(x))) or 1
    small = _SPREAD * size * _normal(rng, x.shape)
    if not trained:  # a variance has to be positive
        small = np.abs(small)
    return like(leaf, np.where(x == 0, small, around))


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest difference of an output, relative to its largest number."""
    return max(
        (
            float(np.abs(x - y).max(initial=0) / (np.abs(x).max(initial=0) + 1e-30))
            for x, y in zip(a, b)
        ),
        default=0.0,
    )
