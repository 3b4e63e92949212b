"""Which weights belong to one neuron: the records, and how to write them by hand."""

from volax.pairs.check import check_groups as check_groups
from volax.pairs.find import find_groups as find_groups
from volax.pairs.find import find_pairs as find_pairs
from volax.pairs.path_norm import path_norm as path_norm
from volax.pairs.records import Axis as Axis
from volax.pairs.records import Group as Group
from volax.pairs.records import Member as Member
from volax.pairs.records import member as member
from volax.pairs.records import pair as pair
from volax.pairs.result import Groups as Groups
from volax.pairs.result import Refusal as Refusal
