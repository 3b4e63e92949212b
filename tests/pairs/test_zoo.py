"""The zoo: on every model what a person would name is found, and nothing else."""

import dataclasses
import json

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import volax
from tests.pairs import zoo_linen as linen
from tests.pairs import zoo_others as others
from volax import check_groups, find_groups, find_pairs
from volax._paths import named_leaves
from volax.pairs import Axis, Member
from volax.pairs.result import Groups

KEY = jax.random.key(0)


def drawn(*shape):
    return jax.random.normal(KEY, shape, jnp.float32)


IMAGE, LARGE, VECTOR = drawn(2, 16, 16, 3), drawn(2, 32, 32, 3), drawn(4, 5)
SEQUENCE, TOKENS = drawn(2, 7, 8), jnp.arange(14).reshape(2, 7) % 11


def layer(source, *targets, scale=None, **more):
    """A pair of layers that are called so, kernels and biases."""
    taken = [t if isinstance(t, volax.pairs.Member) else f"{t}/kernel" for t in targets]
    more = {"bias": f"{source}/bias", **more}
    return volax.pair(f"{source}/kernel", taken, scale=scale, **more)


def norm(name, *targets, scale=None):
    """A pair whose producer is a batch norm's scale."""
    taken = [t if isinstance(t, volax.pairs.Member) else f"{t}/kernel" for t in targets]
    return volax.pair(f"{name}/scale", taken, bias=f"{name}/bias", scale=scale)


def heads(kernel, out, bias=None, count=2, size=4):
    """A pair per head and channel, as DenseGeneral lays it out."""

    def at(path, role, degree, *axes):
        layout = tuple(Axis(k, 0, (n,), (1,), (u,)) for u, (k, n) in enumerate(axes))
        return Member(path, role, degree, layout)

    made = at(kernel, "producer", 1, (1, count), (2, size))
    used = at(out, "consumer", -1, (0, count), (1, size))
    added = () if bias is None else (at(bias, "bias", 1, (0, count), (1, size)),)
    return volax.pairs.Group((count, size), (made,), (used,), added)


def member(path, axis=0, **layout):
    return volax.member(path, axis, **layout)


def part(path, axis, offset, size):
    """A part of an axis, as a concatenation leaves it."""
    return Member(path, "", 0, (Axis(axis, offset, (size,), (1,), (0,)),))


def also(pair, *biases):
    """The pair with further biases, each along its one axis."""
    more = (Member(b, "bias", 1, (Axis(-1),)) for b in biases)
    return dataclasses.replace(pair, biases=(*more, *pair.biases))


def resnet(blocks, convs, scaled):
    """Within each block a pair from each convolution but the last to the next."""
    pairs = []
    for k in range(blocks):
        for j in range(convs - 1):
            target = f"Block_{k}/Conv_{j + 1}"
            pairs.append(
                norm(f"Block_{k}/BatchNorm_{j}", target)
                if scaled
                else layer(f"Block_{k}/Conv_{j}", target, bias=None)
            )
    return pairs


VGG = [f"Conv_{k}" for k in range(16)] + ["Dense_0"]
VGG_NORM = [f"BatchNorm_{k}" for k in range(16)]
BLOCKS = (0, 1)
ATTENTION = [
    heads(f"attention{k}/value/kernel", f"attention{k}/out/kernel",
          f"attention{k}/value/bias", 2, 8)
    for k in BLOCKS
]  # fmt: skip
SMALL_ATTENTION = [
    heads(f"attention{k}/value/kernel", f"attention{k}/out/kernel",
          f"attention{k}/value/bias")
    for k in BLOCKS
]  # fmt: skip
# A head as a whole: queries and keys carry it too.
WHOLE = [
    ", ".join(f"attention{k}/{name}/kernel" for name in ("key", "query", "value"))
    + f" -> attention{k}/out/kernel"
    for k in BLOCKS
]
NNX_ATTENTION = [
    heads(f"blocks/{k}/attention/value/kernel", f"blocks/{k}/attention/out/kernel",
          f"blocks/{k}/attention/value/bias")
    for k in BLOCKS
]  # fmt: skip

