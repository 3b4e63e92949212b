"""The example trainer: `python -m volax.examples.main --config=... --workdir=...`."""
