"""Measures what the regularizers cost: ``python -m benchmarks`` prints a table."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import jax

# What is fast enough to run by default comes first; the others are asked for.
DEFAULT = ("bare", "step", "many", "memory", "packed", "compact")
SECTIONS = {
    "bare": ("update", "bare"),
    "step": ("update", "step"),
    "many": ("update", "many"),
    "memory": ("update", "memory"),
    "packed": ("packed", "packed"),
    "compact": ("inference", "inference"),
    "vgg": ("update", "vgg"),
    "trace": ("trace", "tracing"),
    "sweep": ("update", "sweep"),
    "subnormal": ("subnormal", "subnormal"),
    "torch": ("peers", "compare"),
    "mnist": ("mnist", "mnist"),
}


def machine() -> str:
    """The machine and the versions in one line."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    packages = ["jax", "optax", "flax", *(["torch"] if "torch" in sys.modules else [])]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join(
        [str(datetime.date.today()), f"{os.cpu_count()} cores of {cpu}",
         f"on {jax.devices()[0].device_kind}", *versions]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--sections",
        default=",".join(DEFAULT),
        help=f"'all', or some of {', '.join(SECTIONS)}; by default %(default)s",
    )
    parser.add_argument("--rounds", type=int, default=31, help="alternating rounds")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--compare", action="store_true", help="PyTorch rows as well")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args()
    names = list(SECTIONS) if given.sections == "all" else given.sections.split(",")
    names += ["torch", "mnist"] * given.compare
    if unknown := set(names) - SECTIONS.keys():
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    figures = []
    if {"torch", "mnist"} & set(names):
        from benchmarks.peers import import_torch

        import_torch()
    print(f"{machine()}\nratio to optax.adam within a round: median [quartiles]")
    for name in dict.fromkeys(names):
        module, function = SECTIONS[name]
        measure = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        for line in measure(given.rounds, given.only):
            print(line.text, flush=True)
            figures.append({"row": line.row, **line.figures})
    if given.json:
        partial = given.json.with_name(f".{given.json.name}.partial")
        partial.write_text(
            json.dumps({"machine": machine(), "rows": figures}, indent=2)
        )
        partial.replace(given.json)


if __name__ == "__main__":
    main()
