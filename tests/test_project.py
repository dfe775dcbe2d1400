"""What the project's own files promise each other: README, tox.ini, constraints, changelog."""

from __future__ import annotations

import ast
import configparser
import re
import sys
import tomllib

import pytest
import strangers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import clipbench
from clipbench import protocol, schema, study, task, vocabulary
from clipbench.analysis.outcomes import Note

IMPORTED_AS = {
    "pytorch-ignite": "ignite",
    "scikit-learn": "sklearn",
    "vl-convert-python": "vl_convert",
}


@pytest.fixture(scope="module")
def project(checkout):
    return tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def readme(checkout):
    return (checkout / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def environments(checkout):
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(checkout / "tox.ini", encoding="utf-8")
    return {
        section.partition(":")[2] for section in tox.sections() if section.startswith("testenv:")
    }


@pytest.fixture(scope="module")
def pins(checkout):
    lines = [
        line.partition("#")[0].strip()
        for line in (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines()
    ]
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(None, lines))}


def requirements(project):
    return [
        Requirement(text)
        for some in (project["dependencies"], *project["optional-dependencies"].values())
        for text in some
    ]


def test_readme_docs_and_contributing_name_environments_that_exist(checkout, readme, environments):
    pages = [checkout / "CONTRIBUTING.md", *(checkout / "docs").glob("*.md")]
    text = readme + "".join(page.read_text(encoding="utf-8") for page in pages)
    named = {name for some in re.findall(r"\btox -e ([\w,-]+)", text) for name in some.split(",")}
    assert {"quick", "tests"} <= named <= environments


def test_ci_runs_the_readmes_test_command(checkout, readme):
    [command] = {
        line.strip() for line in readme.splitlines() if line.strip().endswith("tox -e tests")
    }
    assert command in (checkout / ".ci" / "run").read_text(encoding="utf-8")


def test_every_requirement_has_a_pin_that_satisfies_it(project, pins):
    for requirement in requirements(project):
        pin = pins[canonicalize_name(requirement.name)]
        # no local label such as +cpu: that is the machine's choice
        version = re.fullmatch(r"==([\w.]+)", str(pin.specifier))[1]
        assert requirement.specifier.contains(version), f"{requirement} against {pin}"


def test_every_pin_is_bare(pins):
    """A pin names no place to fetch from and no single platform."""
    assert all(not pin.url and not pin.marker and not pin.extras for pin in pins.values())


