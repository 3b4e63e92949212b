"""Small models with hand-written groups, and what kills their units."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

import volax
from volax import _paths
from volax.compress import _dead
from volax.compress._cut import replaced
from volax.compress._fitted import fitted
from volax.pairs import Axis, Member, Written, _judge


def drawn(seed=0, **shapes):
    """Normal parameters, as nested dictionaries where a name holds a slash."""
    rng, tree = np.random.default_rng(seed), {}
    for path, shape in shapes.items():
        *above, name = path.split("__")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        fan_in = max(int(np.prod(shape[:-1])), 1)
        values = rng.normal(size=shape) / np.sqrt(fan_in)
        # Handed over as it is: `jnp.asarray` compiles a program for each shape.
        node[name] = jax.device_put(values.astype(np.float32))
    return tree


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def conv(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x.astype(kernel.dtype), kernel, (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def mlp(params, x):
    x = jax.nn.relu(dense(params["l1"], x))
    return dense(params["l3"], jax.nn.relu(dense(params["l2"], x)))


def mlp_params(seed=0, widths=(5, 12, 9, 3)):
    shapes = {}
    for k, (a, b) in enumerate(pairwise(widths), 1):
        shapes |= {f"l{k}__kernel": (a, b), f"l{k}__bias": (b,)}
    return drawn(seed, **shapes)


MLP_PAIRS = tuple(
    volax.pair(f"l{k}/kernel", f"l{k + 1}/kernel", bias=f"l{k}/bias") for k in (1, 2)
)


def cnn(params, x):
    """Convolution, batch norm, depthwise convolution, flatten."""
    x = conv(x, params["conv"]["kernel"])
    norm = params["norm"]
    x = (x - norm["mean"]) * jax.lax.rsqrt(norm["var"] + 1e-5) * norm["scale"]
    x = jax.nn.relu(x + norm["bias"])
    kernel = params["depth"]["kernel"]
    x = jax.nn.relu(conv(x, kernel, kernel.shape[-1]))
    x = x.reshape(x.shape[0], -1)
    return dense(params["head"], x)


def cnn_params(seed=0):
    params = drawn(
        seed, conv__kernel=(3, 3, 3, 8), norm__scale=(8,), norm__bias=(8,),
        norm__mean=(8,), norm__var=(8,), depth__kernel=(3, 3, 1, 8),
        head__kernel=(4 * 4 * 8, 5), head__bias=(5,),
    )  # fmt: skip
    params["norm"]["var"] = jnp.abs(params["norm"]["var"]) + 0.5
    return params


def at(path, role, degree=0, axis=-1):
    return Member(path, role, degree, (Axis(axis),))


def cnn_group():
    pair = volax.pair(
        "norm/scale", volax.member("head/kernel", positions=16), bias="norm/bias"
    )
    return dataclasses.replace(
        pair,
        scales=(at("depth/kernel", "scale"),),
        fixed=(at("conv/kernel", "producer"),),
        states=(at("norm/mean", "state"), at("norm/var", "state")),
        keeps_zero=True,
    )


def residual(params, x):
    """Two blocks write to one stream, two layers read it."""
    x = x @ params["embed"]
    x = x + jax.nn.relu(x @ params["up"]) @ params["down"]
    return jax.nn.relu(x @ params["a"]) @ params["b"]


RESIDUAL = (
    Written(
        (-1,),
        (at("embed", "producer", 1), at("down", "producer", 1)),
        (at("up", "consumer", -1, 0), at("a", "consumer", -1, 0)),
        homogeneous=False,
        keeps_zero=True,
    ),
    volax.pair("up", "down"),
    volax.pair("a", "b"),
)


def residual_params(seed=0):
    shapes = {
        "embed": (5, 8),
        "up": (8, 12),
        "down": (12, 8),
        "a": (8, 10),
        "b": (10, 3),
    }
    return drawn(seed, **shapes)


def joined(params, x):
    """A concatenation: each layer's units lie at an offset of the consumer."""
    a, b = jax.nn.relu(x @ params["a"]), jax.nn.relu(x @ params["b"])
    return jnp.concatenate([a, b, a], -1) @ params["out"]


