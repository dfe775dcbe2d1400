"""No number without its row: what README and docs say of results is what the committed tables
hold.

A number is a link to its table, whose title names the column and the row:
``[+.012](results/quick/report/tables/verdicts-digits.csv "difference: arm = sgd + value")``.
"""

import csv
import math
import re
from pathlib import Path

import pytest

LINK = re.compile(
    r'\[(?P<shown>[^\[\]]+)\]\((?:\.\./)?(?P<file>results/[^\s)]+\.csv) "(?P<title>[^"]+)"\)'
)
DECIMAL = re.compile(r"(?<![\w.])[+−-]?\d*\.\d+(?!\w)")
PAGES = [
    "README.md",
    *sorted(f"docs/{page.name}" for page in Path(__file__).parents[1].glob("docs/*.md")),
]
FOUND = {
    "README.md": "## What the quick study found",
    "docs/findings.md": "# What the quick study f",
}


def value(text: str) -> float:
    """What a number in prose says: ``−.012``, ``84 %``, ``5,131``."""
    plain = text.replace("−", "-").replace("+", "").replace(",", "")
    return float(plain.removesuffix(" %")) / (100 if plain.endswith(" %") else 1)


def unit(text: str) -> float:
    """The last place that is shown."""
    digits = text.removesuffix(" %").partition(".")[2]
    return 10.0 ** -len(digits) / (100 if text.endswith(" %") else 1)


def looked_up(root: Path, file: str, title: str) -> str:
    column, _, where = title.partition(": ")
    wanted = dict(pair.split(" = ") for pair in where.split("; ")) if where else {}
    with (root / file).open(encoding="utf-8", newline="") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if all(row[name].lstrip("'") == said for name, said in wanted.items())
        ]
    assert len(rows) == 1, f"{file}: {title} names {len(rows)} rows"
    return rows[0][column]


def links(root: Path, page: str):
    return list(LINK.finditer((root / page).read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES)
def test_every_number_that_links_to_a_table_is_the_one_in_its_row(checkout, page):
    for link in links(checkout, page):
        held = looked_up(checkout, link["file"], link["title"])
        shown = link["shown"]
        if not re.search(r"\d", shown):
            assert shown == held, link[0]
            continue
        assert math.isclose(value(shown), float(held), abs_tol=0.5001 * unit(shown)), (
            f"{link[0]}: the table says {held}"
        )


@pytest.mark.parametrize("page", FOUND)
def test_what_a_page_says_of_results_has_no_number_without_its_row(checkout, page):
    """In the section on what the studies found, every decimal number is a link."""
    text = (checkout / page).read_text(encoding="utf-8")
    section = text.partition(FOUND[page])[2].partition("\n## ")[0]
    assert len(LINK.findall(section)) >= 10
    bare = DECIMAL.findall(LINK.sub("", re.sub(r"`[^`]*`", "", section)))
    assert bare == []


def test_a_number_that_is_not_in_its_row_is_found(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/a.csv").write_text("arm,difference\n'+x,0.0123\nsgd,-0.5\n")
    for shown, right in (("+.012", True), ("+.0123", True), ("1 %", True), ("+.013", False)):
        held = looked_up(tmp_path, "results/a.csv", "difference: arm = +x")
        assert math.isclose(value(shown), float(held), abs_tol=0.5001 * unit(shown)) == right
    assert value("−.5") == float(looked_up(tmp_path, "results/a.csv", "difference: arm = sgd"))
    with pytest.raises(AssertionError, match="names 0 rows"):
        looked_up(tmp_path, "results/a.csv", "difference: arm = adam")


def test_the_readme_marks_the_rows_that_the_findings_warn_of():
    """An interval that is known to be too short must not stand there like the others."""
    root = Path(__file__).parents[1]
    findings = " ".join((root / "docs" / "findings.md").read_text(encoding="utf-8").split())
    [warned] = re.findall(r"plain SGD on ((?:`[a-z-]+`(?: and |, )?)+) is of this kind", findings)
    rows = re.findall(
        r"^\| `([a-z-]+)` \|(.*)\|$", (root / "README.md").read_text("utf-8"), re.MULTILINE
    )
    marked = {name for name, row in rows if "†" in row}
    assert marked == set(re.findall(r"`([a-z-]+)`", warned))
