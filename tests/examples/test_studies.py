"""What single studies say of their runs, and the nets that they train."""

import math
import sys
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import volax
from volax.examples.models import GPT
from volax.examples.reproduce import discovery, p_sweep, path_convergence, shrink
from volax.examples.reproduce._study import Chosen, Task


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


@pytest.fixture(scope="module")
def gpt():
    return GPT(6, 5, 6, width=4, layers=1, heads=2, rngs=nnx.Rngs(0))


def test_pruning_takes_the_smallest_of_all_matrices(gpt):
    pruned = p_sweep._changed(gpt, lambda weights: p_sweep._pruned(0.75, weights))
    assert p_sweep._zeros(gpt) == 0
    assert p_sweep._zeros(pruned) == pytest.approx(0.75, abs=0.01)
    kept, lost = [], []
    states = [nnx.to_pure_dict(nnx.state(net, nnx.Param)) for net in (gpt, pruned)]
    leaves = [jax.tree.leaves_with_path(jax.device_get(state)) for state in states]
    for (path, before), (_, after) in zip(*leaves):
        if path[-1].key in ("kernel", "embedding"):
            kept.append(np.abs(before)[after != 0])
            lost.append(np.abs(before)[after == 0])
        else:
            np.testing.assert_array_equal(before, after)
    assert np.concatenate(lost).max() < np.concatenate(kept).min()


def test_the_decay_of_the_study_reaches_every_matrix_of_a_gpt(gpt):
    # Biases of the heads are matrices of zeros, which a sticky decay would refuse.
    setting = {"p": 0.5, "strength": 1e9, "learning_rate": 1e-3}
    task = Task({}, "p = 0.5", setting, 0, "validation")
    tx = p_sweep._optimizer(task, optax.constant_schedule(1e-3))
    params = nnx.to_pure_dict(nnx.state(gpt, nnx.Param))
    ones = jax.tree.map(np.ones_like, params)
    updates, _ = jax.jit(tx.update)(ones, tx.init(params), params)
    for path, before in jax.tree.leaves_with_path(jax.device_get(params)):
        update = updates
        for key in path:
            update = update[key.key]
        is_decayed = np.abs(before + update).max() < 1e-4
        assert is_decayed == (path[-1].key in ("kernel", "embedding"))


def swept(method, setting, quality, zeros):
    case = {"model": "mlp", "dataset": "mnist"}
    row = {"quality": quality, "accuracy": quality, "zeros": zeros}
    return Chosen(case, method, setting, [], [row])


@pytest.mark.parametrize(
    ("decays", "magnitude", "expected"),
    [
        ({0.5: (0.98, 0.98), 1.5: (0.985, 0.5)}, (0.98, 0.9), [True] * 4),
        (
            {0.5: (0.97, 0.99), 1.5: (0.98, 0.5)},
            (0.98, 0.4),
            [False, True, True, False],
        ),
        ({0.5: (0.97, 0.99), 1.5: (0.97, 0.5)}, (0.97, 0.9), [False] * 4),
        ({0.5: (0.99, 0.98), 2.0: (0.98, 0)}, (0.98, 0.99), [True, False, False, True]),
    ],
    ids=["as-claimed", "only-above-1", "none-as-good", "magnitude-has-more"],
)
def test_the_sweep_judges_zeros_by_runs_as_good_as_adam(decays, magnitude, expected):
    found = [swept(f"p = {p:g}", {"p": p}, *row) for p, row in decays.items()]
    found.append(swept(p_sweep._L1, {}, 0.98, 0.1))
    found.append(swept(p_sweep._MAGNITUDE, {}, *magnitude))
    curves = p_sweep.Curves(swept("Adam", {}, 0.983, 0.0), found, found)
    assert [aim.holds for aim in p_sweep._aims(curves)] == expected


def test_the_sweep_takes_the_sparsest_of_those_as_good_as_adam():
    rows = [(0.5, 0.99), (None, 1.0), (0.9, 0.8), (0.91, 0.2)]
    values = [
        p_sweep._sparsity(0.9, {"quality": quality, "zeros": zeros})
        for quality, zeros in rows
    ]
    assert values == [pytest.approx(-0.4), None, 1.8, 1.2]


