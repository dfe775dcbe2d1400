"""The answer's first paragraph concludes from the verdicts, whatever they are."""

import math
import types

import pytest

from clipbench.report.conclusion import concluded, states
from clipbench.report.prose import paragraphs
from clipbench.schema import Verdict

LEADS = {"slow": 0.1}  # optimizer → by how much another one without a clip leads at 95 %
TASK = {"problem": "digits", "batch": 32, "device": "cpu", "dtype": "float32"}


def told(**verdicts):
    """The paragraph of a study, optimizer → the verdicts of its clips."""
    rows = [
        {
            **TASK,
            "arm": f"{name} + c{place}",
            "partner": name,
            "verdict": str(verdict),
            "instead_low": LEADS.get(name, math.nan),
        }
        for name, mine in verdicts.items()
        for place, verdict in enumerate(mine)
    ]
    rows = [{**row, "row": number} for number, row in enumerate(rows, start=2)]
    evidence = types.SimpleNamespace(short=str, labels={(*TASK.values(),): TASK["problem"]})
    [text] = paragraphs("conclusion", **concluded(evidence, rows))
    return text.unlinked.replace("**", "")


B, W, S, U = Verdict.BETTER, Verdict.WORSE, Verdict.SAME, Verdict.UNDECIDED
LEFT = "leave it off, or set it so high that it rarely fires."


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        ({"sgd": [U]}, "On sgd this study cannot tell: the one row is undecided."),
        (
            {"sgd": [U, U], "adam": [U]},
            "On sgd and adam this study cannot tell: all 3 rows are undecided.",
        ),
        ({"sgd": [B]}, "On sgd a clip is better in 1 of 1 row (c0 on digits)."),
        (
            {"sgd": [Verdict.PERHAPS_BETTER, B], "mine": [B]},
            (
                "On sgd and mine a clip is better in 3 of 3 rows (sgd + c0 on digits, "
                "sgd + c1 on digits, mine + c0 on digits)."
            ),
        ),
        ({"sgd": [B] * 5}, "On sgd a clip is better in 5 of 5 rows."),
        ({"sgd": [S]}, f"On sgd a clip makes no difference that matters: {LEFT}"),
        (
            {"sgd": [S, S]},
            f"On sgd a clip makes no difference that matters in any of 2 rows: {LEFT}",
        ),
        (
            {"sgd": [S, U]},
            (
                "On sgd no clip is shown to be better in any of 2 rows: nothing here speaks for "
                "one. 1 of 2 rows cannot be told from this study."
            ),
        ),
        (
            {"sgd": [W, U, U]},
            (
                "On sgd a clip is worse in 1 of 3 rows (c0 on digits): leave it off there. "
                "Most rows, 2 of 3, cannot be told from this study."
            ),
        ),
        ({"sgd": [Verdict.NEVER_FIRED]}, "On sgd no clip ever fired: it is the same as none."),
        (
            {"sgd": [Verdict.INCOMPLETE, Verdict.NEVER_FIRED]},
            "On sgd there is no verdict to go by.",
        ),
        ({"sgd": ["", ""]}, "On sgd there is no verdict to go by."),
        (
            {name: [U] for name in "abcde"},
            "On 5 optimizers this study cannot tell: all 5 rows are undecided.",
        ),
    ],
)
def test_the_conclusion_is_that_of_the_verdicts(verdicts, words):
    assert told(**verdicts) == words


def test_a_gain_and_a_loss_are_never_in_one_sentence():
    """Those of one optimizer as well."""
    text = told(sgd=[B, W, U], adam=[W])
    assert text.startswith("On sgd a clip is better in 1 of 3 rows (c0 on digits). On sgd and adam")
    assert not any("better" in one and "worse" in one for one in text.split(". "))


@pytest.mark.parametrize(("gains", "words"), [(1, "it"), (2, "each")])
def test_a_gain_that_another_optimizer_beats_is_said_to_be_beaten(gains, words):
    text = told(slow=[B] * gains, sgd=[U])
    assert f"Another optimizer without a clip is ahead of {words} at 95 %." in text
    assert "Another" not in told(sgd=[B])


def test_every_verdict_leads_to_something_that_is_said():
    assert all(states([verdict]) for verdict in Verdict)
    assert all(told(sgd=[verdict, U]) for verdict in Verdict)
