"""Learning-rate schedules: the share of its learning rate that a run has at each step.

A schedule is a word of the study's language, not a component: ``cosine``, or with settings
``cosine(warm_up=0.1)``. In a cell it is a setting of the optimizer, left out where it is
``constant``; an engine multiplies the cell's lr by ``factors(schedule, steps)``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from clipbench import vocabulary
from clipbench.errors import UsageError, describe, nearest
from clipbench.registry import NonNegative, Positive, Unit, fields, fit

CONSTANT = vocabulary.CONSTANT


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step.

    :param warm_up: share of the steps that come first, over which the rate rises in a straight
        line; here as in every schedule.
    """

    warm_up: Unit = 0.0

    def share(self, progress: float) -> float:
        """The factor after a share of the steps (those of the warm-up left out), which is from 0
        up to, not including, 1.
        """
        return 1.0


@dataclass(frozen=True)
class WarmUp(Constant):
    """Rising in a straight line over the first tenth of the steps, then constant (Goyal et al.
    2017).
    """

    warm_up: Unit = 0.1


@dataclass(frozen=True)
class Cosine(Constant):
    """Falling along half a cosine (Loshchilov and Hutter 2017), as ``CosineAnnealingLR`` over all
    steps.

    :param floor: the share that it falls to.
    """

    floor: Unit = 0.0

    def share(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Polynomial(Constant):
    """Falling to zero as a power of the steps that are left; nnU-Net's with .9 (Isensee et al.
    2021), a straight line with 1.

    :param power: above 0.
    """

    power: Positive = 0.9

    def share(self, progress: float) -> float:
        return (1 - progress) ** self.power


@dataclass(frozen=True)
class Step(Constant):
    """Multiplied by a factor at two points; MedMNIST's, with a tenth at a half and at three
    quarters (Yang et al. 2023).

    :param first: share of the steps before the first fall.
    :param second: share of the steps before the second; 1 for no second.
    :param factor: what the rate is multiplied by.
    """

    first: Unit = 0.5
    second: Unit = 0.75
    factor: NonNegative = 0.1

    def share(self, progress: float) -> float:
        return self.factor ** ((progress >= self.first) + (progress >= self.second))


KNOWN: dict[str, type[Constant]] = {
    CONSTANT: Constant,
    "warm-up": WarmUp,
    "cosine": Cosine,
    "polynomial": Polynomial,
    "step": Step,
}


def canonical(text: str, where: str) -> str:
    """A schedule as a cell has it: settings in the order of their declaration, those at their
    default left out.

    :raises UsageError: no such schedule, or an unknown or unfit setting.

    >>> canonical("cosine( floor = 0.0, warm_up = 0.10 )", "here")
    'cosine(warm_up=0.1)'
    """
    match = re.fullmatch(r"\s*([a-z-]+)\s*(?:\((.*)\))?\s*", text)
    name, settings = (match[1], match[2] or "") if match else (text, "")
    if name not in KNOWN:
        raise UsageError(
            f'{where}: there is no schedule "{name}".{nearest(name, KNOWN)} There are: '
            f"{', '.join(KNOWN)}."
        )
    declared, values = fields(KNOWN[name]), dict[str, float]()
    for setting in filter(None, (one.strip() for one in settings.split(","))):
        key, _, value = (word.strip() for word in setting.partition("="))
        if key not in declared:
            known = ", ".join(
                f"{field} ({describe(annotation)})" for field, annotation in declared.items()
            )
            raise UsageError(
                f'{where}: the schedule "{name}" has no setting `{key}`. It has: '
                f"{known}.{nearest(key, declared)}"
            )
        what = f'{where}: the schedule "{name}" setting `{key}`'
        try:
            number: float | str = float(value)
        except ValueError:
            number = value
        values[key] = fit(number, declared[key], what)
    changed = [
        f"{field.name}={values[field.name]!r}"
        for field in dataclasses.fields(KNOWN[name])
        if field.name in values and values[field.name] != field.default
    ]
    return f"{name}({', '.join(changed)})" if changed else name


def factors(schedule: str, steps: int) -> list[float]:
    """The factor of a cell's learning rate at each of its steps.

    :param schedule: as `canonical` returns it.

    >>> factors("polynomial(power=1.0)", 4)
    [1.0, 0.75, 0.5, 0.25]
    >>> factors("warm-up(warm_up=0.5)", 4)
    [0.5, 1.0, 1.0, 1.0]
    """
    name, _, words = schedule.rstrip(")").partition("(")
    settings = {
        key: float(value)
        for key, _, value in (word.partition("=") for word in words.split(", ") if word)
    }
    shape = KNOWN[name](**settings)
    rising = round(shape.warm_up * steps)
    return [(step + 1) / rising for step in range(rising)] + [
        shape.share(step / (steps - rising)) for step in range(steps - rising)
    ]
