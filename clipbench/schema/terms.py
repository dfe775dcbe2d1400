"""The words that a column of the store may take, each with its meaning in a sentence."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Term(StrEnum):
    """A word that a column may take, with its meaning in a sentence. It is a string: Parquet and
    JSON know nothing else.
    """

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Self:
        self = str.__new__(cls, word)
        self._value_ = word
        self.meaning = meaning
        return self

    __repr__ = str.__repr__  # sentences quote what a column holds


class Status(Term):
    """Whether a run came to its end."""

    COMPLETED = "completed", "all its steps were taken"
    DIVERGED = "diverged", "a value stopped being finite, or the loss blew up and stayed there"
    FAILED = "failed", "an error ended it: nothing is known of its training"


class Outcome(Term):
    """What became of the training of a run that did not fail."""

    LEARNED = (
        "learned",
        "at the end its model does better than a constant prediction, by more than luck explains",
    )
    STALLED = "stalled", "its model never did"
    COLLAPSED = "collapsed", "its model did, and does not at the end"
    DIVERGED = "diverged", "a value stopped being finite, or the loss blew up and stayed there"


class Role(Term):
    """Which phase of the protocol asked for a cell."""

    SELECT = "select", "its settings are compared, to choose one of each arm"
    REPORT = "report", "a setting that was chosen, or is compared, is run on a fresh seed"
    WATCHED = "watched", "a training loop of somebody's own, watched: it is compared with nothing"


class Reading(Term):
    """Which of an arm's settings its report seeds stand for."""

    ALL = "all", "the best of all its settings"
    UNTUNED = "untuned", "a fixed learning rate and threshold, whatever the workload"


class Verdict(Term):
    """What a comparison says of a clip, at the same number of tries as without it."""

    BETTER = "better, by what matters", "its interval lies beyond the margin"
    PERHAPS_BETTER = (
        "better, size uncertain",
        "its interval lies above zero, and partly beyond the margin",
    )
    SAME = (
        "no difference that matters",
        "its interval lies inside the margin, on either side of zero or across it",
    )
    PERHAPS_WORSE = (
        "worse, size uncertain",
        "its interval lies below zero, and partly beyond the margin",
    )
    WORSE = "worse, by what matters", "its interval lies beyond the margin, below"
    UNDECIDED = "undecided", "its interval says none of these"
    NEVER_FIRED = "never fired", "the clip altered next to no gradient: it is the same as none"
    INCOMPLETE = "incomplete", "a seed failed, is missing or has no value"


class Kind(Term):
    """What happened in a run at one step."""

    NONFINITE_LOSS = "nonfinite_loss", "the training loss is not finite"
    NONFINITE_GRAD = "nonfinite_grad", "an element of the raw gradient is not finite"
    NONFINITE_PARAM = "nonfinite_param", "a parameter is not finite after the update"
    NONFINITE_EVALUATION = "nonfinite_evaluation", "a value of an evaluation is not finite"
    NORM_OVERFLOW = (
        "norm_overflow",
        "the gradient is finite and its norm is not: a norm clip makes it zero",
    )
    NORM_UNDERFLOW = (
        "norm_underflow",
        "the gradient is not zero and its squares are: its norm is zero or too short",
    )
    BLOW_UP = "blow_up", "the loss rose to a multiple of where it began, for some steps running"
    RECOVERED = "recovered", "the loss came back from a blow-up, and stayed so to the end"
    SPIKE = "spike", "the loss rose to a multiple of its running median"
    OVERCONFIDENT = (
        "overconfident",
        (
            "the validation loss exceeds a constant prediction's, though the metric is far "
            "ahead of its"
        ),
    )


class Sighting(Term):
    """What was seen of the clips of a watched loop: the event's step is the first of its kind, its
    value counts the steps.
    """

    CLIP = "clip", "a clip was seen"
    CHANGE = "change", "the loop's own code changed the gradient in a way that is no clip we know"
    DROPPED = "dropped", "a gradient was dropped, and no step used it"
    CLIP_MISSED = (
        "clip_missed",
        "a clip was called with no parameter of an optimizer that is watched",
    )
    SKIPPED_STEP = "skipped_step", "GradScaler skipped an update, for a gradient was not finite"
    NO_GRADIENT = "no_gradient", "the optimizer stepped, and no parameter had a gradient"
    CLIP_AFTER_STEP = "clip_after_step", "a clip ran after the step: it changed no update"
    CLIP_BEFORE_BACKWARD = (
        "clip_before_backward",
        "a clip ran before the backward pass, when there was no gradient",
    )
    CLIP_ON_SCALED = (
        "clip_on_scaled",
        "a clip met a gradient that GradScaler had multiplied and not divided yet",
    )
    CLIP_IN_ACCUMULATION = (
        "clip_in_accumulation",
        "a clip ran between two backward passes of one update",
    )
    CLIP_ON_PART = "clip_on_part", "a clip left out parameters that have a gradient"
    CLIP_AT_INFINITY = "clip_at_infinity", "a norm clip was called with an infinite threshold"
    CLIP_TWICE = "clip_twice", "two clips ran on the same gradient"


UNSTABLE = (Outcome.DIVERGED, Outcome.COLLAPSED)
NONFINITE = (Kind.NONFINITE_LOSS, Kind.NONFINITE_GRAD, Kind.NONFINITE_PARAM)
