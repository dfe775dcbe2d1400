"""The words that a page uses in a sense of its own: each is marked where a page first uses it, and
listed with its meaning at the page's end.

``docs/words.md`` has the same sentences. It knows no section, and not what is marked where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from clipbench.schema import Outcome, Term, Verdict

SENTENCES = {  # word → what it means, in the order in which they build on each other
    "threshold": (
        "A clip's first setting, such as `max_norm`: a number, a multiple (`relative`) of the "
        "pilot's median size, or a percentile (`percentile`) of the pilot's sizes."
    ),
    "pilot": (
        "A short run with Adam on a seed of its own. The sizes of its gradients give the relative "
        "thresholds and the percentiles."
    ),
    "arm": ("An optimizer with a clip, without lr and threshold: what a comparison compares."),
    "grid": "All settings of an arm that a study asks for.",
    "seed": (
        "Draws weights, batches and splits. Selection seeds count from 0 and choose settings, "
        "report seeds from 1000 and judge what was chosen."
    ),
    "cell": (
        "One training run of the matrix: workload, optimizer, clip, lr, seed, steps, batch, "
        "device, dtype."
    ),
    "same tries": (
        "The headline's settings: of every arm its optimizer's learning rates, and of a clip one "
        "threshold fixed in advance."
    ),
    "replica": "The same study once more, from weights that differ in their last digits.",
    "margin": (
        "The difference in a workload's metric inside which no difference matters; δ in tables."
    ),
    "decade": "A factor of ten; half a decade is a factor of 3.2.",
    "family": (
        "Comparisons that are judged together, with one chance of a wrong word for all of them."
    ),
    "jackknife": "An interval from how far a result moves if one seed is left out.",
    "verdict": (
        "What a comparison says of a clip: better, worse, no difference that matters, or undecided."
    ),
    "event": ("Something that happened at a step: a loss that is not finite, a spike, a blow-up."),
    "outcome": "How it ended as training: learned, stalled, collapsed or diverged.",
    "target": ("A validation loss that a good run reaches; the steps until then measure speed."),
}
TERMS: Mapping[str, type[Term]] = {"outcome": Outcome, "verdict": Verdict}  # word → its members
FORMS = {  # word → how texts have it, if not as it is or with an s
    "family": "family|families",
    "seed": "(?:selection |report )?seeds?",
    "same tries": "same (?:number of )?tries",
    "decade": "(?:half-)?decades?",
}


@dataclass(frozen=True)
class Entry:
    """A word of the list, and what it means; the anchor of its line."""

    word: str
    meaning: str

    @property
    def anchor(self) -> str:
        """Where the list has it."""
        return f"word-{self.word.replace(' ', '-')}"


def _entry(word: str) -> Entry:
    """A word with its sentence, and with the words that it may be, if it is a column's."""
    members = [f"{term}: {term.meaning}" for term in TERMS.get(word, ())]
    told = " ".join([SENTENCES[word], *([f"{'; '.join(members)}."] if members else [])])
    return Entry(word, told.replace("`", ""))


def _forms() -> list[tuple[str, Entry]]:
    """How texts have each word, as a pattern, the longest first; a column's members lead to it."""
    forms = []
    for word in SENTENCES:
        entry = _entry(word)
        forms.append((FORMS.get(word, f"{re.escape(word)}s?"), entry))
        forms += [(_inflected(term), entry) for term in TERMS.get(word, ())]
    return sorted(forms, key=lambda form: -len(form[0]))


def _inflected(term: Term) -> str:
    """A member as texts have it: an outcome also as a verb."""
    stem = str(term).removesuffix("ed")
    return f"{stem}(?:ed|es|e|s)" if isinstance(term, Outcome) else re.escape(term)


KNOWN = _forms()
NAMED = {f"f{place}": entry for place, (_, entry) in enumerate(KNOWN)}  # group of the pattern →
PATTERN = re.compile(
    rf"\b(?:{'|'.join(f'(?P<f{place}>{form})' for place, (form, _) in enumerate(KNOWN))})\b",
    re.IGNORECASE,
)


class Marks:
    """Marks the words of one page: called with its texts, in the order in which they are read."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    @property
    def met(self) -> list[Entry]:
        """The words that were marked so far, in the order of the list."""
        entries = {NAMED[name].word: NAMED[name] for name in self.seen}
        return [entries[word] for word in SENTENCES if word in entries]

    def __call__(self, text: str, link: bool = True) -> str:
        """The text as HTML. A word that is met for the first time is a link to its line in the
        list, or an abbreviation if it stands where no link may.
        """
        told, end = [], 0
        for found in PATTERN.finditer(text):
            name = str(found.lastgroup)
            if name in self.seen:
                continue
            self.seen.add(name)
            entry = NAMED[name]
            title, word = escape(entry.meaning), escape(found.group())
            told.append(escape(text[end : found.start()]))
            told.append(
                f'<a class="word" href="#{entry.anchor}" title="{title}">{word}</a>'
                if link
                else f'<abbr title="{title}">{word}</abbr>'
            )
            end = found.end()
        return "".join([*told, escape(text[end:])])
