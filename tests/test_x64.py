"""The way from a search to a smaller model on disk, where JAX makes float64 by default.

The whole suite runs so with ``JAX_ENABLE_X64=1``; this is the part that always does.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import volax
from tests.cases import CASES, apply, params, update


@pytest.fixture(autouse=True)
def wide_by_default():
    with jax.enable_x64(True):
        yield


def fn(params, x):
    hidden = jax.nn.relu(x @ params["l1"]["kernel"] + params["l1"]["bias"])
    return hidden @ params["l2"]["kernel"] + params["l2"]["bias"]


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"]
)
def test_weights_keep_their_dtype_on_the_whole_way(dtype, tmp_path):
    x = jax.random.normal(jax.random.key(0), (5, 3))
    assert x.dtype == jnp.float64
    tree = params(dtype=dtype)
    groups = volax.find_groups(fn, tree, x)
    volax.check_groups(groups, fn, tree, x)
    assert [g.name for g in groups.pairs] == ["l1/kernel -> l2/kernel"]

    for name in ("volumized", "path_prox-all", "proximal_adam"):
        tx = CASES[name].optimizer()
        updates, state = jax.jit(lambda g, t, tx=tx: update(tx, g, t))(tree, tree)
        new = apply(tree, updates)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, updates, tree)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(tree))
        chex.assert_tree_all_finite(new)

    new["l2"]["kernel"] = new["l2"]["kernel"].at[1].set(0)
    check = (fn, None, (x,))
    small = volax.compact(new, groups, opt_state=state, check=check)
    assert small.sizes["l1/kernel"] == (3, 3)
    np.testing.assert_allclose(
        fn(small.params, x), fn(new, x), rtol=100 * float(jnp.finfo(dtype).eps)
    )
    signs = volax.binarize(small.params)
    volax.save(tmp_path / "signs", volax.pack(signs, bits=1))
    volax.save(tmp_path / "small", small.params)
    for name, saved in (("signs", signs), ("small", small.params)):
        back = volax.unpack(volax.load(tmp_path / name).params)
        chex.assert_trees_all_equal(back, saved)
        chex.assert_trees_all_equal_dtypes(back, new)