# model, input, pairs, other groups by producers -> consumers
LINEN = {
    "mlp": (
        linen.MLP(), VECTOR,
        [layer("Dense_0", "Dense_1"), layer("Dense_1", "Dense_2")], [],
    ),
    "lenet": (
        linen.LeNet(), IMAGE,
        [
            layer("Conv_0", "Conv_1"),
            layer("Conv_1", member("Dense_0/kernel", positions=16)),
            layer("Dense_0", "Dense_1"),
            layer("Dense_1", "Dense_2"),
        ], [],
    ),
    "vgg19": (
        linen.VGG19(), LARGE,
        [layer(a, b) for a, b in zip(VGG, [*VGG[1:], "Dense_1"])], [],
    ),
    "vgg19_norm": (
        linen.VGG19(norm=True), LARGE,
        [norm(a, b) for a, b in zip(VGG_NORM, VGG[1:])] + [layer("Dense_0", "Dense_1")],
        [],
    ),
    "resnet18": (linen.ResNet(), LARGE, resnet(8, 2, True), 4),
    "resnet18_train": (linen.ResNet(train=True), LARGE, resnet(8, 2, True), 4),
    "resnet18_plain": (linen.ResNet(norm=False), LARGE, resnet(8, 2, False), 4),
    "resnet50": (
        linen.ResNet((3, 4, 6, 3), True), LARGE,
        [norm("BatchNorm_0", "Block_0/Conv_0", "Block_0/proj"), *resnet(16, 3, True)],
        4,
    ),
    "resnet50_plain": (
        linen.ResNet((3, 4, 6, 3), True, False), LARGE,
        [
            layer("Conv_0", "Block_0/Conv_0", "Block_0/proj", bias=None),
            *resnet(16, 3, False),
        ], 4,
    ),
    "mobilenet": (
        linen.MobileNet(), IMAGE,
        [
            also(layer(f"expand{k}", f"project{k}"), f"depth{k}/bias") for k in range(3)
        ] + [layer("project2", "head")],
        ["project0/kernel, project1/kernel, stem/kernel -> "
         "expand0/kernel, expand1/kernel, expand2/kernel"],
    ),
    "mobilenet_norm": (
        linen.MobileNet(norm=True), IMAGE,
        [
            norm(f"BatchNorm_{3 * k + 2}", f"project{k}",
                 scale=f"BatchNorm_{3 * k + 1}/scale") for k in range(3)
        ] + [norm("BatchNorm_9", "head")],
        ["project0/kernel, project1/kernel, stem/kernel -> "
         "expand0/kernel, expand1/kernel, expand2/kernel"],
    ),
    "densenet": (
        linen.DenseNet(), IMAGE,
        [
            layer("Conv_0", "Conv_1", part("Conv_2/kernel", 2, 0, 6),
                  part("Conv_3/kernel", 2, 0, 6),
                  member("Dense_0/kernel", positions=256, stride=18)),
            layer("Conv_1", part("Conv_2/kernel", 2, 6, 4),
                  part("Conv_3/kernel", 2, 6, 4),
                  member("Dense_0/kernel", positions=256, stride=18, offset=6)),
            layer("Conv_2", part("Conv_3/kernel", 2, 10, 4),
                  member("Dense_0/kernel", positions=256, stride=18, offset=10)),
            layer("Conv_3",
                  member("Dense_0/kernel", positions=256, stride=18, offset=14)),
        ], [],
    ),
    "inception": (
        linen.Inception(), IMAGE,
        [
            layer("a", part("head/kernel", 0, 0, 3)),
            layer("b1", "b2"),
            layer("b2", part("head/kernel", 0, 3, 5)),
            layer("c1", "c2"),
            layer("c2", part("head/kernel", 0, 8, 2)),
            layer("d", part("head/kernel", 0, 10, 4)),
            layer("stem", "a", "b1", "c1", "d"),
        ], [],
    ),
    "unet": (
        linen.UNet(), IMAGE,
        [
            layer("down1", "down2", part("join1/kernel", 2, 0, 4)),
            layer("down2", part("join2/kernel", 2, 0, 6), "middle"),
            layer("join1", "out"),
            layer("join2", part("join1/kernel", 2, 4, 5)),
            layer("middle", "up2"),
            layer("up2", part("join2/kernel", 2, 6, 6)),
        ], [],
    ),
    "gpt_relu": (
        linen.Transformer(), TOKENS,
        ATTENTION + [layer(f"up{k}", f"down{k}") for k in BLOCKS], WHOLE,
    ),
    "gpt_gelu": (
        linen.Transformer(act=nn.gelu), TOKENS, ATTENTION,
        WHOLE + [f"up{k}/kernel -> down{k}/kernel" for k in BLOCKS],
    ),
    "vit": (
        linen.ViT(), IMAGE, SMALL_ATTENTION,
        WHOLE + [f"up{k}/kernel -> down{k}/kernel" for k in BLOCKS],
    ),
    "mixer": (
        linen.Mixer(), IMAGE,
        [layer(f"{what}{k}_up", f"{what}{k}_down") for k in BLOCKS
         for what in ("tokens", "channels")], [],
    ),
    "gated": (linen.GatedMLP(), VECTOR, [layer("up", "down")], []),
    "reglu": (
        linen.GatedMLP(act=nn.relu), VECTOR, [],
        ["gate/kernel, up/kernel -> down/kernel"],
    ),
    "autoencoder": (
        linen.Autoencoder(), IMAGE,
        [layer("l0", "l1"), layer("l1", "l2"), layer("l2", "out")], [],
    ),
    "stacked": (
        linen.Stacked(), VECTOR, [layer("layers/up", "layers/down", layers=1)], [],
    ),
    "squeeze_excite": (
        linen.SqueezeExcite(), IMAGE,
        [layer("conv", "out", "squeeze"), layer("squeeze", "excite")], [],
    ),
    "grouped": (
        linen.Grouped(), IMAGE,
        [layer("c", "d"), layer("d", "e")],
        None,
    ),
    "mixed_precision": (linen.Mixed(), VECTOR, [layer("Dense_0", "Dense_1")], []),
}  # fmt: skip


