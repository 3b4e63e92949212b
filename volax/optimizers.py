"""Optimizers with a regularizer built in: one learning rate drives both halves."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from volax import masks, transforms
from volax._types import Selection, Tree
from volax.pairs.records import Written, as_groups
from volax.transforms._hyperparams import Hyperparameter


def lp_adam(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    p: Hyperparameter,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    mask: Selection = "matrices",
    zeros: str = "sticky",
    reference: str = "before",
    snap_below: Hyperparameter = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled decay for any p norm (pAdam).

    Args:
      learning_rate: for Adam and for the decay; number, array or schedule.
      strength: of the decay, see :func:`volax.lp_decay`; the authors' optimizer takes
        ``lambda_p`` with ``strength = p * lambda_p``.
      p: the norm, see :func:`volax.lp_decay`.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root of the second moment.
      mask: the leaves to decay, see :func:`volax.lp_decay`.
      zeros: see :func:`volax.lp_decay`.
      reference: see :func:`volax.lp_decay`.
      snap_below: see :func:`volax.lp_decay`.

    Returns:
      An optimizer.

    Raises:
      ValueError: as :func:`volax.lp_decay`.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> tx = volax.lp_adam(1e-3, strength=1e-3, p=0.8)
      >>> updates, state = tx.update(params, tx.init(params), params)

    References:
      Outmezguine and Levi, `Decoupled Weight Decay for Any p Norm
      <https://arxiv.org/abs/2404.10824>`_, 2024.
    """
    return optax.chain(
        optax.adam(learning_rate, b1, b2, eps),
        transforms.lp_decay(
            learning_rate,
            strength,
            p,
            mask=mask,
            zeros=zeros,
            reference=reference,
            snap_below=snap_below,
        ),
    )


