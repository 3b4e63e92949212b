"""Models in Flax Linen, small in width and full in depth, for the zoo of pairs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ndarray = Any


class MLP(nn.Module):
    widths: tuple[int, ...] = (16, 12, 4)

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class LeNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(6, (5, 5))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(8, (5, 5))(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(24)(x))
        x = nn.relu(nn.Dense(12)(x))
        return nn.Dense(10)(x)


class VGG19(nn.Module):
    blocks: tuple[int, ...] = (2, 2, 4, 4, 4)
    norm: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, x):
        width = 4
        for depth in self.blocks:
            for _ in range(depth):
                x = nn.Conv(width, (3, 3), use_bias=not self.norm)(x)
                if self.norm:
                    x = nn.BatchNorm(use_running_average=not self.train)(x)
                x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
            width = min(2 * width, 16)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(16)(x))
        x = nn.Dropout(0.5, deterministic=True)(x)
        return nn.Dense(10)(x)


class Block(nn.Module):
    width: int
    strides: int = 1
    norm: bool = True
    bottleneck: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, x):
        def norm(x):
            if not self.norm:
                return x
            return nn.BatchNorm(use_running_average=not self.train)(x)

        strides, skip, out = (self.strides,) * 2, x, self.width
        if self.bottleneck:
            out = 4 * self.width
            x = nn.relu(norm(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
            x = nn.relu(norm(nn.Conv(self.width, (3, 3), strides, use_bias=False)(x)))
            x = norm(nn.Conv(out, (1, 1), use_bias=False)(x))
        else:
            x = nn.relu(norm(nn.Conv(self.width, (3, 3), strides, use_bias=False)(x)))
            x = norm(nn.Conv(self.width, (3, 3), use_bias=False)(x))
        if skip.shape != x.shape:
            skip = norm(
                nn.Conv(out, (1, 1), strides, use_bias=False, name="proj")(skip)
            )
        return nn.relu(x + skip)


class ResNet(nn.Module):
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    norm: bool = True
    train: bool = False
    width: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (7, 7), (2, 2), use_bias=False)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not self.train)(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), "SAME")
        for i, depth in enumerate(self.blocks):
            for j in range(depth):
                strides = 2 if i and not j else 1
                x = Block(
                    self.width * 2**i, strides, self.norm, self.bottleneck, self.train
                )(x)
        return nn.Dense(10)(x.mean((1, 2)))


class MobileNet(nn.Module):
    """Inverted residuals: expand, depthwise, project."""

    norm: bool = False

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=True)(x) if self.norm else x

        x = nn.relu(norm(nn.Conv(8, (3, 3), (2, 2), name="stem")(x)))
        for k, width in enumerate((8, 8, 12)):
            skip, wide = x, 3 * x.shape[-1]
            x = nn.relu(norm(nn.Conv(wide, (1, 1), name=f"expand{k}")(x)))
            x = nn.Conv(wide, (3, 3), feature_group_count=wide, name=f"depth{k}")(x)
            x = nn.relu(norm(x))
            x = norm(nn.Conv(width, (1, 1), name=f"project{k}")(x))
            x = x + skip if x.shape == skip.shape else x
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class DenseNet(nn.Module):
    """Each layer reads everything before it; the last one reads it flattened."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        for _ in range(3):
            y = nn.relu(nn.Conv(4, (3, 3))(x))
            x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Inception(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), name="stem")(x))
        a = nn.relu(nn.Conv(3, (1, 1), name="a")(x))
        b = nn.relu(nn.Conv(4, (1, 1), name="b1")(x))
        b = nn.relu(nn.Conv(5, (3, 3), name="b2")(b))
        c = nn.relu(nn.Conv(4, (1, 1), name="c1")(x))
        c = nn.relu(nn.Conv(2, (5, 5), name="c2")(c))
        d = nn.max_pool(x, (3, 3), (1, 1), "SAME")
        d = nn.relu(nn.Conv(4, (1, 1), name="d")(d))
        x = jnp.concatenate([a, b, c, d], axis=-1)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        a = nn.relu(nn.Conv(4, (3, 3), name="down1")(x))
        b = nn.relu(nn.Conv(6, (3, 3), (2, 2), name="down2")(a))
        c = nn.relu(nn.Conv(8, (3, 3), (2, 2), name="middle")(b))
        c = nn.relu(nn.ConvTranspose(6, (2, 2), (2, 2), name="up2")(c))
        c = nn.relu(nn.Conv(5, (3, 3), name="join2")(jnp.concatenate([b, c], -1)))
        shape = (*a.shape[:3], c.shape[-1])
        c = jax.image.resize(c, shape, "nearest")
        c = nn.relu(nn.Conv(4, (3, 3), name="join1")(jnp.concatenate([a, c], -1)))
        return nn.Conv(1, (1, 1), name="out")(c)