def train(model):
    model.train()
    return model


def evaluation(model):
    model.eval()
    return model


NNX = {
    "conv_train": (
        lambda r: train(others.NnxConv(r)), IMAGE,
        [norm("norm", member("hidden/kernel", positions=64)), layer("hidden", "head")],
    ),
    "conv_eval": (
        lambda r: evaluation(others.NnxConv(r)), IMAGE,
        [norm("norm", member("hidden/kernel", positions=64)), layer("hidden", "head")],
    ),
    "transformer": (
        others.NnxTransformer, TOKENS,
        NNX_ATTENTION + [layer(f"blocks/{k}/up", f"blocks/{k}/down") for k in BLOCKS],
    ),
    "prelu": (
        others.NnxPReLU, VECTOR,
        [layer("l1", "l2"), layer("l2", "l3", scale="slope")],
    ),
    "stacked": (
        others.NnxStacked, drawn(4, 6),
        [layer("blocks/up", "blocks/down", layers=1)],
    ),
}  # fmt: skip


def stacked_pair(a, b, bias=None, layers=1):
    return volax.pair(a, b, bias=bias, layers=layers)


FUSED = volax.pairs.Group(
    (2, 4),
    (Member("qkv", "producer", 1, (Axis(1, 16, (2, 4), (4, 1), (0, 1)),)),),
    (Member("o", "consumer", -1, (Axis(0, 0, (2, 4), (4, 1), (0, 1)),)),),
    (Member("b", "bias", 1, (Axis(0, 16, (2, 4), (4, 1), (0, 1)),)),),
)

