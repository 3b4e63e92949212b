"""binarize and ternarize against their formulas in float64, and pack bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import volax
from volax.compress import Packed, binarize, pack, ternarize, unpack

KEY = jax.random.key(0)
FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]


def weights(seed, shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def twn(w):
    """Li et al. 2016, equations 4 and 6."""
    w = np.asarray(w, np.float64)
    delta = 0.7 * np.abs(w).mean()
    kept = np.abs(w) > delta
    return np.sign(w) * kept * np.abs(w)[kept].mean()


@pytest.mark.parametrize("axis", [None, -1, 0])
def test_binary_scale_is_the_mean(axis):
    w = weights(0, (6, 5))
    other = None if axis is None else 1 - axis % 2
    scale = np.abs(np.asarray(w, np.float64)).mean(other, keepdims=True)
    got = binarize({"k": w}, channel_axis=axis)["k"]
    np.testing.assert_allclose(got, np.where(w >= 0, scale, -scale), rtol=1e-6)


def test_ternary_follows_the_paper():
    w = weights(1, (9, 8))
    np.testing.assert_allclose(ternarize({"k": w})["k"], twn(w), rtol=1e-6)
    by_channel = ternarize({"k": w}, channel_axis=-1)["k"]
    for channel in range(8):
        np.testing.assert_allclose(
            by_channel[:, channel], twn(w[:, channel]), rtol=1e-6
        )


@given(
    st.integers(0, 10**6), st.floats(-0.5, 0.5), st.sampled_from(["binary", "ternary"])
)
@settings(max_examples=60, deadline=None)
def test_the_scale_is_least_squares(seed, shift, kind):
    w = weights(seed, (4, 6))
    quantized = (binarize if kind == "binary" else ternarize)({"k": w})["k"]
    w, q = np.asarray(w, np.float64), np.asarray(quantized, np.float64)
    other = q * (1 + shift)
    assert np.square(w - q).sum() <= np.square(w - other).sum() + 1e-6


def test_the_wall_is_the_scale():
    params = {"a": weights(0, (3, 4)), "b": weights(1, (3, 4)), "bias": jnp.ones(4)}
    got = binarize(params, volume={"a": 0.5, "b": 0.25, "bias": 1.0})
    assert np.unique(np.abs(got["a"])).tolist() == [0.5]
    assert np.unique(np.abs(got["b"])).tolist() == [0.25]
    assert got["bias"] is params["bias"]
    columns = np.array([0.5, 0.25, 1.0, 2.0])
    for volume in (columns, {"a": columns}, jnp.asarray(columns)):
        got = binarize(params, volume=volume, mask=volax.path_matches("^a$"))["a"]
        np.testing.assert_array_equal(got, columns * np.sign(params["a"]))
        pack({"a": got}, bits=1, channel_axis=-1)
        got = ternarize(
            params, volume=volume, threshold=0.4, mask=volax.path_matches("^a$")
        )
        kept = np.abs(params["a"]) > np.float32(0.4 * columns)
        np.testing.assert_array_equal(got["a"], columns * kept * np.sign(params["a"]))
    narrow = jax.jit(lambda w, v: binarize({"a": w}, volume=v))(
        params["a"].astype(jnp.bfloat16), jnp.float32(0.5)
    )["a"]
    assert narrow.dtype == jnp.bfloat16
    assert np.unique(np.abs(narrow.astype(jnp.float32))).tolist() == [0.5]
    got = ternarize(params, volume=0.5, threshold=0.4)["a"]
    np.testing.assert_array_equal(
        got, np.where(np.abs(params["a"]) > 0.2, 0.5 * np.sign(params["a"]), 0)
    )


def test_a_share_of_the_largest_weight():
    w = jnp.array([[1.0, -0.5, 0.49], [0.0, 0.51, -0.2]])
    got = ternarize({"k": w}, threshold=0.5)["k"]
    np.testing.assert_allclose(got, np.array([[0.755, 0, 0], [0, 0.755, 0]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ternarize({"k": jnp.ones((2, 2))}, threshold=1.0),
            "threshold must be",
        ),
        (
            lambda: ternarize({"k": jnp.ones((2, 2))}, threshold="x"),
            "threshold must be",
        ),
        (lambda: binarize({"k": jnp.full((2, 2), jnp.nan)}), "'k' is not finite"),
        (lambda: binarize({"k": jnp.ones((2, 2))}, channel_axis=2), "has no axis 2"),
        (
            lambda: binarize({"k": jnp.ones((2, 2))}, volume=1, channel_axis=-1),
            "volume or channel_axis",
        ),
        (
            lambda: binarize(
                {"k": jnp.ones((2, 2), jnp.int32)}, mask=volax.path_matches("k")
            ),
            "'k' is of dtype int32",
        ),
        (lambda: pack({"k": jnp.ones((2, 2))}, bits=3), "bits must be 1 or 2, got 3"),
        (
            lambda: pack({"k": jnp.arange(4.0).reshape(2, 2)}, bits=2),
            "'k' is not on a grid",
        ),
        (lambda: pack({"k": jnp.array([[1.0, 0.0]])}, bits=1), "'k' is not on a grid"),
        (
            lambda: jax.jit(lambda k: pack({"k": k}, bits=1))(jnp.ones((2, 2))),
            "outside jax",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integers_stay_as_they_are():
    params = {
        "k": jnp.ones((2, 2)),
        "count": jnp.ones((2, 2), int),
        "bias": jnp.ones(2),
    }
    packed = pack(binarize(params), bits=1)
    assert isinstance(packed["k"], Packed)
    assert packed["count"] is params["count"]
    assert packed["bias"] is params["bias"]


SHAPES = st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple)


@given(
    st.integers(0, 10**6), SHAPES, st.sampled_from(FLOATS), st.sampled_from([1, 2]),
    st.sampled_from([None, -1, 0]), st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_packed_weights_come_back_bit_for_bit(seed, shape, dtype, bits, axis, zeros):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=shape) * (rng.random(shape) >= zeros)
    w = jnp.asarray(w, dtype)
    quantize = binarize if bits == 1 else ternarize
    quantized = jax.jit(functools.partial(quantize, channel_axis=axis))({"k": w})
    packed = pack(quantized, bits=bits, channel_axis=axis)
    again = jax.jit(unpack)(packed)["k"]
    assert again.dtype == w.dtype
    assert again.shape == w.shape
    assert np.asarray(again).tobytes() == np.asarray(quantized["k"]).tobytes()
    channels = 1 if axis is None else shape[axis]
    assert packed["k"].data.nbytes == -(-w.size * bits // 8)
    assert packed["k"].scale.nbytes == channels * w.dtype.itemsize
    assert packed["k"].nbytes == packed["k"].data.nbytes + packed["k"].scale.nbytes


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("axis", [None, -1, 0])
def test_products_unpack_inside_the_computation(bits, axis):
    quantize = binarize if bits == 1 else ternarize
    w = quantize({"k": weights(3, (13, 7))}, channel_axis=axis)["k"]
    packed = pack({"k": w}, bits=bits, channel_axis=axis)["k"]
    x = weights(4, (5, 13))
    product = jax.jit(lambda x, packed: x @ packed)
    np.testing.assert_allclose(product(x, packed), x @ w, rtol=1e-5, atol=1e-5)
    text = product.lower(x, packed).as_text()
    (arguments,) = (line for line in text.splitlines() if "@main" in line)
    assert "ui8" in arguments
    assert "13x7xf32" not in arguments
    batched = quantize({"k": weights(5, (3, 13, 7))}, channel_axis=-1)["k"]
    packed = pack({"k": batched}, bits=bits, channel_axis=-1)["k"]
    np.testing.assert_allclose(x @ packed, x @ batched, rtol=1e-5, atol=1e-5)


def test_packed_weights_are_a_node_of_the_tree():
    packed = pack(binarize({"k": weights(0, (5, 5))}), bits=1)
    assert [leaf.dtype for leaf in jax.tree.leaves(packed)] == [jnp.uint8, jnp.float32]
    same = jax.jit(lambda p: p)(packed)["k"]
    assert (same.shape, same.bits, same.ndim) == ((5, 5), 1, 2)
    model = jax.jit(lambda p, x: x @ unpack(p)["k"])
    assert model(packed, jnp.ones((2, 5))).shape == (2, 5)
    shapes = jax.eval_shape(unpack, packed)
    assert shapes["k"].shape == (5, 5)


def test_quantizing_works_inside_jit():
    w = {"k": weights(0, (6, 4))}
    inside = jax.jit(ternarize)(w)["k"]
    np.testing.assert_allclose(inside, ternarize(w)["k"], rtol=1e-6)
