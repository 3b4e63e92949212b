"""The contract: a rule acts on the weights as they will be after the step.

With parameters p and incoming updates u, already scaled by the learning rate,

1. the tentative weights are ``w = p + u`` in ``promote_types(p.dtype, u.dtype)``,
2. a rule, a pure function of arrays, maps them to targets t,
3. the outgoing updates are ``d = t - p`` in that dtype, so that
   ``optax.apply_updates(p, d)`` lands on t.

This module owns steps 1 and 3. It promises for what ``apply_updates`` returns: a target
of zero gives exactly 0; a target with a limit gives a magnitude of at most the limit,
with no ulp of slack; an entry that an elementwise rule leaves alone keeps its update
bit for bit, and so does a leaf that no rule touches.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from volax import _numerics, _paths, masks
from volax._numerics import promoted
from volax._types import Selection, Tree


class Weights(NamedTuple):
    """One parameter around the step."""

    before: jax.Array  # p, in the parameter's dtype
    after: jax.Array  # w = p + u, in the promoted dtype


class Target(NamedTuple):
    """Where a rule sends one parameter."""

    value: jax.Array  # t, shape of the parameter
    limit: jax.Array | None = None  # bound on the magnitude, in the parameter's dtype
    # Whether an entry equal to w keeps its update. A rule with a norm over w goes
    # without: XLA would write u beside w to memory for it, a fifth of an Adam step.
    keeps: bool = True


def require_params(name: str, params: optax.Params | None) -> None:
    """Raises unless the parameters were passed to ``update``."""
    if params is None:
        raise ValueError(
            f"{name} acts on the weights after the step and needs them: pass params to "
            "update, as in tx.update(updates, state, params)"
        )


def tentative_weights(
    name: str,
    updates: optax.Updates,
    params: optax.Params | None,
    mask: Selection = None,
) -> dict[str, Weights]:
    """Step 1: the selected parameters before and after the step, by key path.

    Args:
      name: the transformation, for errors.
      updates: incoming updates; absent leaves pass through.
      params: parameters of the same structure.
      mask: which leaves the transformation acts on, see :func:`volax.masks.selected`.

    Returns:
      A :class:`Weights` for each selected leaf, in the tree's order.

    Raises:
      ValueError: no parameters, a bad mask, or a selected leaf that is not real
        floating.
    """
    require_params(name, params)
    chosen = masks.selected(mask, params, name)
    _, structure = jax.tree.flatten(updates, is_leaf=_paths.is_absent)
    steps = _paths.named_leaves(updates, absent=True)
    weights = {}
    for (path, u), p in zip(steps.items(), structure.flatten_up_to(params)):
        if path in chosen and not (_paths.is_absent(u) or _paths.is_absent(p)):
            p, u = jnp.asarray(p), jnp.asarray(u)
            for array in (p, u):
                if not jnp.issubdtype(array.dtype, jnp.floating):
                    raise ValueError(
                        f"{name}: leaf {path!r} has dtype {array.dtype}, expected a "
                        "real floating dtype; exclude it with a mask"
                    )
            dtype = promoted(p.dtype, u.dtype)
            after = _numerics.rounded(p.astype(dtype) + u.astype(dtype), dtype)
            weights[path] = Weights(p, after)
    return weights


def deltas(
    updates: optax.Updates, weights: dict[str, Weights], targets: dict[str, Target]
) -> optax.Updates:
    """Step 3: the updates that take the parameters to their targets.

    Args:
      updates: the incoming updates.
      weights: what :func:`tentative_weights` gave for them.
      targets: targets by key path; leaves without one keep their update.

    Returns:
      The outgoing updates, in the structure of the incoming ones.
    """
    steps = _paths.named_leaves(updates, absent=True)
    _, structure = jax.tree.flatten(updates, is_leaf=_paths.is_absent)
    return structure.unflatten(
        _delta(u, *weights[path], *targets[path]) if path in targets else u
        for path, u in steps.items()
    )


def emptied(
    updates: optax.Updates, params: Tree, gone: dict[str, jax.Array]
) -> optax.Updates:
    """The updates after which chosen entries are exactly zero.

    ``p - p`` is 0 in every dtype, so this asks for no weights after the step, which
    XLA would compute a second time.

    Args:
      updates: the incoming updates.
      params: parameters of the same structure.
      gone: which entries, bools of the parameters' shapes by key path.

    Returns:
      The outgoing updates; the other entries keep theirs.
    """
    steps = _paths.named_leaves(updates, absent=True)
    _, structure = jax.tree.flatten(updates, is_leaf=_paths.is_absent)
    emptied = []
    for (path, u), p in zip(steps.items(), structure.flatten_up_to(params)):
        if path in gone and not (_paths.is_absent(u) or _paths.is_absent(p)):
            u, p = jnp.asarray(u), jnp.asarray(p)
            dtype = promoted(p.dtype, u.dtype)
            u = jnp.where(gone[path], -p.astype(dtype), u.astype(dtype))
        emptied.append(u)
    return structure.unflatten(emptied)


@functools.partial(jax.jit, static_argnames="keeps")  # one trace for equal shapes
def _delta(
    u: jax.Array,
    p: jax.Array,
    w: jax.Array,
    value: jax.Array,
    limit: jax.Array | None,
    keeps: bool,
) -> jax.Array:
    """``t - p`` for one leaf; ``u`` where the rule left the weight alone."""
    t = value.astype(w.dtype)
    d = t - p.astype(w.dtype)
    if keeps:
        d = jnp.where(t == w, jnp.asarray(u).astype(w.dtype), d)
    if limit is None:
        return d
    # fl(p + fl(t - p)) may round to one ulp beyond the limit. Integers on the bit
    # pattern cost next to nothing beside an Adam step, jnp.nextafter a quarter of one.
    # 16-bit values may live on in float32 inside a fusion: round before comparing.
    d = _numerics.rounded(d, w.dtype)
    landed = _numerics.rounded(p.astype(w.dtype) + d, p.dtype)
    integer = _numerics.INTEGERS[d.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(d, integer)
    # The magnitude grows with the pattern, whatever the sign: one less where d points
    # outward, one more where it points inward.
    signs = bits ^ jax.lax.bitcast_convert_type(landed.astype(d.dtype), integer)
    outward = (signs >> (8 * d.dtype.itemsize - 1)) | 1
    nudged = jax.lax.bitcast_convert_type(bits - outward, d.dtype)
    return jnp.where(jnp.abs(landed) > limit.astype(d.dtype), nudged, d)
