"""The README's example runs as it stands."""

import pathlib
import re


def test_the_first_example_runs(capsys):
    readme = pathlib.Path(__file__).parents[1] / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "layers/0/kernel  layers/2/kernel" in capsys.readouterr().out