# function, parameter shapes, inputs, pairs, other groups
RAW = {
    "einsum": (
        others.raw_einsum,
        {"v": (8, 2, 4), "q": (8, 2, 4), "k": (8, 2, 4), "o": (2, 4, 8)},
        (SEQUENCE,), [heads("v", "o")], ["k, q, v -> o"],
    ),
    "fused": (
        others.raw_fused, {"qkv": (8, 24), "b": (24,), "o": (8, 8)}, (SEQUENCE,),
        [FUSED], ["qkv -> o"],
    ),
    "fused_heads": (
        others.raw_fused_heads, {"qkv": (8, 36), "b": (36,), "o": (12, 8)},
        (SEQUENCE,), [], ["qkv -> o"],
    ),
    "fused_gate": (
        others.raw_fused_gate, {"w1": (5, 12), "w2": (6, 2)}, (VECTOR,),
        [], ["w1 -> w2"],
    ),
    "gated_fused": (
        others.raw_gated_fused, {"w1": (5, 12), "w2": (6, 2)}, (VECTOR,),
        [dataclasses.replace(volax.pair(part("w1", 1, 6, 6), "w2"), sizes=(6,))], [],
    ),
    "crelu": (
        others.raw_crelu, {"w1": (5, 6), "b1": (6,), "w2": (12, 2)}, (VECTOR,),
        [volax.pair("w1", member("w2", 0, positions=2), bias="b1")], [],
    ),
    "scan": (
        others.raw_scan,
        {"embed": (5, 6), "up": (3, 6, 8), "down": (3, 8, 6), "head": (6, 2)},
        (VECTOR,), [stacked_pair("up", "down")], ["down, embed -> head, up"],
    ),
    "ensemble": (
        others.raw_ensemble, {"w1": (3, 5, 6), "b1": (3, 6), "w2": (3, 6, 2)},
        (VECTOR,), [stacked_pair("w1", "w2", "b1")], [],
    ),
    "calls": (
        others.raw_calls, {"w1": (5, 6), "w2": (6, 7), "w3": (10, 2)}, (VECTOR,),
        [volax.pair("w1", "w2"), volax.pair("w2", member("w3", 0, offset=3))], [],
    ),
    "volume": (
        others.raw_volume,
        {"k1": (3, 3, 3, 2, 4), "k2": (3, 3, 3, 4, 4), "w": (4, 2)},
        (drawn(2, 8, 8, 8, 2),), [volax.pair("k1", "k2"), volax.pair("k2", "w")], [],
    ),
    "embedding": (
        others.raw_embedding, {"table": (11, 6), "w1": (6, 7), "w2": (7, 2)},
        (TOKENS,), [volax.pair("table", "w1"), volax.pair("w1", "w2")], [],
    ),
    "graph": (
        others.raw_graph, {"w1": (5, 6), "w2": (6, 7), "w3": (7, 2)},
        (jnp.array([0, 1, 2, 3, 0]), jnp.array([1, 2, 2, 0, 3]), VECTOR),
        [volax.pair("w1", "w2"), volax.pair("w2", "w3")], [],
    ),
    "cache": (
        others.raw_cache, {"w1": (8, 6), "b1": (6,), "b2": (6,), "w2": (6, 2)},
        (jnp.array([1, 4]), SEQUENCE),
        [also(volax.pair("w1", "w2", bias="b2"), "b1")], [],
    ),
    "grid": (
        others.raw_grid,
        {"table": (2, 4), "w0": (5, 6), "w1": (8, 6), "w2": (6, 2)}, (VECTOR[:1],),
        [], ["table -> w1", "w0, w1 -> w2"],
    ),
    "waves": (
        others.raw_waves, {"gain": (3,), "w1": (3, 6), "w2": (6, 2)}, (VECTOR,),
        [volax.pair("w1", "w2")], [],
    ),
    "tied": (
        others.raw_tied, {"w": (5, 6), "b": (6,)}, (VECTOR,), [], ["w -> w"],
    ),
    "tied_embedding": (
        others.raw_tied_embedding, {"table": (11, 6), "up": (6, 7), "down": (7, 6)},
        (TOKENS,), [], ["down, table -> table, up", "up -> down"],
    ),
    "recurrent": (
        others.raw_recurrent, {"w": (5, 6), "u": (6, 6), "b": (6,), "v": (6, 2)},
        (VECTOR,), [], ["u, w -> u, v"],
    ),
    "unrolled": (
        others.raw_unrolled, {"w": (5, 6), "u": (6, 6), "v": (6, 2)},
        (VECTOR,), [], ["u, w -> u, v"],
    ),
    "gru": (
        others.raw_gru,
        {"w": (5, 18), "u": (6, 18), "b": (18,), "v": (6, 2), "h": (6,)},
        (VECTOR,), [], ["u, w -> u, v"],
    ),
    "projected": (
        others.raw_projected,
        {"stem": (3, 3, 3, 4), "head": (4, 2)} | {
            f"{name}{k}": shape for k in BLOCKS for name, shape in {
                "depth": (3, 3, 1, 4), "squeeze": (4, 2), "excite": (2, 4),
                "project": (1, 1, 4, 4),
            }.items()
        },
        (IMAGE,), [],
        [
            "excite0, excite1, project0, project1, stem -> "
            "head, project0, project1, squeeze0, squeeze1",
            "squeeze0 -> excite0", "squeeze1 -> excite1",
        ],
    ),
    "multiplier": (
        others.raw_multiplier,
        {"k": (3, 3, 3, 4), "b": (4,), "depth": (3, 3, 1, 8), "c": (8,), "w": (8, 2)},
        (IMAGE,),
        [volax.pairs.Group(
            (4, 2),
            (Member("depth", "producer", 1, (Axis(3, 0, (4, 2), (2, 1), (0, 1)),)),),
            (Member("w", "consumer", -1, (Axis(0, 0, (4, 2), (2, 1), (0, 1)),)),),
            (Member("c", "bias", 1, (Axis(0, 0, (4, 2), (2, 1), (0, 1)),)),),
        )],
        ["k -> w"],
    ),
    "lora": (
        others.raw_lora, {"w1": (5, 6), "a": (5, 2), "b": (2, 6), "w2": (6, 2)},
        (VECTOR,), [volax.pair("a", "b")], ["b, w1 -> w2"],
    ),
    "masked": (
        others.raw_masked, {"w1": (5, 6), "b1": (6,), "w2": (6, 2)},
        ({"w1": jnp.ones((5, 6)), "w2": jnp.ones((6, 2))}, VECTOR),
        [volax.pair("w1", "w2", bias="b1")], [],
    ),
    "weight_norm": (
        others.raw_weight_norm, {"v": (5, 6), "g": (6,), "w2": (6, 2)}, (VECTOR,),
        [volax.pair("g", "w2")], [],
    ),
}  # fmt: skip


