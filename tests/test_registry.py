"""Names, settings and strangers' files: what fits, and in which words the rest is refused."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import subprocess
import sys
from typing import Literal

import pytest

import clipbench.clips
import clipbench.optimizers  # noqa: F401  (registers them)
from clipbench import (
    Count,
    NonNegative,
    Positive,
    Unit,
    UsageError,
    clip,
    optimizer,
    registry,
    vocabulary,
    workload,
)


@pytest.fixture
def tame():
    @clip("tame")
    class Tame:
        """Shorten the gradient.

        The rest of the docstring.
        """

        limit: Positive
        share: Unit = 0.5
        slack: NonNegative = 0.0
        window: Count = 10
        order: Literal[2, "inf"] = 2
        exact: bool = False
        label: str = "a"
        free: float = 1.0

    return Tame


# -------------------------------------------------------------------------------------- registering


def test_a_component_is_a_frozen_dataclass_that_knows_its_name(tame):
    assert (tame.kind, tame.name) == ("clip", "tame")
    assert registry.find("clip", "tame") is tame
    assert registry.build("clip", "tame", {"limit": 2.0}) == tame(limit=2.0)
    with pytest.raises(AttributeError):
        tame(1.0).limit = 3.0


def test_nothing_is_validated_when_a_component_is_built(tame):
    """Under vmap a float setting is a tensor."""
    assert tame(limit="a lane").limit == "a lane"


def test_the_first_field_is_the_threshold_and_floats_are_lanes(tame):
    assert registry.threshold_field(tame) == "limit"
    assert registry.lane_fields(tame) == ["limit", "share", "slack", "free"]
    assert list(registry.fields(tame)) == [
        "limit",
        "share",
        "slack",
        "window",
        "order",
        "exact",
        "label",
        "free",
    ]
    assert registry.threshold_field(registry.find("clip", "none")) is None


def test_a_component_is_described_in_words(tame):
    assert registry.about(tame) == "Shorten the gradient."
    assert registry.settings_in_words(tame) == (
        "limit (positive number), share (number from 0 to 1; 0.5 if not given), slack (number of "
        "at least 0; 0.0 if not given), window (whole number of at least 1; 10 if not given), "
        "order (2 or 'inf'; 2 if not given), exact (true or false; false if not given), label "
        "(text; 'a' if not given), free (number; 1.0 if not given)"
    )
    assert registry.settings_in_words(registry.find("clip", "none")) == "no settings"


def test_a_component_may_be_registered_again_under_its_own_name_only(tame):
    assert clip("tame")(tame) is tame is registry.find("clip", "tame")
    with pytest.raises(
        UsageError,
        match=r'@optimizer\("tame"\): it is the clip "tame" already; register a subclass of it',
    ):
        optimizer("tame")(tame)
    with pytest.raises(
        UsageError,
        match=r'@clip\("other"\): it is the clip "tame" already; register a subclass of it',
    ):
        clip("other")(tame)
    dataclass = clip("dataclass")(
        dataclasses.dataclass(frozen=True)(
            type("Dataclass", (), {"__annotations__": {"limit": float}})
        )
    )
    assert registry.threshold_field(dataclass) == "limit"
    assert clip("tamer")(type("Tamer", (tame,), {})).name == "tamer"


@pytest.mark.parametrize("name", ["Tame", "my_clip", "a.b", "", "-a", "a--b", "a ", "ä"])
def test_a_name_is_lower_case_words_joined_by_hyphens(name):
    with pytest.raises(UsageError, match="a name is lower-case words and digits joined by hyphens"):

        @clip(name)
        class _Any:
            pass


@pytest.mark.parametrize("field", vocabulary.RESERVED)
def test_a_setting_may_not_take_a_word_of_the_study(field):
    """But the threshold of a clip, its first setting, may be a percentile."""
    for kind in (workload, optimizer, clip):
        with pytest.raises(
            UsageError,
            match=rf'@{kind.__name__}\("mine"\): a setting cannot be called `{field}`, which means',
        ):
            kind("mine")(type("Any", (), {"__annotations__": {"limit": float, field: float}}))
    mine = type("Any", (), {"__annotations__": {"percentile": float}})
    assert registry.threshold_field(clip("mine")(mine)) == "percentile"


def test_every_word_that_stands_in_run_or_beside_settings_is_one_that_no_setting_may_take():
    beside = {
        word.name
        for word in vocabulary.WORDS
        if {*word.homes} & {"run", "workload", "optimizer", "clip"}
    }
    assert (
        {"workloads", "engine", "name", "torch", "relative", "percentile", "on"}
        <= beside
        == set(vocabulary.RESERVED)
    )


def test_a_word_of_a_table_that_holds_no_component_is_free():
    """A clip's setting is naturally called `threshold`: [untuned] is a table of its own."""
    mine = clip("mine")(type("Any", (), {"__annotations__": {"threshold": float, "title": str}}))
    assert list(registry.fields(mine)) == ["threshold", "title"]


