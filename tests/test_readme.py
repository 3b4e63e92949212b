"""The README's examples run as they stand, one after another."""

import pathlib
import re


def test_the_examples_run(capsys):
    readme = pathlib.Path(__file__).parents[1] / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "README.md", "exec"), {})
    assert "layers/0/kernel  layers/2/kernel" in capsys.readouterr().out
