"""save and load: all or nothing, and nothing but what save wrote."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.compress import models
from volax.compress import binarize, compact, load, pack, save, ternarize

DTYPES = [
    "float32", "bfloat16", "float16", "int32", "uint8", "bool", "int8", "uint16",
    "complex64", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "l1": {"kernel": jnp.asarray(rng.normal(size=(5, 7)), jnp.bfloat16)},
        "list": [jnp.arange(3), {"x": jnp.zeros((0, 4))}],
        "scalar": jnp.float32(2.5),
        "mask": jnp.array([True, False]),
        "key": jax.random.key(3),
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        assert np.shape(x) == np.shape(y)


def test_a_tree_comes_back(tmp_path):
    path = tmp_path / "model.safetensors"
    size = save(path, tree(), manifest={"note": "é", "list": [1, None, 0.1]})
    loaded = load(path)
    same(loaded.params, tree())
    assert loaded.manifest == {"note": "é", "list": [1, None, 0.1]}
    assert size == path.stat().st_size
    assert os.listdir(tmp_path) == ["model.safetensors"]


@given(
    st.integers(0, 10**6), st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=4), st.text(max_size=8),
)  # fmt: skip
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_array_under_any_name_comes_back(tmp_path, seed, dtype, shape, name):
    array = np.random.default_rng(seed).integers(0, 2, shape)
    params = {name: {"x": jnp.asarray(array, dtype)}}
    save(tmp_path / "m", params)
    same(load(tmp_path / "m").params, params)


NAMES = st.one_of(
    st.sampled_from(
        ["", ".", "/", "a/b", "a.b", "0", "value", "params", "data", "scale", "a"]
    ),
    st.text(max_size=5),
)


def nodes(children):
    texts = st.dictionaries(NAMES, children, min_size=1, max_size=3)
    numbers = st.dictionaries(st.integers(-2, 3), children, min_size=1, max_size=3)
    boxed = children.map(lambda x: nnx.Param(x) if isinstance(x, np.ndarray) else x)
    return st.one_of(
        texts, numbers, st.lists(children, min_size=1, max_size=3),
        children.map(Held), st.dictionaries(NAMES, boxed, min_size=1, max_size=2),
    )  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Held:
    value: Any


TREES = st.recursive(
    st.integers(0, 99).map(lambda k: np.full((k % 3,), k, np.float32)), nodes,
    max_leaves=6,
)  # fmt: skip


@given(TREES)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_leaf_comes_back_under_its_own_name(tmp_path, whole_tree):
    read = ["/".join(map(str, p)) if p else "." for p in parts(whole_tree)]
    if len(set(read)) < len(read) or "__metadata__" in read:
        with pytest.raises(ValueError, match="is taken or reserved"):
            save(tmp_path / "m", whole_tree)
        return
    save(tmp_path / "m", whole_tree)
    zeros = jax.tree.map(np.zeros_like, whole_tree)
    same(load(tmp_path / "m", into=zeros).params, whole_tree)
    again = load(tmp_path / "m").params
    assert parts(again) == parts(whole_tree)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(whole_tree)):
        np.testing.assert_array_equal(x, y)


def parts(tree):
    """The names along the key path of each leaf, by hand."""
    if isinstance(tree, nnx.Param):
        return parts(tree.get_value())
    if isinstance(tree, Held):
        return [("value", *path) for path in parts(tree.value)]
    if isinstance(tree, list):
        return [(k, *path) for k, x in enumerate(tree) for path in parts(x)]
    if isinstance(tree, dict):
        return [(k, *path) for k in sorted(tree) for path in parts(tree[k])]
    return [()]


def test_a_list_keeps_its_places(tmp_path):
    save(tmp_path / "m", [None, np.ones(2), None, {"x": np.ones(1)}])
    loaded = load(tmp_path / "m").params
    assert [loaded[0], loaded[2]] == [None, None]
    assert len(loaded) == 4


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "in a collection"])
def test_variables_and_their_parameters_load_into_each_other(tmp_path, wrap):
    bare = {"attn": {"value": jnp.ones(3)}, "params": {"w": jnp.zeros(2)}}
    whole = {"params": bare}
    saved, into = (whole, bare) if wrap else (bare, whole)
    save(tmp_path / "m", saved)
    same(load(tmp_path / "m", into=into).params, into)


def test_names_that_read_alike_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'a/b' is taken or reserved"):
        save(tmp_path / "m", {"a": {"b": jnp.ones(1)}, "a/b": jnp.zeros(1)})
    save(tmp_path / "m", {"a/b": jnp.ones(1)})
    with pytest.raises(ValueError, match="m lacks 'a/b'"):
        load(tmp_path / "m", into={"a": {"b": jnp.ones(1)}})


def test_another_reader_of_the_format_agrees(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    params = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "n": jnp.arange(3)}
    save(tmp_path / "m.safetensors", params | {"b": jnp.ones(2, jnp.bfloat16)})
    found = numpy.load_file(tmp_path / "m.safetensors")
    assert sorted(found) == ["a/kernel", "b", "n"]
    assert found["b"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["a/kernel"], params["a"]["kernel"])
    numpy.save_file({"w": np.ones(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors was not written by"):
        load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("bits", [1, 2])
def test_packed_weights_take_their_bytes_on_disk(tmp_path, bits):
    params = {
        "k": jnp.asarray(np.random.default_rng(0).normal(size=(500, 301)), "float32")
    }
    packed = pack((binarize if bits == 1 else ternarize)(params), bits=bits)
    size = save(tmp_path / "m", packed)
    assert size - packed["k"].nbytes < 600
    again = load(tmp_path / "m").params["k"]
    assert again.bits == bits
    assert np.asarray(again.data).tobytes() == np.asarray(packed["k"].data).tobytes()
    same(load(tmp_path / "m", into=params).params, packed)


def test_a_compacted_model_keeps_its_manifest(tmp_path):
    params, _ = models.killed(models.mlp_params(), models.MLP_PAIRS)
    small = compact(params, models.MLP_PAIRS)
    save(tmp_path / "m", small, manifest={"accuracy": 0.9})
    loaded = load(tmp_path / "m")
    same(loaded.params, small.params)
    assert loaded.manifest == {"compact": small.manifest, "accuracy": 0.9}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.head(self.drop(x))


def test_a_smaller_module_is_loaded_into_a_full_one_in_another_process(tmp_path):
    code = """
        import sys
        import jax.numpy as jnp, numpy as np
        from flax import nnx
        from tests.compress.test_storage import Net
        from volax.compress import load
        model = load(sys.argv[1], into=Net(nnx.Rngs(9))).params
        model.eval()
        np.save(sys.argv[2], model(jnp.ones((2, 4, 4, 2))))
        print(model.conv.out_features, model.norm.num_features, model.head.in_features)
    """
    model = Net(nnx.Rngs(0))
    model.eval()
    model.head.kernel.set_value(model.head.kernel.get_value().at[:4].set(0))
    from volax import find_groups

    x = jnp.ones((2, 4, 4, 2))
    small = compact(model, find_groups(model, x), check=(x,))
    save(tmp_path / "m", small)
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "m",
         tmp_path / "y.npy"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.split() == ["2", "2", "2"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), small.params(x), rtol=1e-5)


def test_into_must_have_the_same_key_paths(tmp_path):
    save(tmp_path / "m", {"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="m lacks 'c'"):
        load(
            tmp_path / "m", into={"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(1)}
        )
    with pytest.raises(ValueError, match="m holds 'b', which into has not"):
        load(tmp_path / "m", into={"a": jnp.ones(2)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    save(path, tree(), manifest={"note": 1})
    return path.read_bytes()


@given(st.data())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_altered_file_is_refused_by_name(tmp_path, whole, data):
    path = tmp_path / "damaged.safetensors"
    kind = data.draw(st.sampled_from(["cut", "flip", "append", "insert", "drop"]))
    place = data.draw(st.integers(0, len(whole) - 1))
    extra = data.draw(st.binary(min_size=1, max_size=20))
    damaged = {
        "cut": whole[:place],
        "flip": whole[:place] + bytes([whole[place] ^ extra[0]]) + whole[place + 1 :],
        "append": whole + extra,
        "insert": whole[:place] + extra + whole[place:],
        "drop": whole[:place] + whole[place + 1 :],
    }[kind]
    path.write_bytes(damaged)
    if damaged == whole:
        return
    try:
        loaded = load(path)
    except ValueError as error:
        assert "damaged.safetensors" in str(error)  # noqa: PT017
    else:
        # Only what JSON does not tell apart, such as a space in the header.
        same(loaded.params, tree())
        assert loaded.manifest == {"note": 1}


@given(st.binary(max_size=300))
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_other_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.bin"):
        load(path)


@pytest.mark.parametrize(
    "header",
    ["[" * 100_000, "{}", "[]", '{"a": 3}', '{"__metadata__": {"format": "volax 1"}}',
     '{"__metadata__": 3}', '{"a":{"data_offsets":[0,"x"]}}'],
    ids=["deep", "empty", "list", "number", "no manifest", "no dictionary", "text"],
)  # fmt: skip
def test_strange_headers_are_refused_by_name(tmp_path, header):
    path = tmp_path / "strange.bin"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(ValueError, match=r"strange\.bin"):
        load(path)


def test_what_cannot_be_stored_is_named_and_leaves_nothing(tmp_path):
    save(tmp_path / "m", {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="'b': dtype int4 cannot be stored"):
        save(tmp_path / "m", {"b": jnp.ones(2, jnp.int4)})
    with pytest.raises(ValueError, match="no plain JSON"):
        save(tmp_path / "m", {"a": jnp.ones(2)}, manifest={"x": {1, 2}})
    with pytest.raises(ValueError, match="no plain JSON"):
        save(tmp_path / "m", {"a": jnp.ones(2)}, manifest={"x": float("nan")})
    assert os.listdir(tmp_path) == ["m"]
    same(load(tmp_path / "m").params, {"a": jnp.ones(2)})


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    save(tmp_path / "m", {"a": jnp.ones(2)})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "m", {"a": jnp.zeros(2)})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m"]
    same(load(tmp_path / "m").params, {"a": jnp.ones(2)})


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    save(tmp_path / "m", {"a": jnp.ones(2)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"m cannot be written: .*os error 27"):
            save(tmp_path / "m", {"a": jnp.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "no folder" / "m", {"a": jnp.ones(2)})
    assert os.listdir(tmp_path) == ["m"]
    same(load(tmp_path / "m").params, {"a": jnp.ones(2)})


def test_a_file_is_as_readable_as_any_other(tmp_path):
    save(tmp_path / "m", {"a": jnp.ones(2)})
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_what_is_not_there_is_an_error_of_the_system(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            load(path)


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    save(tmp_path / "m", {"a": jnp.ones(2)})
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"save needs safetensors: .*\[compress\]"):
        save(tmp_path / "n", {"a": jnp.ones(2)})
    with pytest.raises(ImportError, match=r"load needs safetensors: .*\[compress\]"):
        load(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]


def test_a_kill_during_save_leaves_a_whole_file(tmp_path):
    code = """
        import sys
        import numpy as np
        from volax.compress import save
        for k in range(10**9):
            save(sys.argv[1], {"w": np.full((500, 1000), k, np.float32)})
            print(k, flush=True)
    """
    path = tmp_path / "m"
    for wait in (0.0, 0.005, 0.013):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), path], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        written = np.asarray(load(path).params["w"])
        assert written.shape == (500, 1000)
        assert (written == written[0, 0]).all()


def test_wide_numbers_keep_their_bits_without_x64(tmp_path):
    value = np.array([1 + 1e-12, 2**60], np.float64)
    save(tmp_path / "m", {"x": value})
    loaded = load(tmp_path / "m").params["x"]
    assert loaded.tobytes() == value.tobytes()
    json.dumps(load(tmp_path / "m").manifest)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in /proc")
@pytest.mark.parametrize("count", [1, 10])
def test_loading_takes_the_file_and_one_leaf_of_memory(tmp_path, count):
    code = """
        import sys
        import jax
        from volax.compress import load, save
        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM:"))
        # What a first call imports and compiles is no part of the measurement.
        small = sys.argv[1] + ".small"
        save(small, {"w": jax.numpy.ones(3)})
        jax.block_until_ready(load(small).params)
        before = peak()
        held = load(sys.argv[1]).params
        jax.block_until_ready(held)
        print(1024 * (peak() - before))
    """
    entries, path = 2**24 // count, tmp_path / "m"
    save(path, {f"w{k}": np.full(entries, k, np.float32) for k in range(count)})
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(out.stdout) < 1.25 * 4 * entries * (count + 1)


def test_what_stands_in_no_manifest_is_refused(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    save(tmp_path / "m", {"a": jnp.ones(2)})
    with numpy.safe_open(tmp_path / "m", "np") as file:
        arrays, meta = {"a": file.get_tensor("a")}, file.metadata()
    numpy.save_file(arrays, tmp_path / "m", metadata=meta)
    same(load(tmp_path / "m").params, {"a": jnp.ones(2)})
    numpy.save_file(arrays | {"b": np.ones(3)}, tmp_path / "m", metadata=meta)
    with pytest.raises(ValueError, match="checksum does not match"):
        load(tmp_path / "m")
