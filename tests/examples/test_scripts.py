"""The scripts for other libraries: they learn, remove neurons, and train on."""

import pathlib

from volax.examples import equinox_digits, linen_digits


def test_linen(capsys):
    variables, right = linen_digits.main(steps=200)
    assert variables["params"]["Dense_1"]["kernel"].shape == (32, 16)
    assert variables["batch_stats"]["BatchNorm_0"]["mean"].shape == (32,)
    assert right > 0.85
    assert "widths (128, 64) -> (32, 16)" in capsys.readouterr().out


def test_equinox(capsys):
    model, right = equinox_digits.main(steps=200)
    assert [layer.weight.shape for layer in model.layers] == [
        (32, 64), (32, 32), (10, 32)
    ]  # fmt: skip
    assert right > 0.85
    assert "-> [32, 32]" in capsys.readouterr().out


def test_they_are_short():
    for script in (linen_digits, equinox_digits):
        assert pathlib.Path(str(script.__file__)).read_text().count("\n") < 80
