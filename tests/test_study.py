"""A study's page: what it stands for, which word wins over which, and one clear sentence for
everything that is wrong.
"""

import math
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strangers import EMA

from clipbench import lr_schedules, registry, study, vocabulary
from clipbench.cell import Part, from_json
from clipbench.errors import UsageError

PAGE = """
[run]
steps = 10
lr = 0.1
seeds = { select = 1, report = 2 }

[[workload]]
name = "wdbc"

[[optimizer]]
name = "sgd"

[[clip]]
name = "none"

[[clip]]
name = "norm"
max_norm = 1.0
"""

# The page that everybody is shown first.
EXAMPLE = """
title = "Does clipping widen the range of learning rates that work?"

[run]
steps  = 2000
batch  = 32
device = ["cpu", "cuda"]           # cells for an absent device are listed as not run
dtype  = "float32"
lr    = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
seeds = { select = 3, report = 10 }  # the grid on the first, the chosen settings on the second

[[workload]]
name = "wdbc"                      # may override steps, batch, lr: reserved names in every table

[[optimizer]]
name = "sgd"

[[optimizer]]
name = "rmsprop"
lr = [1e-4, 1e-3, 1e-2]            # its own axis, where the common one is wrong

[[clip]]
name = "none"

[[clip]]
name = "norm"
relative = [0.1, 1, 3]             # of the median raw norm in the pilot; or max_norm = [0.1, 1.0]
"""


def parsed(text, folder=Path()):
    return study.parse("page", text, folder)


def cells(text, **where):
    """The cells of a page, those whose parts have the given names."""
    return [
        cell
        for cell in parsed(text).cells()
        if all(getattr(cell, kind).name == name for kind, name in where.items())
    ]


def with_line(section, line, text=PAGE):
    """The page with a line more in the table whose name is given: ``[run]``, ``"wdbc"`` …"""
    lines = text.splitlines()
    place = next(number for number, one in enumerate(lines) if section in one)
    return "\n".join([*lines[: place + 1], line, *lines[place + 1 :], ""])


# --------------------------------------------------------------------------------------- the matrix


def test_the_page_that_everybody_is_shown_parses():
    """Six learning rates for SGD and three for RMSprop, with no clip and three thresholds, on
    two devices and three seeds.
    """
    found = cells(EXAMPLE)
    assert len(found) == (6 + 3) * (1 + 3) * 2 * 3
    assert (
        parsed(EXAMPLE).document.title
        == "Does clipping widen the range of learning rates that work?"
    )
    assert {cell.lr for cell in found if cell.optimizer.name == "sgd"} == {
        1e-3,
        3e-3,
        1e-2,
        3e-2,
        1e-1,
        3e-1,
    }
    assert {cell.lr for cell in found if cell.optimizer.name == "rmsprop"} == {1e-4, 1e-3, 1e-2}
    assert {cell.relative for cell in found if cell.clip.name == "norm"} == {0.1, 1.0, 3.0}
    assert {cell.device for cell in found} == {"cpu", "cuda"}
    assert {cell.seed for cell in found} == {0, 1, 2}
    assert {(cell.steps, cell.batch, cell.dtype, cell.role) for cell in found} == {
        (2000, 32, "float32", "select")
    }


counts = st.integers(1, 3)


@given(counts, counts, counts, counts, counts, st.permutations(["sgd", "momentum", "adam"]), counts)
def test_there_are_as_many_cells_as_the_product_of_the_axes(
    lrs, thresholds, seeds, widths, batches, optimizers, chosen
):
    """And all of them are different."""
    wide, large = [8 + n for n in range(widths)], [16 + n for n in range(batches)]
    text = f"""
run = {{ steps = 5, lr = {[0.1 * (n + 1) for n in range(lrs)]}, seeds = {{ select = {seeds} }} }}
workload = [{{ name = "wdbc", width = {wide}, batch = {large} }}]
optimizer = [{", ".join(f'{{ name = "{name}" }}' for name in optimizers[:chosen])}]
clip = [{{ name = "none" }}, {{ name = "value", max_value = {[n + 1 for n in range(thresholds)]} }}]
"""
    found = cells(text)
    assert len(found) == lrs * (1 + thresholds) * seeds * widths * batches * chosen
    assert len({cell.id for cell in found}) == len(found)


def test_a_list_is_an_axis_whatever_the_setting():
    text = (
        with_line(
            '"sgd"', "weight_decay = [0.0, 0.01]", with_line('"wdbc"', "width = [8, 16]", PAGE)
        )
        + '\nnorm_type = [2, "inf"]'
    )
    found = cells(text, clip="norm")
    points = [
        (cell.workload.settings, cell.optimizer.settings, cell.clip.settings) for cell in found
    ]
    assert points == list(
        product(
            [{"width": 8}, {"width": 16}],
            [{}, {"weight_decay": 0.01}],
            [{"max_norm": 1.0}, {"max_norm": 1.0, "norm_type": "inf"}],
        )
    )


def test_a_setting_at_its_default_is_the_same_cell_as_none():
    """Else a page that says what would have been so anyway would run everything anew."""
    explicit = with_line('"sgd"', "weight_decay = 0", with_line('"wdbc"', "width = 64", PAGE))
    assert [cell.id for cell in cells(explicit)] == [cell.id for cell in cells(PAGE)]


def test_the_cells_do_not_depend_on_title_file_name_or_order():
    turned = 'title = "Another"\n' + PAGE.replace('"none"', '"@"').replace(
        '"norm"\nmax_norm = 1.0', '"none"'
    )
    turned = turned.replace('"@"', '"norm"\nmax_norm = 1.0')
    assert {cell.id for cell in cells(turned)} == {cell.id for cell in cells(PAGE)}
    assert [cell.id for cell in study.parse("other", PAGE, Path()).cells()] == [
        cell.id for cell in cells(PAGE)
    ]


