"""The command: `python -m volax.examples.main --config=FILE --workdir=DIR`.

Any setting of the config can be overridden: `--config.optimizer.learning_rate=0.01`.
"""

import difflib
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from volax.examples.errors import UserError
from volax.examples.settings import flatten

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file, such as configs/digits_path_prox.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for metrics, report, curves and checkpoints.",
    required=True,
)
flags.mark_flag_as_required("config")


def run() -> None:
    """Parse the command line and train; the console script `volax-train`."""
    app.run(_main, flags_parser=_parse)


def _main(argv: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)  # the checkpoint library tells every step
    try:
        if argv[1:]:
            raise UserError(f"what is {argv[1]!r}? settings are --config.NAME=VALUE")
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        if not Path(path).is_file():
            raise UserError(f"there is no config file {path!r}")
        # Only now: a mistake on the command line is answered before the slow imports.
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
        _exit(str(error).splitlines()[0])
    except (AttributeError, KeyError, TypeError):
        # ml_collections raises one of these, and takes the settings from sys.argv.
        overrides = [a for a in argv if a.startswith("--config.")]
        sys.argv = [a for a in argv if a not in overrides]
        flags.FLAGS(sys.argv)
        known = list(flatten(_CONFIG.value))
        for override in overrides:
            key = override.removeprefix("--config.").partition("=")[0]
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0)
                _exit(f"the config has no {key!r}; did you mean {near[0]!r}?")
        raise


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    run()
