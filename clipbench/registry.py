"""Three tables of components, filled by three decorators.

A component is a class: its annotated fields are its settings. The decorators make it a frozen
dataclass and enter it under its name; nothing is validated when a component is built (under
``torch.func.vmap`` a float field is a tensor), everything is validated here, before. This module
never imports torch, so that a component's name can be checked without waiting for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from clipbench import vocabulary
from clipbench.errors import UsageError, describe, nearest, with_article

Positive = Annotated[float, Field(gt=0, description="positive number")]
Finite = vocabulary.Finite
NonNegative = Annotated[float, Field(ge=0, description="number of at least 0")]
Unit = Annotated[float, Field(ge=0, le=1, description="number from 0 to 1")]
Percent = vocabulary.Percent
# The share of a running average that stays from one step to the next: at 1 it would never learn of
# a gradient.
Decay = Annotated[float, Field(ge=0, lt=1, description="number from 0 up to, but not including, 1")]
Count = vocabulary.Count

Kind = vocabulary.Kind
KINDS = vocabulary.KINDS
PACKAGED = ("clipbench.clips", "clipbench.optimizers", "clipbench.workloads")
ENTRY_POINTS = "clipbench.components"

C = TypeVar("C", bound=type)


# --------------------------------------------------------------------------------------- the tables

_tables: dict[str, dict[str, type]] = {kind: {} for kind in KINDS}
_used: dict[Path, str] = {}
_dotted: dict[str, Callable[[str, str], Any]] = {}


@dataclass_transform(frozen_default=True)
def workload(name: str) -> Callable[[C], C]:
    """Register a learning problem under ``name``."""
    return _decorator("workload", name)


@dataclass_transform(frozen_default=True)
def optimizer(name: str) -> Callable[[C], C]:
    """Register an update rule under ``name``."""
    return _decorator("optimizer", name)


@dataclass_transform(frozen_default=True)
def clip(name: str) -> Callable[[C], C]:
    """Register a transformation of gradients under ``name``; its first field is its threshold."""
    return _decorator("clip", name)


def dotted(kind: Kind) -> Callable[[Callable[[str, str], Any]], Callable[[str, str], Any]]:
    """Register the function ``finder(path, where)`` that finds components of a kind by a dotted
    path instead of a name.

    What it returns has ``name`` and ``version``, builds a component when called with settings, and
    checks them in ``validated``.
    """

    def register(finder: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
        _dotted[kind] = finder
        return finder

    return register


def _decorator(kind: Kind, name: str) -> Callable[[C], C]:
    def register(cls: C) -> C:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise UsageError(
                f'@{kind}("{name}"): a name is lower-case words and digits joined by hyphens, such '
                f'as "my-{kind}".'
            )
        for place, field in enumerate(inspect.get_annotations(cls)):
            # a threshold that is a percentile is no word of a study: such a clip has no size
            own = (kind, place, field) == ("clip", 0, vocabulary.PERCENTILE)
            if field in vocabulary.RESERVED and not own:
                raise UsageError(
                    f'@{kind}("{name}"): a setting cannot be called `{field}`, which means '
                    f"something else in a study."
                )
        metric = inspect.getattr_static(cls, "metric", None)
        # as a plain attribute, its own or of a class it is made from, it would be bound
        if isinstance(metric, FunctionType):
            cls.metric = staticmethod(metric)  # type: ignore[attr-defined]
        _check_metrics(vars(cls), f'@{kind}("{name}")')
        for of, table in _tables.items():
            for known, other in table.items():
                if other is cls and (of, known) != (kind, name):
                    raise UsageError(
                        f'@{kind}("{name}"): it is the {of} "{known}" already; register a '
                        f"subclass of it."
                    )
        made = vars(cls).get("__dataclass_params__")
        # Python refuses to make a frozen dataclass of one, as a class that is registered again is.
        component = (
            cls if made is not None and made.frozen else dataclasses.dataclass(frozen=True)(cls)
        )
        component.kind, component.name = kind, name
        component.version = _version(component)
        taken = _tables[kind].get(name)
        if taken is not None and (_origin(taken), taken.__qualname__) != (
            _origin(component),
            component.__qualname__,
        ):
            raise UsageError(
                f'{_origin(component)}: the {kind} name "{name}" is taken by {_origin(taken)}; '
                f"choose another."
            )
        _tables[kind][name] = component
        return component

    return register


def _check_metrics(written: Mapping[str, Any], where: str) -> None:
    """Whether a class's metrics are functions, not their names.

    :raises UsageError: one is something else.
    """
    others = written.get("other_metrics", ())
    for word, metric in (
        *[("metric", written[name]) for name in ("metric",) if name in written],
        *[("other_metrics", one) for one in (others if isinstance(others, tuple | list) else ())],
    ):
        if not (callable(metric) or hasattr(metric, "__get__")):
            raise UsageError(
                f"{where}: `{word}` is {metric!r}, and must be a function such as "
                f"clipbench.metrics.accuracy."
            )


def _origin(cls: type) -> str:
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    return str(file or cls.__module__)


def _version(cls: type) -> int | str:
    """The version of a component: its own number if it is packaged, the hash of its file
    otherwise.
    """
    if cls.__module__.partition(".")[0] == __package__:
        return int(vars(cls).get("version", 1))
    file = Path(_origin(cls))
    return digest_of(file) if file.is_file() else "interactive"


# ------------------------------------------------------------------------- loading what is not ours


def load_packaged() -> None:
    """Import the packaged components, then those of installed packages; a broken package is a
    warning.
    """
    for module in PACKAGED:
        importlib.import_module(module)
    for entry in sorted(
        importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name
    ):
        try:
            entry.load()
        except Exception as error:  # a plug-in package may fail in any way; ours goes on
            warnings.warn(
                f'the entry point "{entry.name}" ({entry.value}) failed to load and was left out: '
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )


def digest_of(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256: a plug-in's version."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


USED = "clipbench_use_"  # what the names of modules from such files begin with


def is_used(component: Any) -> bool:
    """Whether a component comes from a file that was named, by ``use`` or on the command line."""
    return bool(component.__module__.startswith(USED))


def load_file(path: Path, where: str = "use", digest: str | None = None) -> ModuleType:
    """Import a plug-in, a user's file of components, once.

    :param digest: what its hash must be, if that is known already.
    :raises UsageError: the file is missing, is no Python file, fails to import, or has changed.
    """
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"{where}: there is no file {path}.")
    hash_now = digest_of(path)
    if digest is not None and digest != hash_now:
        raise UsageError(f"{where}: {path.name} was edited while the study ran; run it again.")
    module_name = f"{USED}{hash_now}_{path.stem if path.stem.isidentifier() else 'file'}"
    if path in _used and module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{where}: {path.name} is not a Python file (its name must end in .py).")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up while the file runs
    before = {kind: dict(table) for kind, table in _tables.items()}
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        _tables.update(before)
        if isinstance(error, UsageError):
            raise
        line = _last_line(error, str(path))
        raise UsageError(
            f"{where}: {path.name} failed to import{line}: {type(error).__name__}: {error}."
        ) from error
    _used[path] = hash_now
    return module


def _last_line(error: BaseException, file: str) -> str:
    if isinstance(error, SyntaxError):
        return f" at line {error.lineno}" if error.lineno else ""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" at line {line}" if line else ""


# ----------------------------------------------------------------------------- finding and building


def names(kind: Kind) -> list[str]:
    """The registered names of one kind, sorted."""
    return sorted(_tables[kind])


def find(kind: Kind, name: str, where: str = "") -> Any:
    """The component class called ``name``, or the class at a dotted path if the kind has such
    components.

    :raises UsageError: no such component; the nearest name is offered.
    """
    if "." in name and kind in _dotted:
        return _dotted[kind](name, where or kind)
    try:
        return _tables[kind][name]
    except KeyError:
        prefix = f"{where}: " if where else ""
        known = ", ".join(names(kind))
        raise UsageError(
            f'{prefix}there is no {kind} "{name}".{nearest(name, names(kind))} There are: {known}.'
        ) from None


def fields(cls: type) -> dict[str, Any]:
    """Setting name → annotation, in the order of the class body (a clip's threshold first)."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def threshold_field(cls: type) -> str | None:
    """The name of a clip's threshold, its first setting, or None for a clip without settings."""
    return next(iter(fields(cls)), None)


def lane_fields(cls: type) -> list[str]:
    """The settings that may differ between lanes of one batch: the floats."""
    return [name for name, annotation in fields(cls).items() if _bare_type(annotation) is float]


def _bare_type(annotation: Any) -> Any:
    return (
        typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
    )


def about(cls: Any) -> str:
    """The first paragraph of a component's docstring, on one line."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def source(cls: Any) -> str:
    """Where a component comes from: the paragraph of its docstring that begins with
    ``**Source**:``, on one line; or nothing.
    """
    _, _, after = (inspect.getdoc(cls) or "").partition("**Source**:")
    return " ".join(after.partition("\n\n")[0].replace("``", "").split())


def settings_in_words(cls: type) -> str:
    """``max_norm (positive number), norm_type (2 or 'inf'; 2 if not given)``; ``no settings`` if
    there are none.
    """
    defaults = {
        field.name: f"; {_as_written(field.default)} if not given"
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
    }
    said = [
        f"{name} ({describe(annotation)}{defaults.get(name, '')})"
        for name, annotation in fields(cls).items()
    ]
    return ", ".join(said) or "no settings"


def _as_written(value: Any) -> str:
    """A value as a study page has it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def validated(
    cls: Any, settings: Mapping[str, Any], where: str, also: Iterable[str] = ()
) -> dict[str, Any]:
    """``settings`` in their declared types, those at their default left out, so that equal settings
    compare equal.

    :param also: what else may stand where the settings do: an unknown one may be meant so.
    :raises UsageError: an unknown, missing or unfit setting.
    """
    if hasattr(cls, "validated"):
        return dict(cls.validated(settings, where))
    declared = fields(cls)
    for name in settings:
        if name not in declared:
            words = list(also)
            beside = f" Its table may also have: {', '.join(words)}." if words else ""
            raise UsageError(
                f'{where}: "{cls.name}" has no setting `{name}`. It has: '
                f"{settings_in_words(cls)}.{beside}{nearest(name, [*declared, *words])}"
            )
    clean: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        annotation = declared[field.name]
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if field.name not in settings:
            if required:
                raise UsageError(
                    f'{where}: "{cls.name}" needs `{field.name}` ({describe(annotation)}).'
                )
            continue
        value = fit(
            settings[field.name], annotation, f'{where}: "{cls.name}" setting `{field.name}`'
        )
        if required or value != field.default:
            clean[field.name] = value
    return clean


def fit(value: Any, annotation: Any, what: str) -> Any:
    """``value`` in the type ``annotation`` asks for (an int becomes a float where a float is
    wanted; a string never a number).

    :raises UsageError: it does not fit.
    """
    try:
        fitted = TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        raise UsageError(f"{what} is {value!r}, and must be {with_article(annotation)}.") from None
    if isinstance(fitted, float) and math.isnan(fitted):
        raise UsageError(f"{what} is nan, and must be a {describe(annotation)}.")
    return fitted


def build(kind: Kind, name: str, settings: Mapping[str, Any]) -> Any:
    """An instance of a registered component; ``settings`` are taken as they are."""
    return find(kind, name)(**settings)


def ready(workload: str, settings: Mapping[str, Any]) -> None:
    """Ask a workload that has ``ready`` whether all the files that it reads are there.

    :raises UsageError: one is not.
    """
    if hasattr(component := build("workload", workload, settings), "ready"):
        component.ready()
