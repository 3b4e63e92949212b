"""The command: `volax-train --config=NAME:REGULARIZER --workdir=DIR`, or with a file.

Any setting of the config can be overridden: `--config.optimizer.learning_rate=0.01`.
Without the console script it is `python -m volax.examples.main`.
"""

import difflib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from volax.examples._errors import UserError, told

# A wheel holds the configs inside the package, a checkout beside it.
_PLACES = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs")


def run() -> None:
    """Parse the command line and train; the console script `volax-train`."""
    try:
        with _stopped_at_once():
            from absl import app  # comes with the extra

            _define_flags()
        app.run(_main, flags_parser=_parse)
    except ModuleNotFoundError as error:
        _exit(told(error), code=1)


def _define_flags() -> None:
    from absl import flags
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        help_string="A config and a regularizer, such as digits:keep_units.",
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder for metrics, report, curves and checkpoints.",
        required=True,
    )
    flags.mark_flag_as_required("config")
    flags.DEFINE_bool(
        "distributed",
        False,
        "Whether this is one of several processes; a cluster tells which, or the next "
        "three flags do.",
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process.")
    flags.DEFINE_integer("processes", None, "How many processes there are.")
    flags.DEFINE_integer("process", None, "The number of this one, from 0.")


def _main(argv: list[str]) -> int:
    from absl import flags, logging

    # The checkpoint library logs every step, and beside what it raises its traceback.
    logging.set_verbosity(logging.FATAL)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        if argv[1:]:
            raise UserError(
                f"{argv[1]!r} is no flag; settings are given as --config.NAME=VALUE"
            )
        # Only now: a mistake on the command line is answered before the slow imports.
        with _stopped_at_once():
            from volax.examples.train import train_and_evaluate

        if flags.FLAGS.distributed:
            _join(flags.FLAGS)
        _silence_other_threads()
        train_and_evaluate(flags.FLAGS.config, flags.FLAGS.workdir)
    except KeyboardInterrupt:
        _end("\nStopped; the same command resumes from the last checkpoint.", 130)
    except (UserError, OSError) as error:
        _end(f"error: {told(error)}", 1)
    return 0


def _join(given: Any) -> None:
    """Become one of several processes."""
    import jax

    try:
        jax.distributed.initialize(given.coordinator, given.processes, given.process)
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"the processes do not come together: {said}") from error


def _silence_other_threads() -> None:
    """Show no traceback of a thread: what stops a checkpoint is raised here as well.

    The threads that were writing it find their event loop closed, once for each file.
    """
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            show(unraisable)

    sys.unraisablehook = hook


def _end(message: str, code: int) -> NoReturn:
    """Leave without waiting for threads, which would print tracebacks of their own."""
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    os._exit(code)


@contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process: nothing is written yet, and imports may swallow it.

    Extension modules turn the exception into an ImportError of their own.
    """

    def stop(*_: Any) -> NoReturn:
        _end("\nStopped before the training began.", 130)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags, and answer an unknown setting with the nearest one."""
    from absl import flags

    from volax.examples._settings import flatten

    argv = _with_config_file(argv)
    sys.argv = argv  # ml_collections takes the settings from here
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _exit(str(error).splitlines()[0])
    except (AttributeError, KeyError, TypeError):
        # What ml_collections raises for a setting that the config lacks.
        overrides = [a for a in argv if a.startswith("--config.")]
        sys.argv = [a for a in argv if a not in overrides]
        flags.FLAGS(sys.argv)
        known = list(flatten(flags.FLAGS.config))
        for override in overrides:
            key = override.removeprefix("--config.").partition("=")[0]
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0)
                _exit(f"the config has no {key!r}; did you mean {near[0]!r}?")
        raise


def _with_config_file(argv: list[str]) -> list[str]:
    """The command line with the config's name replaced by its file, which is tried."""
    found = list(argv)
    for k, argument in enumerate(argv[1:], 1):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not equals:
            if k + 1 == len(argv):
                break  # absl says that the value is missing
            k, value = k + 1, argv[k + 1]
        name, colon, argument = value.partition(":")
        path = _config_file(name)
        _try_config(path, [argument] if colon else [])
        given = f"{path}{colon}{argument}"
        found[k] = f"{flag}={given}" if equals else given
    return found


def _config_file(given: str) -> Path:
    """The file of a config that is given by name or as a path."""
    path = Path(given)
    if path.suffix == ".py" or path.name != given:
        if not path.is_file():
            _exit(f"there is no config file {given!r}")
        return path
    folder = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
    named = {file.stem: file for file in sorted(folder.glob("*.py"))}
    if given not in named:
        _exit(f"there is no config {given!r}; there are {', '.join(named)}, or a file")
    return named[given]


def _try_config(path: Path, argument: list[str]) -> None:
    """Run a config file once, so that whatever is wrong with it is told by its name."""
    import runpy

    from ml_collections import ConfigDict

    try:
        make = runpy.run_path(str(path)).get("get_config")
    except (Exception, SystemExit) as error:
        _exit(f"{path} is no config: {_kind_and_text(error)}")
    try:
        config = None if make is None else make(*argument)
    except ValueError as error:
        _exit(f"{path}: {error}")
    except (Exception, SystemExit) as error:
        _exit(f"{path} is no config: {_kind_and_text(error)}")
    if not isinstance(config, ConfigDict):
        _exit(f"{path} is no config: it has no get_config() that returns a ConfigDict")


def _kind_and_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _exit(message: str, code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    run()
