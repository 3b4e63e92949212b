"""Records written by hand have open sizes; groups have none."""

import dataclasses

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


NORMED = Written(
    (-1,),
    (Member("w1", "producer", 1, (Axis(-1, -1),)),),
    (Member("w2", "consumer", -1, (Axis(-2, -1),)),),
    fixed=(Member("gate", "producer", 0, (Axis(-1, -1),)),),
    states=(Member("mean", "state", 0, (Axis(-1, -1),)),),
)
MEAN = {"mean": jnp.ones(8)}
WITH_GATE = LEAVES | {"gate": jnp.ones((3, 8))}


def test_fit_completes_all_that_carries_the_units():
    fitted = Axis(0, 0, (8,), (1,), (0,))
    for group in (NORMED.fit(WITH_GATE, states=MEAN), NORMED.fit(WITH_GATE | MEAN)):
        assert group.fixed[0].axes == (dataclasses.replace(fitted, axis=1),)
        assert group.states[0].axes == (fitted,)
        assert not group.is_open
    # The tree of an optimizer holds no statistics, and a complete record needs none.
    again = NORMED.fit(WITH_GATE, states=MEAN).fit(WITH_GATE)
    assert again.states == NORMED.fit(WITH_GATE | MEAN).states


@pytest.mark.parametrize(
    ("leaves", "states", "message"),
    [
        (LEAVES, MEAN, r"pair w1 -> w2: producer 'gate' is not in the tree"),
        (WITH_GATE, {}, r"pair w1 -> w2: state 'mean' is not .* running statistics"),
        (WITH_GATE, None, r"pair w1 -> w2: state 'mean' is not .* running statistics"),
        (
            WITH_GATE | {"gate": jnp.ones((3, 7))}, MEAN,
            r"pair w1 -> w2: producer 'gate' has 7 entries along axis 1, expected 8",
        ),
        (
            WITH_GATE, {"mean": jnp.ones(7)},
            r"pair w1 -> w2: state 'mean' has 7 entries along axis 0, expected 8",
        ),
    ],
    ids=["no fixed", "no state", "state left open", "fixed", "state"],
)  # fmt: skip
def test_fit_names_what_is_missing_or_does_not_fit(leaves, states, message):
    with pytest.raises(ValueError, match=message):
        NORMED.fit(leaves, states=states)


@pytest.mark.parametrize("side", ["producers", "fixed", "states", "output_biases"])
def test_a_group_has_no_open_layout(side):
    group = PAIR.fit(LEAVES)
    added = Member("more", "state", 0, (Axis(0),))
    with pytest.raises(ValueError, match=r"-> w2: the layout of state 'more'"):
        dataclasses.replace(group, **{side: (*group.producers, added)})


def test_json_keeps_what_is_open_beside_known_sizes():
    record = dataclasses.replace(NORMED, sizes=(8,))
    (again,) = Groups.from_json(Groups((record,)).to_json())
    assert again == record
    assert type(again) is Written


@pytest.mark.parametrize(
    ("make", "leaves"),
    [
        (lambda record: volax.path_prox(0.1, 0.1, record), LEAVES),
        (lambda record: volax.group_prox(0.1, 0.1, record), WITH_GATE),
        (lambda record: volax.keep_units(0.5, record), WITH_GATE),
    ],
    ids=["path_prox", "group_prox", "keep_units"],
)
def test_a_transformation_asks_only_for_what_it_touches(make, leaves):
    """The tree of an optimizer holds no statistics, so a record may leave them open."""
    tx = make(NORMED)
    updates, _ = tx.update(leaves, tx.init(leaves), leaves)
    assert updates.keys() == leaves.keys()
