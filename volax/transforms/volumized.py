"""Volumization around an optimizer: a wall that the momentum feels as well.

m <- alpha * m where the weight hit the wall (arXiv 2003.11243, algorithm 1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from volax import _paths
from volax._numerics import inside
from volax._types import KeyPath, Leaf, Selection, Tree
from volax.transforms import _hyperparams, _post_step
from volax.transforms._hyperparams import Hyperparameter
from volax.transforms.volumize import make_wall


class VolumizedState(NamedTuple):
    """State of :func:`volumized`."""

    inner_state: optax.OptState  # of the wrapped optimizer
    wall_state: optax.OptState  # of the wall


def volumized(
    inner: optax.GradientTransformation,
    volume: Tree,
    alpha: Hyperparameter = 0.0,
    *,
    mask: Selection = "matrices",
    momentum: str | tuple[str, ...] = ("mu", "trace", "ema"),
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer so that its weights and its momentum meet a wall.

    Behind :func:`volax.volumize` alone a weight stays glued to the wall while the
    optimizer's momentum still points outward. Here, where a step ran into the wall,
    the first moment is scaled as well, $m \leftarrow \alpha m$: stopped by a clipping
    wall, reversed by an elastic one.

    A weight that steps inward from a clipping wall by less than 17 ulps leaves it by
    18 at once, about 2e-6 of the wall in float32, and goes on by its own steps.

    Args:
      inner: the whole optimizer, learning rate included, such as ``optax.adam(1e-3)``;
        ``chain``, ``partition``, ``masked``, ``MultiSteps`` and ``inject_hyperparams``
        inside it are followed.
      volume: as for :func:`volax.volumize`.
      alpha: as for :func:`volax.volumize`.
      mask: as for :func:`volax.volumize`.
      momentum: names of the state fields that hold a first moment in the shape of the
        parameters: ``mu`` (Adam, Lion, AdaBelief, ...), ``trace`` (SGD, RMSProp),
        ``ema`` (Optax's ``ema``); Adan's is ``m``.

    Returns:
      A transformation in place of ``inner``.

    Raises:
      ValueError: as for :func:`volax.volumize`; at ``update`` also where the state
        holds no moment of a leaf under these names (Adafactor, plain SGD).

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = jnp.array([[0.9]])
      >>> tx = volax.volumized(optax.sgd(1.0, momentum=0.9), volume=1.0)
      >>> updates, state = tx.update(jnp.array([[-1.0]]), tx.init(params), params)
      >>> float(optax.tree.get(state, "trace")[0, 0]) == 0
      True

    References:
      Ziyin et al., `Volumization as a Natural Generalization of Weight Decay
      <https://arxiv.org/abs/2003.11243>`_, 2020. Their code scales a copy of the
      momentum, which has no effect.
    """
    inner = optax.with_extra_args_support(inner)
    wall = make_wall("volumized", volume, alpha, mask)
    names = (momentum,) if isinstance(momentum, str) else tuple(momentum)

    def init(params: optax.Params) -> VolumizedState:
        return VolumizedState(inner.init(params), wall.init(params))

    def update(updates, state, params=None, **extra_args):
        _post_step.require_params("volumized", params)
        steps, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        weights, targets, wall_state = wall.targets(steps, state.wall_state, params)
        restitution = _hyperparams.at(alpha, getattr(state.wall_state, "count", None))
        before = _paths.named_leaves(steps)
        targets = {
            path: _off_the_wall(before[path], weights[path], t, restitution)
            for path, t in targets.items()
        }
        bounded = _post_step.deltas(steps, weights, targets)
        after = _paths.named_leaves(bounded)
        hits = {
            path: _hit(before[path], after[path], weights[path].before, t, restitution)
            for path, t in targets.items()
        }
        inner_state = _scale_momentum(inner_state, hits, restitution, names, params)
        return bounded, VolumizedState(inner_state, wall_state)

    return optax.GradientTransformationExtraArgs(init, update)


