"""Proximal maps and shrinkage rules: pure functions of arrays, without state.

A map ``name(x, strength, ...)`` is the minimiser over z of

    strength * penalty(z) + |z - x|^2 / 2

and its penalty stands beside it. :func:`volax.proximal` puts any of them behind an
optimizer.
"""

from volax.prox._concave import mcp as mcp
from volax.prox._concave import mcp_penalty as mcp_penalty
from volax.prox._concave import scad as scad
from volax.prox._concave import scad_penalty as scad_penalty
from volax.prox._constraints import box as box
from volax.prox._constraints import box_indicator as box_indicator
from volax.prox._constraints import nonnegative as nonnegative
from volax.prox._constraints import nonnegative_indicator as nonnegative_indicator
from volax.prox._groups import group_norm as group_norm
from volax.prox._groups import group_soft_threshold as group_soft_threshold
from volax.prox._groups import max_norm as max_norm
from volax.prox._groups import max_norm_indicator as max_norm_indicator
from volax.prox._groups import sparse_group as sparse_group
from volax.prox._groups import sparse_group_norm as sparse_group_norm
from volax.prox._lp_norms import elastic_net as elastic_net
from volax.prox._lp_norms import elastic_net_penalty as elastic_net_penalty
from volax.prox._lp_norms import half_threshold as half_threshold
from volax.prox._lp_norms import hard_threshold as hard_threshold
from volax.prox._lp_norms import l0_norm as l0_norm
from volax.prox._lp_norms import l1_norm as l1_norm
from volax.prox._lp_norms import lp as lp
from volax.prox._lp_norms import lp_norm as lp_norm
from volax.prox._lp_norms import soft_threshold as soft_threshold
from volax.prox._lp_norms import two_thirds_threshold as two_thirds_threshold
from volax.prox._lp_shrink import lp_shrink as lp_shrink
from volax.prox._spectral import nuclear as nuclear
from volax.prox._spectral import nuclear_norm as nuclear_norm
from volax.prox._threshold import group_shrinkage as group_shrinkage
from volax.prox._threshold import snap as snap
from volax.prox._wall import wall as wall
