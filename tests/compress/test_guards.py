"""What must be refused, or must not happen, when a model is made smaller."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import volax


def normal(seed, shape):
    drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jax.device_put(drawn)


X = normal(9, (5, 6))


def dying(dtype=jnp.float32):
    w2 = normal(1, (8, 3)).at[jnp.array([1, 2, 5])].set(0)
    return {"w1": normal(0, (6, 8)).astype(dtype), "w2": w2.astype(dtype)}


def scaled_by_width(params, x):
    return jax.nn.relu(x @ params["w1"]) @ params["w2"] / params["w2"].shape[0]


def forward(params, x):
    return jax.nn.relu(x @ params["w1"]) @ params["w2"]


PAIR = volax.pair("w1", "w2")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_width_constant_is_caught_in_every_dtype(dtype):
    params = dying(dtype) | {"other": jnp.ones((2, 2), jnp.bfloat16)}
    check = (scaled_by_width, None, (X.astype(dtype),))
    with pytest.raises(ValueError, match=r"differs by .*cut were w1 -> w2"):
        volax.compact(params, PAIR, check=check)
    small = volax.compact(params, PAIR, check=(forward, None, (X.astype(dtype),)))
    assert small.params["w1"].shape == (6, 5)


def test_options_that_would_do_nothing():
    with pytest.raises(ValueError, match="tolerance is the limit of check"):
        volax.compact(dying(), PAIR, tolerance=1e-3)
    with pytest.raises(
        ValueError, match="round_to must be an integer of 1 or more, got True"
    ):
        volax.compact(dying(), PAIR, round_to=True)


def test_empty_outputs_prove_nothing():
    with pytest.raises(ValueError, match="outputs are empty"):
        volax.compact(dying(), PAIR, check=(forward, None, (X[:0],)))


def test_a_result_says_whether_it_is_proven():
    assert "check=(fn" in str(volax.compact(dying(), PAIR))
    assert "check" not in str(volax.compact(dying(), PAIR, check=(forward, None, (X,))))


class Normed(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a = nnx.Linear(6, 8, rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        self.b = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.bn(self.a(x))))


def test_check_leaves_the_users_module_alone():
    model = Normed()
    model.b.kernel[...] = model.b.kernel[...].at[1].set(0)
    small = volax.compact(model, volax.find_groups(model, X), check=(X,))
    assert small.sizes["a/kernel"] == (6, 7)
    assert not np.any(model.bn.mean[...])
    assert not np.any(small.params.bn.mean[...])


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("w2", r"'w2' makes no units.*producers are w1"),
        (["w1", "x"], "'x' makes no units"),
        (volax.path_matches("x"), r"selects none of \['w1'\]"),
        ({"w1": [9]}, "numbers of units below 8"),
        (True, "must be key paths of producers"),
        (lambda p: p, "must be key paths of producers"),
    ],
)
def test_a_keep_that_keeps_nothing_is_refused(keep, message):
    with pytest.raises(ValueError, match=f"compact: keep.*{message}"):
        volax.compact(dying(), PAIR, keep=keep)


def test_keep_takes_an_empty_list():
    assert volax.compact(dying(), PAIR, keep={"w1": []}).sizes["w1"] == (6, 5)


def test_a_state_of_other_arrays_is_refused():
    params = dying()
    for state in (optax.flatten(optax.adam(0.1)).init(params), {"m": jnp.ones((6, 8))}):
        with pytest.raises(ValueError, match="none at the key path of a parameter"):
            volax.compact(params, PAIR, opt_state=state)


def test_names_that_a_file_cannot_hold(tmp_path):
    packed = volax.pack({"w": jnp.sign(normal(0, (4, 4)))}, bits=1)
    for tree in ({"__metadata__": jnp.ones(3)}, packed | {"w/data": jnp.ones(3)}):
        with pytest.raises(ValueError, match=r"save: the key path .* is taken or res"):
            volax.save(tmp_path / "file", tree)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wall", [np.nan, np.inf, -1.0, True, np.array([1.0, -1.0])])
def test_walls_that_are_none(wall):
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"binarize: volume must be a finite number"):
        volax.binarize(params, volume=wall)
    with pytest.raises(ValueError, match=r"ternarize: volume must be a finite number"):
        volax.ternarize(params, volume=wall)


@pytest.mark.parametrize("wall", [np.nan, -1.0, True, np.array([1.0, -1.0])])
def test_a_report_of_walls_that_are_none(wall):
    with pytest.raises(ValueError, match="report: volume must be a number >= 0"):
        volax.report({"w": jnp.ones((2, 2))}, volume=wall)


@pytest.mark.parametrize(
    "wall",
    [volax.relative_to_init(1.0), {"w": optax.constant_schedule(1.0)}, {"w": "big"}],
)
@pytest.mark.parametrize("function", [volax.binarize, volax.ternarize, volax.report])
def test_walls_that_need_the_state(wall, function):
    params = {"w": jnp.ones((2, 2))}
    message = r"volume at 'w' must be numbers.*schedule\(count\).*'initial'"
    with pytest.raises(ValueError, match=f"{function.__name__}: {message}"):
        function(params, volume=wall)


@pytest.mark.parametrize("function", [volax.binarize, volax.ternarize, volax.report])
@pytest.mark.parametrize("shape", [(3,), (2, 2, 1), (1, 2, 2)])
def test_walls_that_do_not_broadcast(function, shape):
    with pytest.raises(ValueError, match=r"does not broadcast to leaf 'w' of shape"):
        function({"w": jnp.ones((2, 2))}, volume=np.ones(shape))


@pytest.mark.parametrize("shape", [(2, 5, 3), (4, 5, 3), (2, 4, 5, 3)])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_packed_products_of_stacks(shape, axis):
    weights = volax.ternarize({"k": normal(3, shape)}, channel_axis=axis)
    packed = volax.pack(weights, bits=2, channel_axis=axis)["k"]
    for x in (normal(4, (5,)), normal(5, (7, 5))):
        expected = x @ weights["k"]
        np.testing.assert_allclose(x @ packed, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            np.asarray(x) @ packed, expected, rtol=1e-5, atol=1e-5
        )
    np.testing.assert_array_equal(packed.T, weights["k"].T)
    stack = normal(6, (*shape[:-2], 3, 7))
    for x in (normal(4, (3,)), normal(5, (3, 7)), stack, np.asarray(stack)):
        for product in (lambda k, x: k @ x, jax.jit(lambda k, x: k @ x)):
            np.testing.assert_allclose(
                product(packed, x), weights["k"] @ x, rtol=1e-5, atol=1e-5
            )


class OutIn(nnx.Module):
    """A layer that keeps its kernel as ``[out, in]``."""

    def __init__(self, n_in, n_out, key):
        self.in_features, self.out_features = n_in, n_out
        self.kernel = nnx.Param(normal(key, (n_out, n_in)))

    def __call__(self, x):
        return x @ self.kernel.T + (self.in_features - 0.1 * self.out_features)


class Head(nnx.Module):
    """A head whose ``num_features`` is not the length of its scale."""

    def __init__(self):
        self.num_features = 3
        self.scale = nnx.Param(jnp.ones(1))

    def __call__(self, x):
        return x * self.scale * self.num_features


class Mixed(nnx.Module):
    def __init__(self, square):
        rngs = nnx.Rngs(0)
        self.first = OutIn(6, 6 if square else 9, 0)
        self.a = nnx.Linear(6 if square else 9, 8, rngs=rngs)
        self.b = nnx.Linear(8, 8, rngs=rngs)
        self.head = Head()

    def __call__(self, x):
        return self.head(self.b(nnx.relu(self.a(self.first(x)))))


@pytest.mark.parametrize("square", [True, False])
def test_modules_that_were_not_cut_stay_as_they_are(square, tmp_path):
    model = Mixed(square)
    model.b.kernel[...] = model.b.kernel[...].at[:3].set(0)
    small = volax.compact(model, volax.find_groups(model, X))
    assert (small.params.a.out_features, small.params.b.in_features) == (5, 5)
    np.testing.assert_allclose(small.params(X), model(X), rtol=1e-5, atol=1e-5)
    volax.save(tmp_path / "small", small)
    loaded = volax.load(tmp_path / "small", into=model).params
    np.testing.assert_array_equal(loaded(X), small.params(X))
    assert loaded.a.out_features == 5


@pytest.mark.parametrize("sizes", [(6, 8), (8, 8)])
def test_a_layer_of_ones_own_follows_only_where_its_axes_are_known(sizes):
    class Own(nnx.Module):
        def __init__(self, n_in, n_out):
            self.in_features, self.out_features = n_in, n_out
            self.kernel = nnx.Param(normal(0, (n_in, n_out)))

        def __call__(self, x):
            return x @ self.kernel

    class Net(nnx.Module):
        def __init__(self):
            self.a, self.b = Own(6, 8), Own(*sizes[::-1])

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    model = Net()
    model.b.kernel[...] = model.b.kernel[...].at[:3].set(0)
    small = volax.compact(model, volax.find_groups(model, X)).params
    assert small.a.out_features == 5
    # [8, 8] may as well be [out, in].
    assert small.b.in_features == (5 if sizes == (6, 8) else 8)


def test_names_that_end_alike_are_not_taken_for_neighbours():
    params = {
        "l1": {"kernel": normal(0, (6, 8))},
        "l2": {"kernel": normal(1, (8, 3)).at[:2].set(0)},
    }
    other = {"bias": jnp.ones(8)}
    pair = volax.pair("l1/kernel", "l2/kernel")
    for near in ({"xl1": other}, {"x": {"l1": other}}):
        assert volax.compact(params | near, pair).sizes["l1/kernel"] == (6, 6)
        assert volax.report(params | near, pair).total["alive"] == 6
    collections = {"params": params, "batch_stats": {"l1": {"mean": jnp.ones(8)}}}
    for tree, state in ((collections, None), (params, collections["batch_stats"])):
        with pytest.raises(ValueError, match=r"l1/mean' of shape .* stands beside"):
            volax.compact(tree, pair, state=state)
    # The statistics of another module that is itself called l1.
    params = params | {"enc": {"l1": {"kernel": jnp.ones((2, 8))}}}
    state = {"enc": {"l1": {"mean": jnp.ones(8)}}}
    assert volax.compact(params, pair, state=state).sizes["l1/kernel"] == (6, 6)


@pytest.mark.parametrize("nested", [False, True])
def test_a_moment_is_known_by_all_steps_of_its_path(nested):
    """A submodule called ``mu`` has a moment at the key path of another's weight."""
    layers = {"w1": normal(0, (6, 8)), "w2": normal(1, (8, 3)).at[:3].set(0)}
    params = {**layers, "mu": {"w1": normal(2, (6, 8)), "w2": normal(3, (8, 3))}}
    tx = optax.adam(1e-2)
    numbers = jax.tree.map(
        lambda p: jnp.arange(1.0, p.size + 1).reshape(p.shape), params
    )
    state = optax.tree.set(tx.init(params), mu=numbers, nu=numbers)
    state = (state,) if nested else state
    small = volax.compact(params, PAIR, opt_state=state)
    after = small.opt_state[0][0] if nested else small.opt_state[0]
    assert jax.tree.map(jnp.shape, after.mu) == jax.tree.map(jnp.shape, small.params)
    np.testing.assert_array_equal(after.nu["w1"], numbers["w1"][:, 3:])
    np.testing.assert_array_equal(after.mu["mu"]["w1"], numbers["mu"]["w1"])


