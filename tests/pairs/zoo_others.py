"""Models in Flax NNX, Equinox, Haiku style and plain jax.numpy, for the zoo."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

SAME = "SAME"


class NnxConv(nnx.Module):
    """Convolution, batch norm, dropout, flatten."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.hidden = nnx.Linear(8 * 64, 12, rngs=rngs)
        self.head = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        x = self.drop(x.reshape(x.shape[0], -1))
        return self.head(nnx.leaky_relu(self.hidden(x)))


class NnxMultiplier(nnx.Module):
    """A depthwise convolution that makes two channels of each one it reads."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.depth = nnx.Conv(4, 8, (3, 3), feature_group_count=4, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.depth(nnx.relu(self.conv(x))))
        return self.head(x.max((1, 2)))


class NnxBlock(nnx.Module):
    def __init__(self, width, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.relu(self.up(self.norm(x))))


class NnxTransformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(8, rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 11, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class NnxPReLU(nnx.Module):
    def __init__(self, rngs):
        self.l1 = nnx.Linear(5, 8, rngs=rngs)
        self.act = nnx.PReLU()
        self.slope = nnx.Param(jnp.full(6, 0.2))
        self.l2 = nnx.Linear(8, 6, rngs=rngs)
        self.l3 = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = self.l2(self.act(self.l1(x)))
        return self.l3(jnp.where(x > 0, x, self.slope * x))


class NnxStacked(nnx.Module):
    """Layers made by vmap and run by scan."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return NnxMLPBlock(rngs)

        self.blocks = make(rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return block(x)

        return self.head(run(x, self.blocks))


class NnxMLPBlock(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(6, 9, rngs=rngs)
        self.down = nnx.Linear(9, 6, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


class EqxConv(eqx.Module):
    """Channels first, one example at a time."""

    conv: eqx.nn.Conv2d
    l1: eqx.nn.Linear
    l2: eqx.nn.Linear

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(3, 4, 3, key=a)
        self.l1 = eqx.nn.Linear(4 * 49, 10, key=b)
        self.l2 = eqx.nn.Linear(10, 2, key=c)

    def __call__(self, x):
        x = eqx.nn.MaxPool2d(2, 2)(jax.nn.relu(self.conv(x)))
        return self.l2(jax.nn.relu(self.l1(x.ravel())))


def haiku_mlp(x):
    x = hk.Conv2D(4, 3, name="conv")(x)
    x = hk.Flatten()(jax.nn.relu(x))
    return hk.nets.MLP([12, 6, 2], name="mlp")(x)


def normal(key, **shapes):
    with jax.ensure_compile_time_eval():
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return {
        name: jnp.asarray(rng.standard_normal(shape, np.float32) / 3)
        for name, shape in shapes.items()
    }


def raw_einsum(p, x):
    """Heads written as einsum, without a library."""
    v = jnp.einsum("btd,dhk->bhtk", x, p["v"])
    q = jnp.einsum("btd,dhk->bhtk", x, p["q"])
    k = jnp.einsum("btd,dhk->bhtk", x, p["k"])
    a = jax.nn.softmax(jnp.einsum("bhtk,bhsk->bhts", q, k))
    y = jnp.einsum("bhts,bhsk->bthk", a, v)
    return jnp.einsum("bthk,hkd->btd", y, p["o"])


def raw_fused(p, x):
    """Queries, keys and values from one kernel, as in GPT-2."""
    q, k, v = jnp.split(x @ p["qkv"] + p["b"], 3, axis=-1)
    q, k, v = (t.reshape(*t.shape[:2], 2, 4).swapaxes(1, 2) for t in (q, k, v))
    a = jax.nn.softmax(q @ k.swapaxes(-1, -2))
    y = (a @ v).swapaxes(1, 2).reshape(*x.shape[:2], 8)
    return y @ p["o"]


def raw_fused_heads(p, x):
    """Queries, keys and values from one kernel, parted by a reshape, as in timm."""
    qkv = (x @ p["qkv"] + p["b"]).reshape(*x.shape[:2], 3, -1, 4)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    a = jax.nn.softmax(q @ k.swapaxes(-1, -2) / 2)
    y = (a @ v).swapaxes(1, 2).reshape(*x.shape[:2], -1)
    return y @ p["o"]


def raw_fused_gate(p, x):
    """SwiGLU whose kernel a reshape cuts into a gate and a linear branch."""
    gate, up = jnp.unstack((x @ p["w1"]).reshape(len(x), 2, -1), axis=1)
    return (jax.nn.silu(gate) * up) @ p["w2"]


def raw_gated_fused(p, x):
    """SwiGLU with gate and linear branch in one kernel."""
    gate, up = jnp.split(x @ p["w1"], 2, axis=-1)
    return (jax.nn.silu(gate) * up) @ p["w2"]


def raw_crelu(p, x):
    h = x @ p["w1"] + p["b1"]
    return jnp.concatenate([jax.nn.relu(h), jax.nn.relu(-h)], -1) @ p["w2"]


def raw_scan(p, x):
    """Stacked layers under scan, with remat and bfloat16 compute."""

    @jax.checkpoint
    def layer(x, w):
        up, down = (a.astype(jnp.bfloat16) for a in w)
        return x + jax.nn.relu(x @ up) @ down, None

    x, _ = lax.scan(layer, (x @ p["embed"]).astype(jnp.bfloat16), (p["up"], p["down"]))
    return x.astype(jnp.float32) @ p["head"]


def raw_ensemble(p, x):
    """Networks under vmap, averaged."""

    def net(w1, b1, w2):
        return jax.nn.relu(x @ w1 + b1) @ w2

    return jax.vmap(net)(p["w1"], p["b1"], p["w2"]).mean(0)


@jax.custom_vjp
def custom_relu(x):
    return jnp.maximum(x, 0)


custom_relu.defvjp(lambda x: (custom_relu(x), x), lambda x, g: (g * (x > 0),))


def raw_calls(p, x):
    """Nested jit, custom rules, stop_gradient, abs, max of both signs, roll and pad."""
    layer = jax.jit(lambda x, w: custom_relu(x @ w))
    h = layer(x, p["w1"])
    h = layer(h, p["w2"])
    h = jnp.abs(h) + 0.5 * lax.stop_gradient(h)
    h = jnp.pad(h, ((0, 0), (2, 1)))
    return jnp.roll(h, 1, -1) @ p["w3"]


def raw_volume(p, x):
    """Three-dimensional convolution, strided, with a global maximum."""
    spec = lax.conv_dimension_numbers(
        x.shape, p["k1"].shape, ("NDHWC", "DHWIO", "NDHWC")
    )
    for name in ("k1", "k2"):
        x = lax.conv_general_dilated(
            x, p[name], (2, 2, 2), SAME, dimension_numbers=spec
        )
        x = jax.nn.relu(x)
    return x.max((1, 2, 3)) @ p["w"]


def raw_embedding(p, tokens):
    h = jax.nn.relu(p["table"][tokens]) @ p["w1"]
    return jax.nn.relu(h.max(1)) @ p["w2"]


def raw_graph(p, sender, receiver, x):
    """Messages along edges, summed and maximized where they arrive."""

    def step(w, x):
        h = jax.nn.relu(x @ w)[sender]
        total = jax.ops.segment_sum(h, receiver, len(x))
        return total + jnp.maximum(jax.ops.segment_max(h, receiver, len(x)), 0)

    return step(p["w2"], step(p["w1"], x)) @ p["w3"]


def raw_cache(p, where, x):
    """A cache of keys that each example writes and reads at a place of its own."""

    def one(h, i):
        cache = jnp.zeros((9, h.shape[-1]), h.dtype)
        cache = lax.dynamic_update_slice(cache, h, (i, 0))
        return lax.dynamic_slice(cache, (i - 1, 0), (4, h.shape[-1]))

    h = jax.vmap(one)(jax.nn.relu(x @ p["w1"] + p["b1"]), where)
    h = jnp.take_along_axis(h, jnp.argsort(h, axis=1), axis=1)
    return h.at[:, 1].add(p["b2"])[:, :3] @ p["w2"]


def raw_grid(p, x):
    """Random features of a grid that the program counts out, as in SAM."""
    grid = jnp.ones((4, 3))
    grid = jnp.stack([grid.cumsum(0), grid.cumsum(1)], -1).reshape(12, 2) / 4
    angles = 2 * jnp.pi * grid @ p["table"]
    h = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1) @ p["w1"]
    return jax.nn.relu(h + x @ p["w0"]) @ p["w2"]


def raw_waves(p, x):
    """A table of frequencies, weighted by parameters, which is no parameter itself."""
    angles = x[:, :1] * jnp.exp(-jnp.arange(3.0))
    waves = jnp.stack([jnp.sin(angles[0]), jnp.cos(angles[0])]) * p["gain"]
    return jax.nn.relu(waves @ p["w1"]) @ p["w2"]


def raw_tied(p, x):
    """An autoencoder whose decoder is its encoder's transpose."""
    return jax.nn.relu(x @ p["w"] + p["b"]) @ p["w"].T


def raw_tied_embedding(p, tokens):
    """The table that looks tokens up also scores them."""
    h = p["table"][tokens]
    h = h + jax.nn.gelu(h @ p["up"]) @ p["down"]
    return h @ p["table"].T


def raw_recurrent(p, x):
    def step(h, x_t):
        h = jnp.tanh(x_t @ p["w"] + h @ p["u"] + p["b"])
        return h, None

    return lax.scan(step, jnp.zeros(p["u"].shape[0], x.dtype), x)[0] @ p["v"]


def raw_unrolled(p, x):
    h = jnp.zeros((len(x), p["u"].shape[0]))
    for _ in range(2):
        h = jax.nn.relu(x @ p["w"] + h @ p["u"])
    return h @ p["v"]


def raw_gru(p, x):
    """All gates from one kernel on each side, in equal parts; a learned start."""

    def step(h, x_t):
        ar, az, an = jnp.split(x_t @ p["w"] + p["b"], 3)
        br, bz, bn = jnp.split(h @ p["u"], 3)
        z = jax.nn.sigmoid(az + bz)
        n = jnp.tanh(an + jax.nn.sigmoid(ar + br) * bn)
        return (1 - z) * n + z * h, h

    last, before = lax.scan(step, p["h"], x)
    return last @ p["v"], before @ p["v"]


def raw_projected(p, x):
    """MBConv blocks that do not expand: each projection is read by the next one."""
    spec = ("NHWC", "HWIO", "NHWC")

    def conv(x, kernel, groups=1):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), SAME, dimension_numbers=spec, feature_group_count=groups
        )

    x = conv(x, p["stem"])
    for k in range(2):
        h = jax.nn.silu(conv(x, p[f"depth{k}"], x.shape[-1]))
        squeezed = jax.nn.silu(h.mean((1, 2)) @ p[f"squeeze{k}"])
        h = h * jax.nn.sigmoid(squeezed @ p[f"excite{k}"])[:, None, None]
        x = x + conv(h, p[f"project{k}"])
    return x.mean((1, 2)) @ p["head"]


