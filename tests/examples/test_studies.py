"""What single studies say of their runs, and the nets that they train."""

import math

import numpy as np
import pytest

import volax
from volax.examples.reproduce import path_convergence
from volax.examples.reproduce._study import Chosen


@pytest.mark.parametrize("is_deep", [False, True], ids=["linear-between", "relu"])
def test_the_pairs_of_the_path_study_are_those_of_the_authors(is_deep):
    images = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 6)
    net = path_convergence._Net(images, 4, is_deep, seed=0)
    pairs = volax.find_pairs(net, images[:1]).disjoint()
    found = [(p.producers[0].path, p.consumers[0].path) for p in pairs]
    layers = [f"layers/{k}/kernel" for k in range(6)]
    assert found == list(zip(layers[::2], layers[1::2]))


def followed(method, objective, active):
    """A choice with the given curves, a point every 10 steps."""
    steps = [10 * k for k in range(len(objective))]
    curve = {"step": steps, "objective": objective, "active": active}
    last = {key: values[-1] for key, values in curve.items()}
    case = {"recipe": "MNIST subset"}
    return Chosen(case, method, {}, [], [{"curve": curve, **last}])


@pytest.mark.parametrize(
    ("objective", "active", "expected", "reached"),
    [
        ([3, 1, 1], [1, 1, 0.1], [True, True, True], 10),
        ([3, 2, 1], [1, 1, 0.5], [False, True, False], 20),
        ([3, 2, 1.6], [1, 1, 1], [False, False, False], None),
        ([3, None, None], [1, 1, 1], [False, False, False], None),
    ],
    ids=["sooner-and-fewer", "later", "never", "not-finite"],
)
def test_the_path_study_judges_by_its_curves(objective, active, expected, reached):
    decay = followed("decay", [3, 2, 1.5], [1, 1, 1])
    found = {"decay": decay, "balance": followed("balance", objective, active)}
    aims = path_convergence._aims(found)
    assert [aim.holds for aim in aims] == expected
    assert path_convergence._arrived(found["balance"], decay) == reached
    assert math.isnan(found["balance"].mean("objective")) == (objective[-1] is None)