def agree(found, expected, others_, leaves):
    """Compares whole records: paths, roles, degrees and layouts."""
    assert set(found.pairs) == {p.fit(leaves) for p in expected}, str(found)
    rest = [g.name for g in found if not g.homogeneous]
    if isinstance(others_, int):
        assert len(rest) == others_
    elif others_ is not None:
        assert sorted(rest) == sorted(others_), str(found)
    assert Groups.from_json(found.to_json()) == found
    json.loads(found.to_json())
    assert hash(found) == hash(Groups.from_json(found.to_json()))


# Tracing it takes 7 s; ResNet-18 without its norms and ResNet-50 with them are traced.
SLOW = {"resnet50_plain": pytest.mark.slow}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW.get(name, ())) for name in LINEN]
)
def test_linen(name):
    model, x, expected, rest = LINEN[name]
    if name == "resnet18_train":
        variables = jax.eval_shape(linen.ResNet().init, KEY, x)

        def fn(params, stats, x):
            return model.apply({"params": params, **stats}, x, mutable=["batch_stats"])

        stats = {"batch_stats": variables["batch_stats"]}
        args, more = (fn, variables["params"], stats, x), {"state_outputs": 1}
    else:
        variables = jax.eval_shape(model.init, KEY, x)
        args, more = (model, variables, x), {}
    found = find_groups(*args, **more)
    leaves = named_leaves({"params": variables["params"]})
    if name == "grouped":
        pairs = [g for g in found.pairs if len(g.sizes) == 2]
        assert [(g.name, g.sizes) for g in pairs] == [
            ("a/kernel -> b/kernel", (2, 4)), ("b/kernel -> c/kernel", (2, 3)),
        ]  # fmt: skip
        assert pairs[0].consumers[0].axes == (
            Axis(1, 0, (4,), (1,), (1,)), Axis(2, 0, (2, 3), (3, 1), (0, None)),
        )  # fmt: skip
        expected = [*expected, *pairs]
    agree(found, expected, rest, leaves)
    if "norm" in name or name in ("resnet18", "resnet18_train", "resnet50"):
        for group in found.pairs:
            scaled = [m.path for m in group.producers if m.path.endswith("scale")]
            assert len(group.states) == 2 * len([*scaled, *group.scales])
    check_groups(found, *args, **more)


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    make, x, expected = NNX[name]
    model = make(nnx.Rngs(0))
    found = find_pairs(model, x)
    leaves = named_leaves(nnx.state(model, nnx.Param))
    agree(found, expected, [], leaves)
    if name.startswith("conv"):
        assert [m.path for m in found[0].states] == ["norm/mean", "norm/var"]
        assert [m.path for m in found[0].fixed] == ["conv/bias", "conv/kernel"]
    if name == "conv_train":
        # Its dropout draws one random number a unit.
        assert [g.carries for g in found] == [("random numbers",), ()]
    check_groups(found, model, x)


