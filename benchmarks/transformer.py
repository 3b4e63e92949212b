"""A character transformer that loses units while it trains, beside one that does not.

Two blocks with layer norms, attention of separate queries, keys and values, and GELU
MLPs, trained by Adam on Tiny Shakespeare (``tinyshakespeare/input.txt`` in
``VOLAX_DATA_DIR``; without it on random text of a small grammar). What died is cut by
``compact``, which proves that the function stayed.
"""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import volax
from benchmarks.timing import Line

RATE, STEPS, HELD_OUT = 3e-3, 1500, 0.1


class Size(NamedTuple):
    """Of the model and of a batch."""

    blocks: int = 2
    width: int = 32
    heads: int = 4
    channels: int = 8  # of a head
    units: int = 128  # of an MLP
    length: int = 32
    batch: int = 32


class Row(NamedTuple):
    """One training: what stands behind Adam, given its rate and the groups."""

    rule: Callable[[Any, Any], Any] | None = None
    size: Size = Size()


def _groups(strength: float, **options: Any) -> Row:
    return Row(lambda rate, found: volax.group_prox(rate, strength, found, **options))


def _first(strength: float, **options: Any) -> Row:
    """The penalty in the first part of the training, the rest with what is left."""
    end = {round(0.6 * STEPS): 0.0}
    schedule = optax.piecewise_constant_schedule(strength, end)
    return Row(
        lambda rate, found: volax.group_prox(
            rate, schedule, found, over="all", freeze_dead=True, **options
        )
    )


ROWS = {
    "adam": Row(),
    "adam, 80 units, 5 channels": Row(size=Size(units=80, channels=5)),
    "adam, 60 units, 4 channels": Row(size=Size(units=60, channels=4)),
    "adam, 21 units, 2 channels": Row(size=Size(units=21, channels=2)),
    "consumers, 0.1": _groups(0.1),
    "consumers, 0.3": _groups(0.3),
    "consumers, p=0.5, 0.05": _groups(0.05, p=0.5),
    "all, 0.07": _groups(0.07, over="all"),
    "all, 0.07, frozen": _groups(0.07, over="all", freeze_dead=True),
    "all, 0.1": _groups(0.1, over="all"),
    "all, p=0.5, 0.04": _groups(0.04, over="all", p=0.5),
    "all, p=0.5, 0.06": _groups(0.06, over="all", p=0.5),
    "first 60 %, p=0.5, 0.05": _first(0.05, p=0.5),
    "first 60 %, p=0.5, 0.07": _first(0.07, p=0.5),
}


def transformer(
    rounds: int, only: str, size: Size | None = None, steps: int = STEPS
) -> Iterator[Line]:
    """Units, multiply-adds and loss after training a character transformer with
    group_prox behind Adam, beside Adam alone; as many seeds as rounds, three at most.
    """
    data = letters()
    first = int(len(data) * (1 - HELD_OUT))
    for name, row in ROWS.items():
        if only not in name:
            continue
        runs = [
            _run(row, size or row.size, data[:first], data[first:], steps, seed)
            for seed in range(min(rounds, 3))
        ]
        mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        spread = " to ".join(f"{f(r['loss'] for r in runs):.3f}" for f in (min, max))
        cells = f"{mean['units']:5.0f} units, {mean['channels']:4.1f} channels, "
        cells += f"{mean['heads']:3.1f} heads, {mean['multiply_adds']:9,.0f} a letter"
        text = f"{'letters':8} {name:20} loss {mean['loss']:.3f} ({spread}); {cells}"
        yield Line(f"transformer {name}", text, mean)


def _run(
    row: Row, size: Size, train: np.ndarray, held: np.ndarray, steps: int, seed: int
) -> dict[str, float]:
    """What one training leaves, judged on the compacted model."""
    params = init(size, jax.random.key(seed))
    x = jnp.asarray(held[: size.length][None])
    found = volax.find_groups(forward, params, x)
    rate = optax.cosine_decay_schedule(RATE, steps)
    rules = [] if row.rule is None else [row.rule(rate, found)]
    tx = optax.chain(optax.adam(rate), *rules)
    params, _ = trained(tx, params, train, steps, size, seed)
    small = volax.compact(params, found, check=(forward, None, (x,)))
    counted = volax.report(small.params, small.groups, fn=forward, inputs=(x,))
    return {
        **alive(params, size),
        "multiply_adds": counted.multiply_adds / size.length,
        "loss": held_out(small.params, held, size.length),
    }