@pytest.mark.parametrize(
    ("lines", "lr"),
    [
        ({}, 0.1),
        ({'"wdbc"': "lr = 0.2"}, 0.2),
        ({'"wdbc"': "lr = 0.2", '"sgd"': "lr = 0.3"}, 0.3),
        ({'"wdbc"': "lr = { sgd = 0.4 }", '"sgd"': "lr = 0.3"}, 0.4),
        ({'"wdbc"': "lr = 0.2", '"sgd"': "lr = { wdbc = 0.5 }"}, 0.5),
        ({'"wdbc"': "lr = { sgd = 0.4 }", '"sgd"': "lr = 0.3", '"norm"': "lr = 0.6"}, 0.6),
    ],
    ids=["run", "workload", "optimizer", "workload by optimizer", "optimizer by workload", "clip"],
)
def test_the_most_particular_lr_wins(lines, lr):
    text = PAGE
    for section, line in lines.items():
        text = with_line(section, line, text)
    assert [cell.lr for cell in cells(text, clip="norm")] == [lr]


def test_a_table_of_lrs_leaves_the_optimizers_it_does_not_name_alone():
    text = (
        with_line('"wdbc"', "lr = { adam = [1e-3, 1e-2] }", PAGE) + '[[optimizer]]\nname = "adam"\n'
    )
    assert [cell.lr for cell in cells(text, clip="none", optimizer="sgd")] == [0.1]
    assert [cell.lr for cell in cells(text, clip="none", optimizer="adam")] == [1e-3, 1e-2]


def test_clip_wins_over_optimizer_wins_over_workload_wins_over_run():
    text, seen = PAGE, [32]
    for section, value in zip(('"wdbc"', '"sgd"', '"norm"'), (4, 8, 16), strict=True):
        text = with_line(section, f"batch = {value}", text)
        seen += [cell.batch for cell in cells(text, clip="norm")]
    assert seen == [32, 4, 8, 16]


def test_an_optimizer_or_clip_may_be_for_some_workloads_only():
    text = (
        PAGE + '[[workload]]\nname = "digits"\n[[optimizer]]\nname = "adam"\nworkloads = ["wdbc"]\n'
    )
    text = with_line('"norm"', 'workloads = ["digits"]', text)
    assert {(cell.workload.name, cell.arm) for cell in cells(text)} == {
        ("wdbc", "sgd"), ("wdbc", "adam"), ("digits", "sgd"), ("digits", "sgd + norm"),
    }  # fmt: skip
    whole = {
        cell.id
        for cell in cells(
            text.replace('workloads = ["wdbc"]', "").replace('workloads = ["digits"]', "")
        )
    }
    assert {cell.id for cell in cells(text)} < whole  # the word is no part of a cell's identity


def test_a_clip_may_be_for_some_optimizers_only():
    text = with_line('"norm"', 'optimizers = ["adam"]', PAGE + '[[optimizer]]\nname = "adam"\n')
    assert {cell.arm for cell in cells(text)} == {"sgd", "adam", "adam + norm"}
    without = text.replace('optimizers = ["adam"]', "")
    assert {cell.id for cell in cells(text)} < {cell.id for cell in cells(without)}


def test_a_replica_is_the_same_study_with_other_identities():
    plain = study.parse("page", PAGE, Path())
    again = study.replica(plain, 2)
    assert [replace(cell, replica=0).id for cell in again.cells()] == [
        cell.id for cell in plain.cells()
    ]
    assert {cell.replica for cell in again.cells()} == {2}
    with pytest.raises(UsageError, match="it stands there"):
        study.replica(again, 3)
    dotted = PAGE.replace("[run]\nsteps = 10\nlr", "run.steps = 10\nrun.lr")
    inline = study.parse("page", dotted.replace("seeds =", "run.seeds ="), Path())
    with pytest.raises(UsageError, match="there is no such line"):
        study.replica(inline, 3)


def test_a_workload_has_steps_of_its_own():
    text = with_line('"wdbc"', "steps = 20") + '[[workload]]\nname = "digits"\n'
    assert {(cell.workload.name, cell.steps) for cell in cells(text)} == {
        ("wdbc", 20),
        ("digits", 10),
    }


@pytest.mark.parametrize("section", ['"sgd"', '"norm"'])
def test_arms_of_unequal_length_are_refused(section):
    """Runs of 20 and of 10 steps on one workload would be compared as if they had had the same
    chance.
    """
    text = with_line(section, "steps = 20", PAGE) + '[[optimizer]]\nname = "adam"\n'
    with pytest.raises(
        UsageError, match=r'"wdbc" is asked for at (10 and at 20|20 and at 10) steps'
    ):
        cells(text)


def test_a_workload_without_randomness_runs_one_seed():
    @registry.workload("still")
    class Still:
        deterministic = True

    text = PAGE.replace("wdbc", "still")
    assert parsed(text).seeds("still").select == parsed(text).seeds("still").report == 1
    assert {cell.seed for cell in cells(text)} == {0}


def test_a_workload_has_seeds_of_its_own():
    text = (
        with_line('"wdbc"', "seeds = { select = 4, report = 7 }")
        + '[[workload]]\nname = "digits"\n'
    )
    assert [cell.seed for cell in cells(text, workload="wdbc", clip="none")] == [0, 1, 2, 3]
    assert [cell.seed for cell in cells(text, workload="digits", clip="none")] == [0]
    assert [parsed(text).seeds(name).report for name in ("wdbc", "digits")] == [7, 2]


def test_more_seeds_keep_the_cells_there_were():
    few = {cell.id for cell in cells(PAGE)}
    assert few < {cell.id for cell in cells(PAGE.replace("select = 1", "select = 3"))}


def test_a_relative_threshold_stays_relative_in_the_cell():
    [cell] = cells(PAGE.replace("max_norm = 1.0", 'relative = 3\nnorm_type = "inf"'), clip="norm")
    assert cell.clip == Part("norm", 1, {"norm_type": "inf", "relative": 3.0}, "max_norm")


def test_a_percentile_stays_a_percentile_in_the_cell_and_a_clip_may_call_its_threshold_one():
    [cell] = cells(PAGE.replace("max_norm = 1.0", "percentile = 90"), clip="norm")
    assert cell.clip == Part("norm", 1, {"percentile": 90.0}, "max_norm")
    assert (cell.percentile, cell.arm, cell.clip.own) == (90.0, "sgd + norm", {})
    assert cell.clip_settings(0.1234) == {"max_norm": 0.123}
    own = PAGE.replace('name = "norm"\nmax_norm = 1.0', 'name = "quantile"\npercentile = 20')
    [cell] = cells(own, clip="quantile")
    assert cell.clip == Part("quantile", 1, {"percentile": 20.0}, "percentile")
    assert (cell.percentile, cell.arm, cell.clip.own) == (
        None,
        "sgd + quantile",
        {"percentile": 20.0},
    )