@pytest.mark.parametrize("name", RAW)
def test_plain_functions(name):
    fn, shapes, inputs, expected, rest = RAW[name]
    params = others.normal(KEY, **shapes)
    found = find_groups(fn, params, *inputs)
    agree(found, expected, rest, params)
    check_groups(found, fn, params, *inputs)


def test_all_parts_of_a_fused_kernel_are_cut_alike():
    fn, shapes, inputs, _, _ = RAW["fused_heads"]
    groups = find_groups(fn, others.normal(KEY, **shapes), *inputs)
    (group,) = groups
    assert group.sizes == (3,)  # heads
    (made,), (added,), (used,) = group.producers, group.biases, group.consumers
    assert made.axes == (Axis(1, 0, (3, 3, 4), (12, 4, 1), (None, 0, None)),)
    assert added.axes == (dataclasses.replace(made.axes[0], axis=0),)
    assert used.axes == (Axis(0, 0, (3, 4), (4, 1), (0, None)),)
    said = [r.reason for r in groups.refused if r.path == "qkv"]
    assert "contracted between two computed values" in said  # the channels of a head


def test_one_parameter_on_both_sides():
    fn, shapes, inputs, _, _ = RAW["gru"]
    (group,) = find_groups(fn, others.normal(KEY, **shapes), *inputs)
    gates = (Axis(1, 0, (3, 6), (6, 1), (None, 0)),)
    assert group.producers == (
        Member("u", "producer", 0, gates), Member("w", "producer", 0, gates),
    )  # fmt: skip
    assert [(m.path, m.axes) for m in group.consumers] == [
        ("u", (Axis(0, 0, (6,), (1,), (0,)),)), ("v", (Axis(0, 0, (6,), (1,), (0,)),)),
    ]  # fmt: skip
    assert {(m.path, m.role) for m in group.biases} == {("b", "bias"), ("h", "bias")}
    assert group.note == "u stands on both sides; f(0) = 0"


RECURRENT = {
    "nnx": lambda cell: (NnxRecurrent(getattr(nnx, cell)), SEQUENCE),
    "linen": lambda cell: linen_recurrent(nn.RNN(getattr(nn, cell)(6))),
}


class NnxRecurrent(nnx.Module):
    def __init__(self, cell):
        rngs = nnx.Rngs(0)
        self.rnn = nnx.RNN(cell(8, 6, rngs=rngs))
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        steps = self.rnn(x)
        assert isinstance(steps, jax.Array)  # without the last carry
        return self.head(steps[:, -1])