def test_every_library_that_is_imported_is_declared(checkout, project):
    declared = {
        IMPORTED_AS.get(one.name, one.name.replace("-", "_")) for one in requirements(project)
    }
    imported = set()
    for path in (checkout / "clipbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    assert imported - sys.stdlib_module_names - {"clipbench"} <= declared


def test_the_changelog_has_this_version(checkout):
    headings = re.findall(
        r"^## (\S+)", (checkout / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert headings[0] == clipbench.__version__
    assert headings == sorted(headings, key=Version, reverse=True)


def test_every_public_name_is_there():
    assert all(getattr(clipbench, name) is not None for name in clipbench.__all__)
    assert set(clipbench.__all__) <= set(dir(clipbench))


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'clipp'"):
        clipbench.clipp  # noqa: B018  (that it raises is the point)


def test_every_packaged_study_is_a_page_with_a_title(checkout):
    pages = sorted((checkout / "clipbench" / "studies").glob("*.toml"))
    assert {"smoke", "quick", "full", "origin"} <= {page.stem for page in pages}
    for page in pages:
        assert tomllib.loads(page.read_text(encoding="utf-8"))["title"].strip(), page.name


def test_the_study_that_the_docs_show_is_one(tmp_path):
    """Six learning rates of sgd and three of NAdam, without a clip and at three thresholds, on
    three seeds.
    """
    cells = study.parse("shown", strangers.STUDY, tmp_path).cells()
    assert len(cells) == (6 + 3) * (1 + 3) * 3
    assert {cell.optimizer.name for cell in cells} == {"sgd", "torch.optim.NAdam"}


def test_the_docs_name_the_tables_in_which_a_word_may_stand(checkout):
    page = (checkout / "docs" / "study.md").read_text(encoding="utf-8")
    places = {
        "`[run]`": "run",
        "`[protocol]`": "protocol",
        **{kind: kind for kind in vocabulary.KINDS},
    }
    found = {}
    [table] = re.findall(r"^\| word \| table \|.+?\n\n", page, flags=re.MULTILINE | re.DOTALL)
    for words, tables in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", table, flags=re.MULTILINE):
        homes = (
            {"run", *vocabulary.KINDS}
            if tables == "any"
            else {places[place] for place in tables.split(", ")}
        )
        found |= dict.fromkeys(re.findall(r"\w+", words), homes)
    assert len(found) >= 10
    assert found == {word: {*vocabulary.HOMES[word]} & {*places.values()} for word in found}


def test_contributing_lists_what_a_new_clip_owes_and_nothing_else(checkout):
    """A clip that nothing else needs is spoken of in its own module, in its test and in the
    files of the list, and nowhere else.
    """
    text = (checkout / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = text.partition("it owes four things")[2].partition("What each")[0]
    listed = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", text, re.MULTILINE)
    assert len(listed) == 4
    places = [
        *(checkout / name for name in ("clipbench", "tests", "benchmarks", "docs")),
        checkout / "README.md",
        checkout / "examples",
    ]
    files = [
        file for place in places for file in ([place] if place.is_file() else place.rglob("*"))
    ]
    spoken = re.compile(r"""["`]z-score["`]|\bZScore\b""")
    found = {
        path.relative_to(checkout).as_posix()
        for path in files
        if path.suffix in (".py", ".toml", ".json", ".md")
        and spoken.search(path.read_text(encoding="utf-8"))
    }
    assert found - {"tests/test_project.py"} == {
        "clipbench/clips/running.py",
        "tests/test_clips.py",
        *listed,
    }


def test_the_readme_is_read_in_one_go(readme):
    """What more there is to say has a page of its own in docs."""
    assert len(readme.splitlines()) <= 145


def test_every_page_of_the_docs_is_in_the_table_of_contents(checkout):
    docs = checkout / "docs"
    listed = re.findall(r"^[a-z_-]+$", (docs / "index.md").read_text("utf-8"), re.MULTILINE)
    assert sorted([*listed, "index"]) == sorted(page.stem for page in docs.glob("*.md"))


def test_every_link_of_the_readme_and_the_docs_leads_to_a_file(checkout):
    pages = [
        checkout / "README.md",
        checkout / "CONTRIBUTING.md",
        *(checkout / "docs").glob("*.md"),
    ]
    dead = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert dead == []


def test_words_defines_what_rows_and_phases_are_called(checkout):
    text = (checkout / "docs" / "words.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE))
    for word, terms in (
        ("status", schema.Status),
        ("outcome", schema.Outcome),
        ("phase", protocol.PHASES),
    ):
        assert [term for term in terms if term not in rows[word]] == []
    assert len(rows) > 30
    assert [name for name in re.findall(r"`task\.(\w+)`", text) if not hasattr(task, name)] == []


def test_words_lists_the_words_of_the_tables_with_their_meanings(checkout):
    text = (checkout / "docs" / "words.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\w+) \| ([^|]+) \| ([^|]+)\. \|$", text, flags=re.MULTILINE)
    enums = {
        "status": schema.Status,
        "outcome": schema.Outcome,
        "role": schema.Role,
        "reading": schema.Reading,
    }
    enums |= {"verdict": schema.Verdict, "kind": [*schema.Kind, *schema.Sighting], "note": Note}
    wanted = [
        (column, word, word.meaning[0].upper() + word.meaning[1:])
        for column, words in enums.items()
        for word in words
    ]
    assert listed == wanted


def test_what_a_user_meets_first_speaks_of_the_same_version(checkout):
    citation = (checkout / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {clipbench.__version__}\n" in citation
