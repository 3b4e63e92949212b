r"""Proximal maps of the powers of a weight, $\sum |w|^p$ for $0 \le p < 2$.

Each map returns the global minimiser of

$$\lambda \, |z|^p + \tfrac{1}{2} (z - x)^2$$

for every entry by itself. For p < 1 the objective has a second local minimum at 0, and
the map jumps where the two are equally good; there it returns 0.
"""

import functools
import math

import jax
import jax.numpy as jnp

from volax.prox._wide import wide


def l0_norm(x: jax.Array) -> jax.Array:
    r"""The number of weights that are not zero, $\lVert x \rVert_0$.

    Args:
      x: weights, any shape.

    Returns:
      A scalar in the dtype of ``x``, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> float(l0_norm(jnp.array([3.0, 0.0, -4.0])))
      2.0
    """
    x, _ = wide(x, 0)
    return jnp.sum(x != 0).astype(x.dtype)


def l1_norm(x: jax.Array) -> jax.Array:
    r"""The sum of the magnitudes, $\lVert x \rVert_1$.

    Args:
      x: weights, any shape.

    Returns:
      A scalar in the dtype of ``x``, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> float(l1_norm(jnp.array([3.0, 0.0, -4.0])))
      7.0
    """
    return jnp.sum(jnp.abs(wide(x, 0)[0]))


def lp_norm(x: jax.Array, p: jax.typing.ArrayLike) -> jax.Array:
    r"""The sum of powers $\sum |x|^p$, the p-th power of the norm for $p \ge 1$.

    Args:
      x: weights, any shape.
      p: the power, > 0.

    Returns:
      A scalar in the dtype of ``x``, float32 or wider; its derivative at a weight of
      0 is taken to be 0.

    Example:
      >>> import jax.numpy as jnp
      >>> float(lp_norm(jnp.array([4.0, 0.0, -9.0]), 0.5))
      5.0
    """
    x, p = wide(x, p)
    size = jnp.where(x == 0, 1, jnp.abs(x))
    return jnp.sum(jnp.where(x == 0, 0, size**p))


