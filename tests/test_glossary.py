"""The words that a page uses in a sense of its own are marked once, escaped, and listed."""

import re

import pytest

from clipbench import schema
from clipbench.report.glossary import SENTENCES, Marks


def test_a_word_is_marked_at_its_first_use_alone_and_leads_to_its_line():
    marks = Marks()
    assert re.findall(r'href="#([a-z-]+)"[^>]*>(\w+)<', marks("A pilot, and pilots")) == [
        ("word-pilot", "pilot")
    ]
    assert marks("The pilot") == "The pilot"
    assert [entry.anchor for entry in marks.met] == ["word-pilot"]


def test_where_no_link_may_stand_a_word_is_an_abbreviation_with_its_meaning():
    told = Marks()("decades", link=False)
    assert told.startswith('<abbr title="A factor of ten')
    assert "href" not in told


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("on selection seeds", "selection seeds"),
        ("no run collapses", "collapses"),
        ("Undecided: 3", "Undecided"),
        ("the same number of tries", "same number of tries"),
        ("a half-decade", "half-decade"),
        ("two families", "families"),
    ],
)
def test_a_word_is_known_in_the_forms_that_texts_have(text, marked):
    assert f">{marked}</a>" in Marks()(text)


def test_a_word_within_another_is_none():
    assert Marks()("harm, excellent, learning") == "harm, excellent, learning"


def test_a_text_is_escaped_around_its_words():
    assert Marks()('<b> "x"') == "&lt;b&gt; &quot;x&quot;"
    assert "&lt;pilot" not in Marks()("<pilot>").partition(">")[0]


def test_every_word_of_an_outcome_and_a_verdict_leads_to_the_line_that_explains_it():
    for word, terms in (("outcome", schema.Outcome), ("verdict", schema.Verdict)):
        for term in terms:
            marks = Marks()
            assert f'href="#word-{word}"' in marks(f"a run: {term}.")
            assert f"{term}: {term.meaning}" in marks.met[0].meaning


def test_the_page_and_the_docs_explain_a_word_by_the_same_sentence(checkout):
    text = (checkout / "docs" / "words.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE))
    assert {word: rows.get(word) for word in SENTENCES} == SENTENCES
