"""What all tests share: eight simulated devices, and what has been compiled."""

import collections
import functools
import gc
import itertools
import os
import tempfile

import jax
import pytest
from jax._src.interpreters import mlir  # there is no public way to it

jax.config.update("jax_num_cpu_devices", 8)  # tests/test_sharding.py makes meshes

# Compiling is most of the time of the suite, and many tests compile the same program.
KEEP_ALL = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


# Nobody reads where in the code an operation of a test comes from.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# JAX lowers each program in a new context, into which all dialects are loaded again: a
# quarter of the time of small programs. One context for all of them does as well.
if hasattr(mlir, "make_ir_context"):
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)

# The older of two code generators takes half the time; XLA has but one after JAX 0.10.
# A program's parts compile one after another: the other core has tests of its own.
OLDER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


gc.disable()  # while modules are imported and tests collected: they all stay


def pytest_collection_finish():
    """Leaves what is imported by now out of the garbage collections to come."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before those with the mark are left out
def pytest_collection_modifyitems(items):
    """Thins products of lists: what is new in no values of all but one list is slow."""
    seen = collections.defaultdict(set)
    for item in items:
        if item.get_closest_marker("thinned"):
            values = [(k, id(value)) for k, value in item.callspec.params.items()]
            met = {*itertools.combinations(values, len(values) - 1)}
            if met <= seen[item.originalname]:
                item.add_marker("slow")
            seen[item.originalname] |= met


def pytest_configure(config):
    """Compiles in a hurry, and keeps what is compiled for all workers of this run.

    Thousands of small programs run a few times each, so they need no speed; tests of
    the last bits ask for ``as_users_compile``. Where XLA_FLAGS is set, to nothing even,
    all tests compile as users do.

    The folder of compiled programs is of this run alone; workers and other processes
    that the tests start find it in the environment. One may read what another has half
    written: JAX then warns, which pyproject.toml lets pass, and compiles.
    """
    if "XLA_FLAGS" not in os.environ:
        # XLA ends a process over a flag that it does not know.
        has_choice = jax.__version_info__ < (0, 11)
        os.environ["XLA_FLAGS"] = OLDER if has_choice else ""
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
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


@pytest.fixture
def as_users_compile(monkeypatch):
    """Compiles with all optimizations, and what a test jits with XLA's own choices."""
    options: dict[str, bool | int] = {"xla_backend_optimization_level": 3}
    options["xla_llvm_disable_expensive_passes"] = False
    if os.environ["XLA_FLAGS"] == OLDER:
        options["xla_cpu_use_fusion_emitters"] = True
    monkeypatch.setattr(
        jax, "jit", functools.partial(jax.jit, compiler_options=options)
    )
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