def raw_multiplier(p, x):
    """A depthwise convolution that makes several channels of each one it reads."""
    spec = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(x, p["k"], (1, 1), SAME, dimension_numbers=spec)
    h = jax.nn.relu(h + p["b"])
    h = lax.conv_general_dilated(
        h, p["depth"], (1, 1), SAME, dimension_numbers=spec,
        feature_group_count=h.shape[-1],
    )  # fmt: skip
    return jax.nn.relu(h + p["c"]).max((1, 2)) @ p["w"]


def raw_lora(p, x):
    """An adapter beside a frozen-looking weight, not merged."""
    h = jax.nn.relu(x @ p["w1"] + (x @ p["a"]) @ p["b"])
    return h @ p["w2"]


def raw_masked(p, mask, x):
    """Weights under a pruning mask that is an input."""
    h = jax.nn.relu(x @ (p["w1"] * mask["w1"]) + p["b1"])
    return h @ (p["w2"] * mask["w2"])


def raw_weight_norm(p, x):
    w = p["v"] / jnp.linalg.norm(p["v"], axis=0) * p["g"]
    return jax.nn.relu(x @ w) @ p["w2"]


def raw_batch_norm(p, mean, var, x):
    """Batch norm in training mode that returns its statistics."""
    h = x @ p["w1"]
    m, v = h.mean(0), h.var(0)
    new = (0.9 * mean + 0.1 * m, 0.9 * var + 0.1 * v)
    h = (h - m) * lax.rsqrt(v + 1e-5) * p["gamma"] + p["beta"]
    return jax.nn.relu(h) @ p["w2"], new
