"""Configs as flat dictionaries, and numbers, as a command line writes them."""

import argparse
from typing import Any

from ml_collections import ConfigDict


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested config.

    Args:
      config: the config.
      prefix: stands before every key.

    Returns:
      The values by dotted keys, such as `optimizer.learning_rate`.
    """
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def positive(text: str) -> int:
    """Read a count of 1 or more, for `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)
