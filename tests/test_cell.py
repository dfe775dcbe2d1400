"""A cell's identity: the same settings the same id, for ever; other settings another id."""

import hashlib
import json
import math
import re
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbench import registry
from clipbench.cell import Cell, Part, from_json, identity, plain

NORM = Part("norm", 1, {"max_norm": 0.1}, "max_norm")
CELL = Cell(
    Part("temporal-order", 1, {"length": 10}),
    Part("momentum", 1, {"momentum": 0.99, "weight_decay": 1e-05}),
    NORM,
    0.03,
    7,
    300,
    20,
)
CANONICAL = (
    '{"batch":20,"clip":{"name":"norm","settings":{"max_norm":0.1},"version":1},"device":"cpu","dtype":"float32","evaluations":20,'
    '"events":{},"lr":0.03,"optimizer":{"name":"momentum","settings":{"momentum":0.99,"weight_decay":1e-05},"version":1},'
    '"seed":7,"steps":300,"workload":{"name":"temporal-order","settings":{"length":10},"version":1}}'
)
ID = "477d314a55ff4d74"

# One other value for every field that belongs to the identity.
OTHERS = {
    "workload": Part("temporal-order", 1, {"length": 20}),
    "optimizer": Part("momentum", 2, CELL.optimizer.settings),
    "clip": Part("layer", 1, {"max_norm": 0.1}, "max_norm"),
    "lr": math.nextafter(0.03, 1),
    "seed": 8,
    "steps": 301,
    "batch": 21,
    "device": "cuda",
    "dtype": "float64",
    "evaluations": 19,
    "events": {"spike": 4.0},
    "replica": 1,
}


@pytest.fixture(autouse=True)
def _packaged():
    registry.load_packaged()


def test_the_identity_of_one_cell_is_this_for_ever():
    """The format never moves: a store written today is recognised by every later version. If
    this fails, undo the change.
    """
    assert CELL.canonical == CANONICAL
    assert CELL.id == ID == hashlib.sha256(CANONICAL.encode()).hexdigest()[:16]


def test_an_id_is_sixteen_hex_digits():
    assert re.fullmatch("[0-9a-f]{16}", CELL.id)


def test_every_field_but_role_and_extended_is_identity():
    assert {field.name for field in fields(Cell)} == OTHERS.keys() | {"role", "extended"}


@pytest.mark.parametrize("name", OTHERS)
def test_the_identity_changes_with(name):
    other = replace(CELL, **{name: OTHERS[name]})
    assert other.id != CELL.id
    assert other != CELL


@pytest.mark.parametrize("part", ["workload", "optimizer", "clip"])
@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"version": "0123456789abcdef"},
        {"settings": {"other": 1.0}},
        {"settings": {}},
    ],
)
def test_the_identity_changes_with_everything_in_a_component(part, change):
    assert replace(CELL, **{part: replace(getattr(CELL, part), **change)}).id != CELL.id


def test_the_identity_does_not_change_with_who_asked():
    asked = replace(CELL, role="report", extended=True)
    assert asked.id == CELL.id
    assert asked == CELL


def test_the_identity_does_not_change_with_the_order_of_settings():
    turned = Part("momentum", 1, dict(reversed(CELL.optimizer.settings.items())))
    assert [*turned.settings] != [*CELL.optimizer.settings]
    assert replace(CELL, optimizer=turned).id == CELL.id
    events = {"spike": 4.0, "tail": 0.1}
    assert (
        replace(CELL, events=events).id == replace(CELL, events=dict(reversed(events.items()))).id
    )


def test_a_whole_number_and_its_float_are_different_settings_only_where_written_so():
    """Studies turn them into the declared type first: `validated` gives 1.0 for 1 where a float
    is wanted.
    """
    settings = [
        registry.validated(registry.find("clip", "norm"), {"max_norm": one}, "here")
        for one in (1, 1.0)
    ]
    assert len({replace(CELL, clip=Part("norm", 1, some, "max_norm")).id for some in settings}) == 1