def lp_sgd(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    p: Hyperparameter,
    *,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
    mask: Selection = "matrices",
    zeros: str = "sticky",
    reference: str = "before",
    snap_below: Hyperparameter = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """SGD with decoupled decay for any p norm (pWD).

    Args:
      learning_rate: for SGD and for the decay; number, array or schedule.
      strength: of the decay, see :func:`volax.lp_decay`; the authors' optimizer takes
        ``lambda_p`` with ``strength = p * lambda_p``.
      p: the norm, see :func:`volax.lp_decay`.
      momentum: of SGD; ``None`` for none.
      nesterov: whether the momentum is Nesterov's.
      mask: the leaves to decay, see :func:`volax.lp_decay`.
      zeros: see :func:`volax.lp_decay`.
      reference: see :func:`volax.lp_decay`.
      snap_below: see :func:`volax.lp_decay`.

    Returns:
      An optimizer.

    Raises:
      ValueError: as :func:`volax.lp_decay`.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> tx = volax.lp_sgd(0.1, strength=1e-3, p=1.0, momentum=0.9)
      >>> updates, state = tx.update(params, tx.init(params), params)

    References:
      Outmezguine and Levi, `Decoupled Weight Decay for Any p Norm
      <https://arxiv.org/abs/2404.10824>`_, 2024.
    """
    return optax.chain(
        optax.sgd(learning_rate, momentum, nesterov),
        transforms.lp_decay(
            learning_rate,
            strength,
            p,
            mask=mask,
            zeros=zeros,
            reference=reference,
            snap_below=snap_below,
        ),
    )


def volumized_adam(
    learning_rate: Hyperparameter,
    volume: Tree,
    alpha: Hyperparameter = 0.0,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    mask: Selection = "matrices",
) -> optax.GradientTransformationExtraArgs:
    """Adam whose weights and first moment meet a wall.

    Args:
      learning_rate: of Adam; number, array or schedule.
      volume: the wall, see :func:`volax.volumize`.
      alpha: its restitution, see :func:`volax.volumize`.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root of the second moment.
      mask: the leaves behind walls, see :func:`volax.volumize`.

    Returns:
      An optimizer.

    Raises:
      ValueError: as :func:`volax.volumize`.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> tx = volax.volumized_adam(1e-3, volume=0.5)
      >>> grads = {"kernel": -jnp.ones((2, 2))}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> float(optax.apply_updates(params, updates)["kernel"].max())
      0.5

    References:
      Ziyin et al., `Volumization as a Natural Generalization of Weight Decay
      <https://arxiv.org/abs/2003.11243>`_, 2020.
    """
    adam = optax.adam(learning_rate, b1, b2, eps)
    return transforms.volumized(adam, volume, alpha, mask=mask)


def path_prox_sgd(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    pairs: Written | Iterable[Written],
    *,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
    normalize: str = "rescale",
    p: Hyperparameter = 1.0,
    scale_by_size: bool = False,
    regularize_bias: bool = False,
    balance: bool = False,
    freeze_dead: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with the proximal step of the path penalty, and weight decay elsewhere.

    Minimises the loss plus $\frac{\lambda}{2} \sum \lVert W \rVert^2$ over all
    matrices: through the path penalty for the weights of the pairs, through the
    gradient for the others. (Where pairs share weights, which counts those of a net of
    three layers or more twice, see :func:`volax.path_prox`.)

    Args:
      learning_rate: for SGD and for the proximal step; number, array or schedule.
      strength: $\lambda$, see :func:`volax.path_prox`.
      pairs: see :func:`volax.path_prox`.
      momentum: of SGD; the paper trains without.
      nesterov: whether the momentum is Nesterov's.
      normalize: see :func:`volax.path_prox`.
      p: see :func:`volax.path_prox`; the paper's objective has 1. With one half, and
        ``scale_by_size`` in nets of several layers, fewer units are left at the same
        accuracy.
      scale_by_size: see :func:`volax.path_prox`.
      regularize_bias: see :func:`volax.path_prox`.
      balance: see :func:`volax.path_prox`.
      freeze_dead: see :func:`volax.path_prox`.

    Returns:
      An optimizer.

    Raises:
      ValueError: as :func:`volax.path_prox`.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"l1": jnp.ones((2, 3)), "l2": jnp.ones((3, 2))}
      >>> tx = volax.path_prox_sgd(0.1, 1e-3, volax.pair("l1", "l2"))
      >>> updates, state = tx.update(params, tx.init(params), params)

    References:
      Yang et al., `A Better Way to Decay <https://arxiv.org/abs/2210.03069>`_, 2022.
    """
    pairs = as_groups(pairs, "path_prox_sgd")
    return optax.chain(
        optax.add_decayed_weights(
            strength,
            mask=masks.unpaired(pairs).tree,
        ),
        optax.sgd(learning_rate, momentum, nesterov),
        transforms.path_prox(
            learning_rate,
            strength,
            pairs,
            normalize=normalize,
            p=p,
            scale_by_size=scale_by_size,
            regularize_bias=regularize_bias,
            balance=balance,
            freeze_dead=freeze_dead,
        ),
    )


def path_prox_adam(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    pairs: Written | Iterable[Written],
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    metric: bool = True,
    normalize: str = "rescale",
    p: Hyperparameter = 0.5,
    scale_by_size: bool = True,
    regularize_bias: bool = False,
    freeze_dead: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with the proximal step of the path penalty in Adam's own metric.

    Adam divides the gradient of each weight by its size $h$, and so $\eta \lambda$ of
    :func:`volax.path_prox` is divided by the root mean square of $h$ over the outgoing
    weights of a unit, and over the incoming ones where it makes up for those. The loss
    keeps its weight against $\lambda$ then, as under SGD: a unit stays if it lowers
    the loss by more than its penalty, whatever the size of its gradients is. With
    $\eta \lambda$ itself a net of three layers lost one layer before the others.

    A group of n weights moves by about $\eta \sqrt{n}$ in each step of Adam, however
    small its gradient is, and so a unit that died comes back in the next step unless it
    is kept dead: ``freeze_dead`` is on. For a share of units, or of multiply-adds, that
    is to stay, take :func:`volax.tune_strength` or :func:`volax.keep_units`; the latter
    left better nets in every comparison.

    Args:
      learning_rate: for Adam and for the proximal step; number, array or schedule.
      strength: $\lambda$, see :func:`volax.path_prox`.
      pairs: see :func:`volax.path_prox`.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled decay, as in AdamW, of the weights in no pair.
      metric: whether the threshold is in Adam's metric, as above. Without it nets of
        one hidden layer kept more of their accuracy (at an eighth of the units of an
        MNIST net 90.5 for 83.5 %), and those of three lost all of it; the strengths are
        then some thousand times larger, and what they do is set by
        $\lambda \sum \eta$.
      normalize: see :func:`volax.path_prox`.
      p: see :func:`volax.path_prox`; with one half fewer units are left at the same
        accuracy than with one in nearly every study (``benchmarks/RESULTS.md``).
      scale_by_size: see :func:`volax.path_prox`.
      regularize_bias: see :func:`volax.path_prox`.
      freeze_dead: see :func:`volax.path_prox`.

    Returns:
      An optimizer.

    Raises:
      ValueError: as :func:`volax.path_prox`.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"l1": jnp.ones((2, 3)), "l2": jnp.ones((3, 2)) / 1000}
      >>> tx = volax.path_prox_adam(1e-3, 10.0, volax.pair("l1", "l2"))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> float(optax.apply_updates(params, updates)["l2"].max())
      0.0

    References:
      Yang et al., `A Better Way to Decay <https://arxiv.org/abs/2210.03069>`_, 2022.
    """
    pairs = as_groups(pairs, "path_prox_adam")
    adam = optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=masks.unpaired(pairs).tree),
        optax.scale_by_learning_rate(learning_rate),
    )
    prox = transforms.path_prox(
        learning_rate,
        strength,
        pairs,
        normalize=normalize,
        p=p,
        scale_by_size=scale_by_size,
        regularize_bias=regularize_bias,
        freeze_dead=freeze_dead,
    )

    def init(params: optax.Params) -> tuple[optax.OptState, ...]:
        first: Any = adam.init(params)  # Optax types every state as any tree of arrays
        return *first, prox.init(params)

    def update(updates, state: Any, params=None, **extra_args):
        first: Any
        steps, first = adam.update(updates, state[:-1], params, **extra_args)
        squares = None
        if metric:
            count = first[0].count.astype(jnp.float32)
            bias = 1 - jnp.asarray(b2, jnp.float32) ** count
            squares = optax.tree.scale(1 / bias, first[0].nu)
        updates, last = prox.update(steps, state[-1], params, second_moments=squares)
        return updates, (*first, last)

    return optax.GradientTransformationExtraArgs(init, update)
