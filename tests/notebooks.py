"""The notebooks: how their files are written, and how they are run without a kernel."""

import ast
import json
import pathlib
import re
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
_BADGE = re.compile(r"^\[!\[Open In Colab\].*\n\n?", re.MULTILINE)


def repository() -> str | None:
    """The address in ``[project.urls]``, from which every other one is made."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project.get("urls", {}).get("Repository")


def badge(name: str, url: str) -> str:
    """A notebook's badge; Colab opens what lies on GitHub by its path there."""
    place = url.rstrip("/").removeprefix("https://github.com/")
    if place == url.rstrip("/") or place.count("/") != 1:
        raise ValueError(f"expected https://github.com/owner/name, got {url}")
    colab = "https://colab.research.google.com"
    image = f"[![Open In Colab]({colab}/assets/colab-badge.svg)]"
    return f"{image}({colab}/github/{place}/blob/main/notebooks/{name}.ipynb)"


def read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())


def text(notebook: dict[str, Any]) -> str:
    """A notebook as nbformat writes it, with sorted keys."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def sources(notebook: dict[str, Any], kind: str = "code") -> list[str]:
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def stripped(name: str, notebook: dict[str, Any], url: str | None) -> dict[str, Any]:
    """A notebook without outputs, numbers and editors' notes, and with its badge."""
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if number == 0:
            source = _BADGE.sub("", source)
            source = source if url is None else f"{badge(name, url)}\n\n{source}"
        bare = {"id": f"{name[0]}-{number:02d}", "metadata": {}}
        bare |= {"cell_type": cell["cell_type"], "source": source.splitlines(True)}
        if cell["cell_type"] == "code":
            bare |= {"execution_count": None, "outputs": []}
        cells.append(bare)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def run(name: str) -> dict[str, Any]:
    """Runs the cells one after another; what the last line of one is, is printed."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(sources(read(name))):
        where = f"{name}[{number}]"
        body = ast.parse(source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), where, "exec"), space)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), space)
            print("" if value is None else value)
    return space


if __name__ == "__main__":
    for name in NAMES:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        path.write_text(text(stripped(name, read(name), repository())))
