r"""The proximal step of any penalty, behind any optimizer.

t = prox(w, learning_rate * strength) (Parikh and Boyd 2014, section 4.2).
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from volax._numerics import wide
from volax._types import Function, Selection
from volax.transforms import _hyperparams, _post_step
from volax.transforms._hyperparams import Hyperparameter

Prox = Callable[..., jax.Array]


class ProximalState(NamedTuple):
    """State of :func:`proximal` where something is scheduled."""

    count: jax.Array  # int32, shape ()


def proximal(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    prox: Prox,
    *,
    mask: Selection = "matrices",
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the proximal step of a penalty after the step of the optimizer.

    With $w$ the weight after the step, $\eta$ the learning rate and $\lambda$ the
    strength, each leaf becomes

    $$t = \mathrm{prox}_{\eta \lambda R}(w)
        = \arg\min_z \; \eta \lambda R(z) + \tfrac{1}{2} \lVert z - w \rVert^2.$$

    Behind plain SGD this is proximal gradient descent (ISTA), whose fixed points are
    those of loss plus $\lambda R$; what the map makes zero is exactly zero. Behind an
    optimizer with step sizes of its own for each weight, such as Adam, the fixed points
    are others: :func:`volax.proximal_adam` takes the step in Adam's metric. Stands last
    in the chain.

    Args:
      learning_rate: $\eta \ge 0$, the same number, array or schedule that the optimizer
        in the chain has.
      strength: $\lambda \ge 0$, number, array or schedule.
      prox: the map, applied to each leaf by itself: one of ``volax.prox``, or your own.
        With an argument called ``strength`` it is called as ``prox(x, strength=...)``;
        without one it is taken for a projection and called as ``prox(x)``, as for the
        functions of ``optax.projections``. Close further arguments by
        ``functools.partial``: ``partial(volax.prox.group_soft_threshold, axis=0)``.
        Under ``optax.inject_hyperparams`` it has to be named in ``static_args``, which
        takes every other function for a schedule.
      mask: the leaves to act on, by default those with two or more dimensions; see
        :func:`volax.volumize`.

    Returns:
      A transformation for the end of an ``optax.chain``.

    Raises:
      ValueError: a hyperparameter negative or not finite, a ``prox`` that is no
        function or leaves arguments open; at ``update`` no ``params``, a mask that
        selects nothing, a complex leaf, a ``prox`` that fails on a leaf or changes its
        shape or dtype.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"kernel": jnp.array([[1.0, 0.125]])}
      >>> l1 = volax.proximal(0.5, strength=0.5, prox=volax.prox.soft_threshold)
      >>> tx = optax.chain(optax.sgd(0.5), l1)
      >>> grads = {"kernel": jnp.zeros((1, 2))}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[0.75, 0.0]]

    References:
      Parikh and Boyd, `Proximal Algorithms
      <https://doi.org/10.1561/2400000003>`_, 2014, section 4.2.
    """
    numbers = {"learning_rate": learning_rate, "strength": strength}
    for argument, value in numbers.items():
        _hyperparams.check("proximal", argument, value)
    apply = as_map("proximal", prox, projections=True)
    is_scheduled = _hyperparams.is_scheduled(*numbers.values())

    def init(params: optax.Params) -> ProximalState | optax.EmptyState:
        del params
        if not is_scheduled:
            return optax.EmptyState()
        return ProximalState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        weights = _post_step.tentative_weights("proximal", updates, params, mask)
        count = state.count if is_scheduled else None
        rate, force = (_hyperparams.at(value, count) for value in numbers.values())
        targets = {}
        for path, leaf in weights.items():
            w = wide(leaf.after)
            step = _hyperparams.product(rate, force, w.dtype)
            targets[path] = _post_step.Target(apply(path, w, step))
        if is_scheduled:
            state = ProximalState(_hyperparams.next_count(state.count))
        return _post_step.deltas(updates, weights, targets), state

    return optax.GradientTransformationExtraArgs(init, update)


def as_map(
    name: str, prox: Function, *, projections: bool
) -> Callable[[str, jax.Array, float | jax.Array], jax.Array]:
    """A checked ``(path, x, strength) -> target`` of what the user gave as ``prox``.

    Args:
      name: the transformation, for errors.
      prox: what the user gave.
      projections: whether a function without a strength is allowed.

    Returns:
      The map; it raises ``ValueError`` with the leaf's key path.

    Raises:
      ValueError: no function, or one with other arguments left open.
    """
    if not callable(prox):
        raise ValueError(
            f"{name}: prox must be a function such as volax.prox.soft_threshold, got "
            f"{type(prox).__name__}; under optax.inject_hyperparams name it in "
            "static_args"
        )
    takes_strength, still_open = _arguments(prox)
    called = getattr(prox, "__name__", None) or repr(prox)
    if still_open:
        raise ValueError(
            f"{name}: prox {called} leaves {', '.join(still_open)} open; close it by "
            f"functools.partial({called}, {still_open[0]}=...)"
        )
    if not takes_strength and not projections:
        raise ValueError(
            f"{name}: prox {called} has no argument called strength, which differs "
            "from weight to weight here; for a projection use volax.proximal"
        )

    def apply(path: str, x: jax.Array, strength: float | jax.Array) -> jax.Array:
        try:
            t: Any = prox(x, strength=strength) if takes_strength else prox(x)
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{name}: prox failed on leaf {path!r} of shape {x.shape}: {error}"
            ) from error
        shape, dtype = jnp.shape(t), jnp.result_type(t)
        if (shape, dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"{name}: prox made {dtype}{list(shape)} of leaf {path!r}, expected "
                f"the {x.dtype}{list(x.shape)} that it was given"
            )
        return jnp.asarray(t)

    return apply


def _arguments(prox: Function) -> tuple[bool, list[str]]:
    """Whether a map takes a strength, and what else it leaves open."""
    try:
        given = list(inspect.signature(prox).parameters.values())
    except ValueError:  # a built-in function that does not tell
        return False, []
    named = [p for p in given if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in named[1:] if p.default is p.empty]
    takes_strength = "strength" in [p.name for p in named[1:]]
    return takes_strength, [argument for argument in needed if argument != "strength"]
