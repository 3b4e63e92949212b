"""Proximal maps and shrinkage rules: pure functions of arrays, without state."""

from volax.prox.lp import lp_shrink as lp_shrink
from volax.prox.threshold import group_shrinkage as group_shrinkage
from volax.prox.threshold import hard_threshold as hard_threshold
from volax.prox.wall import wall as wall
