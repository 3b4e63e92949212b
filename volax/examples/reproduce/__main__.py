"""The command: `python -m volax.examples.reproduce NAME`."""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from volax.examples._errors import UserError, told

_STUDIES = (
    "label-noise",
    "interpolation",
    "few-bit",
    "p-sweep",
    "path-convergence",
    "shrink",
    "discovery",
)
_ALL, _COLLECT = "all", "collect"
_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run the studies that it names."""
    try:
        given = _parse(argv)
        # Only now: a mistake on the command line is answered before the slow imports.
        from volax.examples.reproduce import _collect, _study

        folder = given.results or Path("results", "quick" if given.quick else "")
        folder.mkdir(parents=True, exist_ok=True)
        if given.name == _COLLECT:
            print(_collect.collect(folder, _STUDIES, given.output))
            return
        for name in _STUDIES if given.name == _ALL else [given.name]:
            module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
            quick = " --quick" if given.quick else ""
            text = _study.reproduce(
                name,
                module.VERSION,
                module.run,
                module.QUICK if given.quick else module.FULL,
                command=f"python -m {__package__} {name}{quick} --seeds={given.seeds}",
                folder=folder,
                seeds=given.seeds,
                data_dir=given.data_dir,
                quick=given.quick,
            )
            print(text)
    except KeyboardInterrupt:
        _end("\nStopped; the same command goes on with the next run.", _INTERRUPTED)
    except (UserError, OSError, ModuleNotFoundError) as error:
        _end(f"error: {told(error)}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from volax.examples._settings import positive

    parser = _Parser(
        prog=f"python -m {__package__}",
        description="Measure the papers' claims. A study that was stopped resumes.",
    )
    names = (*_STUDIES, _ALL, _COLLECT)
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"{', '.join(_STUDIES)}; {_ALL} of them; {_COLLECT} puts the tables of a "
        "folder together",
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes each")
    parser.add_argument(
        "--data_dir",
        default=os.environ.get("VOLAX_DATA_DIR", ""),
        help="where the data sets are; by default VOLAX_DATA_DIR",
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of what is written; by default results, or results/quick",
    )
    parser.add_argument("--seeds", type=positive, default=3, help="by default 3")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("RESULTS.md"),
        help=f"the file that {_COLLECT} writes; by default RESULTS.md",
    )
    given = parser.parse_args(argv)
    if given.name not in names:
        near = difflib.get_close_matches(given.name, names, n=1, cutoff=0)
        parser.error(f"there is no study {given.name!r}; did you mean {near[0]!r}?")
    if given.data_dir and not Path(given.data_dir).is_dir():
        parser.error(f"argument --data_dir: there is no folder {given.data_dir!r}")
    return given


def _end(message: str, code: int = 1) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    run()
