"""Measures what the regularizers cost: ``python -m benchmarks`` prints a table."""

import argparse
from pathlib import Path

from benchmarks import peers
from benchmarks.sections import SECTIONS
from volax.examples import _machine
from volax.examples._files import write_json


def main() -> None:
    """Parses the command line, measures, prints."""
    by_default = [name for name, section in SECTIONS.items() if section.by_default]
    compared = [name for name, section in SECTIONS.items() if section.needs_torch]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--sections",
        default=",".join(by_default),
        help=f"'all', or some of {', '.join(SECTIONS)}; by default %(default)s",
    )
    parser.add_argument("--rounds", type=int, default=31, help="alternating rounds")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument(
        "--compare", action="store_true", help=f"{' and '.join(compared)} as well"
    )
    parser.add_argument("--list", action="store_true", help="what there is, unmeasured")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args()

    if given.rounds < 1:
        parser.error(f"--rounds must be 1 or more, not {given.rounds}")
    names = [*SECTIONS] if given.sections in ("", "all") else given.sections.split(",")
    names += compared * given.compare
    if given.list:
        names = [*SECTIONS]
    if unknown := set(names) - SECTIONS.keys():
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    chosen = {k: SECTIONS[k] for k in names if SECTIONS[k].chosen(given.only)}
    if not chosen:
        parser.error(f"no row of {', '.join(names)} contains {given.only!r}")
    if given.list:
        for name, section in chosen.items():
            print(f"{name}: {section.about}")
            print(*(f"    {row}" for row in section.chosen(given.only)), sep="\n")
        return

    if any(section.needs_torch for section in chosen.values()):
        peers.import_torch()  # before anything is measured, in case it is missing
    print(f"{_machine.header()}\nratio within a round: median [quartiles]")
    figures = []
    for name, section in chosen.items():
        print(f"\n{name}: {section.about}")
        for line in section.measure(given.rounds, given.only):
            print(line.text, flush=True)
            figures.append({"row": line.row, **line.figures})
        if given.json:
            write_json(given.json, {"machine": _machine.facts(), "rows": figures})


if __name__ == "__main__":
    main()