def test_one_name_may_stand_in_several_tables_but_in_one_only_once(tmp_path):
    (tmp_path / "first.py").write_text(
        'from clipbench import clip, optimizer\n@clip("twin")\nclass A: '
        '...\n@optimizer("twin")\nclass B: ...\n'
    )
    (tmp_path / "second.py").write_text('from clipbench import clip\n@clip("twin")\nclass A: ...\n')
    registry.load_file(tmp_path / "first.py")
    with pytest.raises(UsageError) as told:
        registry.load_file(tmp_path / "second.py")
    assert str(told.value) == (
        f'{tmp_path / "second.py"}: the clip name "twin" is taken by {tmp_path / "first.py"}; '
        f"choose another."
    )
    assert registry.find("clip", "twin").__module__.endswith("first")


def test_a_packaged_name_is_taken(tmp_path):
    (tmp_path / "mine.py").write_text('from clipbench import clip\n@clip("norm")\nclass A: ...\n')
    with pytest.raises(
        UsageError, match=r'the clip name "norm" is taken by .*clips/fixed\.py; choose another'
    ):
        registry.load_file(tmp_path / "mine.py")


def test_a_metric_is_not_bound_to_its_workload():
    @workload("measured")
    class Measured:
        def metric(output, target):  # noqa: N805
            return output - target

    assert Measured().metric(3, 1) == 2
    assert Measured.metric(3, 1) == 2


def test_packaged_components_count_their_versions_and_strangers_are_known_by_their_file(tmp_path):
    assert isinstance(registry.find("clip", "norm").version, int)
    source = 'from clipbench import clip\n@clip("aged")\nclass A: ...\n'
    (tmp_path / "aged.py").write_text(source)
    first = registry.load_file(tmp_path / "aged.py").A.version
    assert len(first) == 16
    assert registry.load_file(tmp_path / "aged.py").A.version == first
    (tmp_path / "aged.py").write_text(source + "# edited\n")
    assert registry.load_file(tmp_path / "aged.py").A.version != first


# ------------------------------------------------------------------------------------------ finding


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(UsageError) as told:
        registry.find("clip", "nrom", "page.toml, first [[clip]]")
    assert str(told.value).startswith(
        'page.toml, first [[clip]]: there is no clip "nrom". Did you mean norm? There are: '
    )
    assert "layer, " in str(told.value)
    with pytest.raises(UsageError) as told:
        registry.find("optimizer", "zzzzzz")
    assert "Did you mean" not in str(told.value)
    assert str(told.value).startswith('there is no optimizer "zzzzzz". There are: adam, ')


def test_names_are_sorted():
    assert registry.names("optimizer") == sorted(registry.names("optimizer"))
    assert {"sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw"} <= set(
        registry.names("optimizer")
    )
    assert {"none", "value", "norm", "layer"} <= set(registry.names("clip"))


# ----------------------------------------------------------------------------------------- settings

WHERE = "page.toml, second [[clip]]"
REFUSED = {
    "unknown": (
        {"limt": 1.0},
        '"tame" has no setting `limt`. It has: limit (positive number), share',
    ),
    "unknown, its nearest": ({"limt": 1.0}, "Did you mean limit?"),
    "missing": ({}, '"tame" needs `limit` (positive number).'),
    "text for a number": ({"limit": "1"}, "`limit` is '1', and must be a positive number."),
    "a flag for a number": ({"limit": True}, "`limit` is True, and must be a positive number."),
    "NaN": ({"limit": math.nan}, "`limit` is nan, and must be a positive number."),
    "zero": ({"limit": 0.0}, "`limit` is 0.0, and must be a positive number."),
    "negative": ({"limit": -1}, "`limit` is -1, and must be a positive number."),
    "minus infinity": ({"limit": -math.inf}, "`limit` is -inf, and must be a positive number."),
    "a list": ({"limit": [1.0]}, "`limit` is [1.0], and must be a positive number."),
    "nothing": ({"limit": None}, "`limit` is None, and must be a positive number."),
    "above one": (
        {"limit": 1.0, "share": 1.5},
        "`share` is 1.5, and must be a number from 0 to 1.",
    ),
    "NaN share": (
        {"limit": 1.0, "share": math.nan},
        "`share` is nan, and must be a number from 0 to 1.",
    ),
    "below zero": (
        {"limit": 1.0, "slack": -1e-9},
        "`slack` is -1e-09, and must be a number of at least 0.",
    ),
    "half a count": (
        {"limit": 1.0, "window": 1.5},
        "`window` is 1.5, and must be a whole number of at least 1.",
    ),
    "a whole float": (
        {"limit": 1.0, "window": 2.0},
        "`window` is 2.0, and must be a whole number of at least 1.",
    ),
    "no count": (
        {"limit": 1.0, "window": 0},
        "`window` is 0, and must be a whole number of at least 1.",
    ),
    "another choice": ({"limit": 1.0, "order": 3}, "`order` is 3, and must be"),
    "a number for a flag": ({"limit": 1.0, "exact": 1}, "`exact` is 1, and must be"),
    "a number for text": ({"limit": 1.0, "label": 3}, "`label` is 3, and must be"),
    "text for a plain number": (
        {"limit": 1.0, "free": "x"},
        "`free` is 'x', and must be a number.",
    ),
}


