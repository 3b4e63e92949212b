"""The zoo of the tracer: traced groups, random units killed, the same function."""

import re
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.compress.linen import resized
from tests.compress.models import killed, marks, same_gradients
from tests.pairs import zoo_others as others
from tests.pairs.test_zoo import (
    IMAGE,
    KEY,
    LINEN,
    NNX,
    RAW,
    SEQUENCE,
    NnxRecurrent,
    drawn,
)  # fmt: skip
from volax import find_groups
from volax.compress import compact


def left(small):
    return {g["name"]: g["left"] for g in small.manifest["groups"]}


def agree(small, expected):
    assert small.difference.relative <= (1e-5 if "bfloat16" not in str(small) else 0.1)
    assert all(left(small)[name] <= count for name, count in expected.items())


def trained(model, variables, x):
    """The groups of a model whose batch norms are in training mode."""

    def fn(params, stats, x):
        return model.apply({"params": params, **stats}, x, mutable=["batch_stats"])

    stats = {"batch_stats": variables["batch_stats"]}
    return find_groups(fn, variables["params"], stats, x, state_outputs=1)


def initial(model, x):
    """Variables as an initializer draws them, but no program is compiled for each."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        near = 1.0 if re.search("scale|var", jax.tree_util.keystr(path[-1:])) else 0.0
        size = np.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.1
        values = near + size * rng.standard_normal(leaf.shape, np.float32)
        return jax.device_put(np.asarray(values, leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, KEY, x))


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    model, x, _, _ = LINEN[name]
    if name.startswith("resnet50"):  # one block with a projection, one without
        model = model.clone(blocks=(2, 1, 1, 1))
    if name == "resnet18_train":
        variables = initial(model.clone(train=False), x)
        groups = trained(model, variables, x)
        more = {"mutable": ["batch_stats"]}
    else:
        variables = initial(model, x)
        groups, more = find_groups(model, variables, x), {}
    variables, expected = killed(variables, groups)
    rebuilt = resized(model, **more)

    def fn(variables, x):
        out = model.apply(variables, x, **more)
        return out[0] if more else out

    def small_fn(variables, x):
        out = rebuilt(variables, x)
        return out[0] if more else out

    check = (jax.jit(fn), jax.jit(small_fn), (x,))
    small = compact(variables, groups, check=check, opt_state=marks(variables))
    agree(small, expected)
    outputs = jax.tree.leaves(jax.eval_shape(fn, variables, x))
    narrow = any(v.dtype == jnp.bfloat16 for v in outputs)
    same_gradients(
        lambda p: fn(p, x), variables, lambda p: small_fn(p, x), small,
        rtol=0.02 if narrow else 1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["conv_eval", "prelu", "stacked"])
def test_nnx_modules_run_and_train_as_they_are(name):
    make, x, _ = NNX[name]
    model = make(nnx.Rngs(0))
    groups = find_groups(model, x)
    graph, state = nnx.split(model)
    state, expected = killed(state, groups)
    small = compact(nnx.merge(graph, state), groups, check=(x,))
    agree(small, expected)
    grads = nnx.grad(lambda m: (m(x) ** 2).sum())(small.params)
    shapes = [g.shape for g in jax.tree.leaves(grads)]
    assert shapes == [
        p.shape for p in jax.tree.leaves(nnx.state(small.params, nnx.Param))
    ]


@pytest.mark.parametrize("check", [None, "inputs"])
def test_nnx_attention_keeps_heads_of_equal_size(check):
    make, x, _ = NNX["transformer"]
    model = make(nnx.Rngs(0))
    groups = find_groups(model, x)
    graph, state = nnx.split(model)
    model = nnx.merge(graph, killed(state, groups)[0])
    small = compact(model, groups, check=check and (x,))
    assert small.params.blocks[0].up.out_features == 8
    np.testing.assert_allclose(small.params(x), model(x), rtol=1e-5, atol=1e-6)
    heads = {g.name for g in groups if len(g.sizes) > 1}
    said = {k.group for k in small.kept if "MultiHeadAttention" in k.reason}
    assert said == heads
    assert "needs heads of equal size" in str(small)


@pytest.mark.parametrize("cell", ["SimpleCell", "GRUCell", "OptimizedLSTMCell"])
def test_nnx_recurrent_cells_run_as_they_are(cell):
    model = NnxRecurrent(getattr(nnx, cell))
    groups = find_groups(model, SEQUENCE)
    graph, state = nnx.split(model)
    state, expected = killed(state, groups)
    small = compact(nnx.merge(graph, state), groups, check=(SEQUENCE,))
    agree(small, expected)
    assert small.params.rnn.cell.hidden_features == 3
    assert small.params.rnn.cell.dense_h.kernel.shape[0] == 3


def test_the_convolution_before_a_depthwise_multiplier_is_cut():
    model = others.NnxMultiplier(nnx.Rngs(0))
    (group,) = (g for g in find_groups(model, IMAGE) if "conv/kernel" in g.name)
    graph, state = nnx.split(model)
    state, expected = killed(state, [group])
    small = compact(nnx.merge(graph, state), group, check=(IMAGE,))
    agree(small, expected)
    assert small.params.conv.kernel.shape == (3, 3, 3, 2)
    assert small.params.depth.kernel.shape == (3, 3, 1, 4)
    assert small.params.depth.feature_group_count == 2


def test_an_equinox_module_runs_as_it_is():
    model = others.EqxConv(KEY)
    x = drawn(3, 16, 16).astype(model.conv.weight.dtype)
    groups = find_groups(model, x)
    model, expected = killed(model, groups)
    small = compact(model, groups, check=(lambda m, x: m(x), None, (x,)))
    agree(small, expected)
    assert small.params.l1.weight.shape == (5, 2 * 49)


def test_haiku_sizes_follow_from_the_arrays():
    model = hk.without_apply_rng(hk.transform(others.haiku_mlp))
    params = model.init(KEY, IMAGE)
    groups = find_groups(model.apply, params, IMAGE)
    params, expected = killed(params, groups)
    sizes = compact(params, groups).sizes

    def cut(x):
        widths = [sizes[f"mlp/~/linear_{k}/w"][1] for k in range(3)]
        x = hk.Conv2D(sizes["conv/w"][-1], 3, name="conv")(x)
        return hk.nets.MLP(widths, name="mlp")(hk.Flatten()(jax.nn.relu(x)))

    small_fn = hk.without_apply_rng(hk.transform(cut)).apply
    small = compact(params, groups, check=(model.apply, small_fn, (IMAGE,)))
    agree(small, expected)


@pytest.mark.parametrize("name", [n for n in RAW if n not in ("fused", "masked")])
def test_plain_functions(name):
    fn, shapes, inputs, _, _ = RAW[name]
    params = others.normal(KEY, **shapes)
    groups = find_groups(fn, params, *inputs)
    params, expected = killed(params, groups)
    agree(compact(params, groups, check=(jax.jit(fn), None, inputs)), expected)


def test_fused_projections_are_kept():
    fn, shapes, inputs, _, _ = RAW["fused"]
    params = others.normal(KEY, **shapes)
    groups = find_groups(fn, params, *inputs)
    params, _ = killed(params, groups)
    with pytest.raises(ValueError, match="does not run"):
        compact(params, groups, check=(fn, None, inputs))
    small = compact(params, groups)
    assert small.sizes == {k: v.shape for k, v in params.items()}
    said = " ".join(k.reason for k in small.kept)
    assert "with 3 of 2 units it does not trace" in said  # heads, of which two are left
    assert "with 3 of 4 units it does not trace" in said


def test_masks_that_are_inputs_are_cut_too():
    fn, shapes, (masks, x), _, _ = RAW["masked"]
    params = others.normal(KEY, **shapes)
    groups = find_groups(fn, params, masks, x)
    params["w2"] = params["w2"].at[2:4].set(0)
    small = compact(params, groups, state=masks, check=(fn, None, (x,)))
    assert small.params["w1"].shape == small.state["w1"].shape == (5, 4)


class Normed(nn.Module):
    """Units that only a running mean makes, in a residual group."""

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=True)(x)

        a, b = nn.Dense(6, name="a")(x), nn.Dense(6, name="b")(x)
        x = nn.relu(norm(a) + norm(b))
        return nn.Dense(2, name="c")(x)


def test_a_running_mean_keeps_a_unit_alive():
    model, x = Normed(), drawn(4, 5)
    variables: Any = model.init(KEY, x)
    groups = find_groups(model, variables, x)
    stats = jax.tree.map(lambda s: s + 0.7, variables["batch_stats"])
    params = variables["params"]
    for layer in "ab":
        kernel = params[layer]["kernel"].at[:, 2].set(0)
        params[layer] = {"kernel": kernel, "bias": jnp.zeros(6)}
    variables = {"params": params, "batch_stats": stats}
    small = compact(variables, groups, check=(model.apply, resized(model), (x,)))
    assert small.sizes["a/kernel"] == (5, 6)
    assert "zero is not known to stay zero" in small.kept[0].reason
