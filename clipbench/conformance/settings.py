"""Example settings of any component, from the annotations of its fields."""

from __future__ import annotations

import math
import typing
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal

from clipbench import registry
from clipbench.conformance.findings import Doubt, Fault, under
from clipbench.errors import UsageError, describe

UNCLIPPED = "none"  # the arm that every clip is compared with: it has no threshold
THRESHOLDS = (1.0, 0.01, 0.1, 10.0, math.inf)


def candidates(cls: type[Any], name: str) -> list[Any]:
    """Values of one setting to try, its default first; of a clip's threshold several orders of
    magnitude.
    """
    annotation = registry.fields(cls)[name]
    plain = (
        typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
    )
    default = next(field.default for field in fields(cls) if field.name == name)
    threshold = cls.kind == "clip" and name == registry.threshold_field(cls)
    tried: tuple[Any, ...] = () if default is MISSING else (default,)
    if typing.get_origin(plain) is Literal:
        tried += typing.get_args(plain)
    elif plain is bool:
        tried += (False, True)
    elif plain is float:
        tried += (
            THRESHOLDS
            if threshold
            else (0.1, 0.5, 2.0)
            if default is MISSING
            else (0.9 * default, 0.01)
        )
    elif plain is int and (threshold or default is MISSING):
        tried += (1, 2, 8)
    fitting = [
        value
        for position, value in enumerate(tried)
        if value not in tried[:position] and fits(value, annotation)
    ]
    if not fitting:
        raise Fault(
            f"there is no example of `{name}` ({describe(annotation)}) to try; give it a default"
        )
    return fitting


def fits(value: Any, annotation: Any) -> bool:
    """Whether a setting with this annotation may have this value."""
    try:
        registry.fit(value, annotation, "")
    except UsageError:
        return False
    return True


def examples(cls: type[Any]) -> list[dict[str, Any]]:
    """Settings to try: the first choice of all, then one setting changed at a time."""
    tried = {name: candidates(cls, name) for name in registry.fields(cls)}
    first = {name: values[0] for name, values in tried.items()}
    return [first] + [
        {**first, name: value} for name, values in tried.items() for value in values[1:]
    ]


def settings_validate(cls: type[Any]) -> None:
    """Defaults fit their own annotations, and what validates can be built.

    :raises Doubt: a clip has no threshold.
    """
    for field in fields(cls):
        if field.default is not MISSING:
            registry.fit(
                field.default, registry.fields(cls)[field.name], f"the default of `{field.name}`"
            )
    for settings in examples(cls):
        with under(settings):
            registry.validated(cls, settings, cls.name)
            cls(**settings)
    if cls.kind == "clip" and cls.name != UNCLIPPED and not fields(cls):
        bare = [
            name
            for name, value in vars(cls).items()
            if type(value) in (int, float) and not name.startswith("_")
        ]
        raise Doubt(
            f"there is no threshold: the first field with an annotation is it, such as "
            f"`{(bare or ['max_norm'])[0]}: Positive = 1.0`"
            + (f"; `{bare[0]}` has none" if bare else "")
        )
