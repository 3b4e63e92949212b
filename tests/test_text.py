"""The printer of tables."""

import re
from pathlib import Path

import pytest

import volax
from volax._text import aligned


@pytest.mark.parametrize(
    ("sides", "ruled", "expected"),
    [
        ("", False, ["a    bc", "def  g", "     hij"]),
        ("lr", False, ["a     bc", "def    g", "     hij"]),
        ("r", True, ["  a   bc", "--------", "def    g", "     hij"]),
    ],
    ids=["left", "last side repeats", "ruled"],
)
def test_columns_are_aligned(sides, ruled, expected):
    rows = [("a", "bc"), ("def", "g"), ("", "hij")]
    assert aligned(rows, sides, ruled=ruled) == expected


def test_nothing_else_aligns_text():
    room = Path(volax.__file__).parent
    pads = re.compile(r"\.[lr]just\(")
    found = {p.name for p in room.rglob("*.py") if pads.search(p.read_text())}
    assert found == {"_text.py"}
