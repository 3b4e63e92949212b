"""Numerical proof of pairs and groups, on the program itself."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from volax import masks
from volax.pairs import layout
from volax.pairs.adapters import traceable
from volax.pairs.records import Group, Member


def check_groups(
    groups: Group | Iterable[Group],
    fn: Any,
    *args: Any,
    state_outputs: int | tuple[int, ...] = (),
    tolerance: float | None = None,
    seed: int = 0,
) -> tuple[float, ...]:
    r"""Proves by running the program that what was found holds.

    A pair: the incoming side of each unit is scaled by its own $c \in [0.1, 10]$ and
    the outgoing side by $1/c$; the outputs have to stay. Every group: the outgoing
    weights of random units are set to zero; then replacing their incoming weights,
    biases and scales by random numbers has to leave the outputs alone.

    Args:
      groups: groups or pairs, found or written by hand.
      fn: as in :func:`find_groups`.
      *args: as in :func:`find_groups`; what is given as ``jax.ShapeDtypeStruct`` is
        drawn at random.
      state_outputs: as in :func:`find_groups`; these outputs are not compared.
      tolerance: largest relative difference; by default the square root of the
        coarsest machine epsilon of the floats that the program computes with.
      seed: of all random numbers.

    Returns:
      For each group the largest relative difference.

    Raises:
      ValueError: a difference above the tolerance, or outputs that are not finite; the
        message names the group and the member.

    Example:
      >>> import jax, jax.numpy as jnp, volax
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w1"]) @ params["w2"]
      >>> shapes = {"w1": (3, 8), "w2": (8, 2)}
      >>> params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
      >>> pairs = [volax.pair("w1", "w2")]
      >>> max(check_groups(pairs, mlp, params, jnp.ones((4, 3)))) < 1e-3
      True
    """
    model = traceable(fn, args, (), state_outputs, "check_groups")
    rng = np.random.default_rng(seed)
    params = _drawn(rng, model.params)
    inputs = [
        _drawn(rng, tree, positive=k in model.states)
        for k, tree in enumerate(model.inputs)
    ]
    listed = (groups,) if isinstance(groups, Group) else tuple(groups)
    shapes = masks.named_leaves(params)
    # The inputs are arguments: nnx refuses to change state that was closed over.
    compiled = jax.jit(lambda *all: _outputs(model.fn(*all), model.state_outputs))

    def run(tree: Any) -> Any:
        return compiled(tree, *inputs)

    plain = _arrays(run(params))
    limit = _tolerance(run, params) if tolerance is None else tolerance
    worst = []
    for group in listed:
        group = group.fit(shapes, "check_groups: group")
        found = _replacing(rng, run, params, group)
        if group.homogeneous:
            found |= _rescaling(rng, run, params, group, plain)
        for member, difference in found.items():
            if not difference <= limit:
                raise ValueError(
                    f"check_groups: {group.name}: {member} changes the outputs by "
                    f"{difference:.2g}, more than {limit:.2g}"
                )
        worst.append(max(found.values()))
    return tuple(worst)


def _drawn(rng: np.random.Generator, tree: Any, positive: bool = False) -> Any:
    """Random arrays where only shapes are given; a variance has to be positive."""

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
        values = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        return jnp.asarray(np.abs(values) if positive else values, leaf.dtype)

    return jax.tree.map(draw, tree)


def _outputs(result: Any, state_outputs: tuple[int, ...]) -> Any:
    if state_outputs and isinstance(result, tuple | list):
        places = {k % len(result) for k in state_outputs}
        result = [x for k, x in enumerate(result) if k not in places]
    return [x for x in jax.tree.leaves(result) if not _is_key(x)]


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _arrays(outputs: Any) -> list[np.ndarray]:
    found = [
        np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, np.float64)
        for x in outputs
    ]
    if not all(np.isfinite(x).all() for x in found):
        raise ValueError("check_groups: the outputs are not finite")
    return found


def _tolerance(run: Any, params: Any) -> float:
    """The square root of the coarsest precision that the program computes with."""
    kinds: set[Any] = set()

    # jax.extend costs a tenth of the import of Optax.
    from jax.extend.core import jaxprs_in_params

    def visit(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            kinds.update(getattr(v.aval, "dtype", None) for v in eqn.outvars)
            for inner in jaxprs_in_params(eqn.params):
                visit(inner)

    visit(jax.make_jaxpr(run)(params).jaxpr)
    floats = [d for d in kinds if d is not None and jnp.issubdtype(d, jnp.floating)]
    return float(max(jnp.finfo(d).eps for d in floats)) ** 0.5


def _difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(
        float(np.abs(x - y).max(initial=0) / (np.abs(x).max(initial=0) + 1e-30))
        for x, y in zip(a, b)
    )


def _changed(params: Any, new: Mapping[str, Any]) -> Any:
    return masks.map_with_path(
        lambda path, leaf: new.get(masks.key_path(path), leaf), params
    )


def _scaled(leaves: dict[str, Any], member: Member, group: Group, factors: Any) -> None:
    leaf = jnp.asarray(leaves[member.path])
    leaves[member.path] = layout.scale(
        member, group.sizes, leaf, jnp.asarray(factors, leaf.dtype)
    )


def _rescaling(
    rng: np.random.Generator, run: Any, params: Any, group: Group, plain: Any
) -> dict[str, float]:
    """The difference that rescaling all units of a pair makes."""
    factors = 10.0 ** rng.uniform(-1, 1, group.sizes)
    leaves = masks.named_leaves(params)
    for member in group.members:
        if member.degree:
            _scaled(leaves, member, group, factors**member.degree)
    after = _arrays(run(_changed(params, leaves)))
    return {"rescaling": _difference(plain, after)}


def _replacing(
    rng: np.random.Generator, run: Any, params: Any, group: Group
) -> dict[str, float]:
    """The difference that the incoming side of unused units makes, by member."""
    gone = rng.random(group.sizes) < 0.5
    gone.reshape(-1)[0] = True
    leaves = masks.named_leaves(params)
    for member in group.consumers:
        _scaled(leaves, member, group, np.where(gone, 0.0, 1.0))
    before = _arrays(run(_changed(params, leaves)))
    incoming = (*group.producers, *group.biases, *group.scales, *group.fixed)
    for member in incoming:
        leaf = jnp.asarray(leaves[member.path])
        noise = jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
        hit = layout.scale(
            member,
            group.sizes,
            jnp.ones_like(leaf),
            jnp.where(gone, 0, 1).astype(leaf.dtype),
        )
        leaves[member.path] = jnp.where(hit == 0, noise, leaf)
    after = _arrays(run(_changed(params, leaves)))
    name = ", ".join(m.path for m in incoming)
    return {f"replacing {name}": _difference(before, after)}
