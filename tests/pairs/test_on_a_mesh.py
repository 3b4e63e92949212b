"""Units of programs that say where arrays lie, and what each device does."""

import os
import re
import subprocess
import sys

import pytest

from tests.pairs import on_a_mesh
from tests.pairs.on_a_mesh import CASES


@pytest.mark.parametrize("name", CASES)
def test_units_that_every_device_holds_whole_are_followed(name):
    _, kind, reason = CASES[name]
    groups, _ = on_a_mesh.found(name, on_a_mesh.abstract(kind))
    if reason is None:
        assert [g.name for g in groups.pairs] == ["w1 -> w2"]
        assert len(groups) == 1
        # Where eight devices share eight units, none of them can go.
        assert bool(groups[0].constants) == (name == "reshard")
    else:
        assert not groups.groups, str(groups)
        said = [r.reason for r in groups.refused if r.path == "w1" and r.axis == 1]
        assert any(re.search(reason, why) for why in said), str(groups)


def test_what_is_found_holds_on_eight_devices():
    flags = "--xla_force_host_platform_device_count=8"
    out = subprocess.run(
        [sys.executable, "-m", "tests.pairs.on_a_mesh"],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    proven = [line for line in out.stdout.splitlines() if " 1 (" in line]
    assert len(proven) == sum(reason is None for *_, reason in CASES.values())
