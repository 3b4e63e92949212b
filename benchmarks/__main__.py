"""Runs the update benchmarks and prints one table: ``python -m benchmarks``."""

import argparse
import dataclasses
import datetime
import json
import platform

import jax
import optax

from benchmarks import update


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--settings", default="bare,step", help="bare, step, or both")
    parser.add_argument("--rounds", type=int, default=31, help="alternating rounds")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", help="write the figures to this file as well")
    given = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, "
        f"{device.device_kind}, JAX {jax.__version__}, Optax {optax.__version__}, "
        "ratio to optax.adam within a round: median [quartiles]"
    )
    figures = []
    for setting in given.settings.split(","):
        for row, ratio in update.rows(setting, given.rounds, given.only):
            limit = getattr(row, setting)
            print(
                f"{setting:5}  {row.name:24} {ratio.median:5.2f} "
                f"[{ratio.low:.2f}-{ratio.high:.2f}]  {ratio.seconds * 1e3:7.1f} ms"
                f"  {row.bytes:3g} bytes a weight"
                + (f"  aim {limit:.2f}" if limit else ""),
                flush=True,
            )
            figures.append(
                {"setting": setting, "row": row.name, **dataclasses.asdict(ratio)}
            )
    if given.json:
        with open(given.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