def alive(params: Any, size: Size) -> dict[str, int]:
    """MLP units, channels of values and heads that are not dead, over all blocks."""
    found = {"units": 0, "channels": 0, "heads": 0}
    for k in range(size.blocks):
        block = params[f"block{k}"]
        channels = np.asarray(block["out"]).any(-1)
        found["units"] += int(np.asarray(block["down"]).any(-1).sum())
        found["channels"] += int(channels.sum())
        found["heads"] += int(channels.any(-1).sum())
    return found


def letters() -> np.ndarray:
    """Characters as numbers below 65, int32."""
    folder = os.environ.get("VOLAX_DATA_DIR")
    path = Path(folder or ".") / "tinyshakespeare" / "input.txt"
    if folder and path.is_file():
        found = np.frombuffer(path.read_bytes(), np.uint8)
        return np.unique(found, return_inverse=True)[1].astype(np.int32)
    return grammar(200_000)


def grammar(count: int, seed: int = 0) -> np.ndarray:
    """Words drawn from a list of random words, by Zipf's law."""
    rng = np.random.default_rng(seed)
    words = [rng.integers(1, 27, rng.integers(2, 8)) for _ in range(300)]
    chosen = np.minimum(rng.zipf(1.3, count // 4), 300) - 1
    return np.concatenate([np.append(words[k], 0) for k in chosen])[:count].astype(
        np.int32
    )


def init(size: Size, key: jax.Array, kinds: int = 65) -> Any:
    """Normal weights of variance one over the number of inputs."""
    keys = iter(jax.random.split(key, 8 * size.blocks + 3))
    d, h, c, m = size.width, size.heads, size.channels, size.units

    def normal(*shape: int, inputs: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) / inputs**0.5

    def norm() -> Any:
        return {"scale": jnp.ones(d), "bias": jnp.zeros(d)}

    params: dict[str, Any] = {
        f"block{i}": {
            **{name: normal(d, h, c, inputs=d) for name in ("query", "key", "value")},
            "out": normal(h, c, d, inputs=h * c * size.blocks),
            "up": normal(d, m, inputs=d),
            "up_bias": jnp.zeros(m),
            "down": normal(m, d, inputs=m * size.blocks),
            "down_bias": jnp.zeros(d),
            "norm1": norm(),
            "norm2": norm(),
        }
        for i in range(size.blocks)
    }
    params["letters"] = normal(kinds, d, inputs=d)
    params["places"] = normal(size.length, d, inputs=d)
    params["head"] = normal(d, kinds, inputs=d)
    params["norm"] = norm()
    return params


def forward(params: Any, x: jax.Array) -> jax.Array:
    """Logits [batch, length, letters] of the next characters of int [batch, length]."""
    h = params["letters"][x] + params["places"][: x.shape[1]]
    for name in sorted(k for k in params if k.startswith("block")):
        h = _block(params[name], h)
    return _norm(params["norm"], h) @ params["head"]


def _norm(p: Any, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
    return x * p["scale"] + p["bias"]


def _block(p: Any, x: jax.Array) -> jax.Array:
    h = _norm(p["norm1"], x)
    names = ("query", "key", "value")
    q, k, v = (jnp.einsum("btd,dhc->bhtc", h, p[name]) for name in names)
    scores = jnp.einsum("bhtc,bhsc->bhts", q, k) / q.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9), -1)
    x = x + jnp.einsum("bhts,bhsc,hcd->btd", weights, v, p["out"])
    h = _norm(p["norm2"], x)
    return x + jax.nn.gelu(h @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]


def loss(params: Any, x: jax.Array) -> jax.Array:
    """Mean cross entropy in nats a character; int [batch, length + 1]."""
    logits = forward(params, x[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, x[:, 1:]).mean()


def trained(
    tx: optax.GradientTransformation,
    params: Any,
    data: np.ndarray,
    steps: int,
    size: Size,
    seed: int,
    state: Any = None,
) -> tuple[Any, Any]:
    """Parameters and state after training on random pieces of the text."""
    text, window = jnp.asarray(data), jnp.arange(size.length + 1)

    @functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
    def run(carry: Any, key: jax.Array, count: int) -> Any:
        def step(carry: Any, key: jax.Array) -> Any:
            params, state = carry
            last = len(data) - size.length - 1
            starts = jax.random.randint(key, (size.batch, 1), 0, last)
            grads = jax.grad(loss)(params, text[starts + window])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, jax.random.split(key, count))[0]

    params = jax.tree.map(jnp.copy, params)
    state = tx.init(params) if state is None else state
    return run((params, state), jax.random.key(seed), steps)


def held_out(params: Any, data: np.ndarray, length: int) -> float:
    """The loss on pieces of the text, one after another."""
    count = min(len(data) // (length + 1), 256)
    pieces = data[: count * (length + 1)].reshape(count, length + 1)
    return float(jax.jit(loss)(params, pieces))