def test_schedules_parts_of_a_batch_and_what_is_clipped_are_axes_and_left_out_at_their_defaults():
    """So that old cells keep their identities, and every label says what differs."""
    plain = cells(PAGE, clip="norm")
    lines = (
        ('"sgd"', 'schedule = ["constant", "cosine(floor=0)", "step"]'),
        ("[run]", "batch = 8\naccumulate = [1, 4]"),
    )
    text = PAGE
    for section, line in lines:
        text = with_line(section, line, text)
    found = cells(text + 'on = ["gradient", "update", "example"]', clip="norm")
    assert len(found) == 3 * 2 * 3
    assert replace(plain[0], batch=8) in found
    assert {cell.problem for cell in found} == {"wdbc", "wdbc(accumulate=4)"}
    assert {cell.optimizer.label for cell in found} == {
        "sgd",
        "sgd(schedule=cosine)",
        "sgd(schedule=step)",
    }
    assert {cell.clip.label for cell in found} == {"norm", "norm(on=update)", "norm(on=example)"}
    for cell in found:
        assert from_json(cell.canonical) == cell
        assert (cell.schedule, cell.accumulate, cell.on) == (
            cell.optimizer.settings.get("schedule", "constant"),
            cell.workload.settings.get("accumulate", 1),
            cell.clip.settings.get("on", "gradient"),
        )
        assert cell.clip_settings() == {"max_norm": 1.0}


def test_the_most_particular_schedule_wins():
    text = with_line("[run]", 'schedule = "cosine"')
    assert {cell.schedule for cell in cells(text)} == {"cosine"}
    text = with_line('"wdbc"', 'schedule = "step"', text)
    assert {cell.schedule for cell in cells(text)} == {"step"}
    assert {cell.schedule for cell in cells(with_line('"sgd"', 'schedule = "constant"', text))} == {
        "constant"
    }


def test_a_clip_of_the_update_needs_a_pure_rule():
    text = PAGE.replace('name = "sgd"', 'torch = "torch.optim.NAdam"') + 'on = "update"'
    with pytest.raises(
        UsageError,
        match=(
            r'"norm\(on=update\)" clips the update of a pure rule, and "torch.optim.NAdam" '
            r"has none"
        ),
    ):
        parsed(text).cells()


def test_a_clip_with_a_memory_has_no_single_examples(tmp_path):
    (tmp_path / "ema.py").write_text(EMA)
    text = 'use = ["ema.py"]\n' + PAGE.replace('"norm"\nmax_norm = 1.0', '"ema"\non = "example"')
    with pytest.raises(UsageError, match='"ema" remembers from step to step'):
        parsed(text, tmp_path).cells()


def test_an_infinite_threshold_is_a_threshold():
    [cell] = cells(PAGE.replace("1.0", "inf"), clip="norm")
    assert cell.clip.settings == {"max_norm": math.inf}


def test_changed_event_rules_are_part_of_the_cell_and_agreed_ones_are_not():
    text = with_line("[run]", "events = { spike = 4, blow_up = 10, blow_up_steps = 5 }")
    assert cells(text)[0].events == {"spike": 4.0, "blow_up_steps": 5}
    assert isinstance(cells(text)[0].events["blow_up_steps"], int)


def test_any_optimizer_class_of_torch_joins_by_its_dotted_path():
    text = PAGE.replace(
        'name = "sgd"', 'torch = "torch.optim.NAdam"\nmomentum_decay = [0.01, 0.02]\nbeta1 = 0.8'
    )
    found = cells(text, clip="none")
    assert [cell.optimizer.name for cell in found] == ["torch.optim.NAdam"] * 2
    assert [cell.optimizer.settings for cell in found] == [
        {"momentum_decay": decay, "beta1": 0.8} for decay in (0.01, 0.02)
    ]
    assert len({cell.id for cell in cells(text)}) == 4


def test_a_strangers_file_joins_without_an_edit(tmp_path):
    """The hash of its file is its version, and so part of the cells' identity."""
    file = tmp_path / "half.py"
    body = '''
from clipbench import clip, trees

@clip("half")
class Half:
    """Halve the gradient."""
    factor: float = 0.5
    def update(self, grads, state, params):
        return trees.scale(grads, self.factor), state
'''
    text = 'use = ["half.py"]\n' + PAGE.replace(
        '"norm"\nmax_norm = 1.0', '"half"\nfactor = [0.5, 0.25]'
    )
    versions = []
    for comment in ("", "# the same, with another word\n"):
        file.write_text(comment + body)
        registry._tables["clip"].pop("half", None)
        registry._used.clear()
        found = [cell for cell in parsed(text, tmp_path).cells() if cell.clip.name == "half"]
        assert [cell.clip.settings for cell in found] == [{}, {"factor": 0.25}]
        versions += [cell.clip.version for cell in found]
    assert len(versions) == 4
    assert len({*versions}) == 2


# ---------------------------------------------------------------------------------------- bad input

