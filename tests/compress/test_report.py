"""report: what is counted, and how it reads."""

import json
import subprocess
import sys
import textwrap
import tracemalloc
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import volax
from tests.compress import models
from tests.pairs import zoo_linen
from volax.compress import binarize, compact, pack, report

KEY = jax.random.key(0)


def test_counts():
    params = {
        "a": jnp.array([[0.5, -0.5, 0.0], [0.25, 0.0, 0.0]], jnp.float32),
        "v": jnp.array([[1.0], [0.0], [2.0]], jnp.float32),
    }
    found = report(params, volax.pair("a", "v"), volume={"a": 0.5})
    a, v = found.leaves
    assert (a.size, a.zeros, a.at_wall, a.wall, a.bytes) == (6, 3, 2, 0.5, 24)
    assert (v.zeros, v.at_wall, v.units) == (1, None, None)
    assert (a.units, a.alive, a.left, v.left) == (3, 1, 2, 1)
    (group,) = found.groups
    assert (group.units, group.alive, group.unread, group.unfed) == (3, 1, 1, 1)
    np.testing.assert_allclose(group.path_norms, [np.hypot(0.5, 0.25), 0, 0])
    np.testing.assert_allclose(a.norm, np.linalg.norm(params["a"]))
    total = found.total
    assert (total["size"], total["zeros"], total["left"], total["bytes_left"]) == (
        9,
        4,
        3,
        12,
    )
    assert (total["at_wall"], total["bounded"]) == (2, 6)
    assert json.loads(json.dumps(found.to_dict()))["total"] == total


def test_a_diverged_model_is_reported_in_plain_json():
    params = {"a": jnp.full((2, 3), jnp.nan), "v": jnp.full((3, 1), jnp.inf)}
    found = report(params, volax.pair("a", "v"), volume=jnp.inf).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["leaves"][0]["norm"] is None
    assert found["total"]["path_norm"] is None


def test_a_weight_a_few_ulps_below_the_wall_is_at_it():
    wall = np.float32(0.1)
    below = np.nextafter(np.nextafter(wall, np.float32(0)), np.float32(0))
    params = {"w": jnp.array([[wall, -below, 0.0999]])}
    assert report(params, volume=0.1).leaves[0].at_wall == 2


@pytest.mark.parametrize(("volume", "line"), [(1.0, "0 of 12"), (0.5, "100 % of 12")])
def test_the_summary_says_of_how_many_weights_the_wall_is(volume, line):
    """Also where a whole module lies inside, as every one does before it is trained."""
    module = nnx.Linear(
        3, 4, kernel_init=nnx.initializers.constant(0.5), rngs=nnx.Rngs(0)
    )
    assert f"at the wall    {line} weights\n" in str(report(module, volume=volume))


WALLS: dict[str, Any] = {
    "number": 0.5,
    "columns": np.array([0.5, 0.25, np.inf, 0.4]),
    "rows": jnp.array([[0.5], [0.0], [1.0]]),
    "entries": np.full((3, 4), 0.5),
    "tree": {"l1": {"kernel": np.array([0.5, 0.25, 0.5, 0.4], np.float32)}, "l2": 0.3},
}


def wall_of(volume, path) -> Any:
    """The wall that a volume gives to one of two layers."""
    if isinstance(volume, dict):
        return volume["l2"] if path == "l2" else volume["l1"]["kernel"]
    return volume


@pytest.mark.parametrize("name", WALLS)
def test_the_wall_of_volumize_is_the_wall_of_the_report(name):
    # Near the walls: one step from far outside lands some ulps of the weight inside.
    kernel = jax.random.normal(KEY, (3, 4)) / 2
    params = {"l1": {"kernel": kernel, "bias": jnp.ones(4)}, "l2": kernel * 2}
    volume, zeros = WALLS[name], jax.tree.map(jnp.zeros_like, params)
    tx = volax.volumize(volume)
    inside = optax.apply_updates(params, tx.update(zeros, tx.init(params), params)[0])
    one, other = (
        {x.path: x for x in report(tree, volume=volume).leaves}
        for tree in (params, inside)
    )
    assert one["l1/bias"].at_wall is None
    for path, w in {"l1/kernel": kernel, "l2": kernel * 2}.items():
        wall = wall_of(volume, path)
        expected = np.sum(np.abs(w) >= np.broadcast_to(wall, w.shape))
        assert one[path].at_wall == other[path].at_wall == expected
        assert other[path].wall == np.max(np.asarray(wall)[np.isfinite(wall)])
    everything = report(params, volume=0.5, mask="all").total
    assert (everything["bounded"], everything["at_wall"] > 4) == (28, True)


