"""Tiny Shakespeare: a character GPT of four blocks of 128 channels."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

default = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(regularizer: str = "keep_units") -> ConfigDict:
    config = default["get_config"](regularizer)
    config.dataset = "shakespeare"
    config.model.name = "gpt"
    config.epochs = 5
    config.batch_size = 32
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 0.05
    config.optimizer.clip = 1.0
    config.volumize.volume = 0.2
    config.volumize.mask = "matrices"
    config.lp_decay.strength = 0.004
    config.keep_units.share = 0.5
    config.keep_units.every = 10
    return config
