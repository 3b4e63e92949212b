"""Randomly grown programs: whatever is reported has to hold numerically."""

import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from volax.pairs import check_groups, find_groups

WIDTHS = (4, 6, 8)


def relu(h):
    return jax.nn.relu(h)


# Operations on a hidden [batch, width]; those with parameters get them by name.
PLAIN = {
    "relu": relu,
    "leaky": jax.nn.leaky_relu,
    "abs": jnp.abs,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "relu6": jax.nn.relu6,
    "plus_one": lambda h: h + 1,
    "half": lambda h: h / 2,
    "square": lambda h: h * jnp.abs(h),
    "layer_norm": lambda h: (
        (h - h.mean(-1, keepdims=True)) / (h.std(-1, keepdims=True) + 1)
    ),
    "softmax": jax.nn.softmax,
    "standardise": lambda h: (h - h.mean(0)) * lax.rsqrt(h.var(0) + 1.0),
    "roll": lambda h: jnp.roll(h, 2, -1),
    "flip": lambda h: h[:, ::-1],
    "roll_add": lambda h: h + jnp.roll(h, h.shape[-1] // 2, -1),
    "mirror": lambda h: jnp.concatenate([relu(h), relu(-h)], -1)[:, : h.shape[-1]],
    "halves": lambda h: jnp.concatenate(jnp.split(h, 2, -1)[::-1], -1),
    "maxout": lambda h: jnp.tile(h.reshape(h.shape[0], 2, -1).max(1), (1, 2)),
    "gate_halves": lambda h: jnp.repeat(h[:, ::2] * jax.nn.sigmoid(h[:, 1::2]), 2, 1),
    "shuffle": lambda h: h.reshape(h.shape[0], 2, -1).swapaxes(1, 2).reshape(h.shape),
    "pad_cut": lambda h: jnp.pad(h, ((0, 0), (1, 2)))[:, 1:-2],
    "pad": lambda h: jnp.pad(h[:, :-2], ((0, 0), (2, 0))),
    "sign_mask": lambda h: jnp.where(h > 0, h, 0.3 * h),
    "threshold_mask": lambda h: jnp.where(h > 0.1, h, h * 0.5 - 0.05),
    "over_batch": lambda h: h - h.max(0),
    "cumulative": lambda h: jnp.cumsum(h, 0),
    "sum_mixed": lambda h: h + h.sum(-1, keepdims=True),
    "norm_cap": lambda h: h / jnp.maximum(jnp.abs(h).max(0), 1.0),
    "jit": jax.jit(lambda h: relu(h) * 2),
    "remat": jax.checkpoint(lambda h: relu(h)),
    "half_precision": lambda h: h.astype(jnp.float16).astype(jnp.float32),
    "one_unit": lambda h: h * h[:, :1],
    "sorted": lambda h: jnp.sort(h, -1),
    "scan": lambda h: (
        lax.scan(lambda c, x: (c + x, relu(x)), jnp.zeros_like(h[0]), h)[1]
    ),
    "loop_carry": lambda h: lax.scan(lambda c, x: (relu(c + x), c), h[0], h)[1],
}  # fmt: skip
TRAINED = ("dense", "bias", "scale", "residual", "gated", "concat", "twice", "mixed",
           "unit_mean", "grouped", "filter", "stacked", "again")  # fmt: skip


class Weights:
    """Hands parameters out by name, drawn on first use."""

    def __init__(self, known=None):
        self.known = {} if known is None else known
        self.rng = np.random.default_rng(0)

    def __call__(self, name, *shape):
        if name not in self.known:
            scale = np.sqrt(shape[-2]) if len(shape) > 1 else 2.0
            self.known[name] = self.rng.normal(size=shape).astype(np.float32) / scale
        return self.known[name]


def trained(kind, k, width, w, h):
    n = h.shape[-1]
    if kind == "dense":
        return h @ w(f"w{k}", n, width) + w(f"b{k}", width)
    if kind == "bias":
        return h + w(f"b{k}", n)
    if kind == "scale":
        return h * w(f"s{k}", n)
    if kind == "residual":
        return h + relu(h @ w(f"u{k}", n, width)) @ w(f"d{k}", width, n)
    if kind == "gated":
        gate = jax.nn.silu(h @ w(f"g{k}", n, width))
        return gate * (h @ w(f"u{k}", n, width))
    if kind == "concat":
        return jnp.concatenate([h, relu(h @ w(f"c{k}", n, width))], -1)
    if kind == "twice":
        shared = w(f"t{k}", n, n)
        return relu(relu(h @ shared) @ shared)
    if kind == "mixed":
        both = h @ w(f"m{k}", n, 2 * width)
        return relu(both[:, :width]) + both[:, width:]
    if kind == "unit_mean":
        heads = (h @ w(f"h{k}", n, 2 * width)).reshape(h.shape[0], 2, width)
        return jnp.einsum("bhk,hkd->bd", relu(heads), w(f"o{k}", 2, width, width))
    if kind == "grouped":
        parts = h.reshape(h.shape[0], 2, n // 2)
        return jnp.einsum("bgi,gio->bgo", parts, w(f"e{k}", 2, n // 2, 2)).reshape(
            -1, 4
        )
    if kind == "filter":
        return relu(jnp.einsum("bi,bi->bi", h, h * w(f"f{k}", n)))
    if kind == "again":  # the same weights on two inputs
        shared = w(f"a{k}", n, width)
        return relu(h @ shared) + jnp.abs(2 * h @ shared)
    ups, downs = w(f"su{k}", 3, n, width), w(f"sd{k}", 3, width, n)
    return lax.scan(lambda c, p: (c + relu(c @ p[0]) @ p[1], None), h, (ups, downs))[0]


def grown(program, outputs):
    def fn(params, x):
        w = params if isinstance(params, Weights) else Weights(dict(params))
        h = x @ w("first", x.shape[-1], 8)
        seen = []
        for k, (kind, width) in enumerate(program):
            seen.append(h)
            if kind in PLAIN:
                h = PLAIN[kind](h)
            elif kind == "skip":
                older = [o for o in seen if o.shape == h.shape]
                h = h + older[0]
            else:
                h = trained(kind, k, width, w, h)
        last = h @ w("last", h.shape[-1], 3)
        return (last, h) if outputs == 2 else last

    return fn


steps = st.tuples(st.sampled_from([*TRAINED, *PLAIN, "skip"]), st.sampled_from(WIDTHS))
programs = st.lists(steps, min_size=1, max_size=7)


@hypothesis.settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
@hypothesis.given(programs, st.sampled_from([1, 1, 1, 2]))
def test_whatever_is_found_in_a_random_program_holds(program, outputs):
    fn = grown(program, outputs)
    weights = Weights()
    x = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(lambda: fn(weights, x))
        params = weights.known
        groups = find_groups(fn, params, x)
        check_groups(groups, fn, params, x, tolerance=0.05 if coarse(program) else 2e-3)


def coarse(program):
    return any(kind == "half_precision" for kind, _ in program)