JOINED = (
    volax.pair(
        "a", [volax.member("out", 0, offset=0), volax.member("out", 0, offset=10)]
    ),
    volax.pair("b", volax.member("out", 0, offset=6)),
)


def joined_params(seed=0):
    return drawn(seed, a=(5, 6), b=(5, 4), out=(16, 3))


def stacked(params, x):
    def layer(x, p):
        return x + jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"], None

    return jax.lax.scan(layer, x, params)[0]


STACKED = (volax.pair("up", "down", bias="bias", layers=1),)


def stacked_params(seed=0):
    return drawn(seed, up=(3, 5, 8), bias=(3, 8), down=(3, 8, 5))


def shared(params, x):
    """Two consumers of one layer."""
    h = jax.nn.relu(x @ params["w"] + params["b"])
    return h @ params["u"], jnp.tanh(h @ params["v"])


SHARED = (volax.pair("w", ["u", "v"], bias="b"),)


def shared_params(seed=0):
    return drawn(seed, w=(5, 9), b=(9,), u=(9, 2), v=(9, 4))


# fn, parameters, groups, shape of the input
MODELS = {
    "mlp": (mlp, mlp_params, MLP_PAIRS, (4, 5)),
    "cnn": (cnn, cnn_params, (cnn_group(),), (2, 4, 4, 3)),
    "residual": (residual, residual_params, RESIDUAL, (4, 5)),
    "concatenation": (joined, joined_params, JOINED, (4, 5)),
    "stacked": (stacked, stacked_params, STACKED, (4, 5)),
    "two consumers": (shared, shared_params, SHARED, (4, 5)),
}


def marks(params):
    """The number of each weight, which tells what of it is left after a cut."""
    return {"m": jax.tree.map(lambda p: np.arange(p.size).reshape(p.shape), params)}


def same_gradients(fn, params, small_fn, small, rtol=1e-5):
    """Asserts it of the weights that are left; ``small`` was given the marks."""

    def gradients(fn, tree):
        def loss(p):
            return sum(jnp.mean(jnp.sin(y)) for y in jax.tree.leaves(fn(p)))

        found = _paths.named_leaves(jax.jit(jax.grad(loss))(tree))
        return {path: np.asarray(grad, np.float32) for path, grad in found.items()}

    whole, where = gradients(fn, params), _paths.named_leaves(small.opt_state["m"])
    # Where a norm cancels a bias, its gradient is rounding: judged beside the largest.
    largest = max(float(np.abs(g).max()) for g in whole.values())
    for path, grad in gradients(small_fn, small.params).items():
        kept = whole[path].reshape(-1)[where[path]]
        np.testing.assert_allclose(
            grad, kept, rtol=0, atol=rtol * largest, err_msg=path
        )


def killed(tree, groups, seed=0, share=0.5):
    """Random units lose their outgoing, or their incoming weights and biases.

    Returns the tree, and the number of units left by the name of the group.
    """
    rng = np.random.default_rng(seed)
    leaves = {
        k: v for k, v in _paths.named_leaves(tree).items()
        if not jnp.issubdtype(v.dtype, jax.dtypes.prng_key)
    }  # fmt: skip
    groups, left = fitted(groups, leaves, "killed"), {}
    new = {k: np.asarray(v) for k, v in leaves.items()}
    for group in groups:
        gone = np.zeros(group.sizes, bool)
        rows = gone.reshape(-1, group.sizes[-1])
        count = int(share * rows.shape[-1])
        for row in rows:
            row[rng.permutation(row.size)[:count]] = True
        outgoing = rng.random() < 0.5 or not _judge.keeps_zero(group)
        members = group.consumers if outgoing else group.producers + group.biases
        for m in members:
            leaf = new[m.path]
            inside = _dead.positions(m, gone, leaf.shape)
            new[m.path] = np.where(inside, np.zeros((), leaf.dtype), leaf)
        left[group.name] = group.sizes[-1] - count
    return replaced(tree, jax.device_put(new)), left
