"""Fixtures shared by all tests."""

import jax
import pytest


@pytest.fixture
def x64():
    """Turns on float64 for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
