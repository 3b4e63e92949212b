"""The benchmarks run at a small size and give finite figures; no time is judged."""

import math

import pytest

from benchmarks import inference, packed, subnormal, trees, update

SMALL = {
    "bare": lambda: update.bare(1, "volum", size=8 * 12**2),
    "step": lambda: update.step(1, "p=0.8", width=16),
    "vgg": lambda: update.vgg(1, "balance", scale=32),
    "many": lambda: update.many(1, "", count=3),
    "memory": lambda: update.memory(1, "path_prox", width=16),
    "sweep": lambda: update.sweep(1, "volumize", sizes=(100, 1000)),
    "subnormal": lambda: subnormal.subnormal(1, "", side=100, steps=2),
    "packed": lambda: packed.packed(1, "", shapes=((2, 16),)),
    "inference": lambda: inference.inference(1, "dense, 50%", size=32),
}


@pytest.mark.parametrize("section", SMALL)
def test_a_section_gives_finite_figures(section):
    lines = list(SMALL[section]())
    assert len({line.row for line in lines}) == len(lines) > 0
    assert all(math.isfinite(v) for line in lines for v in line.figures.values())


def test_the_pairs_of_the_trees_fit_them():
    for tree in (trees.bare(800), trees.dense(16), trees.vgg(32)):
        params, pairs = tree
        assert all(pair.fit(params).size > 1 for pair in pairs)