CASES = {
    # components and settings: the nearest name
    "an unknown workload": (
        'name = "wdbc"',
        'name = "wdbcc"',
        "first [[workload]]",
        '"wdbcc"',
        "Did you mean wdbc?",
    ),
    "an unknown optimizer": ('"sgd"', '"sdg"', "first [[optimizer]]", '"sdg"', "Did you mean sgd?"),
    "an unknown clip": (
        '"norm"',
        '"nrom"',
        "second [[clip]]",
        '"nrom"',
        "Did you mean norm?",
        "layer, none, norm, ",
    ),
    "an unknown setting of a clip": (
        "max_norm",
        "max_nrom",
        "second [[clip]]",
        '"norm" has no setting `max_nrom`',
        "max_norm (positive number)",
        "Its table may also have: steps, batch, lr, relative, percentile, on, ",
        "max_norm?",
    ),
    "a word for a threshold, misspelt": (
        "max_norm",
        "percentil",
        "second [[clip]]",
        '"norm" has no setting `percentil`',
        "Did you mean percentile?",
    ),
    "an unknown setting of an optimizer": (
        '"sgd"',
        '"sgd"\nweight_deacy = 0',
        "first [[optimizer]]",
        "Did you mean weight_decay?",
    ),
    "an unknown setting of a workload": (
        '"wdbc"',
        '"wdbc"\nwidht = 3',
        "first [[workload]]",
        "`widht`",
        "Did you mean width?",
    ),
    "an unknown word of the run": (
        "[run]",
        "[run]\nbacth = 3",
        "[run]",
        "`bacth`",
        "Did you mean batch?",
    ),
    "an unknown word of the seeds": (
        "select = 1",
        "selct = 1",
        "[run]",
        "`selct`",
        "Did you mean select?",
    ),
    "an unknown word of a workload's seeds": (
        '"wdbc"',
        '"wdbc"\nseeds = { reprot = 1 }',
        "first [[workload]]",
        "Did you mean report?",
    ),
    "an unknown word of the untuned row": (
        "[run]",
        "[untuned]\nthreshhold = 1\n[run]",
        "[untuned]",
        "Did you mean threshold?",
    ),
    "an unknown word of the page": (
        "[run]",
        'titel = "x"\n[run]',
        "`titel`",
        "Did you mean title?",
    ),
    "an unknown rule": (
        "[run]",
        "[run]\nevents = { spiek = 1 }",
        "[run] events",
        "`spiek`",
        "Did you mean spike?",
    ),
    "an lr for an optimizer not run": (
        '"wdbc"',
        '"wdbc"\nlr = { sgdd = 1 }',
        "first [[workload]]",
        '"sgdd"',
        "Did you mean sgd?",
    ),
    "an lr for a workload not run": (
        '"sgd"',
        '"sgd"\nlr = { wdcb = 1 }',
        "first [[optimizer]]",
        '"wdcb"',
        "Did you mean wdbc?",
    ),
    "a clip's lr by name": (
        '"norm"',
        '"norm"\nlr = { sgd = 1 }',
        "second [[clip]]",
        "`lr`",
        '"sgd"',
    ),
    # thresholds
    "a negative threshold": (
        "1.0",
        "-1.0",
        "second [[clip]]",
        "`max_norm` is -1.0",
        "positive number",
    ),
    "a negative threshold among others": (
        "1.0",
        "[1, -2]",
        "second [[clip]]",
        "`max_norm` is -2",
        "positive number",
    ),
    "a threshold of zero": ("1.0", "0", "second [[clip]]", "`max_norm` is 0", "positive number"),
    "a threshold of nan": ("1.0", "nan", "second [[clip]]", "`max_norm` is nan", "number"),
    "a threshold in words": (
        "1.0",
        '"one"',
        "second [[clip]]",
        "`max_norm` is 'one'",
        "positive number",
    ),
    "a number in quotes": (
        "1.0",
        '"1.0"',
        "second [[clip]]",
        "`max_norm` is '1.0'",
        "positive number",
    ),
    "a truth for a threshold": (
        "1.0",
        "true",
        "second [[clip]]",
        "`max_norm` is True",
        "positive number",
    ),
    "a table for a threshold": (
        "1.0",
        "{ a = 1 }",
        "second [[clip]]",
        "`max_norm` is {'a': 1}",
        "positive number",
    ),
    "a list in a list": (
        "1.0",
        "[[1.0]]",
        "second [[clip]]",
        "`max_norm` is [1.0]",
        "positive number",
    ),
    "no threshold": (
        "max_norm = 1.0",
        "",
        "second [[clip]]",
        '"norm" needs `max_norm` (positive number)',
    ),
    "an empty axis of thresholds": (
        "1.0",
        "[]",
        "second [[clip]]",
        "`max_norm` is an empty list",
        "at least one value",
    ),
    "a threshold twice": ("1.0", "[1, 1.0]", "second [[clip]]", "`max_norm` has 1.0 twice"),
    "a relative threshold below zero": (
        "max_norm = 1.0",
        "relative = -1",
        "second [[clip]]",
        "`relative` is -1",
        "positive number",
    ),
    "a relative threshold of zero": (
        "max_norm = 1.0",
        "relative = [0, 1]",
        "second [[clip]]",
        "`relative` is [0, 1]",
        "positive",
    ),
    "a relative threshold of nan": (
        "max_norm = 1.0",
        "relative = nan",
        "second [[clip]]",
        "`relative` is nan",
        "positive number",
    ),
    "a relative threshold of inf": (
        "max_norm = 1.0",
        "relative = inf",
        "second [[clip]]",
        "`relative` is inf",
        "positive number",
    ),
    "a percentile above 100": (
        "max_norm = 1.0",
        "percentile = 101",
        "second [[clip]]",
        "`percentile` is 101",
        "from 0 to 100",
    ),
    "a percentile and a multiple": (
        "max_norm = 1.0",
        "percentile = 90\nrelative = 1",
        "second [[clip]]",
        "give `relative` or `percentile`; for both make two tables",
    ),
    "a percentile and a number": (
        "max_norm = 1.0",
        "percentile = 90\nmax_norm = 1.0",
        "second [[clip]]",
        "give `percentile` or `max_norm`, not both",
    ),
    "a relative threshold in words": (
        "max_norm = 1.0",
        'relative = "x"',
        "second [[clip]]",
        "`relative` is 'x'",
        "positive number",
    ),
    "no relative threshold": (
        "max_norm = 1.0",
        "relative = []",
        "second [[clip]]",
        "`relative` is an empty list",
    ),
    "a relative threshold twice": (
        "max_norm = 1.0",
        "relative = [1, 1.0]",
        "second [[clip]]",
        "`relative` has 1.0 twice",
    ),
    "both kinds of threshold": (
        "max_norm = 1.0",
        "max_norm = 1\nrelative = 1",
        "second [[clip]]",
        "`relative` or `max_norm`",
        "not both",
    ),
    "relative to no size": (
        '"none"',
        '"none"\nrelative = 1',
        "first [[clip]]",
        '"none" has no size',
        "`relative`",
    ),
    "a relative workload": (
        '"wdbc"',
        '"wdbc"\nrelative = 1',
        "first [[workload]]",
        "`relative` belongs in a [[clip]], not here.",
    ),
    "a norm of another type": (
        "1.0",
        "1.0\nnorm_type = 3",
        "second [[clip]]",
        "`norm_type` is 3",
        "2 or 'inf'",
    ),
    # learning rates
    "a negative lr": ("lr = 0.1", "lr = -0.1", "[run]", "`lr` is -0.1", "positive number"),
    "an lr of zero": ("lr = 0.1", "lr = 0", "[run]", "`lr` is 0", "positive number"),
    "an lr of nan": (
        "lr = 0.1",
        "lr = [0.1, nan]",
        "[run]",
        "`lr` is [0.1, nan]",
        "positive number",
    ),
    "an lr of inf": ("lr = 0.1", "lr = inf", "[run]", "`lr` is inf", "positive number"),
    "an lr in words": ("lr = 0.1", 'lr = "0.1"', "[run]", "`lr` is '0.1'", "positive number"),
    "an empty axis of lrs": (
        "lr = 0.1",
        "lr = []",
        "[run]",
        "`lr` is an empty list",
        "at least one value",
    ),
    "an lr twice": ("lr = 0.1", "lr = [0.1, 0.10]", "[run]", "`lr` has 0.1 twice"),
    "no lr": ("lr = 0.1", "", 'no lr is given for "sgd" on "wdbc"', "[run]"),
    "a table of lrs for the run": (
        "lr = 0.1",
        "lr = { sgd = 1 }",
        "[run]",
        "`lr` is {'sgd': 1}",
        "positive number, or a list of them.",
    ),
    "a negative lr of an optimizer": (
        '"sgd"',
        '"sgd"\nlr = [1, -1]',
        "first [[optimizer]]",
        "`lr` is [1, -1]",
        "positive number",
    ),
    "no lr of an optimizer": (
        '"sgd"',
        '"sgd"\nlr = []',
        "first [[optimizer]]",
        "`lr` is an empty list",
    ),
    "an optimizer's lr twice": (
        '"sgd"',
        '"sgd"\nlr = [1, 1]',
        "first [[optimizer]]",
        "`lr` has 1.0 twice",
    ),
    "a negative lr by optimizer": (
        '"wdbc"',
        '"wdbc"\nlr = { sgd = -1 }',
        "first [[workload]]",
        "`lr` is {'sgd': -1}",
        "positive number",
    ),
    "no lr by optimizer": (
        '"wdbc"',
        '"wdbc"\nlr = { sgd = [] }',
        "first [[workload]]",
        "`lr` is an empty list",
    ),
    "a negative lr of a clip": (
        '"norm"',
        '"norm"\nlr = -1',
        "second [[clip]]",
        "`lr` is -1",
        "positive number",
    ),
    "an untuned lr below zero": (
        "[run]",
        "[untuned]\nlr = -1\n[run]",
        "[untuned]",
        "`lr` is -1",
        "be a positive number, or a table of them by optimizer.",
    ),
    # the other words
    "no steps": ("steps = 10", "", "[run]", "`steps` is missing", "whole number of at least 1"),
    "zero steps": (
        "steps = 10",
        "steps = 0",
        "[run]",
        "`steps` is 0",
        "whole number of at least 1",
    ),
    "a step and a half": (
        "steps = 10",
        "steps = 1.5",
        "[run]",
        "`steps` is 1.5",
        "whole number of at least 1",
    ),
    "steps of an optimizer in words": (
        '"sgd"',
        '"sgd"\nsteps = "ten"',
        "first [[optimizer]]",
        "`steps` is 'ten'",
        "whole number",
    ),
    "a batch of none": (
        "[run]",
        "[run]\nbatch = 0",
        "[run]",
        "`batch` is 0",
        "whole number of at least 1",
    ),
    "an empty axis of batches": (
        '"wdbc"',
        '"wdbc"\nbatch = []',
        "first [[workload]]",
        "`batch` is an empty list",
    ),
    "a batch twice": ("[run]", "[run]\nbatch = [8, 8]", "[run]", "`batch` has 8 twice"),
    "an unknown device": (
        "[run]",
        '[run]\ndevice = "gpu"',
        "[run]",
        "`device` is 'gpu'",
        '"cpu", "cuda"',
    ),
    "no device": ("[run]", "[run]\ndevice = []", "[run]", "`device` is an empty list"),
    "a device twice": (
        "[run]",
        '[run]\ndevice = ["cpu", "cpu"]',
        "[run]",
        "`device` has 'cpu' twice",
    ),
    "an unknown dtype": (
        "[run]",
        '[run]\ndtype = ["float32", "half"]',
        "[run]",
        "`dtype` is ['float32', 'half']",
        '"float64"',
    ),
    "an unknown engine": (
        "[run]",
        '[run]\nengine = "laop"',
        "[run]",
        "`engine` is 'laop'",
        '"loop"',
    ),
    "no evaluations": (
        "[run]",
        "[run]\nevaluations = 0",
        "[run]",
        "`evaluations` is 0",
        "whole number of at least 1",
    ),
    "a number of seeds": (
        "{ select = 1, report = 2 }",
        "3",
        "[run]",
        "`seeds` is 3",
        "{ select = 3, report = 10 }",
    ),
    "no seeds": (
        "select = 1",
        "select = 0",
        "[run]",
        "`select` is 0",
        "whole number of at least 1",
    ),
    "fewer than no report seeds": (
        "report = 2",
        "report = -1",
        "[run]",
        "`report` is -1",
        "whole number of at least 0",
    ),
    "seeds of a clip": (
        '"norm"',
        '"norm"\nseeds = { select = 4 }',
        "second [[clip]]",
        "`seeds`",
        "[[workload]]",
    ),
    "a rule in words": (
        "[run]",
        '[run]\nevents = { spike = "x" }',
        "[run]",
        "`events` is 'x'",
        "numbers",
    ),
    "a rule of zero": (
        "[run]",
        "[run]\nevents = { spike = 0 }",
        "[run] events",
        "`spike` is 0.0",
        "positive number",
    ),
    "a rule of nan": (
        "[run]",
        "[run]\nevents = { tail = nan }",
        "[run] events",
        "`tail` is nan",
        "positive number",
    ),
    "half a step in a rule": (
        "[run]",
        "[run]\nevents = { spike_window = 1.5 }",
        "`spike_window` is 1.5",
        "positive whole number",
    ),
    "a rule without end": (
        "[run]",
        "[run]\nevents = { blow_up_steps = inf }",
        "`blow_up_steps` is inf",
        "positive whole number",
    ),
    "a title of numbers": ("[run]", "title = 3\n[run]", "`title` is 3", "text"),
    # schedules, parts of a batch, what a clip is applied to
    "an unknown schedule": (
        "[run]",
        '[run]\nschedule = "cosin"',
        "[run]",
        '"cosin"',
        "Did you mean cosine?",
    ),
    "an unknown setting of a schedule": (
        '"sgd"',
        '"sgd"\nschedule = "step(facter=0.1)"',
        "first [[optimizer]]",
        "`facter`",
        "factor (number of at least 0)",
        "Did you mean factor?",
    ),
    "a number for a schedule": (
        "[run]",
        "[run]\nschedule = 3",
        "[run]",
        "`schedule` is 3",
        'text such as "cosine"',
    ),
    "a schedule twice": (
        "[run]",
        '[run]\nschedule = ["cosine", "cosine()"]',
        "[run]",
        "`schedule` has 'cosine' twice",
    ),
    "no schedule": ("[run]", "[run]\nschedule = []", "[run]", "`schedule` is an empty list"),
    "a schedule of a clip": (
        '"norm"',
        '"norm"\nschedule = "cosine"',
        "second [[clip]]",
        "`schedule`",
        "[[optimizer]]",
    ),
    "no part of a batch": (
        "[run]",
        "[run]\naccumulate = 0",
        "[run]",
        "`accumulate` is 0",
        "whole number of at least 1",
    ),
    "unequal parts of a batch": (
        '"wdbc"',
        '"wdbc"\nbatch = 10\naccumulate = 4',
        "a batch of 10",
        "4 equal parts",
    ),
    "parts of a batch of an optimizer": (
        '"sgd"',
        '"sgd"\naccumulate = 2',
        "first [[optimizer]]",
        "`accumulate`",
        "[[workload]]",
    ),
    "a clip on something else": (
        "1.0",
        '1.0\non = "weights"',
        "second [[clip]]",
        "`on` is 'weights'",
        '"update"',
    ),
    "an optimizer on the update": (
        '"sgd"',
        '"sgd"\non = "update"',
        "first [[optimizer]]",
        "`on`",
        "[[clip]]",
    ),
    "no clip on the update": (
        '"none"',
        '"none"\non = "update"',
        "first [[clip]]",
        '"none" changes nothing',
    ),
    "a multiple of no gradient": (
        "max_norm = 1.0",
        'relative = 1\non = "example"',
        "second [[clip]]",
        "`relative`",
        "give `max_norm`",
    ),
    # tables
    "no run": (
        "[run]\nsteps = 10\nlr = 0.1\nseeds = { select = 1, report = 2 }",
        "",
        "`run` is missing",
        "at least `steps`",
    ),
    "two runs": ("[run]", "[[run]]", "`run` is [{", "a table with at least `steps`"),
    "no workload": (
        '[[workload]]\nname = "wdbc"',
        "",
        "`workload` is missing",
        "at least one [[workload]] table",
    ),
    "an empty list of workloads": (
        '[[workload]]\nname = "wdbc"',
        "",
        "`workload` is []",
        "at least one",
        "workload = []\n",
    ),
    "one bracket for two": (
        '[[optimizer]]\nname = "sgd"',
        '[optimizer]\nname = "sgd"',
        "`optimizer` is {",
        "[[optimizer]] table",
    ),
    "a table without a name": ('name = "none"', "", "first [[clip]]", "`name` is missing"),
    "a name that is a number": ('"none"', "3", "first [[clip]]", "`name` is 3", "text"),
    "a list of names": (
        '"sgd"',
        '["sgd", "adam"]',
        "first [[optimizer]]",
        "`name` is ['sgd', 'adam']",
        "text",
    ),
    "the same clip twice": ('"none"', '"norm"\nmax_norm = 1', "twice", "wdbc, sgd + norm, lr 0.1"),
    "the same workload twice": (
        "[[optimizer]]",
        '[[workload]]\nname = "wdbc"\n[[optimizer]]',
        "twice",
        "wdbc, sgd, lr 0.1",
    ),
    "two numbers of seeds for a workload": (
        "[[optimizer]]",
        '[[workload]]\nname = "wdbc"\nwidth = 8\nseeds = { select = 2 }\n[[optimizer]]',
        "[[workload]]",
        "`seeds`",
    ),
    "a workload not run": (
        '"norm"',
        '"norm"\nworkloads = ["wdcb"]',
        "second [[clip]]",
        '"wdcb"',
        "Did you mean wdbc?",
    ),
    "an optimizer not run": (
        '"norm"',
        '"norm"\noptimizers = ["sdg"]',
        "second [[clip]]",
        '"sdg"',
        "Did you mean sgd?",
    ),
    "workloads that are no list": (
        '"norm"',
        '"norm"\nworkloads = "wdbc"',
        "second [[clip]]",
        "`workloads` is 'wdbc'",
        "a list",
    ),
    "workloads that are none": (
        '"norm"',
        '"norm"\nworkloads = []',
        "second [[clip]]",
        "`workloads` is []",
        "a list",
    ),
    "workloads of a workload": (
        '"wdbc"',
        '"wdbc"\nworkloads = ["wdbc"]',
        "first [[workload]]",
        "belongs in an [[optimizer]]",
    ),
    "a workload for which nothing is": (
        '"sgd"',
        '"sgd"\nworkloads = ["digits"]\n[[workload]]\nname = "digits"',
        "first [[workload]]",
        '"wdbc"',
        "`workloads`",
    ),
    "a name and a class": (
        '"sgd"',
        '"sgd"\ntorch = "torch.optim.SGD"',
        "first [[optimizer]]",
        "`name` or `torch`",
        "not both",
    ),
    "an unknown class": (
        'name = "sgd"',
        'torch = "torch.optim.NAdamm"',
        "first [[optimizer]]",
        "Did you mean torch.optim.NAdam?",
    ),
    "a class that is no optimizer": (
        'name = "sgd"',
        'torch = "torch.nn.Linear"',
        "first [[optimizer]]",
        '"torch.nn.Linear"',
    ),
    "an unknown setting of a class": (
        'name = "sgd"',
        'torch = "torch.optim.NAdam"\nmomentum_deacy = 1',
        "first [[optimizer]]",
        "Did you mean momentum_decay?",
    ),
    "no TOML": ("[run]", "[run", "this is not TOML", "line 2"),
    "a word twice": ("lr = 0.1", "lr = 1\nlr = 2", "this is not TOML", "line 5"),
    "a missing plug-in": ("[run]", 'use = ["gone.py"]\n[run]', "use", "gone.py"),
    "a plug-in that is no list": ("[run]", 'use = "gone.py"\n[run]', "`use` is 'gone.py'", "list"),
}


