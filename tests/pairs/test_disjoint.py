"""Pairs that share no weight: the authors' own choice, and the best one on graphs."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import volax
from volax.pairs import Groups, _disjoint
from volax.pairs._disjoint import heaviest


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def chain(w, x, bent=jax.nn.relu, last=5):
    for k in range(last):
        x = bent(x @ w[f"k{k}"])
    return x @ w[f"k{last}"]


def widths_of(*sizes):
    return {f"k{i}": shape(*s) for i, s in enumerate(itertools.pairwise(sizes))}


def names(pairs):
    return [p.name for p in pairs]


def test_three_of_the_five_pairs_of_six_dense_layers():
    found = volax.find_pairs(chain, widths_of(784, *[400] * 5, 10), shape(1, 784))
    assert len(found) == 5
    chosen = found.disjoint()
    assert names(chosen) == ["k0 -> k1", "k2 -> k3", "k4 -> k5"]
    left = [r.path for r in chosen.refused if "shares weights" in r.reason]
    assert left == ["k1", "k3"]
    assert names(Groups.from_json(json.dumps(json.loads(found.to_json()))).disjoint())


def test_the_linear_layers_between_the_pairs_of_the_authors():
    # The subset of MNIST has no activation between pairs, where a linear layer of more
    # units would otherwise be the heavier choice.
    def model(w, x):
        h = jax.nn.relu(x @ w["k0"]) @ w["k1"]
        return jax.nn.relu(h @ w["k2"]) @ w["k3"]

    found = volax.find_pairs(model, widths_of(9, 4, 30, 4, 2), shape(1, 9))
    assert names(found) == ["k0 -> k1", "k1 -> k2", "k2 -> k3"]
    assert names(found.disjoint()) == ["k0 -> k1", "k2 -> k3"]


def test_eight_pairs_of_a_vgg19():
    widths = [64, 64, 128, 128, *[256] * 4, *[512] * 8]
    pooled = {1, 3, 7, 11, 15}

    def model(w, x):
        for k in range(16):
            x = jax.lax.conv_general_dilated(
                x,
                w[f"c{k:02}"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x)
            if k in pooled:
                x = jax.lax.reduce_window(
                    x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
                )
        return x.reshape(x.shape[0], -1) @ w["out"]

    params = {
        f"c{k:02}": shape(3, 3, a, b)
        for k, (a, b) in enumerate(itertools.pairwise([3, *widths]))
    } | {"out": shape(512, 10)}
    found = volax.find_pairs(model, params, shape(1, 32, 32, 3))
    assert len(found) == 16
    two_each = [f"c{k:02} -> c{k + 1:02}" for k in range(0, 16, 2)]
    assert names(found.disjoint()) == two_each


def test_the_most_units_and_not_the_most_pairs():
    found = volax.find_pairs(
        lambda w, x: chain(w, x, last=3), widths_of(5, 3, 9, 3, 2), shape(1, 5)
    )
    assert names(found) == ["k0 -> k1", "k1 -> k2", "k2 -> k3"]
    assert names(found.disjoint()) == ["k1 -> k2"]


def test_parts_of_one_parameter_are_no_conflict():
    def model(w, x):
        h = jnp.concatenate([jax.nn.relu(x @ w["a"]), jax.nn.relu(x @ w["b"])], 1)
        return h @ w["v"]

    params = {"a": shape(3, 4), "b": shape(3, 2), "v": shape(6, 2)}
    found = volax.find_pairs(model, params, shape(1, 3))
    assert names(found.disjoint()) == names(found) == ["a -> v", "b -> v"]


def test_units_that_cannot_be_counted():
    with pytest.raises(ValueError, match=r"not known of a -> v.*find_pairs"):
        Groups((volax.pair("a", "v"),)).disjoint()


@pytest.mark.parametrize("seed", range(20))
def test_the_search_is_exact(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 11))
    joined = np.triu(rng.random((count, count)) < rng.uniform(0.1, 0.7), 1)
    joined |= joined.T
    weights = [(int(w), -k) for k, w in enumerate(rng.integers(1, 9, count))]
    conflicts = [frozenset(np.flatnonzero(row).tolist()) for row in joined]

    def total(members):
        return tuple(sum(weights[v][i] for v in members) for i in range(2))

    every = itertools.chain.from_iterable(
        itertools.combinations(range(count), k) for k in range(count + 1)
    )
    free = (c for c in every if not joined[np.ix_(c, c)].any())
    chosen, exact = heaviest(weights, conflicts)
    assert exact
    assert not joined[np.ix_(list(chosen), list(chosen))].any()
    assert total(chosen) == max(map(total, free))


def test_a_choice_that_would_take_too_long_is_greedy_and_says_so(monkeypatch):
    found = volax.find_pairs(
        lambda w, x: chain(w, x, last=3), widths_of(5, 3, 4, 3, 2), shape(1, 5)
    )
    assert names(found.disjoint()) == ["k0 -> k1", "k2 -> k3"]
    monkeypatch.setattr(_disjoint, "_LIMIT", 1)
    chosen = found.disjoint()
    assert names(chosen) == ["k1 -> k2"]
    assert "greedy" in chosen.refused[-1].reason


def test_a_long_chain_is_quick():
    count = 400
    around = [
        frozenset({k - 1, k + 1} & set(range(count))) for k in range(count)
    ]  # fmt: skip
    chosen, exact = heaviest([(1, -k) for k in range(count)], around)
    assert exact
    assert chosen == set(range(0, count, 2))
