"""The README's examples run as they stand, and CI runs its test command."""

import pathlib
import re
import sys
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parents[1]


def test_the_examples_run(capsys):
    readme = ROOT / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert len(blocks) == 10
    exec(compile("\n".join(blocks), "README.md", "exec"), {})
    assert "layers/0/kernel  layers/2/kernel" in capsys.readouterr().out


def links(text):
    return re.findall(r"\]\(((?!https?://|#)[^)]*)\)", text)


def test_every_relative_link_leads_to_a_file():
    for path in links((ROOT / "README.md").read_text()):
        assert (ROOT / path).exists(), path


def test_links_survive_without_the_checkout():
    """Of a project without an address what they say stays, and they go."""
    from hatchling.builders.wheel import WheelBuilder

    given = (ROOT / "README.md").read_text()
    builder = WheelBuilder(str(ROOT))
    url = builder.metadata.core.urls.get("Repository")
    readme = builder.metadata.core.readme
    assert links(readme) == []
    assert ("blob/main/benchmarks/RESULTS.md" in readme) == (url is not None)
    assert re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", given) == re.sub(
        r"\[([^]]*)\]\([^)]*\)", r"\1", readme
    )
    sys.path.insert(0, str(ROOT))
    try:
        from hatch_build import with_links
    finally:
        sys.path.remove(str(ROOT))
    changed = with_links(given, "https://github.com/o/n/")
    assert "(https://github.com/o/n/blob/main/CHANGELOG.md)" in changed
    assert links(changed) == []


def test_ci_runs_the_slow_tests_by_their_command():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    command = workflow["jobs"]["slow"]["steps"][-1]["run"]
    assert command.endswith("pytest -n 2 -m slow")
    assert f"\n    {command}\n" in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_version_that_is_promised_is_in_the_matrix():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["test"]
    every = job["strategy"]["matrix"]["include"]
    runs = [run for run in every if not run.keys() & {"x64", "xla"}]
    assert [run["python"] for run in runs] == promised
    (oldest,) = (
        x.removeprefix("jax>=") for x in project["dependencies"] if "jax>" in x
    )
    assert runs[0]["jax"] == f"{oldest}.*"
    last = job["steps"][-1]
    assert last["run"] == ".ci/run"
    assert [run["x64"] for run in every if "x64" in run] == ["1"]
    assert [run["jax"] for run in every if "xla" in run] == [runs[0]["jax"]]
    assert "XLA_FLAGS=" in job["steps"][-2]["run"]
    assert last["env"] == {"JAX_ENABLE_X64": "${{ matrix.x64 || '0' }}"}
