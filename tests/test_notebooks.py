"""The notebooks run from top to bottom, show what they say, and keep their rules."""

import ast
import os
import re
import sys
from importlib import metadata
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import matplotlib.pyplot as plt
import pytest

from tests import notebooks
from tests.notebooks import NAMES, ROOT

every_notebook = pytest.mark.parametrize("name", NAMES)


def test_there_are_five():
    assert [name[0] for name in NAMES] == [*"12345"]


@pytest.fixture
def shown(monkeypatch):
    """How many axes each figure had that was shown, in a setting that is put back."""
    figures: list[int] = []

    def show():
        for number in plt.get_fignums():
            figures.append(sum(a.has_data() for a in plt.figure(number).axes))
        plt.close("all")

    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plt, "show", show)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    precision = jax.config.values["jax_default_matmul_precision"]
    with plt.rc_context():
        yield figures
    jax.config.update("jax_default_matmul_precision", precision)
    assert plt.get_fignums() == []


def says_one(found: dict[str, Any]):
    logs = [found[name]["accuracy"] for name in ("plain_log", "both", "tiny_log")]
    plain, both, tiny = (float(log[-5:].mean()) for log in logs)
    assert found["small"].sizes["layers/0/kernel"] == (64, 32)
    assert plain > both > tiny > 0.9
    assert both > plain - 0.03


def says_two(found):
    by_wall, by_decay = (
        found[name][:, -5:].mean(1) for name in ("by_wall", "by_decay")
    )
    assert by_wall[1:4].min() > by_wall[0] + 1  # three walls of four, in five seeds
    assert by_decay.max() > by_wall.max() - 1
    table = found["table"]
    assert table["binary"][0] < table["as trained"][0] - 10
    assert table["binary"][2] > table["as trained"][2] - 2


def says_three(found):
    right, zeros = found["right"], found["zeros"]
    half = jax.tree.map(lambda leaf: leaf[2, 3], found["nets"])
    assert zeros(half) > 70
    assert right(half) > right(found["plain"]) - 4
    assert right(found["after"][2]) < right(half)  # cut by as much, or less


def says_four(found):
    plain, pruned, few = (
        float(found[name]["accuracy"][-5:].mean())
        for name in ("plain_log", "log", "few_log")
    )
    assert found["left"] <= 16
    assert min(pruned, few) > plain - 2


def says_five(found):
    alone, pathwise = found["sent"].values()
    assert found["walled"] == alone[-1]
    for plain, more in zip(alone, pathwise):
        assert 0 <= sum((more - plain).values()) <= 8 * 256
    assert found["gaps"].keys() == found["LAYOUTS"].keys()
    assert max(found["gaps"].values()) < 1e-4
    spec = found["LAYOUTS"]["both"]["w1"]
    assert found["tuned"]["w1"].sharding.spec == spec
    assert found["tuned"]["w1"].shape[1] < 256


SAYS = dict(zip(NAMES, (says_one, says_two, says_three, says_four, says_five)))


@every_notebook
def test_it_runs_from_top_to_bottom(name, shown):
    found = notebooks.run(name)
    assert len(shown) >= 3
    assert all(shown), "every figure shows something"
    SAYS[name](found)


@every_notebook
def test_its_file_holds_no_output_and_no_long_cell(name):
    notebook = notebooks.read(name)
    written = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    bare = notebooks.stripped(name, notebook, notebooks.repository())
    assert written == notebooks.text(bare), "python -m tests.notebooks writes it anew"
    for source in notebooks.sources(notebook):
        assert source.count("\n") < 20, source
        assert max(map(len, source.splitlines())) <= 88
        ast.parse(source)  # no magic: it runs in any kernel
    # A sentence before every cell of code but those that set up, or go on.
    assert len(notebooks.sources(notebook, "markdown")) >= 7


@every_notebook
def test_it_installs_the_checkout_or_the_package_by_its_name(name):
    notebook = notebooks.read(name)
    first, *_ = notebooks.sources(notebook)
    assert first == notebooks.sources(notebooks.read(NAMES[0]))[0]
    assert "volax-optax" in first
    every = "\n".join([*notebooks.sources(notebook, "markdown"), *_, first])
    assert not re.search(r"install[^\n]*\bvolax\b(?!-optax)", every)


@pytest.mark.parametrize("place", ["checkout", "elsewhere"])
def test_what_it_installs(place, monkeypatch, tmp_path):
    folder = ROOT / "notebooks" if place == "checkout" else tmp_path
    asked: list[list[str]] = []

    def missing(_):
        raise metadata.PackageNotFoundError

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr("subprocess.run", lambda args, check: asked.append(args))
    exec(notebooks.sources(notebooks.read(NAMES[0]))[0], {})
    named = ROOT if place == "checkout" else "volax-optax"
    assert asked == [
        [sys.executable, "-m", "pip", "install", "-q", f"{named}[examples]"]
    ]


@pytest.mark.parametrize("url", ["https://github.com/o/n", None])
def test_the_badge_is_made_from_the_address_of_the_project(url):
    """Of a project without one there is no badge, which would lead to a stranger."""
    for name in NAMES:
        first = notebooks.stripped(name, notebooks.read(name), url)["cells"][0]
        found = re.findall(r"\]\((https://colab[^)]*ipynb)\)", "".join(first["source"]))
        colab = "https://colab.research.google.com/github/"
        place = f"/blob/main/notebooks/{name}.ipynb"
        wanted = url and url.replace("https://github.com/", colab) + place
        assert found == ([wanted] if wanted else [])
    if url:
        with pytest.raises(
            ValueError, match=r"expected https://github\.com/owner/name"
        ):
            notebooks.badge("1", url + "/more")
