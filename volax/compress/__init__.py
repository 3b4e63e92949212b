"""What training left becomes a smaller model."""

from volax.compress.compact import Compacted as Compacted
from volax.compress.compact import compact as compact
