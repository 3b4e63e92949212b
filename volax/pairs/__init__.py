"""Which weights belong to one neuron: records, written by hand or traced."""

from volax.pairs._path_norm import path_norm as path_norm
from volax.pairs.extend import elementwise as elementwise
from volax.pairs.extend import register_rule as register_rule
from volax.pairs.pair import member as member
from volax.pairs.pair import pair as pair
from volax.pairs.records import Axis as Axis
from volax.pairs.records import Group as Group
from volax.pairs.records import Member as Member
from volax.pairs.records import Written as Written
from volax.pairs.result import Groups as Groups
from volax.pairs.result import Refusal as Refusal
