r"""Adam with the proximal step of any penalty, in Adam's own metric.

t = argmin_z strength R(z) + ||z - w||_H^2 / (2 learning_rate), H = diag(sqrt(nu) + eps)
(ProxGen, arXiv 2007.07484).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from volax import _paths
from volax._numerics import wide
from volax._types import Selection
from volax.transforms import _hyperparams, _post_step
from volax.transforms._hyperparams import Hyperparameter
from volax.transforms.proximal import Prox, as_map


class ProximalAdamState(NamedTuple):
    """State of :func:`proximal_adam`."""

    adam: Any  # optax.ScaleByAdamState: count, first and second moments


def proximal_adam(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    prox: Prox,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    mask: Selection = "matrices",
) -> optax.GradientTransformationExtraArgs:
    r"""Adam whose proximal step is taken in the metric of its second moments.

    Adam's step for a weight is $\eta / h$ times its first moment with
    $h = \sqrt{\hat\nu} + \epsilon$. A proximal step of the same length for all weights
    (:func:`volax.proximal`) then balances another objective. Here

    $$t = \arg\min_z \; \lambda R(z) + \frac{1}{2 \eta} \sum_i h_i (z_i - w_i)^2,$$

    so that the fixed points are those of loss plus $\lambda R$. For a penalty of
    single weights this is its map with the strength $\eta \lambda / h_i$; the maps of
    groups in ``volax.prox`` solve it exactly by Newton's method. A weight whose
    gradient was always zero has $h = \epsilon$: nothing defends it, and it is removed
    in the first step.

    Args:
      learning_rate: $\eta \ge 0$, number, array or schedule.
      strength: $\lambda \ge 0$, number, array or schedule.
      prox: the map, ``prox(x, strength=...)``, one of ``volax.prox`` or your own, as
        for :func:`volax.proximal`. It is given an array of the leaf's shape and has to
        minimise $R(z) + \sum_i (z_i - x_i)^2 / (2 s_i)$; every map of single weights
        that lets the strength broadcast does. ``nuclear`` does not, nor do projections.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root of the second moment.
      mask: the leaves with the penalty, by default those with two or more dimensions;
        Adam alone moves the others.

    Returns:
      An optimizer.

    Raises:
      ValueError: as for :func:`volax.proximal`; a ``prox`` without a strength.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"kernel": jnp.array([[1.0, 0.5]])}
      >>> tx = volax.proximal_adam(0.25, 1.0, volax.prox.soft_threshold)
      >>> grads = {"kernel": jnp.array([[1.0, 0.25]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].round(4).tolist()
      [[0.5, 0.0]]

    References:
      Yun, Lozano and Yang, `Adaptive Proximal Gradient Methods for Structured Neural
      Networks <https://arxiv.org/abs/2007.07484>`_, 2021, algorithm 1.
    """
    numbers = {"learning_rate": learning_rate, "strength": strength}
    for argument, value in numbers.items():
        _hyperparams.check("proximal_adam", argument, value)
    apply = as_map("proximal_adam", prox, projections=False)
    adam = optax.scale_by_adam(b1, b2, eps)

    def init(params: optax.Params) -> ProximalAdamState:
        return ProximalAdamState(adam.init(params))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _post_step.require_params("proximal_adam", params)
        rate, force = (_hyperparams.at(v, state.adam.count) for v in numbers.values())
        moments: Any  # Optax types every state as any tree of arrays
        # Optax raises a number to its integer count, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            steps, moments = adam.update(updates, state.adam, params)
            steps = optax.tree.scale(-1 * rate, steps)
        weights = _post_step.tentative_weights("proximal_adam", steps, params, mask)
        squares = _paths.named_leaves(moments.nu)
        targets = {}
        for path, leaf in weights.items():
            w = wide(leaf.after)
            nu = squares[path].astype(w.dtype)
            decay = jnp.asarray(b2, w.dtype) ** moments.count.astype(w.dtype)
            metric = jnp.sqrt(nu / (1 - decay)) + jnp.asarray(eps, w.dtype)
            step = jnp.asarray(_hyperparams.product(rate, force, w.dtype), w.dtype)
            # With eps = 0 and no gradient so far, nothing defends the weight.
            known = metric > 0
            short = step / jnp.where(known, metric, 1)
            short = jnp.where(known, short, jnp.where(step > 0, jnp.inf, 0))
            targets[path] = _post_step.Target(apply(path, w, short))
        return _post_step.deltas(steps, weights, targets), ProximalAdamState(moments)

    return optax.GradientTransformationExtraArgs(init, update)
