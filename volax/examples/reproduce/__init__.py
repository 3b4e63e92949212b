"""The papers' claims on real data: `python -m volax.examples.reproduce NAME`.

One study a file, by the name of its command: `label-noise` is in `label_noise.py`. A
study's file holds `VERSION`, which is raised where its code comes to mean something
else, the sizes `FULL` and `QUICK`, and `run(trials, size)`, which returns a `Result`.
"""