def shrunken(method, target, quality, multiply_adds):
    case = {"model": "lenet", "dataset": "fashion_mnist", "target": {"widths": target}}
    row = {"quality": quality, "accuracy": quality, "multiply_adds": multiply_adds}
    return Chosen(case, method, {}, [], [row])


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([(0.898, 19), (0.85, 9)], [True, True, True]),
        ([(0.85, 9), (0.898, 19)], [True, True, True]),
        ([(0.898, 21), (0.85, 9)], [True, True, False]),
        ([(0.898, 19), (0.82, 9)], [False, True, True]),
        ([(0.85, 19), (0.7, 9)], [False, False, False]),
    ],
    ids=["as-claimed", "in-any-order", "too-large", "below-small-once", "below"],
)
def test_shrinking_is_judged_at_every_target(kept, expected):
    plain = shrunken("plain", 0, 0.9, 100)
    rest = [
        *(shrunken("keep_units", k, *row) for k, row in enumerate(kept)),
        *(shrunken("trained small", k, 0.83 + 0.01 * (row[1] > 15), row[1])
          for k, row in enumerate(kept)),
        *(shrunken("magnitude, fine-tuned", k, 0.8, 10) for k in range(2)),
    ]  # fmt: skip
    assert [aim.holds for aim in shrink._aims(plain, rest)] == expected


class Normed(nn.Module):
    """Two convolutions, the norms behind them, and a dense layer."""

    @nn.compact
    def __call__(self, x):
        for width in (4, 5):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(6)(x.mean((1, 2)))


def test_the_discovery_counts_weights_and_what_units_shrink(monkeypatch):
    monkeypatch.setattr("jax.clear_caches", lambda: None)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    monkeypatch.setitem(discovery.ARCHITECTURES, "normed", (Normed, image))
    row = discovery._search("normed")
    assert row["weights"] == 9 * 3 * 4 + 2 * 4 + 9 * 4 * 5 + 2 * 5 + 5 * 6 + 6
    assert (row["groups"], row["pairs"], row["refused"]) == (2, 2, 1)
    assert row["reasons"][0].startswith("Dense_0/kernel axis 1: the units reach the")
    # The first convolution is cut with the norm's scale, which is the producer.
    assert row["share"] == 1


def test_an_architecture_has_as_many_weights_as_published():
    model, shapes, _ = discovery._network("ResNet-50")
    # torchvision's resnet50 has 25,557,032 parameters.
    assert sum(x.size for x in discovery._weights(model, shapes)) == 25_557_032


def test_the_graph_of_torch_pruning_is_timed_on_the_same_architecture(monkeypatch):
    seen = {}

    class Graph:
        def build_dependency(self, model, example_inputs):
            seen["model"], seen["image"] = model, example_inputs
            return self

        def get_all_groups(self):
            return iter("abc")

    class Model:
        def eval(self):
            return "ResNet in evaluation mode"

    modules = {
        "torch": SimpleNamespace(zeros=lambda *shape: shape),
        "torch_pruning": SimpleNamespace(DependencyGraph=Graph),
        "torchvision": SimpleNamespace(models=SimpleNamespace(resnet50=Model)),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    row = discovery._graph("ResNet-50")
    assert row["groups"] == 3
    assert row["search_seconds"] >= 0
    assert seen["model"] == "ResNet in evaluation mode"
    assert seen["image"] == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [(1.0, None, [True]), (61.0, 100.0, [False, True]), (2.0, 1.0, [True, False])],
    ids=["alone", "slow-but-faster", "slower"],
)
def test_the_discovery_compares_where_both_were_timed(own, other, expected):
    def timed(method, seconds):
        return Chosen({}, method, {}, [], [{"search_seconds": seconds}])

    peer = other and timed("Torch-Pruning", other)
    search = discovery.Search("ResNet-50", timed("find_groups", own), peer)
    assert [aim.holds for aim in discovery._aims([search])] == expected