@pytest.mark.parametrize(("settings", "sentence"), REFUSED.values(), ids=REFUSED)
def test_an_unfit_setting_is_refused_with_where_what_and_what_was_wanted(tame, settings, sentence):
    with pytest.raises(UsageError) as told:
        registry.validated(tame, settings, WHERE)
    assert str(told.value).startswith(f'{WHERE}: "tame" ')
    assert sentence in str(told.value)
    assert "pydantic" not in str(told.value)


def test_infinity_is_a_threshold(tame):
    assert registry.validated(tame, {"limit": math.inf}, WHERE) == {"limit": math.inf}


def test_a_whole_number_becomes_the_float_that_is_wanted(tame):
    clean = registry.validated(tame, {"limit": 1, "share": 1}, WHERE)
    assert clean == {"limit": 1.0, "share": 1.0}
    assert all(type(value) is float for value in clean.values())


def test_a_setting_at_its_default_is_left_out_so_that_equal_settings_compare_equal(tame):
    given = {"limit": 1, "share": 0.5, "window": 10, "order": 2, "exact": False, "label": "a"}
    assert registry.validated(tame, given, WHERE) == registry.validated(tame, {"limit": 1.0}, WHERE)
    assert registry.validated(tame, {"limit": 1, "order": "inf"}, WHERE) == {
        "limit": 1.0,
        "order": "inf",
    }


# --------------------------------------------------------------------------------- strangers' files


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"page.toml, use: there is no file .*absent\.py\."):
        registry.load_file(tmp_path / "absent.py", "page.toml, use")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("clips")
    with pytest.raises(
        UsageError, match=r"use: notes\.txt is not a Python file \(its name must end in \.py\)\."
    ):
        registry.load_file(tmp_path / "notes.txt")


BROKEN = {
    "an exception": (
        "import math\n\nx = 1 / 0\n",
        "at line 3: ZeroDivisionError: division by zero.",
    ),
    "one in a function": (
        "def f():\n    raise KeyError('a')\n\nf()\n",
        "at line 2: KeyError: 'a'.",
    ),
    "one in a library": ("import json\njson.loads('x')\n", "at line 2: JSONDecodeError: "),
    "a syntax error": ("x = 1\ny = = 2\n", "at line 2: SyntaxError: "),
    "an exit": ("import sys\nsys.exit(3)\n", "at line 2: SystemExit: 3."),
    "a missing library": (
        "import no_such_library\n",
        "at line 1: ModuleNotFoundError: No module named 'no_such_library'.",
    ),
}


@pytest.mark.parametrize(("source", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_says_at_which_line(tmp_path, source, sentence):
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(UsageError) as told:
        registry.load_file(tmp_path / "broken.py")
    assert f"use: broken.py failed to import {sentence}" in str(told.value)
    assert not [
        name
        for name in sys.modules
        if name.startswith("clipbench_use_") and name.endswith("_broken")
    ]


def test_a_sentence_of_ours_is_passed_on_as_it_is(tmp_path):
    (tmp_path / "mine.py").write_text(
        'from clipbench import clip\n@clip("My Clip")\nclass A: ...\n'
    )
    with pytest.raises(UsageError, match=r'^@clip\("My Clip"\): a name is'):
        registry.load_file(tmp_path / "mine.py")


def test_a_file_is_imported_once(tmp_path):
    (tmp_path / "once.py").write_text('from clipbench import clip\n@clip("once")\nclass A: ...\n')
    assert registry.load_file(tmp_path / "once.py") is registry.load_file(tmp_path / "once.py")


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            f'from clipbench import clip\n@clip("mine-{name}")\nclass A: ...\n'
        )
        registry.load_file(tmp_path / name / "mine.py")
    assert {"mine-a", "mine-b"} <= set(registry.names("clip"))


def test_a_broken_entry_point_is_a_warning_and_the_rest_goes_on(monkeypatch):
    entries = [
        importlib.metadata.EntryPoint("b-good", "clipbench.clips", registry.ENTRY_POINTS),
        importlib.metadata.EntryPoint("a-broken", "no_such_package.clips", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(registry, "PACKAGED", ("clipbench.clips",))
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: entries if group == registry.ENTRY_POINTS else [],
    )
    with pytest.warns(
        UserWarning,
        match=(
            r'the entry point "a-broken" \(no_such_package.clips\) failed to load and was '
            r"left out"
        ),
    ):
        registry.load_packaged()


def test_a_name_is_checked_without_waiting_for_torch():
    code = (
        "import sys; from clipbench import registry, Positive, clip; sys.exit('torch' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
