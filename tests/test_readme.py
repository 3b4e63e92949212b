"""The README's examples run as they stand, and CI runs its test command."""

import pathlib
import re
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parents[1]


def test_the_examples_run(capsys):
    readme = ROOT / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "README.md", "exec"), {})
    assert "layers/0/kernel  layers/2/kernel" in capsys.readouterr().out


def test_every_version_that_is_promised_is_in_the_matrix():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["test"]
    runs = job["strategy"]["matrix"]["include"]
    assert [run["python"] for run in runs] == promised
    (oldest,) = (
        x.removeprefix("jax>=") for x in project["dependencies"] if "jax>" in x
    )
    assert runs[0]["jax"] == f"{oldest}.*"
    assert job["steps"][-1]["run"] == ".ci/run"