def test_packed_weights_stand_at_their_wall():
    params = {"a": jnp.ones((8, 4)), "b": jnp.ones(3)}
    packed = volax.pack(volax.binarize(params, volume=0.5), bits=1)
    found = report(packed, volume={"a": 0.5}).leaves[0]
    assert (found.at_wall, found.wall) == (32, 0.5)


@pytest.mark.parametrize(
    "shape", [(40, 8), (8, 40), (3, 3, 4, 20), (1, 1), (0, 4), (2, 0)]
)
def test_stable_rank(shape):
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = 0.0
    if w.size:
        matrix = w.reshape(-1, shape[-1])
        expected = (np.linalg.norm(matrix) / np.linalg.norm(matrix, 2)) ** 2
    found = report({"w": jnp.asarray(w)}).leaves[0].stable_rank
    assert found == pytest.approx(expected, rel=0.02)


def test_what_is_left_is_what_compact_leaves():
    params, _ = models.killed(models.cnn_params(), models.cnn_group())
    x = jnp.ones((1, 4, 4, 3))
    full = report(params, models.cnn_group(), fn=models.cnn, inputs=(x,))
    small = compact(params, models.cnn_group(), check=(models.cnn, None, (x,)))
    after = report(small.params, models.cnn_group(), fn=models.cnn, inputs=(x,))
    assert full.total["left"] == after.total["size"]
    assert full.total["bytes_left"] == after.total["bytes"]
    assert full.total["multiply_adds_left"] == after.total["multiply_adds"]


def test_multiply_adds():
    params = models.cnn_params()
    x = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
    counts = {
        leaf.path: leaf.multiply_adds
        for leaf in report(params, fn=models.cnn, inputs=(x,)).leaves
        if leaf.multiply_adds
    }
    pixels = 2 * 16
    assert counts == {
        "conv/kernel": pixels * 27 * 8, "depth/kernel": pixels * 9 * 8,
        "head/kernel": 2 * 128 * 5,
    }  # fmt: skip


def test_multiply_adds_of_scanned_layers_and_of_activations():
    x = jnp.ones((2, 5))
    stacked = report(models.stacked_params(), fn=models.stacked, inputs=(x,))
    by_path = {leaf.path: leaf.multiply_adds for leaf in stacked.leaves}
    assert by_path == {"bias": 0, "down": 3 * 2 * 40, "up": 3 * 2 * 40}
    model, tokens = zoo_linen.Transformer(layers=1), jnp.zeros((1, 6), int)
    variables = model.init(KEY, tokens)
    found = report(variables, fn=model.apply, inputs=(tokens,))
    weights = sum(leaf.multiply_adds for leaf in found.leaves)
    assert found.multiply_adds - weights == 2 * 6 * 6 * 16  # scores and values
    assert weights == 6 * sum(
        leaf.size for leaf in found.leaves if leaf.path.endswith("kernel")
    )


def test_a_module_needs_its_inputs_alone():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    found = report(model, inputs=(jnp.ones((2, 3)),))
    assert found.multiply_adds == 24
    assert report(model).multiply_adds == 12
    with pytest.raises(ValueError, match="fn needs inputs"):
        report({"w": jnp.ones((2, 2))}, fn=lambda p: p)


def test_packed_leaves_are_counted_as_stored():
    packed = pack(binarize({"w": jnp.ones((8, 10), jnp.float32)}), bits=1)
    (leaf,) = report(packed).leaves
    assert (leaf.dtype, leaf.bytes, leaf.size) == ("1 bit", 14, 80)
    assert compact(packed, ()).manifest["parameters"] == [11, 11]


class Counted(nnx.Module):
    """Parameters, running statistics, and the keys and counters of dropout."""

    def __init__(self, rngs):
        self.l1 = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.l2 = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.l2(self.drop(nnx.relu(self.norm(self.l1(x)))))


class LinenCounted(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(6)(x))
        return nn.Dense(2)(nn.relu(x))


def boxed():
    """The same with every parameter in a box, as ``nn.with_partitioning`` makes it."""
    variables = LinenCounted().init(KEY, jnp.ones((1, 4)))
    return jax.tree.map(lambda x: nn.Partitioned(x, (None,) * x.ndim), variables)


def plain_tree():
    params = models.drawn(l1=(4, 6), bias=(12,), gamma=(6,), l2=(6, 2), b2=(2,))
    return params | {"key": KEY, "count": np.arange(2)}