class Transformer(nn.Module):
    """A decoder-only language model, before the norm."""

    layers: int = 2
    width: int = 16
    heads: int = 2
    vocabulary: int = 20
    act: Any = nn.relu

    @nn.compact
    def __call__(self, tokens):
        length = tokens.shape[1]
        x = nn.Embed(self.vocabulary, self.width, name="embed")(tokens)
        x = x + self.param("positions", nn.initializers.normal(), (length, self.width))
        mask = nn.make_causal_mask(tokens)
        for k in range(self.layers):
            h = nn.LayerNorm(name=f"norm{k}a")(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, name=f"attention{k}")(
                h, mask=mask
            )
            h = nn.LayerNorm(name=f"norm{k}b")(x)
            h = self.act(nn.Dense(4 * self.width, name=f"up{k}")(h))
            x = x + nn.Dense(self.width, name=f"down{k}")(h)
        return nn.Dense(self.vocabulary, name="head")(nn.LayerNorm(name="norm")(x))


class GatedMLP(nn.Module):
    act: Any = nn.silu

    @nn.compact
    def __call__(self, x):
        gate = self.act(nn.Dense(12, name="gate")(x))
        return nn.Dense(3, name="down")(gate * nn.Dense(12, name="up")(x))


class ViT(nn.Module):
    act: Any = nn.gelu

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4), name="patch")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param("token", nn.initializers.zeros, (1, 1, x.shape[-1]))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(), (1, *x.shape[1:]))
        for k in range(2):
            h = nn.LayerNorm(name=f"norm{k}a")(x)
            x = x + nn.MultiHeadDotProductAttention(2, name=f"attention{k}")(h)
            h = nn.LayerNorm(name=f"norm{k}b")(x)
            h = self.act(nn.Dense(16, name=f"up{k}")(h))
            x = x + nn.Dense(8, name=f"down{k}")(h)
        return nn.Dense(5, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


class Mixer(nn.Module):
    act: Any = nn.relu

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4), name="patch")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for k in range(2):
            h = nn.LayerNorm(name=f"norm{k}a")(x).swapaxes(1, 2)
            h = self.act(nn.Dense(6, name=f"tokens{k}_up")(h))
            x = x + nn.Dense(x.shape[1], name=f"tokens{k}_down")(h).swapaxes(1, 2)
            h = nn.LayerNorm(name=f"norm{k}b")(x)
            h = self.act(nn.Dense(16, name=f"channels{k}_up")(h))
            x = x + nn.Dense(8, name=f"channels{k}_down")(h)
        return nn.Dense(5, name="head")(nn.LayerNorm(name="norm")(x).mean(1))


class Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        shape = x.shape
        x = x.reshape(x.shape[0], -1)
        for k, width in enumerate((24, 5, 24)):
            x = nn.relu(nn.Dense(width, name=f"l{k}")(x))
        x = nn.Dense(shape[1] * shape[2] * shape[3], name="out")(x)
        return nn.sigmoid(x).reshape(shape)


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        h = nn.relu(nn.Dense(12, name="up")(nn.LayerNorm(name="norm")(x)))
        return x + nn.Dense(8, name="down")(h), None


class Stacked(nn.Module):
    """Layers under scan, rematerialised."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="embed")(x)
        stack = nn.scan(
            nn.remat(_Layer), variable_axes={"params": 0}, split_rngs={"params": True},
            length=3,
        )  # fmt: skip
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(2, name="head")(x)


class SqueezeExcite(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x))
        s = nn.relu(nn.Dense(4, name="squeeze")(x.mean((1, 2))))
        s = nn.sigmoid(nn.Dense(8, name="excite")(s))
        x = x * s[:, None, None]
        return nn.Conv(3, (1, 1), name="out")(x).mean((1, 2))


class Grouped(nn.Module):
    """Grouped, dilated, transposed and one-dimensional convolutions."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = nn.relu(nn.Conv(8, (3,), name="a")(x))
        x = nn.relu(nn.Conv(6, (3,), feature_group_count=2, name="b")(x))
        x = nn.relu(nn.Conv(4, (3,), kernel_dilation=2, name="c")(x))
        x = nn.relu(nn.ConvTranspose(5, (2,), (2,), name="d")(x))
        return nn.Dense(2, name="e")(x.max(1))


class Mixed(nn.Module):
    """bfloat16 compute over float32 parameters."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(12, dtype=jnp.bfloat16)(x))
        return nn.Dense(3, dtype=jnp.bfloat16)(x).astype(jnp.float32)