# Whether a wall that stops (alpha = 0) was hit is read off the new weight: it stands at
# the wall, where fl(p + d) is a few ulps of the larger of p and the wall away from it.
# Asking the step u instead would make XLA's CPU compiler keep u in memory, because the
# root and the division in it are not computed twice: 2.1 instead of 1.5 times plain
# Adam. But a weight may also stand there because its step inward is below half an ulp.
# So a step inward leaves these ulps at once: a weight less than one ulp further inside
# is put two ulps further inside, where rounding does not bring it back.
_HIT_ULPS = 16
_NEAR_ULPS, _LEFT_ULPS = _HIT_ULPS + 1, _HIT_ULPS + 2


def _stops(alpha: jax.typing.ArrayLike, p: jax.Array) -> bool | jax.Array:
    """Whether a hit is read off the new weight, a bool or a bool of shape ().

    Not for 16-bit weights, of which 16 ulps are several per cent.
    """
    return False if p.dtype.itemsize < 4 else alpha == 0


def _off_the_wall(
    u: jax.Array,
    leaf: _post_step.Weights,
    target: _post_step.Target,
    alpha: jax.typing.ArrayLike,
) -> _post_step.Target:
    """Sends the weights that step inward to just inside of what counts as the wall."""
    p, w = leaf
    stops, limit, t = _stops(alpha, p), target.limit, target.value
    if stops is False or limit is None:
        return target
    near = jnp.abs(t) >= inside(limit.astype(t.dtype), p.dtype, _NEAR_ULPS)
    leaves = stops & near & (w * jnp.asarray(u).astype(w.dtype) < 0)
    factor = jnp.where(leaves, inside(1, p.dtype, _LEFT_ULPS), 1).astype(t.dtype)
    return target._replace(value=t * factor)


def _hit(
    u: jax.Array,
    d: jax.Array,
    p: jax.Array,
    target: _post_step.Target,
    alpha: jax.typing.ArrayLike,
) -> jax.Array:
    """Where the step u of weights p hit the wall, which made it d; bools as p."""
    stops, at_wall = _stops(alpha, p), jnp.zeros([], bool)
    if stops is not False and target.limit is not None:
        landed = jnp.abs((p.astype(d.dtype) + d).astype(p.dtype))
        at_wall = landed >= inside(target.limit, p.dtype, _HIT_ULPS)
    if stops is True:
        return at_wall
    # The contract leaves an update as it is, bit for bit, where nothing was hit. A
    # weight outside that steps inward is moved too, but its momentum points inward.
    u = jnp.asarray(u).astype(d.dtype)
    changed = (u != d) & ((p.astype(d.dtype) + u) * u >= 0)
    return jnp.where(stops, at_wall, changed)


def _scale_momentum(
    state: optax.OptState,
    hits: dict[str, jax.Array],
    alpha: jax.typing.ArrayLike,
    names: tuple[str, ...],
    params: Tree,
) -> optax.OptState:
    """Scales first moments by ``alpha`` where hit.

    A first moment is a whole field of the state, of one of the names, that holds the
    parameters' leaves: a part of another field may be called the same.
    """
    paths = _paths.named_leaves(params, absent=True).keys()
    found = set()

    def holds_params(field: Tree) -> bool:
        return _paths.named_leaves(field, absent=True).keys() == paths

    def holds_moment(node: object) -> bool:
        return any(name in getattr(node, "_fields", ()) for name in names)

    def scaled(path: KeyPath, leaf: Leaf) -> Leaf:
        name = _paths.key_path(path)
        if name not in hits or jnp.shape(leaf) != hits[name].shape:
            return leaf
        found.add(name)
        return jnp.where(hits[name], jnp.asarray(alpha, leaf.dtype) * leaf, leaf)

    def visit(node: Tree) -> Tree:
        if not holds_moment(node):
            return node
        fields = {}
        for field, value in node._asdict().items():
            if field in names and holds_params(value):
                value = _paths.map_with_path(scaled, value)
            else:
                value = jax.tree.map(visit, value, is_leaf=holds_moment)
            fields[field] = value
        return node._replace(**fields)

    state = jax.tree.map(visit, state, is_leaf=holds_moment)
    if missing := [path for path in hits if path not in found]:
        raise ValueError(
            "volumized: the optimizer's state has no field named "
            f"{' or '.join(names) or '(momentum is empty)'} in the shape of the "
            f"parameters for {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more leaves" if len(missing) > 3 else "")
            + "; give the field's name as momentum=(...), exclude such leaves with "
            "mask=..., or use volumize, which leaves the momentum alone"
        )
    return state