# What is counted, its parameters, its state, and what is neither.
COUNTED = {
    "nnx": (lambda: Counted(nnx.Rngs(0)), 56, 12, 2),
    "nnx state": (lambda: nnx.state(Counted(nnx.Rngs(0))), 56, 12, 2),
    "linen": (lambda: LinenCounted().init(KEY, jnp.ones((1, 4))), 56, 12, 0),
    "linen boxes": (boxed, 56, 12, 0),
    "plain": (plain_tree, 56, 0, 3),
}


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_state_and_the_rest_are_told_apart(name):
    make, parameters, state, other = COUNTED[name]
    model = make()
    found = report(model, volume=1e-3, mask="all")
    total = found.total
    assert (total["size"], total["state"], total["other"]) == (parameters, state, other)
    assert (total["bytes"], total["state_bytes"]) == (4 * parameters, 4 * state)
    assert total["bounded"] == parameters
    assert {x.kind for x in found.leaves if x.wall is not None} == {"parameter"}
    assert f"weights        {parameters}," in str(found)
    assert ("(state)" in str(found)) == bool(state)
    small = compact(model, ())
    expected = {"parameters": parameters, "state": state, "other": other}
    assert {k: small.manifest[k] for k in expected} == {
        k: [n, n] for k, n in expected.items()
    }
    lines = str(small).splitlines()
    for kind, n in expected.items():
        assert (f"{kind}: {n} -> {n}" in lines) == bool(n)


def test_state_shrinks_apart_from_the_parameters():
    model = Counted(nnx.Rngs(0))
    model.eval()
    model.l2.kernel.set_value(model.l2.kernel.get_value().at[:2].set(0))
    x = jnp.ones((3, 4))
    groups = volax.find_groups(model, x)
    small, total = compact(model, groups, check=(x,)), report(model, groups).total
    left = nnx.state(small.params, nnx.Param)
    count = sum(p.size for p in jax.tree.leaves(left))
    assert small.manifest["parameters"] == [56, count]
    assert (total["left"], total["state_left"]) == (count, 8)
    assert small.manifest["state"] == [12, 8]
    assert small.manifest["other"] == [2, 2]


def test_a_large_leaf_is_read_in_pieces():
    w = np.random.default_rng(0).normal(size=(3000, 1000)).astype(np.float32)
    w[w < -3] = 0
    kept = report({"w": w}, volume=3.0).leaves[0]
    assert (kept.zeros, kept.at_wall) == ((w == 0).sum(), (np.abs(w) >= 3).sum())
    np.testing.assert_allclose(kept.norm, np.linalg.norm(w.astype(float)), rtol=1e-12)
    assert kept.largest == np.abs(w).max()
    tracemalloc.start()
    report({"w": w})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * w.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in /proc")
