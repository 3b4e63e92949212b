import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import volax
from volax.examples._errors import UserError
from volax.examples.data import Dataset, Loaded
from volax.examples.models import build, sample

ADAM = optax.adam(1e-2)
TEXT = {"width": 8, "dropout": 0.1}
BLOCKS = {**TEXT, "width": 16, "layers": 1, "heads": 4, "hidden": 6}
SIZES = {
    "mlp": {"hidden": (16, 12)},
    "lenet": {"widths": (4, 6, 16, 12)},
    "vgg19": {"width": 1 / 16},
    "resnet18": {"width": 4, "blocks": (1, 1)},
    "recurrent": {**TEXT, "hidden": 6, "attention": 4},
    "encoder": BLOCKS,
    "gpt": BLOCKS,
}
# Units of every group, in the order of the parameters.
UNITS = {
    "mlp": [(16,), (12,)],
    "lenet": [(4,), (6,), (16,), (12,)],
    "vgg19": [(n,) for n in 2 * [4] + 2 * [8] + 4 * [16] + 8 * [32]],
    "resnet18": [(4,), (4,), (8,), (8,)],
    "recurrent": [(6,), (4,), (8,)],
    "encoder": [(4,), (4, 4), (6,)],
    "gpt": [(4,), (4, 4), (6,)],
}
PAIRS = {
    "mlp": 2, "lenet": 4, "vgg19": 16, "resnet18": 2, "recurrent": 1, "encoder": 1,
    "gpt": 1,
}  # fmt: skip
FAMILIES = pytest.mark.parametrize("name", SIZES)


def loaded(name, length=8):
    """A few random examples of what a family is for, with a class in each."""
    rng = np.random.default_rng(0)
    facts: dict[str, Any]
    if name in ("recurrent", "encoder"):
        inputs = rng.integers(2, 20, (6, length)).astype(np.int32)
        inputs[0, 4:] = inputs[1, 2:] = 0
        labels, facts = (np.arange(6) % 2).astype(np.int32), {"vocabulary": ("x",) * 20}
    elif name == "gpt":
        inputs = rng.integers(0, 12, (4, length)).astype(np.int32)
        labels, facts = np.roll(inputs, -1, 1), {"vocabulary": ("x",) * 12}
    else:
        picture = (8, 8, 3) if name in ("vgg19", "resnet18") else (8, 8, 1)
        inputs = rng.integers(0, 256, (8, *picture), dtype=np.uint8)
        labels, facts = np.arange(8, dtype=np.int32), {"picture": picture}
        if name == "lenet":  # the other form in which images come
            inputs = inputs.reshape(8, -1).astype(np.float32) / 255
    classes = 2 if labels.max() == 1 else 12
    return Loaded(Dataset(inputs, labels, inputs, labels), classes, **facts)


# One program is compiled faster than its operations one by one.
run = nnx.jit(lambda model, inputs: model(inputs))


def trained(name, model, state, steps):
    """The loss of every step of a training."""
    data = loaded(name).dataset
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest):
        model = nnx.merge(graph, params, rest, copy=True)
        logits = model(jnp.asarray(data.train_inputs))
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.asarray(data.train_labels)
        )
        return each.mean(), nnx.split(model, nnx.Param, ...)[2]

    def step(carry, _):
        params, rest, state = carry
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest)
        updates, state = ADAM.update(grads, state, params)
        return (optax.apply_updates(params, updates), rest, state), value

    scanned = jax.jit(lambda *carry: jax.lax.scan(step, carry, length=steps))
    return np.asarray(scanned(params, rest, state)[1])


@functools.cache
def family(name) -> tuple[Any, jax.Array, Any]:
    """A model whose statistics have seen its inputs, these, and the groups."""
    data = loaded(name)
    inputs = jnp.asarray(data.dataset.test_inputs)
    model = nnx.jit(lambda: build(name, data, rngs=nnx.Rngs(0), **SIZES[name]))()
    if nnx.state(model, nnx.BatchStat):
        for _ in range(30):
            run(model, inputs)
    model.eval()
    return model, inputs, volax.find_groups(model, inputs)


@FAMILIES
def test_the_units_of_every_family_are_found_and_proven(name):
    model, inputs, groups = family(name)
    assert [group.sizes for group in groups] == UNITS[name]
    assert len(groups.pairs) == PAIRS[name]
    assert not any(group.constants for group in groups)
    volax.check_groups(groups, model, inputs)


def randomly_killed(model, groups):
    """The model without units that are drawn, half of each group."""
    rng = np.random.default_rng(0)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    drawn = jax.tree.map(
        lambda p: rng.uniform(1, 2, p.shape).astype(np.float32), params
    )
    kept = jax.jit(lambda drawn: volax.kill(drawn, groups))(drawn)
    params = jax.tree.map(lambda p, k: np.where(k == 0, 0, p), params, kept)
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params), rest)


