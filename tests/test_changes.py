"""Single values of a page, changed from the command line."""

import tomllib

import pytest
from test_cli import clipbench, refused

from clipbench import protocol, study
from clipbench.errors import UsageError
from clipbench.store import Store
from clipbench.study.changes import changed

PAGE = """
title = "Small"

[run]
steps = 6       # a comment
batch = 8
lr = [0.01, 0.1]
seeds = { select = 1, report = 0 }

[[workload]]
name = "cosh"
lr = { momentum = [0.001] }

[[workload]]
name = "non-smooth"

[[optimizer]]
name = "sgd"

[[optimizer]]
name = "momentum"

[[optimizer]]
torch = "torch.optim.NAdam"

[[clip]]
name = "none"

[[clip]]
name = "norm"
percentile = 90

[[clip]]
name = "norm"
norm_type = "inf"
max_norm = 2.0
"""


@pytest.fixture(scope="module")
def page():
    return study.parse("small", PAGE, None)


def table(found, kind, name):
    return [one for one in tomllib.loads(found.text)[kind] if name in one.values()]


def test_a_value_of_a_table_takes_the_place_of_the_pages(page):
    found = changed(page, ["run.steps=100", "run.seeds.report=2", "run.schedule=cosine"])
    said = tomllib.loads(found.text)["run"]
    assert (said["steps"], said["schedule"]) == (100, "cosine")
    assert said["seeds"] == {"select": 1, "report": 2}
    assert {cell.steps for cell in found.cells()} == {100}
    assert (found.name, found.folder) == (page.name, page.folder)
    assert changed(page, ["protocol.grade=last"]).document.protocol.grade == "last"


def test_a_value_of_a_component_is_set_in_all_its_tables(page):
    norms = table(changed(page, ["clip.norm.relative=[0.5, 1]"]), "clip", "norm")
    told = [[one.get(word) for word in ("relative", "percentile", "max_norm")] for one in norms]
    assert told == [[[0.5, 1], None, None]] * 2
    dotted = changed(page, ["optimizer.torch.optim.NAdam.lr=0.5"])
    assert table(dotted, "optimizer", "torch.optim.NAdam")[0]["lr"] == 0.5
    seeds = changed(page, ["workload.cosh.seeds.report=4", "run.seeds.select=2"]).seeds("cosh")
    assert (seeds.select, seeds.report) == (1, 4)
    inner = changed(page, ["workload.cosh.lr.momentum=[0.002]"])
    assert table(inner, "workload", "cosh")[0]["lr"] == {"momentum": [0.002]}


def test_a_threshold_makes_way_for_one_that_is_given_another_way(page):
    found = changed(page, ["clip.norm.max_norm=3"])
    assert [set(one) for one in table(found, "clip", "norm")] == [
        {"name", "max_norm"},
        {"name", "norm_type", "max_norm"},
    ]


def test_the_page_says_what_was_changed_and_without_a_change_it_is_the_same(page):
    assert changed(page, []) is page
    assert changed(page, ["run.steps=6", "clip.norm.norm_type='inf'"]).text != page.text
    assert changed(page, ["run.steps=6"]).text == page.text
    first, *_ = changed(page, ["run.steps=7", "run.batch=4"]).text.splitlines()
    assert first == "# changed by -o run.steps=7 -o run.batch=4"


WRONG = {
    "no value": ("run.steps", "write TABLE.KEY=VALUE"),
    "no key": ("steps=3", "write TABLE.KEY=VALUE"),
    "no key of a component": ("clip.norm=3", "write TABLE.KEY=VALUE"),
    "a table": ("rum.steps=3", "no table `rum`. Did you mean run?"),
    "a name": ("optimizer.sdg.lr=1", 'no optimizer "sdg". Did you mean sgd?'),
    "a key": ("run.stepz=3", "no setting `stepz`", "Did you mean steps?"),
    "a key of a component": ("clip.norm.max_nrom=3", "Did you mean max_norm?"),
    "an inner key": ("run.steps.x=3", "`steps` of the page is no table"),
    "a type": ("run.steps=many", "`steps` is 'many', and must be a whole number"),
    "half a list": ("run.lr=[0.1", "neither TOML nor a bare word"),
    "a second line": ("run.steps=3\nx = 4", "neither TOML nor a bare word"),
    "what has no effect": ("workload.cosh.lr.sgdd=1", 'names "sgdd"'),
    "what another table says": ("optimizer.momentum.lr.cosh=[0.5]", "changes nothing that is run"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_change_is_one_sentence(page, what):
    option, *fragments = WRONG[what]
    with pytest.raises(UsageError) as wrong:
        changed(page, [option])
    assert str(wrong.value).startswith(f"-o {option}")
    for fragment in fragments:
        assert fragment in str(wrong.value)


def test_a_change_that_needs_another_beside_it_is_taken_with_it(page):
    with pytest.raises(UsageError, match="equal parts"):
        changed(page, ["run.accumulate=3"])
    assert {cell.batch for cell in changed(page, ["run.accumulate=3", "run.batch=6"]).cells()} == {
        6
    }


def test_a_folder_holds_the_page_as_it_was_run(tmp_path, monkeypatch):
    """And the run is told which part of it is meant."""
    asked = []

    def ran(page, store, options, watcher):
        asked.append((store.study, str(options.only)))
        store.write_page("plan", {"not_run": []})
        return protocol.Counts(kept=1, ran=1)

    monkeypatch.setattr(protocol, "run", ran)
    (tmp_path / "small.toml").write_text(PAGE)
    run = ("run", tmp_path / "small.toml", "--out", tmp_path / "out")
    said = clipbench(*run, "-o", "run.steps=3", "--only", "problem=non-smooth,optimizer=sgd")
    assert said.exit_code == 0, said.stderr
    assert "only problem=non-smooth,optimizer=sgd: without --only, `clipbench run`" in said.stdout
    [(page, part)] = asked
    assert tomllib.loads(page)["run"]["steps"] == 3
    assert part == "problem=non-smooth,optimizer=sgd"
    assert Store(tmp_path / "out").study == page
    wrong = clipbench("run", tmp_path / "small.toml", "--out", tmp_path / "no", "-o", "run.step=3")
    assert refused(wrong, "Did you mean steps?")
    assert not (tmp_path / "no").exists()