# ---------------------------------------------------------------------------------- words and homes

WHERE = {
    vocabulary.PAGE: "",
    "run": ", [run]",
    "protocol": ", [protocol]",
    "untuned": ", [untuned]",
    "seeds": ", [run] seeds",
    "workload": ", first [[workload]]",
    "optimizer": ", first [[optimizer]]",
    "clip": ", first [[clip]]",
}


def with_word(table, name, value):
    """A small page, as text, with a word in a table."""
    page = {
        "run": {"steps": 10, "lr": 0.1, "seeds": {}},
        "protocol": {},
        "untuned": {},
        **{kind: [{}] for kind in registry.KINDS},
    }
    tables = {
        vocabulary.PAGE: page,
        "run": page["run"],
        "seeds": page["run"]["seeds"],
        "protocol": page["protocol"],
        "untuned": page["untuned"],
    }
    tables |= {kind: page[kind][0] for kind in registry.KINDS}
    for kind, component in (("workload", "wdbc"), ("optimizer", "sgd"), ("clip", "none")):
        if kind != table or (table, name) != ("optimizer", "torch"):
            tables[kind]["name"] = component
    tables[table][name] = value
    return toml(page)


def told(text):
    with pytest.raises(UsageError) as raised:
        parsed(text).cells()
    return str(raised.value)


