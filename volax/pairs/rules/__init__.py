"""One small rule for each primitive."""

from volax.pairs.rules import contracting, elementwise, reducing, shaping
from volax.pairs.rules.registry import RULES as RULES
from volax.pairs.rules.registry import rule as rule

__all__ = ["RULES", "contracting", "elementwise", "reducing", "rule", "shaping"]
