import gzip
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
STEMS = {"train": "train", "test": "t10k"}


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    """Compilation is nearly all the time of these tests, so do it cheaply."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield {"JAX_DISABLE_MOST_OPTIMIZATIONS": "True"}
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def load_config(monkeypatch):
    """Gives a config by name, with overrides by their dotted keys."""
    monkeypatch.delenv("VOLAX_DATA_DIR", raising=False)

    def load(name, **overrides):
        file, _, regularizer = name.partition(":")
        config = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"](regularizer)
        config.lock()
        config.update_from_flattened_dict(overrides)
        return config

    return load


@pytest.fixture(scope="session")
def idx_bytes():
    """Gives the content of an IDX file that holds an array."""

    def content(array, *, magic=None):
        magic = magic or bytes([0, 0, 8, array.ndim])
        sizes = np.asarray(array.shape, ">u4").tobytes()
        return magic + sizes + array.astype(np.uint8).tobytes()

    return content


@pytest.fixture(scope="session")
def write_idx(idx_bytes):
    """Writes the four files of a data set of noise, with a bright line a class."""

    def write(folder, *, train=40, test=20, compress=True):
        rng = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for side, count in (("train", train), ("test", test)):
            images = rng.integers(0, 64, (count, 28, 28), dtype=np.uint8)
            labels = np.arange(count, dtype=np.uint8) % 10
            images[np.arange(count), 2 * labels] = 255
            arrays[side] = images, labels
            for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
                path = folder / f"{STEMS[side]}-{kind}-ubyte"
                content = idx_bytes(array)
                if compress:
                    content = gzip.compress(content)
                    path = path.with_name(path.name + ".gz")
                path.write_bytes(content)
        return arrays

    return write