CLIPS = [
    Part("none", 1),
    NORM,
    Part("norm", 1, {"max_norm": math.inf, "norm_type": "inf"}, "max_norm"),
    Part("value", 1, {"max_value": 1e-300}, "max_value"),
    Part("norm", 1, {"relative": 0.3}, "max_norm"),
    Part("layer", 1, {"relative": 3.0, "norm_type": "inf"}, "max_norm"),
]


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: json.dumps(clip.settings))
def test_a_stored_row_gives_its_cell_back(clip):
    """Infinite and relative thresholds too, and the name of the threshold, which is not stored."""
    cell = replace(CELL, clip=clip, events={"spike": 4.0})
    back = from_json(cell.canonical, role="report")
    assert back == cell
    assert (back.id, back.canonical, back.role) == (cell.id, cell.canonical, "report")
    assert (back.relative, back.arm, back.problem) == (cell.relative, cell.arm, cell.problem)


@given(
    st.floats(min_value=0, exclude_min=True, allow_nan=False),
    st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    st.integers(0, 2**40),
)
def test_no_digit_of_a_number_is_lost_on_the_way(threshold, lr, seed):
    cell = replace(
        CELL, clip=Part("norm", 1, {"max_norm": threshold}, "max_norm"), lr=lr, seed=seed
    )
    back = from_json(cell.canonical)
    assert (back.clip.settings["max_norm"], back.lr, back.seed) == (threshold, lr, seed)
    assert identity(back.canonical) == cell.id


# --------------------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize(
    ("relative", "size", "threshold"),
    [
        (0.3, 0.324, 0.0972),
        (1.0, 0.123456, 0.123),
        (0.1, 926.0, 92.6),
        (3.0, 926.0, 2780.0),
        (0.01, 1e-7, 1e-9),
        (0.3, 0.1, 0.03),
    ],
)
def test_a_relative_threshold_resolves_to_three_digits_of_its_multiple(relative, size, threshold):
    """To the float that the decimal digits name: .3 × .1 is .03, not .03 and a rounding error."""
    clip = Part("norm", 1, {"relative": relative, "norm_type": "inf"}, "max_norm")
    assert replace(CELL, clip=clip).clip_settings(size) == {
        "max_norm": threshold,
        "norm_type": "inf",
    }


def test_a_plain_threshold_is_taken_as_it_is():
    precise = Part("norm", 1, {"max_norm": 0.123456789}, "max_norm")
    assert (
        replace(CELL, clip=precise).clip_settings(5.0)
        == replace(CELL, clip=precise).clip_settings()
        == {"max_norm": 0.123456789}
    )


def test_resolving_a_threshold_leaves_the_identity_alone():
    """The cell says what the study said; the number that the pilot made of it is stored beside
    it.
    """
    cell = replace(CELL, clip=Part("norm", 1, {"relative": 0.3}, "max_norm"))
    before = cell.id
    cell.clip_settings(0.5)
    assert cell.id == before
    assert '"relative":0.3' in cell.canonical


def test_a_relative_threshold_without_a_size_is_an_error():
    with pytest.raises(ValueError, match="needs the pilot's sizes"):
        replace(CELL, clip=Part("norm", 1, {"relative": 0.3}, "max_norm")).clip_settings()


# -------------------------------------------------------------------------------------------- names


def test_an_arm_is_named_without_its_threshold():
    """So that all thresholds of a clip are one arm, however they were given, and another norm is
    another arm.
    """
    arms = [replace(CELL, clip=clip).arm for clip in CLIPS]
    momentum = "momentum(momentum=0.99, weight_decay=1e-05)"
    assert arms == [
        momentum,
        f"{momentum} + norm",
        f"{momentum} + norm(norm_type=inf)",
        f"{momentum} + value",
        f"{momentum} + norm",
        f"{momentum} + layer(norm_type=inf)",
    ]


def test_a_problem_is_the_workload_with_its_settings():
    assert CELL.problem == "temporal-order(length=10)"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01, "0.01"), (math.inf, "inf"), (2, "2"), ("sum", "sum"), (1e-05, "1e-05")],
)
def test_a_label_shows_numbers_plainly(value, text):
    assert plain(value) == text
