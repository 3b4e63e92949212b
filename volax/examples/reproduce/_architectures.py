"""Well-known networks at their full size, in Flax Linen, for shapes alone."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def _norm(x: Any) -> Any:
    return nn.BatchNorm(use_running_average=True)(x)


def _conv(x: Any, width: int, size: int = 1, strides: int = 1, groups: int = 1) -> Any:
    return nn.Conv(
        width, (size, size), strides, use_bias=False, feature_group_count=groups
    )(x)


class ResNet50(nn.Module):
    """Bottlenecks beside shortcuts (He et al. 2015)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Map images to logits of 1,000 classes."""
        x = nn.relu(_norm(_conv(x, 64, 7, 2)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate((3, 4, 6, 3)):
            for number in range(depth):
                width, strides = 64 * 2**stage, 2 if stage and not number else 1
                around = x
                if not number:
                    around = _norm(_conv(x, 4 * width, 1, strides))
                x = nn.relu(_norm(_conv(x, width)))
                x = nn.relu(_norm(_conv(x, width, 3, strides)))
                x = nn.relu(around + _norm(_conv(x, 4 * width)))
        return nn.Dense(1000)(x.mean((1, 2)))


class DenseNet121(nn.Module):
    """Each layer reads all before it in its block (Huang et al. 2016)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Map images to logits of 1,000 classes."""
        growth = 32
        x = nn.relu(_norm(_conv(x, 2 * growth, 7, 2)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for block, depth in enumerate((6, 12, 24, 16)):
            if block:
                x = _conv(nn.relu(_norm(x)), x.shape[-1] // 2)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(depth):
                made = _conv(nn.relu(_norm(x)), 4 * growth)
                made = _conv(nn.relu(_norm(made)), growth, 3)
                x = jnp.concatenate([x, made], -1)
        return nn.Dense(1000)(nn.relu(_norm(x)).mean((1, 2)))


class MobileNetV2(nn.Module):
    """Inverted residuals with depthwise convolutions (Sandler et al. 2018)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Map images to logits of 1,000 classes."""
        x = nn.relu6(_norm(_conv(x, 32, 3, 2)))
        for factor, width, depth, strides in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
            (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for number in range(depth):
                around, wide = x, factor * x.shape[-1]
                if factor > 1:
                    x = nn.relu6(_norm(_conv(x, wide)))
                x = _conv(x, wide, 3, 1 if number else strides, wide)
                x = _norm(_conv(nn.relu6(_norm(x)), width))
                x = x + around if x.shape == around.shape else x
        x = nn.relu6(_norm(_conv(x, 1280)))
        return nn.Dense(1000)(x.mean((1, 2)))


def _block(x: Any, heads: int, mask: Any = None) -> Any:
    """Attention and an MLP of four times the width, behind layer norms."""
    width = x.shape[-1]
    x = x + nn.MultiHeadDotProductAttention(heads)(nn.LayerNorm()(x), mask=mask)
    return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))


class ViTBase16(nn.Module):
    """A transformer over patches of 16 x 16 (Dosovitskiy et al. 2020)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Map images to logits of 1,000 classes."""
        x = nn.Conv(768, (16, 16), (16, 16))(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        token = self.param("token", nn.initializers.zeros, (1, 1, 768))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(), (1, *x.shape[1:]))
        for _ in range(12):
            x = _block(x, 12)
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


class GPT2(nn.Module):
    """The smallest GPT-2 (Radford et al. 2019), its output weights its own."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Map tokens to logits of what follows each of them."""
        length, width = tokens.shape[1], 768
        x = nn.Embed(50257, width)(tokens)
        x = x + self.param("positions", nn.initializers.normal(), (length, width))
        mask = nn.make_causal_mask(tokens)
        for _ in range(12):
            x = _block(x, 12, mask)
        return nn.Dense(50257)(nn.LayerNorm()(x))


_IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
_TOKENS = jax.ShapeDtypeStruct((1, 256), jnp.int32)
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "ResNet-50": (ResNet50, _IMAGE),
    "DenseNet-121": (DenseNet121, _IMAGE),
    "MobileNet-V2": (MobileNetV2, _IMAGE),
    "ViT-B/16": (ViTBase16, _IMAGE),
    "GPT-2": (GPT2, _TOKENS),
}
