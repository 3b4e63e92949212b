"""One small rule for each primitive."""

from volax.pairs._trace.rules import contracting, elementwise, reducing, shaping
from volax.pairs._trace.rules.registry import RULES as RULES
from volax.pairs._trace.rules.registry import rule as rule

__all__ = ["RULES", "contracting", "elementwise", "reducing", "rule", "shaping"]
