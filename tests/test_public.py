"""The package as a whole: what it exports, what it documents, what it needs."""

import subprocess
import sys

import pytest

import volax

NAMES = sorted(
    name
    for name in dir(volax)
    if getattr(getattr(volax, name), "__module__", "").startswith("volax.")
)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented_by_an_example(name):
    doc = getattr(volax, name).__doc__
    assert doc
    assert ">>>" in doc
    assert "Args:" in doc
    assert "Returns:" in doc


def test_the_names_of_the_contract_are_there():
    expected = {
        "volumize", "volumized", "relative_to_init", "lp_decay", "path_prox", "pair",
        "member", "path_norm", "path_matches", "unpaired", "lp_adam", "lp_sgd",
        "volumized_adam", "path_prox_sgd", "find_groups", "find_pairs", "check_groups",
        "report", "compact", "binarize", "ternarize", "pack", "unpack", "save", "load",
    }  # fmt: skip
    assert expected <= set(NAMES)


def test_import_needs_only_jax_and_optax():
    code = """
import sys
import optax
known = {m.split(".")[0] for m in sys.modules}
import volax
new = {m.split(".")[0] for m in sys.modules} - known - {"volax"}
print(*sorted(new - sys.stdlib_module_names))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == []
