"""Records written by hand have open sizes; groups have none."""

import jax.numpy as jnp
import pytest

import volax
from volax.pairs import Axis, Group, Groups, Member, Written

SHAPES = {"w1": (3, 8), "b1": (8,), "w2": (8, 2)}
LEAVES = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
PAIR = volax.pair("w1", "w2", bias="b1")


def test_a_pair_becomes_a_group_where_it_is_fitted():
    assert type(PAIR) is Written
    assert not hasattr(PAIR, "size")
    group = PAIR.fit(LEAVES)
    assert type(group) is Group
    assert (group.sizes, group.size) == ((8,), 8)
    assert group.members[-1].axes == (Axis(0, 0, (8,), (1,), (0,)),)
    assert group.fit(LEAVES) == group
    assert group != PAIR


def test_a_group_has_no_open_sizes():
    made = Member("w1", "producer", 1, (Axis(1),))
    used = Member("w2", "consumer", -1, (Axis(0),))
    with pytest.raises(ValueError, match=r"w1 -> w2.*number of units.*\(-1,\)"):
        Group((-1,), (made,), (used,))
    assert Written((-1,), (made,), (used,)).fit(LEAVES).sizes == (8,)


def test_json_keeps_which_of_the_two_a_record_is():
    found = Groups((PAIR, PAIR.fit(LEAVES)))
    again = Groups.from_json(found.to_json())
    assert again == found
    assert [type(record) for record in again] == [Written, Group]
    assert str(again).count("?") == 1
