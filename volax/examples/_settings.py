"""Configs as flat dictionaries, as the command line writes their keys."""

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
