"""Every setting, with the values that the other configs start from.

A config takes a regularizer as its argument: `--config=configs/mnist.py:path_prox`, or
by name `--config=mnist:path_prox`. The strengths and volumes for digits, MNIST and
Fashion-MNIST were chosen with `--config.validation=0.15`, which holds back a part of
the training examples; those of the other sets are first guesses and not tuned.
"""

import os

from ml_collections import ConfigDict

# The arguments of each.
REGULARIZERS = {
    "adamw": {"weight_decay": 0.1},
    "volumize": {"volume": 0.2, "alpha": 0.0, "mask": "all"},
    "lp_decay": {"strength": 0.02, "p": 0.5, "snap_below": 1e-6},
    "path_prox": {"strength": 0.035, "normalize": "project"},
    "group_prox": {"strength": 0.04, "over": "all", "p": 0.5, "freeze_dead": True},
    # The share of the units that is left after that part of the steps.
    "keep_units": {"share": 0.125, "ramp": 0.4, "every": 1},
}


def get_config(regularizer: str = "adamw") -> ConfigDict:
    if regularizer not in REGULARIZERS:
        known = ", ".join(REGULARIZERS)
        raise ValueError(f"there is no regularizer {regularizer!r}; there are {known}")
    return ConfigDict(
        {
            "seed": 0,  # initial weights, order of the examples, noise, subset
            "dataset": "digits",
            "data_dir": os.environ.get("VOLAX_DATA_DIR", ""),
            "validation": 0.0,  # share of the training examples, not the test ones
            "per_class": 0,  # training examples a class; 0 is all
            "label_noise": 0.0,  # share of wrong training labels
            "length": 0,  # characters of a window, words of a sentence; 0 is as usual
            "augment": False,  # images are flipped and moved at random
            "model": {
                "name": "mlp",
                "dtype": "float32",  # of the computation; weights are float32
                # The sizes of each.
                "mlp": {"hidden": (256,)},
                "lenet": {"widths": (6, 16, 120, 84)},
                "vgg19": {"width": 1.0},
                "resnet18": {"width": 64, "blocks": (2, 2, 2, 2)},
                "gpt": {"width": 128, "layers": 4, "heads": 4, "dropout": 0.1},
                "recurrent": {"width": 64, "hidden": 64, "dropout": 0.3},
                "encoder": {"width": 64, "layers": 2, "heads": 4, "dropout": 0.3},
            },
            "epochs": 60,  # with a constant rate a finished run can get more
            "batch_size": 64,
            "test_batch": 1000,  # examples that are evaluated together
            "average": 0.0,  # decay of a mean of the weights, evaluated too; 0 is none
            "checkpoint_seconds": 10.0,  # at least so long between two; 0 is each epoch
            "tensorboard": False,  # events beside metrics.csv
            # (data, model): over so many devices batches are split, and weights by the
            # layout: replicated, sharded (over data), tensor (over model) or both.
            "mesh": (),
            "layout": "replicated",
            "optimizer": {
                "name": "adam",  # adam or sgd
                "learning_rate": 3e-3,
                "schedule": "cosine",  # cosine (to zero) or constant
                "warmup": 0.0,  # share of the steps in which the rate rises
                "momentum": 0.9,  # of sgd
                "clip": 0.0,  # largest norm of the gradients; 0 is any
                "accumulate": 1,  # batches whose mean gradient makes one update
            },
            "regularizer": regularizer,
            **REGULARIZERS,
        }
    )
