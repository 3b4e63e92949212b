"""Random programs for as long as one likes: `python -m tests.pairs.fuzz --seconds 600`.

Every seed is one program. A failure prints the seed and the smallest program that still
fails; `--seed N` runs that one again.
"""

import argparse
import random
import sys
import time

from tests.pairs.programs import drawn, examine, smaller


def judged(program):
    """What is wrong with a program, a crash included; empty if nothing is."""
    try:
        return examine(program)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, help="run this one alone")
    given = parser.parse_args(argv)
    start, number, failed = random.SystemRandom().getrandbits(32), 0, {}
    ends = time.monotonic() + given.seconds
    while time.monotonic() < ends:
        seed = start + number if given.seed is None else given.seed
        program, number = drawn(seed), number + 1
        if said := judged(program):
            least = smaller(program, judged)
            kinds = tuple(kind for kind, _ in least.steps)
            if kinds not in failed:
                print(f"seed {seed}: {least}: {judged(least)}", flush=True)
            failed.setdefault(kinds, said)
        if given.seed is not None:
            break
    print(f"{number} programs, {len(failed)} kinds of failure")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