def linen_recurrent(rnn):
    model = nn.Sequential([rnn, nn.Dense(3)])
    return model, jax.eval_shape(model.init, KEY, SEQUENCE), SEQUENCE


@pytest.mark.parametrize("library", RECURRENT)
@pytest.mark.parametrize(
    "cell", ["SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell"]
)
def test_recurrent_cells(library, cell):
    args = RECURRENT[library](cell)
    groups = find_groups(*args)
    (group,) = groups
    assert group.sizes == (6,)
    assert group.keeps_zero
    assert "stands on both sides" in group.note
    check_groups(groups, *args)


def test_equinox():
    model = others.EqxConv(KEY)
    x = drawn(3, 16, 16).astype(model.conv.weight.dtype)
    found = find_pairs(model, x)
    conv, hidden = found
    assert conv.name == "conv/weight -> l1/weight"
    assert conv.consumers[0].axes == (Axis(1, 0, (4, 49), (49, 1), (0, None)),)
    assert hidden.name == "l1/weight -> l2/weight"
    assert hidden.producers[0].axis == 0
    assert hidden.consumers[0].axis == 1
    check_groups(found, model, x)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def batched(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    assert find_pairs(batched, params, x[None]).groups == found.groups


def test_haiku():
    model = hk.without_apply_rng(hk.transform(others.haiku_mlp))
    params = model.init(KEY, IMAGE)
    found = find_groups(model.apply, params, IMAGE)

    def named(a, b, **layout):
        return volax.pair(f"{a}/w", member(f"{b}/w", **layout), bias=f"{a}/b")

    first, second, third = (f"mlp/~/linear_{k}" for k in range(3))
    expected = [
        named("conv", first, positions=256), named(first, second), named(second, third),
    ]  # fmt: skip
    agree(found, expected, [], named_leaves(params))
    check_groups(found, model.apply, params, IMAGE)


def test_declared_state():
    params = others.normal(KEY, w1=(5, 6), gamma=(6,), beta=(6,), w2=(6, 2))
    args = (others.raw_batch_norm, params, jnp.zeros(6), jnp.ones(6), VECTOR)
    (pair,) = find_pairs(*args, state_args=(0, 1), state_outputs=1)
    assert pair == volax.pair("gamma", "w2", bias="beta").fit(params)
    assert [m.path for m in pair.states] == ["input 0", "input 1"]
    assert [m.path for m in pair.fixed] == ["w1"]
    check_groups(pair, *args, state_outputs=1)
    (undeclared,) = find_pairs(*args, state_outputs=1)
    assert undeclared.note == "carries input 0, input 1"
    refused = find_pairs(*args).refused
    assert any("reach the output 1" in r.reason for r in refused)


def test_pairs_are_accepted_by_path_prox():
    model = linen.MLP()
    variables = model.init(KEY, VECTOR)
    pairs = find_pairs(model, variables, VECTOR)
    params = variables["params"]
    transform = volax.path_prox(0.1, 1e-2, pairs=pairs)
    state = transform.init(params)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(grads, state, params)
    assert jax.tree.all(jax.tree.map(lambda u: bool(jnp.isfinite(u).all()), updates))
    assert not callable(pairs)
    assert pairs[:1].groups == pairs.groups[:1]


def test_no_array_is_allocated():
    model = linen.MLP((10**7, 10**7, 4))
    shapes = jax.eval_shape(model.init, KEY, VECTOR)
    found = find_pairs(model.apply, shapes, jax.ShapeDtypeStruct((2, 5), jnp.float32))
    assert [g.size for g in found] == [10**7, 10**7]


def test_json_names_every_field():
    model = linen.MLP()
    found = find_groups(model, model.init(KEY, VECTOR), VECTOR)
    data = json.loads(found.to_json())
    assert data["groups"][0]["producers"][0]["path"] == "Dense_0/kernel"
    assert data["refused"][0]["source"].startswith(linen.__file__)
    again = Groups.from_json(found.to_json())
    assert [g.through for g in again] == [g.through for g in found]
    assert str(again) == str(found)
