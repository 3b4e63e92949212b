r"""Folded concave penalties: l1 near zero, flat for large weights, so without bias.

Both are written as ``strength`` times a shape with its own knee, so that a schedule of
the strength, or a learning rate in it, leaves the shape alone. With ``knee`` equal to
$\lambda$ (SCAD) or $\gamma \lambda$ (MCP) they are the penalties of the papers.
"""

import jax
import jax.numpy as jnp

from volax.prox._wide import wide


def scad_penalty(
    x: jax.Array, knee: jax.typing.ArrayLike, a: jax.typing.ArrayLike = 3.7
) -> jax.Array:
    r"""Smoothly clipped absolute deviation, divided by its strength.

    $|x|$ up to the knee $\kappa$, $\frac{2 a \kappa |x| - x^2 - \kappa^2}{2 (a - 1)
    \kappa}$ up to $a \kappa$, then the constant $\frac{a + 1}{2} \kappa$.

    Args:
      x: weights, any shape.
      knee: $\kappa > 0$.
      a: where the penalty becomes flat, in knees, > 1.

    Returns:
      The sum, a scalar in the dtype of ``x``, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> float(scad_penalty(jnp.array([0.5, -10.0]), knee=1.0, a=3.0))
      2.5
    """
    x, knee = wide(x, knee)
    return jnp.sum(_scad(jnp.abs(x), knee, jnp.asarray(a, x.dtype)))


def _scad(size: jax.Array, knee: jax.Array, a: jax.Array) -> jax.Array:
    bent = (2 * a * knee * size - size**2 - knee**2) / (2 * (a - 1) * knee)
    flat = (a + 1) / 2 * knee
    return jnp.where(size <= knee, size, jnp.where(size <= a * knee, bent, flat))


def scad(
    x: jax.Array,
    strength: jax.typing.ArrayLike,
    *,
    knee: jax.typing.ArrayLike,
    a: jax.typing.ArrayLike = 3.7,
) -> jax.Array:
    r"""The map of SCAD: small weights go to zero, large ones stay as they are.

    The global minimiser of $\lambda \, \mathrm{SCAD}(z) + \frac{1}{2} (z - x)^2$, also
    where a large strength makes the objective concave.

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``.
      knee: $\kappa > 0$, up to which the penalty is that of l1; the paper's is
        $\lambda$.
      a: in knees, where the penalty becomes flat, > 1; 3.7 is the paper's.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> scad(jnp.array([0.5, 1.5, -5.0]), 1.0, knee=1.0).tolist()
      [0.0, 0.5, -5.0]

    References:
      Fan and Li, `Variable Selection via Nonconcave Penalized Likelihood
      <https://doi.org/10.1198/016214501753382273>`_, 2001, equation 2.8.
    """
    y, s = wide(x, strength)
    knee, a = jnp.asarray(knee, y.dtype), jnp.asarray(a, y.dtype)
    size, some = jnp.abs(y), jnp.where(jnp.isinf(s), 1, s)
    curvature = 1 - some / ((a - 1) * knee)
    convex = curvature > 0
    soft = jnp.maximum(size - some, 0)
    # Convex: soft, bent and the identity are lines of slopes 1, more than 1, and 1 that
    # meet at knee + strength and at a knee, so the map is the least of the last and the
    # larger of the others. Otherwise it jumps from soft to the identity where both cost
    # strength knee (a + 1) / 2: soft costs size^2 / 2 at 0, and behind it
    # strength size - strength^2 / 2.
    gain = jnp.where(convex, 1 / jnp.where(convex, curvature, 1), 0)
    bent = (size - some * a / (a - 1)) * gain
    flat = knee * (a + 1)
    jump = jnp.where(some < flat, (some + flat) / 2, jnp.sqrt(some * flat))
    jump = jnp.where(convex, jnp.inf, jump)
    best = jnp.minimum(size, jnp.maximum(soft, bent))
    best = jnp.where(size > jump, size, best)
    return _signed(best, y, s).astype(x.dtype)


def mcp_penalty(x: jax.Array, knee: jax.typing.ArrayLike) -> jax.Array:
    r"""Minimax concave penalty, divided by its strength.

    $|x| - \frac{x^2}{2 \kappa}$ up to the knee $\kappa$, then the constant
    $\frac{\kappa}{2}$.

    Args:
      x: weights, any shape.
      knee: $\kappa > 0$.

    Returns:
      The sum, a scalar in the dtype of ``x``, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> float(mcp_penalty(jnp.array([1.0, -10.0]), knee=2.0))
      1.75
    """
    x, knee = wide(x, knee)
    return jnp.sum(_mcp(jnp.abs(x), knee))


def _mcp(size: jax.Array, knee: jax.Array) -> jax.Array:
    return jnp.where(size <= knee, size - size**2 / (2 * knee), knee / 2)


def mcp(
    x: jax.Array, strength: jax.typing.ArrayLike, *, knee: jax.typing.ArrayLike
) -> jax.Array:
    r"""The map of MCP, the firm threshold: zero, a steep line, then the identity.

    The global minimiser of $\lambda \, \mathrm{MCP}(z) + \frac{1}{2} (z - x)^2$; for
    $\lambda \ge \kappa$ that is a hard threshold at $\sqrt{\lambda \kappa}$.

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``.
      knee: $\kappa > 0$, from where on weights stay as they are; the paper's is
        $\gamma \lambda$.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> mcp(jnp.array([0.5, 1.5, -5.0]), 1.0, knee=2.0).tolist()
      [0.0, 1.0, -5.0]

    References:
      Zhang, `Nearly Unbiased Variable Selection under Minimax Concave Penalty
      <https://doi.org/10.1214/09-AOS729>`_, 2010, equation 2.1; Gao and Bruce,
      `WaveShrink with Firm Shrinkage <https://www.jstor.org/stable/24306159>`_, 1997.
    """
    y, s = wide(x, strength)
    knee = jnp.asarray(knee, y.dtype)
    size, some = jnp.abs(y), jnp.where(jnp.isinf(s), 1, s)
    curvature = 1 - some / knee
    convex = curvature > 0
    # Convex: zero up to the strength, then a line that meets the identity at the knee.
    # Otherwise zero costs size^2 / 2 and the identity strength knee / 2.
    gain = jnp.where(convex, 1 / jnp.where(convex, curvature, 1), 1)
    shift = jnp.where(convex, some, 0)
    dead = jnp.where(convex, some, jnp.sqrt(some * knee))
    best = jnp.where(size > dead, jnp.minimum((size - shift) * gain, size), 0)
    return _signed(best, y, s).astype(x.dtype)


def _signed(best: jax.Array, x: jax.Array, s: jax.Array) -> jax.Array:
    """The candidate with the sign of x; the limits of the strength; NaN as it is."""
    signed = jnp.where(best == 0, 0, jnp.sign(x) * best)
    kept = (s == 0) | (jnp.abs(x) == jnp.inf)
    signed = jnp.where(s == jnp.inf, 0, jnp.where(kept, x, signed))
    return jnp.where(jnp.isnan(x), x, signed)
