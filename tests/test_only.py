"""A part of a study: what it runs, what it leaves to another run, and that nothing is wrong after
it.
"""

import pandas as pd
import pytest
from executors import InProcess
from pages import study_page
from test_cli import clipbench, refused

from clipbench import protocol, registry, study
from clipbench.errors import UsageError
from clipbench.store import Store
from clipbench.study.only import only

PAGE = study_page(
    ["cosh", "non-smooth"],
    ["sgd", "momentum"],
    {"none": {}, "norm": {"relative": [0.1, 0.3]}, "value": {"max_value": 1.0}},
    steps=6,
    batch=8,
    evaluations=2,
    lr=[0.001, 0.01],
    report=1,
)


@pytest.fixture(scope="module")
def asked():
    return study.parse("tiny", PAGE, None)


def run(asked, folder, *parts):
    """The store after a run of these parts, and its counts."""
    registry.load_packaged()
    made = Store.create(folder, asked.name, asked.text)
    options = protocol.Options(engine="loop", throughput=False, only=only(parts, asked.templates()))
    with made.claim(), InProcess() as executor:
        counts = protocol.run(asked, made, options, executor=executor)
    return Store(folder), counts


def kinds(store):
    """(problem, optimizer, clip) of the stored cells."""
    cells = store.read("cells")
    return set(cells[["problem", "optimizer", "clip"]].itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory):
    return run(asked, tmp_path_factory.mktemp("only") / "whole")[0]


def test_part_after_part_comes_to_what_a_run_at_once_comes_to(asked, whole, tmp_path):
    """The cells, the choices and what was committed to; and a run of the rest keeps all parts."""
    for part in ("problem=cosh,optimizer=sgd", "problem=cosh,optimizer=momentum,clip=value"):
        run(asked, tmp_path / "tiny", part)
    one = Store(tmp_path / "tiny").read("cells")
    done, counts = run(asked, tmp_path / "tiny")
    assert counts.kept == len(one)
    assert not done.missing()
    every = done.read("cells").sort_values("cell")
    columns = ["cell", "role", "arm", "lr", "seed", "final_loss"]
    pd.testing.assert_frame_equal(
        every[columns].reset_index(drop=True),
        whole.read("cells").sort_values("cell")[columns].reset_index(drop=True),
    )
    for page in ("plan", "components", "preregistered", "calibration"):
        assert done.page(page) == whole.page(page)


def test_only_the_part_is_run_and_its_choices_are_those_of_the_whole(asked, whole, tmp_path):
    part, _ = run(asked, tmp_path / "tiny", "problem=cosh", "optimizer=sgd,clip=norm")
    assert kinds(part) == {("cosh", "sgd", "none"), ("cosh", "sgd", "norm")}
    cells = whole.read("cells")
    mine = cells[
        (cells["problem"] == "cosh")
        & (cells["optimizer"] == "sgd")
        & cells["clip"].isin(["none", "norm"])
    ]
    run_here = set(part.read("cells")["cell"])
    assert run_here <= set(mine["cell"])
    # what another clip asks for beside it is another part's: a lower lr in that one's place
    others = mine[~mine["cell"].isin(run_here)]
    assert set(others["arm"]) <= {"sgd"}
    assert set(others["role"]) <= {"report"}
    # the page and what was committed to tell of the whole study, and it is not called finished
    assert part.study == PAGE
    assert (
        part.page("preregistered")["versions"][0]["families"]
        == (whole.page("preregistered")["versions"][0]["families"])
    )
    assert any("select cells are missing" in sentence for sentence in part.missing())
    assert not part.problems()


def test_a_part_does_not_choose_for_arms_that_lack_cells(asked, whole, tmp_path):
    """What was begun of another optimizer waits until its grid is whole."""
    folder = tmp_path / "tiny"
    run(asked, folder, "problem=cosh,optimizer=sgd")
    planned = Store(folder).page("plan")["cells"]["report"]
    stored = whole.read("cells").set_index("cell")
    assert planned
    assert set(stored.loc[planned, "optimizer"]) == {"sgd"}
    run(asked, folder, "problem=non-smooth,optimizer=momentum")
    planned = stored.loc[Store(folder).page("plan")["cells"]["report"]]
    met = set(planned[["problem", "optimizer"]].itertuples(index=False, name=None))
    assert met == {("cosh", "sgd"), ("non-smooth", "momentum")}  # the first part's stay


@pytest.mark.parametrize(
    ("said", "fragment"),
    [
        ("problem", "write KEY=NAME"),
        ("problem=cosh,", "write KEY=NAME"),
        ("problm=cosh", "there is no key `problm`. Did you mean problem?"),
        ("lr=0.1", "`lr` cannot be chosen, because arms are compared"),
        ("seed=1", "`seed` cannot be chosen"),
        ("problem=cos", 'no problem "cos". Did you mean cosh?'),
        ("optimizer=adam", 'no optimizer "adam". There are: sgd, momentum.'),
    ],
)
def test_what_cannot_be_chosen_is_refused(asked, said, fragment):
    with pytest.raises(UsageError) as wrong:
        only([said], asked.templates())
    assert fragment in str(wrong.value)


def test_a_combination_that_the_study_does_not_run_is_refused(tmp_path):
    page = PAGE.replace('name = "momentum"', 'name = "momentum"\nworkloads = ["non-smooth"]')
    cells = study.parse("tiny", page, None).templates()
    with pytest.raises(UsageError, match="runs no such combination"):
        only(["problem=cosh,optimizer=momentum"], cells)


def test_a_label_with_commas_in_brackets_is_one_name():
    page = PAGE.replace('name = "sgd"', 'name = "sgd"\nschedule = "cosine(warm_up=0.1)"')
    cells = study.parse("tiny", page, None).templates()
    label = next(cell.optimizer.label for cell in cells if cell.optimizer.name == "sgd")
    chosen = only([f"optimizer={label},problem=cosh"], cells)
    assert {cell.optimizer.label for cell in cells if chosen.meets(cell)} == {label}


def test_plan_counts_the_part_and_a_wrong_part_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(PAGE)
    asked = []
    monkeypatch.setattr(protocol, "predict", lambda *told: asked.append(told[1]) or [])
    said = clipbench("plan", "tiny.toml", "--only", "problem=cosh,clip=value")
    assert said.exit_code == 0, said.stderr
    assert len(asked[0].cells) == 8  # two optimizers, value and none, two lrs
    assert refused(clipbench("run", "tiny.toml", "--only", "clip=valeu"), "Did you mean value?")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]
