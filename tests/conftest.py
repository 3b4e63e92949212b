"""Fixtures shared by all tests, which run on a host of eight simulated devices."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # tests/test_sharding.py makes meshes


@pytest.fixture
def x64():
    """Turns on float64 for one test."""
    before = jax.config.values["jax_enable_x64"]
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
