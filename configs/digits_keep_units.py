"""Digits: a given share of the hidden units."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

default = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config() -> ConfigDict:
    config = default["get_config"]()
    config.regularizer = "keep_units"
    return config
