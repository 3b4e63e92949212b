"""What the regularizers cost: ``python -m benchmarks`` from the repository's root.

``pip install -e '.[benchmarks]'`` installs what it needs. ``--compare`` also needs
PyTorch, which is left to the reader: its CPU and GPU builds come from different places.
"""