def test_a_moment_that_may_be_of_two_weights_is_refused():
    params = {
        "w1": jnp.ones((6, 8)),
        "w2": jnp.zeros((8, 3)),
        "a": {"w1": jnp.ones((6, 8))},
    }
    with pytest.raises(ValueError, match="may belong to 'a/w1' or 'w1'"):
        volax.compact(
            params,
            PAIR,
            opt_state={"m": {"a": {"w1": jnp.ones((6, 8)), "x": jnp.ones(3)}}},
        )


class ChannelNorm(nnx.Module):
    """A group norm of ``size`` channels a group, and a depthwise convolution."""

    def __init__(self, size, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(8, 8 // size, rngs=rngs)
        self.depth = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.point = nnx.Conv(8, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.point(nnx.relu(self.depth(x))).mean((1, 2))


@pytest.mark.parametrize("size", [1, 2])
def test_a_norm_of_one_channel_a_group_follows_the_cut(size):
    model = ChannelNorm(size, nnx.Rngs(0))
    model.point.kernel[...] = model.point.kernel[...].at[:, :, :3].set(0)
    x = normal(0, (2, 5, 5, 3))
    small = volax.compact(model, volax.find_groups(model, x), check=(x,)).params
    # Larger groups mix the channels, so none of theirs goes alone.
    left = 5 if size == 1 else 8
    assert (small.norm.num_groups, small.norm.group_size) == (left // size, size)
    assert small.depth.feature_group_count == left
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-5)


def held_width(params, x):
    """The first layer's width stands in the program; those of the others do not."""
    h = jax.nn.relu(x @ params["w1"]) / params["w1"].shape[1]
    for name in ("w2", "w3", "w4"):
        h = jax.nn.relu(h @ params[name])
    return h @ params["w5"]


def held_params():
    widths = (6, 8, 7, 9, 8, 3)
    params = {
        f"w{k + 1}": normal(k, (a, b)).at[:2].set(0) if k else normal(k, (a, b))
        for k, (a, b) in enumerate(pairwise(widths))
    }
    return params, volax.find_groups(held_width, params, X)


def test_what_cannot_be_cut_is_left_and_the_rest_goes():
    params, groups = held_params()
    small = volax.compact(params, groups, check=(held_width, None, (X,)))
    assert small.sizes["w1"] == (6, 8)
    assert small.sizes["w2"] == (8, 5)
    assert small.sizes["w5"] == (6, 3)
    (kept,) = small.kept
    assert (kept.group, kept.units) == ("w1 -> w2", (0, 1))
    assert "the small model differs by" in kept.reason
    np.testing.assert_allclose(
        held_width(small.params, X), held_width(params, X), rtol=1e-5, atol=1e-6
    )


def test_a_model_that_does_not_run_with_one_group_is_cut_elsewhere():
    def fixed(params, x):
        return held_width(params, x) + 0 * (x @ params["w1"]).reshape(-1, 8).sum()

    params, groups = held_params()
    small = volax.compact(params, groups, check=(fixed, None, (X,)))
    assert small.sizes["w1"] == (6, 8)
    assert "the small model does not run: TypeError" in small.kept[0].reason
    with pytest.raises(ValueError, match=r"does not run.*Linen.*small_fn.*w1 -> w2$"):
        volax.compact(params, groups[:1], check=(fixed, None, (X,)))


class Noisy(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(nnx.relu(self.a(x))))


def test_random_numbers_are_named():
    model = Noisy()
    model.b.kernel[...] = model.b.kernel[...].at[:3].set(0)
    pair = volax.pair("a/kernel", "b/kernel", bias="a/bias")
    with pytest.raises(ValueError, match=r"draws random numbers.*model.eval\(\)"):
        volax.compact(model, pair, check=(X,))
    model.eval()
    assert volax.compact(model, pair, check=(X,)).sizes["a/bias"] == (5,)


def test_behind_a_head_of_zeros_nothing_is_proven_by_the_outputs():
    def fn(params, x):
        h = jax.nn.relu(x @ params["w1"]) @ params["w2"] / params["w2"].shape[0]
        return h @ params["head"]

    params = dying() | {"head": jnp.zeros((3, 2))}
    with pytest.raises(ValueError, match="random numbers in place of zeros"):
        volax.compact(params, PAIR, check=(fn, None, (X,)))

    def right(params, x):
        return forward(params, x) @ params["head"]

    small = volax.compact(params, PAIR, check=(right, None, (X,)))
    assert small.sizes["w1"] == (6, 5)
    assert not small.params["head"].any()