def test_the_norms_of_units_take_no_copy_of_a_leaf():
    code = """
        import jax, numpy as np, volax
        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM:"))
        pair = volax.pair("a", "v")
        tree = {"a": jax.device_put(np.ones((4000, 5000), np.float32)),
                "v": np.ones((5000, 2), np.float32)}
        volax.report({"a": tree["a"][:2], "v": tree["v"]}, pair)
        before = peak()
        volax.report(tree, pair)
        print(1024 * (peak() - before))
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(out.stdout) < 4 * 4000 * 5000


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("which", ["cnn", "residual"])
def test_the_path_norms_are_those_of_path_norm(which, dtype):
    params, group = models.cnn_params(), models.cnn_group()
    if which == "residual":
        params, group = models.residual_params(), models.RESIDUAL[1]
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    (found,), (norms,) = report(params, group).groups, volax.path_norm(params, group)
    expected = np.sort(np.asarray(norms))[::-1]
    np.testing.assert_allclose(found.path_norms, expected, rtol=1e-6)


def deep(layers):
    widths = (6,) * (layers + 1)
    pairs = [
        volax.pair(f"l{k}/kernel", f"l{k + 1}/kernel", bias=f"l{k}/bias")
        for k in range(1, layers)
    ]
    return models.mlp_params(widths=widths), pairs


@pytest.mark.parametrize(("layers", "lines"), [(3, 6), (300, 2)])
def test_the_table_reads_well_at_any_depth(layers, lines):
    params, pairs = deep(layers)
    params, _ = models.killed(params, pairs)
    text = str(report(params, pairs, volume=0.5))
    table, totals = text.split("\n\n")
    assert len(table.splitlines()) == lines + 2
    assert max(map(len, table.splitlines())) < 110
    if layers == 300:
        assert "l*/kernel (300)" in table
    assert "units alive" in totals
    assert len(report(params, pairs).text(rows=10**6).splitlines()) > 2 * layers


@pytest.mark.parametrize("layers", [2, 5, 40])
@pytest.mark.parametrize("groups", [True, False], ids=["groups", "no groups"])
def test_the_figure_is_drawn(layers, groups, tmp_path):
    params, pairs = deep(layers)
    params, _ = models.killed(params, pairs)
    figure = report(params, pairs if groups else None, volume=0.5).figure()
    assert len(figure.axes) == (3 if groups else 2)
    figure.savefig(tmp_path / "figure.png")


def test_empty_and_dead_trees_are_drawn(tmp_path):
    report(
        {"w": jnp.zeros((2, 3)), "v": jnp.zeros((3, 1))}, volax.pair("w", "v")
    ).figure().savefig(tmp_path / "a.png")
    found = report({})
    assert found.total["size"] == 0
    str(found)
    found.figure().savefig(tmp_path / "b.png")


def fused(params, x):
    """Attention of four heads of three channels with one kernel for all inputs."""
    parts = jnp.split(x @ params["qkv"], 3, axis=-1)
    q, k, v = (part.reshape(*x.shape[:2], -1, 3) for part in parts)
    weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k), -1)
    return jnp.einsum("bhqs,bshk,hkd->bqd", weights, v, params["o"])


def fused_groups():
    """Two heads unread, and the first channel of a third; the groups."""
    rng = np.random.default_rng(0)
    params = {
        "qkv": jnp.asarray(rng.normal(size=(6, 36)), jnp.float32),
        "o": jnp.asarray(rng.normal(size=(4, 3, 6)), jnp.float32),
    }
    params["o"] = params["o"].at[:2].set(0).at[2, 0].set(0)
    groups = volax.find_groups(fused, params, jnp.ones((2, 5, 6)))
    assert sorted(group.sizes for group in groups) == [(4,), (4, 3)]
    return params, groups


def test_heads_are_not_counted_beside_their_channels():
    params, groups = fused_groups()
    found = report(params, groups)
    heads, channels = sorted(found.groups, key=lambda g: g.units)
    assert (heads.composed, heads.units, heads.alive) == (True, 4, 2)
    assert (channels.composed, channels.units, channels.alive) == (False, 12, 5)
    assert (found.total["units"], found.total["alive"]) == (12, 5)
    norms = np.linalg.norm(params["qkv"][:, 24:], axis=0).reshape(4, 3)
    norms *= np.linalg.norm(params["o"], axis=-1)
    np.testing.assert_allclose(found.total["path_norm"], norms.sum(), rtol=1e-5)
    (kernel,) = (leaf for leaf in found.leaves if leaf.path == "qkv")
    assert (kernel.units, kernel.alive) == (12, 5)
    assert "5 of 12 in 1 group " in str(found)
    assert "2 of 4 in 1 group " in str(found)
    figure = found.figure()
    labels = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert sorted(labels) == ["qkv (12)", "qkv (4)"]


def test_no_two_groups_share_a_name():
    params, groups = fused_groups()
    names = {"qkv -> o (units 4)", "qkv -> o (units 4 x 3)"}
    assert {group.name for group in report(params, groups).groups} == names
    small = compact(params, groups, keep="qkv")
    assert {kept.group for kept in small.kept} == names
    assert {group["name"] for group in small.manifest["groups"]} == names
    counts = {kept.group: len(kept.units) for kept in small.kept}
    assert counts == {"qkv -> o (units 4)": 2, "qkv -> o (units 4 x 3)": 7}


def test_groups_that_follow_each_other_are_all_counted():
    params, pairs = deep(4)
    found = report(params, pairs)
    assert found.total["units"] == 6 * len(pairs)
    assert not any(group.composed for group in found.groups)


MOVES = {
    "split": lambda w: jnp.split(w, 2, axis=1)[0],
    "transpose and reshape": lambda w: w.T.reshape(w.shape),
    "reversed": lambda w: w[::-1],
    "in 16 bits": lambda w: w.astype(jnp.bfloat16).astype(w.dtype),
    "behind a barrier": jax.lax.optimization_barrier,
    "in a call": jax.jit(lambda w: w[:2]),
    "chosen": lambda w: jax.lax.cond(w[0, 0] > 0, lambda w: w, lambda w: w[::-1], w),
    "looped": lambda w: jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1]), (0, w)
    )[1],
    "scanned": lambda w: jax.lax.scan(lambda c, _: (c, None), w, length=3)[0],
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_moved_weight_is_still_the_weight_of_its_product(move):
    w, x = jnp.ones((4, 6)), jnp.ones((5, 4))

    def fn(w, x):
        moved = move(w["w"])
        return x[:, : moved.shape[0]] @ moved

    rows, columns = jax.eval_shape(move, w).shape
    (leaf,) = report({"w": w}, fn=fn, inputs=(x,)).leaves
    assert leaf.multiply_adds == 5 * rows * columns
