"""Compiling is most of the time of these tests; what they compare needs no speed."""

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation():
    """Leaves out most optimizations of the compiler."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
