"""What all tests share: eight simulated devices, and what has been compiled."""

import gc
import os
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # tests/test_sharding.py makes meshes

# Compiling is most of the time of the suite, and many tests compile the same program.
KEEP_ALL = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


gc.disable()  # while modules are imported and tests collected: they all stay


def pytest_collection_finish():
    """Leaves what is imported by now out of the garbage collections to come."""
    gc.freeze()
    gc.enable()


def pytest_configure(config):
    """Keeps compiled programs for this run alone, in a folder that its workers share.

    Workers and other processes that the tests start find the folder in the
    environment. One may read what another has half written: JAX then warns, which
    pyproject.toml lets pass, and compiles.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="compiled-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ.update({k.upper(): str(v) for k, v in KEEP_ALL.items()})
    jax.config.update(
        "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
    )
    for name, value in KEEP_ALL.items():
        jax.config.update(name, value)


@pytest.fixture
def x64():
    """Turns on float64 for one test."""
    before = jax.config.values["jax_enable_x64"]
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
