"""Randomly grown programs: whatever is reported has to hold numerically."""

import random

import pytest

from tests.pairs import fuzz
from tests.pairs.programs import KINDS, Program, data, drawn, examine, smaller
from volax import check_groups, find_groups

# The first are always the same; the others are new in every run, and printed.
FIXED = range(12)
FRESH = 6


def hold(program):
    """Asserts what is found in a program, by volax's own oracle and by a plain one."""
    params = program.params(data())
    groups = find_groups(program.fn, params, data())
    check_groups(groups, program.fn, params, data(), tolerance=program.tolerance)
    assert examine(program) == ""


@pytest.mark.parametrize("seed", FIXED)
def test_what_is_found_in_a_random_program_holds(seed):
    hold(drawn(seed))


def test_what_is_found_in_fresh_random_programs_holds():
    start = random.SystemRandom().getrandbits(32)
    for seed in range(start, start + FRESH):
        said = fuzz.judged(drawn(seed))
        assert not said, f"python -m tests.pairs.fuzz --seed {seed}: {said}"


@pytest.mark.slow
def test_what_is_found_in_many_fresh_programs_holds():
    assert not fuzz.main(["--seconds", "300"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_around_every_single_step_holds(kind):
    hold(Program(((kind, 6),)))


# Programs that once were found wrong.
KNOWN = {
    "a cut through a concatenation": (("concat", 6), ("halves", 4)),
    "a part of a head is padded away": (("shuffle", 8), ("pad", 4), ("dense", 8)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_once_was_wrong_holds(name):
    for seed in range(3):
        assert examine(Program(KNOWN[name]), seed) == ""
    hold(Program(KNOWN[name]))


def test_a_false_group_does_not_escape_the_plain_oracle(monkeypatch):
    """The oracle can fail: `compact` here forgets what it was asked to remove."""
    program = Program((("flatten", 4), ("gelu", 4)))
    assert examine(program) == ""

    def shuffled(params, groups):
        keys = [k for k, v in params.items() if v.ndim == 2]
        swapped = {k: params[k][::-1] for k in keys}
        return type("Small", (), {"params": {**params, **swapped}})

    monkeypatch.setattr("volax.compact", shuffled)
    assert "compact after killing" in examine(program)
    longer = Program((("bias", 4), *program.steps, ("half", 4)))
    assert len(smaller(longer, examine).steps) == 1
