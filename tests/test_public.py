"""The package as a whole: what it exports, what it documents, what it needs."""

import pydoc
import re
import subprocess
import sys

import pytest

import volax

NAMES = volax.__all__
MAPS = [name for name, made in vars(volax.prox).items() if callable(made)]


@pytest.mark.parametrize(
    ("room", "name"),
    [*((volax, name) for name in NAMES), *((volax.prox, name) for name in MAPS)],
)
def test_every_public_name_is_documented_by_an_example(room, name):
    doc = getattr(room, name).__doc__
    assert doc
    assert ">>>" in doc
    assert "Args:" in doc
    assert "Returns:" in doc


def test_the_names_of_the_contract_and_no_others_are_public():
    expected = {
        "volumize", "volumized", "relative_to_init", "lp_decay", "path_prox", "pair",
        "member", "path_norm", "path_matches", "paired", "unpaired", "lp_adam",
        "lp_sgd", "volumized_adam", "path_prox_sgd", "path_prox_adam",
        "proximal", "proximal_adam", "find_groups", "find_pairs", "group_prox",
        "tune_strength", "metrics",
        "check_groups", "report", "compact", "binarize", "ternarize", "pack", "unpack",
        "save", "load", "cubic_ramp", "score", "kill", "keep_units",
    }  # fmt: skip
    assert sorted(NAMES) == sorted(expected)
    assert dir(volax) == sorted(expected)
    starred = {}
    exec("from volax import *", starred)
    assert starred.keys() - {"__builtins__"} == expected
    for name in expected:
        assert getattr(volax, name).__module__.startswith("volax.")


def test_help_lists_the_public_names_alone():
    text = pydoc.plain(pydoc.render_doc(volax))
    functions = text[text.index("\nFUNCTIONS\n") : text.index("\nVERSION\n")]
    listed = re.findall(r"^    (\w+)\(", functions, re.MULTILINE)
    assert listed == sorted(NAMES)
    assert "\nCLASSES\n" not in text
    assert "\nDATA\n" not in text


def test_import_needs_only_jax_and_optax():
    code = """
import sys
import optax
known = {m.split(".")[0] for m in sys.modules}
import volax
for name in ("volumize", "lp_adam", "path_prox", "pair", "path_matches", "proximal"):
    getattr(volax, name)
new = {m.split(".")[0] for m in sys.modules} - known - {"volax"}
print(*sorted(new - sys.stdlib_module_names))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == []


def test_names_load_what_they_need_alone():
    code = """
import sys, volax
print(*(name for name in ("jax", "optax") if name in sys.modules))
for name in ("volumize", "lp_adam", "path_prox", "pair", "path_matches", "proximal"):
    getattr(volax, name)
late = ("volax.compress", "volax.pairs.find", "volax.pairs.verify")
print(*(name for name in late if name in sys.modules))
dir(volax)
print(*(name for name in late if name in sys.modules))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == []
