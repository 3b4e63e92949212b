"""The tables of several studies in one file."""

import os
from collections.abc import Sequence
from pathlib import Path

from volax.examples._errors import UserError
from volax.examples._files import replace_file

_HEAD = """\
# Results

The claims of the papers behind the regularizers, measured on real data. Each section is
what its command wrote.
"""


def collect(folder: Path, names: Sequence[str], output: Path) -> str:
    """Put the Markdown of the studies in a folder together.

    Args:
      folder: that of the results.
      names: of the studies, in this order.
      output: the file; pictures are linked from where it lies.

    Returns:
      A sentence that says what was done.

    Raises:
      UserError: the folder holds the Markdown of none.
    """
    known = {name: folder / f"{name}.md" for name in names}
    found = {name: path for name, path in known.items() if path.exists()}
    if not found:
        raise UserError(f"{folder} holds the results of no study; run one first")
    there = Path(os.path.relpath(folder, output.parent)).as_posix()
    sections = [
        path.read_text().replace(f"]({name}.png)", f"]({there}/{name}.png)")
        for name, path in found.items()
    ]
    text = "\n".join([_HEAD, *sections])
    replace_file(output, lambda path: path.write_text(text))
    missing = [name for name in names if name not in found]
    note = f"; not run yet: {', '.join(missing)}" if missing else ""
    return f"{output}: {', '.join(found)}{note}"
