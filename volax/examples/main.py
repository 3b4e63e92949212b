"""The command: `python -m volax.examples.main --config=FILE --workdir=DIR`.

Any setting of the config can be overridden: `--config.optimizer.learning_rate=0.01`.
"""

import difflib
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from volax.examples.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file, such as configs/digits_path_prox.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for metrics, report, curves and checkpoints."
)
flags.mark_flags_as_required(["config", "workdir"])


def run() -> None:
    """Parse the command line and train; the console script `volax-train`."""
    app.run(_main, flags_parser=_parse)


def _main(argv: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)  # the checkpoint library tells every step
    try:
        if argv[1:]:
            raise UserError(f"what is {argv[1]!r}? settings are --config.NAME=VALUE")
        # Only now: a mistake on the command line is answered without JAX's start-up.
        from volax.examples.train import train_and_evaluate

        train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    except KeyboardInterrupt:
        print(
            "\nStopped; the same command resumes from the last checkpoint.",
            file=sys.stderr,
        )
        return 130
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags, and answer an unknown setting with the nearest one."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _exit(str(error))
    except (AttributeError, KeyError, TypeError):
        overrides = [a for a in argv if a.startswith("--config.")]
        flags.FLAGS([a for a in argv if a not in overrides])
        known = _keys(_CONFIG.value)
        for override in overrides:
            key = override.removeprefix("--config.").partition("=")[0]
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0)
                _exit(f"the config has no {key!r}; did you mean {near[0]!r}?")
        raise
    raise AssertionError("unreachable")


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        nested = isinstance(value, ConfigDict)
        keys += _keys(value, f"{prefix}{key}.") if nested else [prefix + key]
    return keys


if __name__ == "__main__":
    run()
