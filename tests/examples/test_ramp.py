"""A network that becomes smaller while it trains, on the digits."""

from volax.examples import ramp


def test_the_units_that_are_asked_for_are_left(capsys):
    argv = ["--hidden=128", "--units=24", "--epochs=24", "--every=8"]
    rows = ramp.run(argv)
    assert rows["units"] == [128, 24]
    assert min(rows["right"]) > 300  # of 359
    assert "on the ramp" in capsys.readouterr().out