def test_the_page_model_holds_every_word_in_each_of_its_homes_and_no_other():
    document = parsed(with_word("workload", "seeds", {})).document
    models = {
        vocabulary.PAGE: document,
        "run": document.run,
        "protocol": document.protocol,
        "untuned": document.untuned,
        "seeds": document.workload[0].seeds,
    }
    models |= {kind: getattr(document, kind)[0] for kind in registry.KINDS}
    for table, model in models.items():
        assert {*type(model).model_fields} == {
            word.name for word in vocabulary.WORDS if table in word.homes
        }, table
    assert {*models} == {home for word in vocabulary.WORDS for home in word.homes}


def test_a_word_that_is_not_given_has_its_default():
    document = parsed(with_word("workload", "seeds", {})).document
    assert (document.run.batch, document.run.schedule, document.run.accumulate) == (
        32,
        lr_schedules.CONSTANT,
        1,
    )
    assert (document.run.seeds.select, document.run.seeds.report, document.untuned.lr) == (
        3,
        10,
        0.01,
    )
    assert (document.optimizer[0].batch, document.clip[0].on, document.clip[0].relative) == (
        None,
        "gradient",
        None,
    )


@pytest.mark.parametrize(
    ("table", "word"),
    [(home, word) for word in vocabulary.WORDS for home in word.homes],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_a_value_that_does_not_fit_is_told_what_is_wanted(table, word):
    """A list in a list is no value of any word."""
    message = told(with_word(table, word.name, [[True]]))
    assert f"`{word.name}` is [" in message
    assert message.endswith(f"], and must be {word.wanted}.")
    assert message.startswith(f"page.toml{WHERE[table]}")


@pytest.mark.parametrize("table", WHERE)
def test_a_word_in_a_wrong_table_is_told_where_it_belongs(table):
    """But for a slip of the pen, and in a component's table for a word that may be a setting."""
    for name, homes in vocabulary.HOMES.items():
        slip = table == vocabulary.PAGE and name in ("workloads", "optimizers")
        if table in homes or slip or (table in registry.KINDS and name not in vocabulary.RESERVED):
            continue
        message = told(with_word(table, name, 1))
        assert message.startswith(f"page.toml{WHERE[table]}: `{name}` belongs ")
        assert message.endswith(", not here.")
        assert [
            home
            for home, place in vocabulary.PLACES.items()
            if place in message.partition(" belongs ")[2]
        ] == [home for home in vocabulary.PLACES if home in homes]


def assert_one_sentence(message, where="page.toml"):
    """Ours, on one line, that names the file; nothing of the validation library's."""
    assert message.startswith(f"{where}")
    assert "\n" not in message
    assert message[-1] in ".?"
    for foreign in (
        "pydantic",
        "validation error",
        "Input should be",
        "input_type",
        "Traceback",
        "NoneType",
        "constrained",
    ):
        assert foreign not in message


@pytest.mark.parametrize("case", CASES)
def test_one_clear_sentence_for(case, tmp_path):
    """The file, the table, the value, what was wanted, the nearest name."""
    old, new, *expected = CASES[case]
    text = PAGE.replace(old, new, 1)
    assert text != PAGE
    if expected[-1].endswith("\n"):  # what TOML wants before the first table
        text = expected.pop() + text
    with pytest.raises(UsageError) as raised:
        parsed(text, tmp_path).cells()
    message = str(raised.value)
    assert_one_sentence(message)
    for fragment in expected:
        assert fragment in message


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("import clipbench\n1/0\n", ["broken.py", "line 2", "ZeroDivisionError"]),
        ("def f(:\n", ["broken.py", "line 1", "SyntaxError"]),
        ("import no_such_module_anywhere\n", ["broken.py", "line 1", "no_such_module_anywhere"]),
        ("raise SystemExit(3)\n", ["broken.py", "line 1", "SystemExit"]),
        (
            'from clipbench import clip\n@clip("norm")\nclass N:\n    pass\n',
            ["broken.py", '"norm" is taken'],
        ),
    ],
    ids=["raises", "syntax", "import", "exits", "a name that is taken"],
)
def test_one_clear_sentence_for_a_plug_in_that(body, expected, tmp_path):
    (tmp_path / "broken.py").write_text(body)
    with pytest.raises(UsageError) as raised:
        parsed('use = ["broken.py"]\n' + PAGE, tmp_path)
    assert_one_sentence(str(raised.value), "")
    for fragment in expected:
        assert fragment in str(raised.value)


