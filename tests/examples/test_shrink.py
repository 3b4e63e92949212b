"""The whole path on the digits: the same images right before and after."""

import json

import jax
import pytest

from volax.compress import load
from volax.examples import shrink


@pytest.fixture
def full_compilation(quick_compilation):
    """Compiles with all optimizations."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize(("kind", "epochs"), [("mlp", "4"), ("cnn", "3")])
def test_the_whole_path(kind, epochs, tmp_path, capsys, request):
    if kind == "cnn":  # convolutions that are not optimized run longer than they save
        request.getfixturevalue("full_compilation")
    argv = [
        "--model",
        kind,
        "--workdir",
        str(tmp_path),
        "--epochs",
        epochs,
        "--every",
        "1",
        "--keep",
        "0.3",
    ]
    found = shrink.run(argv)
    rows, bits = found["compact"], found["ternary"]
    before, after = rows["right of the test images"]
    assert before == after
    assert before > 250
    assert rows["parameters"][1] < rows["parameters"][0]
    whole, left = rows["multiply-adds an image"]
    assert 0.25 * whole < left <= 0.3 * whole
    assert bits["right of the test images"][0] == bits["right of the test images"][1]
    assert bits["bytes on disk"][1] < bits["bytes on disk"][0] / 5
    assert json.loads((tmp_path / "shrink.json").read_text()) == found
    assert load(tmp_path / "small.safetensors").manifest["compact"]["groups"]
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert "units alive" in capsys.readouterr().out


@pytest.mark.parametrize("share", ["0", "1.5", "half"])
def test_what_is_no_share_is_refused(share, capsys):
    with pytest.raises(SystemExit):
        shrink.run(["--workdir", "x", "--keep", share])
    assert f"expected a share in (0, 1], got {share!r}" in capsys.readouterr().err
