"""Sentences of film reviews: an encoder; `model.name=recurrent` is a GRU."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

default = runpy.run_path(str(Path(__file__).with_name("default.py")))


def get_config(regularizer: str = "keep_units") -> ConfigDict:
    config = default["get_config"](regularizer)
    config.dataset = "rt_polarity"
    config.model.name = "encoder"
    config.epochs = 6
    config.batch_size = 64
    config.test_batch = 250
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 0.05
    config.optimizer.clip = 1.0
    config.volumize.volume = 0.2
    config.volumize.mask = "matrices"
    config.lp_decay.strength = 0.004
    config.keep_units.share = 0.25
    config.keep_units.every = 10
    return config