@given(
    st.sampled_from(["run", "untuned", "workload", "optimizer", "clip", "title", "use"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "lr", "seeds", "a", "steps"]), inner)
        ),
        max_leaves=6,
    ),
)
def test_no_page_brings_out_anything_but_a_sentence(word, value):
    """Whatever stands in a table's place (TOML knows no null; JSON's stand for the rest)."""
    raw = {
        "run": {"steps": 10, "lr": 0.1},
        "workload": [{"name": "wdbc"}],
        "optimizer": [{"name": "sgd"}],
        "clip": [{"name": "none"}],
    }
    try:
        parsed(toml({**raw, word: value})).cells()
    except UsageError as error:
        assert_one_sentence(str(error))


def toml(value, *, top=True):
    """A value as TOML, in line; what TOML cannot say as text."""
    if isinstance(value, dict):
        pairs = [f"{quoted(name)} = {toml(one, top=False)}" for name, one in value.items()]
        return "\n".join(pairs) if top else "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml(one, top=False) for one in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, (int, float)) else quoted(str(value))


def quoted(text):
    return (
        '"'
        + "".join(f"\\U{ord(letter):08x}" for letter in text if not 0xD800 <= ord(letter) < 0xE000)
        + '"'
    )


# --------------------------------------------------------------------------------- names and places