def soft_threshold(x: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    r"""Soft threshold, $\mathrm{sign}(x) \max(0, |x| - \lambda)$: the map of l1.

    Shrinks every weight by the same amount and makes exact zeros; the map of choice
    where a convex problem has to stay one.

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> soft_threshold(jnp.array([3.0, -0.5]), 1.0).tolist()
      [2.0, 0.0]

    References:
      Parikh and Boyd, `Proximal Algorithms
      <https://doi.org/10.1561/2400000003>`_, 2014, section 6.5.2.
    """
    y, s = wide(x, strength)
    return jnp.where(jnp.abs(y) <= s, 0, y - jnp.sign(y) * s).astype(x.dtype)


def hard_threshold(x: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    r"""Hard threshold, $x \cdot 1[|x| > \sqrt{2 \lambda}]$: the map of l0.

    Keeps what it does not remove as it is, so there is no bias of large weights, and no
    convexity either.

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> hard_threshold(jnp.array([3.0, -1.0]), 2.0).tolist()
      [3.0, 0.0]

    References:
      Blumensath and Davies, `Iterative Thresholding for Sparse Approximations
      <https://doi.org/10.1007/s00041-008-9035-z>`_, 2008, equation 2.2.
    """
    y, s = wide(x, strength)
    return jnp.where(jnp.abs(y) <= jnp.sqrt(2 * s), 0, y).astype(x.dtype)


def half_threshold(x: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    r"""Half threshold: the map of $\lambda \sum |x|^{1/2}$, in closed form.

    Zero for $|x| \le \tau = \frac{3}{2} \lambda^{2/3}$, else

    $$\tfrac{2}{3} x \Bigl(1 + \cos\bigl(\tfrac{2 \pi}{3} - \tfrac{2}{3}
    \arccos\bigl(2^{-1/2} (|x| / \tau)^{-3/2}\bigr)\bigr)\Bigr).$$

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> half_threshold(jnp.array([2.0, -1.0]), 1.0).round(4).tolist()
      [1.605..., 0.0]

    References:
      Xu, Chang, Xu and Zhang, `L1/2 Regularization: A Thresholding Representation
      Theory and a Fast Solver <https://doi.org/10.1109/TNNLS.2012.2197412>`_, 2012,
      theorem 1, whose $\lambda$ is twice ours.
    """
    y, s = wide(x, strength)
    size, tau = jnp.abs(y), _once(1.5 * _positive_power(s, 2 / 3))
    unit = jnp.where((tau > 0) & (tau < jnp.inf), tau, 1)
    slope = _held(_once(1 / (2 * jnp.sqrt(unit))))  # of the penalty at the threshold
    # The cosine is the largest root q of q^3 - r q + _HALF = 0 with r = |x| / tau
    # and z = tau q^2. It is convex right of it, so Newton's method from sqrt(r) never
    # overshoots; it is slowest at r = 1, where q falls from 1 to the root 0.816, and
    # four steps and the last one below reach the last bit. On CPU a cosine and an arc
    # cosine take a hundred times as long. Bounds instead of selections keep XLA from
    # computing the steps once for every use.
    r = jnp.clip(size / unit, 1, _FAR)
    q = jnp.sqrt(r)
    for _ in range(4):
        q = (2 * q * q * q - _HALF) / (3 * q * q - r)
    safe, force = jnp.maximum(size, unit), jnp.where(s < jnp.inf, s, 0)
    z = _held(jnp.where(safe > _FAR * unit, safe, unit * q * q))
    z = _newton(z, safe, force * (slope / _held(q)), 0.5)
    return _finite(jnp.where(size > tau, jnp.sign(y) * z, 0), y, s).astype(x.dtype)


_HALF = 2 / 3 / math.sqrt(6)  # strength / (2 tau^(3/2))
# From here on the pull is less than the last bit of the weight, in float64 too, and the
# powers of a larger number might overflow.
_FAR = 1e12


def two_thirds_threshold(x: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    r"""Two-thirds threshold: the map of $\lambda \sum |x|^{2/3}$, in closed form.

    With $\beta = (2 \lambda / 3)^{3/4}$ it is zero for $u = |x| / \beta \le 2$, else
    $\mathrm{sign}(x) \, \beta v^3$ with the larger root of $v^4 - u v + 1 = 0$,

    $$v = \tfrac{1}{2} \bigl(A + \sqrt{2 u / A - A^2}\bigr), \quad A^2 =
    \tfrac{4}{\sqrt{3}} \cosh\bigl(\tfrac{1}{3}
    \mathrm{arccosh}(\tfrac{3 \sqrt{3}}{16} u^2)\bigr).$$

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> two_thirds_threshold(jnp.array([2.0, -1.0]), 1.0).round(4).tolist()
      [1.404..., 0.0]

    References:
      Cao, Sun and Xu, `Fast Image Deconvolution Using Closed-form Thresholding
      Formulas of Lq (q = 1/2, 2/3) Regularization
      <https://doi.org/10.1016/j.jvcir.2012.10.006>`_, 2013, section 2, whose
      $\lambda$ is twice ours.
    """
    y, s = wide(x, strength)
    size, beta = jnp.abs(y), _once(_positive_power(2 / 3 * s, 0.75))
    unit = jnp.where((beta > 0) & (beta < jnp.inf), beta, 1)
    slope = _held(_once(2 / 3 / jnp.cbrt(unit)))  # of the penalty at beta
    # The formula's v by Newton's method, from the cube root of u to a few per cent.
    u = jnp.clip(size / unit, 2, _FAR)
    v = _near_cube_root(u)
    for _ in range(5):
        cube = v * v * v
        v = (3 * cube * v - 1) / (4 * cube - u)
    safe, force = jnp.maximum(size, 2 * unit), jnp.where(s < jnp.inf, s, 0)
    z = _held(jnp.where(safe > _FAR * unit, safe, unit * v * v * v))
    z = _newton(z, safe, force * (slope / _held(v)), 2 / 3)
    kept = jnp.where(size > 2 * beta, jnp.sign(y) * z, 0)
    return _finite(kept, y, s).astype(x.dtype)


def lp(
    x: jax.Array, strength: jax.typing.ArrayLike, p: jax.typing.ArrayLike
) -> jax.Array:
    r"""The map of $\lambda \sum |x|^p$ for any $0 < p < 2$: the global minimiser.

    For $p < 1$ it is zero up to $\tau = \frac{2 - p}{2 (1 - p)} \beta$ with
    $\beta = (2 \lambda (1 - p))^{1/(2-p)}$. Elsewhere it is the largest root of
    $z + \lambda p z^{p-1} = |x|$, found by Newton's method on the logarithms, where the
    left side is convex and almost straight. For $p > 1$ no weight becomes zero.

    This is not the rule of :func:`volax.lp_decay`, whose penalty is the same up to a
    factor p: that one multiplies by $1 / (1 + \lambda |r|^{p-2})$ with a reference
    weight r, one step of a reweighted quadratic. It never makes an exact zero, and
    where it settles depends on the steps before; this map minimises the penalty itself.

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``.
      p: a number in (0, 2), or a scalar array.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Raises:
      ValueError: ``p`` is known and not in (0, 2).

    Example:
      >>> import jax.numpy as jnp
      >>> lp(jnp.array([2.0, -1.0]), 1.0, p=0.5).round(4).tolist()
      [1.605..., 0.0]

    References:
      Marjanovic and Solo, `On lq Optimization and Matrix Completion
      <https://doi.org/10.1109/TSP.2012.2212015>`_, 2012, theorem 1 (p < 1);
      Chaux, Combettes, Pesquet and Wajs, `A Variational Formulation for Frame-Based
      Inverse Problems <https://doi.org/10.1088/0266-5611/23/4/008>`_, 2007, example
      4.4 (p > 1).
    """
    if isinstance(p, int | float) and not 0 < p < 2:
        raise ValueError(f"lp: p must be in (0, 2), got {p!r}")
    if isinstance(p, int | float) and p == 1:
        return soft_threshold(x, strength)
    y, s = wide(x, strength)
    p = jnp.asarray(p, y.dtype)
    size = jnp.abs(y)
    concave = jnp.where(p < 1, 1 - p, 0.5)
    tau = (
        (2 - p) / (2 * concave) * _positive_power(2 * concave * s, 1 / (2 - p))
    )  # at p = 1 the limit of tau is s
    tau = jnp.where(p < 1, tau, jnp.where(p == 1, s, 0))
    keeps = ~(size <= tau) & (s > 0) & (s < jnp.inf) & (size < jnp.inf)
    z = _root(jnp.where(keeps, size, 1), jnp.where(keeps, s, 0), p)
    moved = jnp.where(keeps, jnp.sign(y) * z, jnp.where(size <= tau, 0, y))
    return _finite(moved, y, s).astype(x.dtype)


def _near_cube_root(x: jax.Array) -> jax.Array:
    """The cube root of numbers > 0 to 4 per cent: a third of the exponent and mantissa.

    As integers, the bit patterns of floats are almost their logarithms, shifted.
    """
    if x.dtype == jnp.float64:
        integer, shift = jnp.int64, 0x2A9F7893782DA1CE
    else:
        integer, shift = jnp.int32, 0x2A514067
    bits = jax.lax.bitcast_convert_type(x, integer)
    return jax.lax.bitcast_convert_type(bits // 3 + shift, x.dtype)


_NEWTON = 8  # steps: the value is off by a factor of 2 at the start, then it squares


@functools.partial(jax.jit, inline=True)  # eager calls would compile the loop each time
def _root(size: jax.Array, s: jax.Array, p: jax.Array) -> jax.Array:
    """The largest z > 0 with z + s p z^(p-1) = size, shapes broadcast."""
    log_x, log_a = jnp.log(size), jnp.log(jnp.where(s > 0, s * p, 1))
    log_a = jnp.where(s > 0, log_a, -jnp.inf)
    # Both terms are below |x| left of the root for p > 1, so start where the first of
    # them reaches it; for p < 1 the root lies left of |x| as well.
    slope = jnp.where(p > 1, p - 1, 1)
    start = jnp.where(p > 1, jnp.minimum(log_x, (log_x - log_a) / slope), log_x)

    def step(_: int, t: jax.Array) -> jax.Array:
        other = log_a + (p - 1) * t
        total = jnp.logaddexp(t, other)
        rise = jnp.exp(t - total) + (p - 1) * jnp.exp(other - total)
        return t - (total - log_x) / rise

    z = _held(jnp.exp(jax.lax.fori_loop(0, _NEWTON, step, _held(start))))
    usable = z > 0  # p near 1 and a small weight: the root underflows
    z = jnp.where(usable, z, 1)
    return jnp.where(usable, _newton(z, size, s * p * z ** (p - 1), p), 0)


_held = jax.lax.stop_gradient
# What depends on the strength alone: XLA would fuse it into the loop over the weights
# and take the power of one number a million times.
_once = jax.lax.optimization_barrier


def _newton(
    z: jax.Array, size: jax.Array, pull: jax.Array, p: jax.typing.ArrayLike
) -> jax.Array:
    """One step of Newton's method for z + pull = size, with pull = s p z^(p-1).

    It takes the rounding of z away and, as z itself is held, carries the derivative of
    the implicit function: dz = (dsize - dpull) / (1 + (p - 1) pull / z).
    """
    return z - (z + pull - size) / _held(1 + (p - 1) * pull / z)


def _positive_power(x: jax.Array, power: jax.typing.ArrayLike) -> jax.Array:
    """X ** power for x >= 0, with the derivative 0 at x = 0."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** power, 0)


def _finite(z: jax.Array, x: jax.Array, s: jax.Array) -> jax.Array:
    """Identity at strength 0, zero at an infinite strength, NaN where x is NaN."""
    z = jnp.where(s == jnp.inf, 0, jnp.where((s == 0) | (jnp.abs(x) == jnp.inf), x, z))
    return jnp.where(jnp.isnan(x), x, z)


def elastic_net_penalty(x: jax.Array, ratio: jax.typing.ArrayLike) -> jax.Array:
    r"""The elastic net, $\rho \lVert x \rVert_1 + \frac{1-\rho}{2} \lVert x \rVert^2$.

    Args:
      x: weights, any shape.
      ratio: $\rho$ in [0, 1], scikit-learn's ``l1_ratio``.

    Returns:
      A scalar in the dtype of ``x``, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> float(elastic_net_penalty(jnp.array([3.0, -4.0]), 0.5))
      9.75
    """
    x, ratio = wide(x, ratio)
    return ratio * l1_norm(x) + (1 - ratio) / 2 * jnp.sum(jnp.square(x))


def elastic_net(
    x: jax.Array, strength: jax.typing.ArrayLike, ratio: jax.typing.ArrayLike = 0.5
) -> jax.Array:
    r"""The map of the elastic net: a soft threshold, then a division.

    $\mathrm{soft}(x, \lambda \rho) / (1 + \lambda (1 - \rho))$. Where inputs are
    correlated it keeps groups of them that l1 would choose from by chance.

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``.
      ratio: $\rho$ in [0, 1]: 1 is l1 alone, 0 weight decay alone.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> elastic_net(jnp.array([3.0, -0.25]), 1.0, ratio=0.5).tolist()
      [1.666..., 0.0]

    References:
      Zou and Hastie, `Regularization and Variable Selection via the Elastic Net
      <https://doi.org/10.1111/j.1467-9868.2005.00503.x>`_, 2005; Parikh and Boyd,
      `Proximal Algorithms <https://doi.org/10.1561/2400000003>`_, 2014, section 6.5.3.
    """
    y, s = wide(x, strength)
    ratio = jnp.asarray(ratio, y.dtype)
    some = jnp.where(jnp.isinf(s), 1, s)
    shrunk = soft_threshold(y, some * ratio) / (1 + some * (1 - ratio))
    return jnp.where(jnp.isinf(s) & ~jnp.isnan(y), 0, shrunk).astype(x.dtype)