def halved(units):
    """Half of the units of each group go: of heads, and of channels in the others."""
    return [tuple(n - n // 2 for n in sizes) for sizes in units]


@FAMILIES
def test_every_family_runs_and_learns_without_its_dead_units(name):
    model, inputs, groups = family(name)
    killed = randomly_killed(model, groups)
    state = ADAM.init(nnx.state(killed, nnx.Param))
    expected = run(killed, inputs)
    assert not np.allclose(expected, run(model, inputs), rtol=1e-3)
    for check in (None, (inputs,)):
        small = volax.compact(killed, groups, opt_state=state, check=check)
        assert not small.kept
        assert [group.sizes for group in small.groups] == halved(UNITS[name])
        np.testing.assert_allclose(
            run(small.params, inputs), expected, rtol=1e-5, atol=1e-5
        )
    found = volax.find_groups(small.params, inputs)
    assert [group.sizes for group in found] == halved(UNITS[name])
    losses = trained(name, small.params, small.opt_state, 100)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["resnet18", "recurrent", "gpt"])
def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(name):
    model, inputs, groups = family(name)
    mixed = nnx.eval_shape(
        lambda: build(
            name, loaded(name), dtype="bfloat16", rngs=nnx.Rngs(0), **SIZES[name]
        )
    )
    mixed.eval()
    kept = {x.dtype for x in jax.tree.leaves(nnx.state(mixed, nnx.Param))}
    assert kept == {jnp.dtype("float32")}
    assert volax.find_groups(mixed, inputs).groups == groups.groups
    nnx.update(mixed, nnx.state(model))
    logits, expected = run(mixed, inputs), run(model, inputs)
    assert logits.dtype == jnp.float32
    # A unit of rounding is 0.4 %, and there are up to 18 layers.
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("name", ["vgg19", "resnet18"])
def test_batch_norm_counts_in_training_mode_alone(name):
    model, inputs, *_ = family(name)
    model = nnx.clone(model)
    before = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    first = run(model, inputs)
    jax.tree.map(
        np.testing.assert_array_equal,
        before,
        nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)),
    )
    model.train()
    second = run(model, inputs)
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    assert all(
        (a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after))
    )
    assert (first != second).any()


@pytest.mark.parametrize("name", ["recurrent", "gpt"])
def test_dropout_acts_in_training_mode_alone(name):
    model, inputs, *_ = family(name)
    model = nnx.clone(model)
    np.testing.assert_array_equal(run(model, inputs), run(model, inputs))
    model.train()
    assert (run(model, inputs) != run(model, inputs)).any()


def test_the_gpt_never_looks_ahead():
    model, inputs, *_ = family("gpt")
    before = run(model, inputs)
    after = run(model, inputs.at[:, 5].set((inputs[:, 5] + 1) % 12))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


@pytest.mark.parametrize("name", ["recurrent", "encoder"])
def test_padding_changes_nothing(name):
    model, inputs, *_ = family(name)
    whole = run(model, inputs[:2])
    short = run(model, inputs[:2, :4])  # sentences of four and of two words
    np.testing.assert_allclose(short, whole, rtol=1e-5, atol=1e-6)
    other = nnx.clone(model)
    other.words.embedding[...] = other.words.embedding[...].at[0].set(9)
    np.testing.assert_allclose(run(other, inputs[:2]), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("begun", [3, 11], ids=["short", "longer"])
def test_text_that_is_sampled_without_heat_is_the_likeliest(begun):
    model, *_ = family("gpt")
    prompt = jnp.arange(begun, dtype=jnp.int32)
    cold = functools.partial(sample, count=9, temperature=1e-6)
    text = jax.jit(lambda model, prompt, key: cold(model, prompt, key=key))(
        model, prompt, jax.random.key(0)
    )
    expected = prompt.tolist()
    for _ in range(9):
        window = expected[-model.length :]
        padded = window + [0] * (model.length - len(window))
        logits = run(model, jnp.asarray([padded]))[0, len(window) - 1]
        expected.append(int(logits.argmax()))
    assert text.tolist() == expected


def test_sampled_characters_follow_the_distribution():
    model, inputs, *_ = family("gpt")
    expected = jax.nn.softmax(run(model, inputs[:1, :3])[0, -1])
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda key: sample(model, inputs[0, :3], 1, key)[-1]))
    counts = np.bincount(draw(keys), minlength=12) / 2000
    np.testing.assert_allclose(counts, expected, atol=0.05)


def test_resnet_18_has_all_its_groups():
    data = loaded("resnet18")
    model = nnx.eval_shape(lambda: build("resnet18", data, rngs=nnx.Rngs(0), width=4))
    model.eval()
    groups = volax.find_groups(model, jnp.asarray(data.dataset.test_inputs))
    streams = [g for g in groups if not g.homogeneous]
    assert [group.size for group in streams] == [4, 8, 16, 32]
    assert [group.size for group in groups.pairs] == [4, 4, 8, 8, 16, 16, 32, 32]


@pytest.mark.parametrize(
    ("name", "data", "sizes", "message"),
    [
        ("alexnet", "mlp", {}, "unknown model 'alexnet'; there are mlp, lenet"),
        ("gpt", "mlp", {}, "gpt is no model for images; there are mlp, lenet"),
        ("lenet", "gpt", {}, "lenet is no model for characters; there are gpt"),
        ("gpt", "encoder", {}, "no model for sentences; there are recurrent, encoder"),
        ("vgg19", "mlp", {"widht": 1}, "vgg19 has no 'widht'; there are width$"),
        ("mlp", "mlp", {"inputs": 1}, "mlp has no 'inputs'; there are hidden$"),
        ("mlp", "mlp", {}, "mlp: .*hidden"),
        ("gpt", "gpt", {"heads": 3}, "gpt: width 128 is no multiple of heads 3"),
    ],
    ids=["name", "images", "characters", "sentences", "size", "fact", "none", "heads"],
)
def test_what_cannot_be_built_is_told(name, data, sizes, message):
    with pytest.raises(UserError, match=message):
        build(name, loaded(data), rngs=nnx.Rngs(0), **sizes)
