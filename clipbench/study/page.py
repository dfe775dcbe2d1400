"""A study page as it may be written: a model of each of its tables, made of the words that may
stand in it.
"""

from __future__ import annotations

from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from clipbench.vocabulary import KINDS, PAGE, TABLE, TABLES, Word, words_of


class Page(BaseModel):
    """What every table of a study page shares: strict types, and no word it does not know."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    if TYPE_CHECKING:  # its fields are the words of the table

        def __init__(self, **words: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...


class Table(Page):
    """A ``[[workload]]``, ``[[optimizer]]`` or ``[[clip]]`` table: words of the page, beside
    them the component's own settings.
    """

    model_config = ConfigDict(extra="allow")

    def word(self, name: str) -> Any:
        """The table's value for a word of the page; None if it has none, or is of a kind that
        has no such word.
        """
        return getattr(self, name) if name in type(self).model_fields else None

    def meets(self, workload: str) -> bool:
        """Whether an optimizer's or clip's table is for the workload of that name."""
        return self.workloads is None or workload in self.workloads

    def clips(self, optimizer: str) -> bool:
        """Whether a clip's table is for the optimizer of that name."""
        return self.optimizers is None or optimizer in self.optimizers

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


P = TypeVar("P", bound=Page)


def _model(table: str, shared: type[P], **tables: type[Page]) -> type[P]:
    """The model of a table; ``tables`` are the models of those that may stand in it."""
    fields: dict[str, Any] = {
        name: _field(word, table, tables) for name, word in words_of(table).items()
    }
    return create_model(table, __base__=shared, **fields)


def _field(word: Word, table: str, tables: dict[str, type[Page]]) -> tuple[Any, Any]:
    """A word as a field: its type, and its default."""
    default, kind = word.homes[table], word.type
    if kind is TABLE:
        kind = tables[word.name]
        default = Field(default_factory=kind) if default == {} else default
    elif kind is TABLES:
        kind, default = GenericAlias(list, tables[word.name]), Field(min_length=1)
    return (kind if default is not None else kind | None), default


Seeds = _model("seeds", Page)
Protocol = _model("protocol", Page)
Untuned = _model("untuned", Page)
Run = _model("run", Page, seeds=Seeds)
Document = _model(
    PAGE,
    Page,
    run=Run,
    protocol=Protocol,
    untuned=Untuned,
    **{kind: _model(kind, Table, seeds=Seeds) for kind in KINDS},
)