@pytest.mark.parametrize(
    "name", ["../x", "../../quick", "/abs/x", "a/b", "..", ".", "a\\b", ".hidden", "./quick"]
)
def test_a_path_is_no_name_of_a_study(name):
    with pytest.raises(
        UsageError,
        match=r"is no study: give the name of a packaged study, or a path ending in \.toml",
    ) as raised:
        study.read(name)
    assert f'"{name}"' in str(raised.value)


def test_an_unknown_study_is_told_the_nearest_and_all_there_are():
    with pytest.raises(
        UsageError, match=r'no packaged study "quik"\. Did you mean quick\? There are: .*smoke'
    ):
        study.read("quik")


@pytest.mark.parametrize(
    "name", ["con", "NUL", "com1", "x" * 65, "-x", "_x", "a b", "a.b", "ä", "a'b", ".x"]
)
def test_a_file_whose_name_no_folder_should_bear_is_refused(name, tmp_path):
    """Reserved on some system, too long, hidden, or in need of quoting."""
    path = tmp_path / f"{name}.toml"
    path.write_text(PAGE)
    with pytest.raises(UsageError) as raised:
        study.read(str(path))
    assert_one_sentence(str(raised.value), f'"{name}.toml": a study\'s name is up to 64 letters')


@pytest.mark.parametrize("name", ["x" * 64, "9", "Heavy-tails_2", "cons"])
def test_a_file_with_a_plain_name_is_a_study(name, tmp_path):
    path = tmp_path / f"{name}.toml"
    path.write_text(PAGE)
    assert study.read(str(path)).name == name


def test_use_files_lie_beside_the_page_not_beside_the_reader(tmp_path, monkeypatch):
    (tmp_path / "page.toml").write_text('use = ["mine.py"]\n' + PAGE.replace('"none"', '"mine"'))
    (tmp_path / "mine.py").write_text(
        'from clipbench import clip\n@clip("mine")\nclass Mine:\n    pass\n'
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert any(cell.clip.name == "mine" for cell in study.read("../page.toml").cells())


@pytest.mark.parametrize(
    "content", [None, b"\xff\xfe\x00", "folder"], ids=["missing", "not text", "a folder"]
)
def test_a_file_that_cannot_be_read_is_one_sentence(content, tmp_path):
    path = tmp_path / "page.toml"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_bytes(content)
    with pytest.raises(
        UsageError, match=r"there is no such file|this file cannot be read"
    ) as raised:
        study.read(str(path))
    assert_one_sentence(str(raised.value), str(path))


# --------------------------------------------------------------------------------- packaged studies


@cache
def packaged(name):
    return study.read(name).cells()


@pytest.mark.parametrize("name", sorted(study.packaged()))
def test_a_packaged_study_parses_and_its_cells_are_unique(name):
    found = packaged(name)
    assert found
    assert len({cell.id for cell in found}) == len(found)


def test_the_promised_studies_are_packaged():
    assert {"smoke", "quick", "full", "origin"} <= set(study.packaged())


def test_quick_is_the_matrix_that_was_promised():
    """Four workloads, four optimizers (two on lesions), three clips at one threshold fixed in
    advance, six learning rates each, on twenty seeds.
    """
    quick, found = study.read("quick"), packaged("quick")
    small = {"wdbc", "digits", "temporal-order"}
    pairs = {*product(small, ("sgd", "momentum", "rmsprop", "adamw"))}
    pairs |= {("lesions", "sgd"), ("lesions", "adamw")}
    assert {(cell.workload.name, cell.optimizer.name) for cell in found} == pairs
    assert {cell.clip.name for cell in found} == {"none", "value", "norm"}
    assert {cell.schedule for cell in found} == {"cosine(warm_up=0.05)"}
    for (workload, optimizer), clip in product(pairs, ("none", "value", "norm")):
        points = [
            cell
            for cell in found
            if (cell.workload.name, cell.optimizer.name, cell.clip.name)
            == (workload, optimizer, clip)
        ]
        assert len({cell.lr for cell in points}) == 6
        assert {cell.percentile for cell in points} == {None if clip == "none" else 90.0}
        assert {cell.seed for cell in points} == {0, 1, 2}
        assert quick.seeds(workload).report == 17


def test_origin_holds_the_cell_of_the_document():
    """Momentum .9 at lr .01 with every gradient element cut to ±.01."""
    assert any(
        (cell.arm, cell.lr, cell.clip.settings) == ("momentum + value", 0.01, {"max_value": 0.01})
        for cell in packaged("origin")
    )


def test_full_runs_every_packaged_optimizer_on_both_devices_at_two_batch_sizes():
    found = packaged("full")
    ours = {
        name
        for name in registry.names("optimizer")
        if registry.find("optimizer", name).__module__.startswith("clipbench.")
    }
    assert {cell.optimizer.name for cell in found} == ours
    assert {cell.clip.label for cell in found} == {
        "none",
        "value",
        "norm",
        "norm(norm_type=inf)",
        "layer",
    }
    assert {cell.workload.name for cell in found} == {
        "wdbc",
        "digits",
        "temporal-order",
        "cosh",
        "origin",
    }
    assert {cell.device for cell in found} == {"cpu", "cuda"}
    assert len({cell.batch for cell in found if cell.workload.name == "wdbc"}) == 2
