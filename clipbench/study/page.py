"""A study page as it may be written: its tables and the words they know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from clipbench import lr_schedules

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, description="positive number")]
Whole = Annotated[int, Field(ge=1, description="whole number of at least 1")]
Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "float64", "bfloat16-mixed"]
On = Literal["gradient", "update", "example"]


class Page(BaseModel):
    """What every table of a study page shares: strict types, and no word it does not know."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Seeds(Page):
    """How many seeds each phase of the protocol runs."""

    select: Annotated[int, Field(ge=1, description="whole number of at least 1")] = 3
    report: Annotated[int, Field(ge=0, description="whole number of at least 0")] = 10


class Untuned(Page):
    """The row nobody tuned: one learning rate and one threshold for every workload.

    It is run for the five methods of the headline, and for the ``arms`` named here, such as ``momentum + value``.
    """

    lr: Rate = 0.01
    threshold: Rate = 1.0
    arms: list[str] = Field(default_factory=list)


class Run(Page):
    """The ``[run]`` table."""

    steps: Whole
    batch: Whole | list[Whole] = 32
    device: Device | list[Device] = "cpu"
    dtype: Dtype | list[Dtype] = "float32"
    lr: Rate | list[Rate] | None = None
    schedule: str | list[str] = lr_schedules.CONSTANT
    accumulate: Whole | list[Whole] = 1
    seeds: Seeds = Seeds()
    engine: Literal["auto", "loop", "batched"] = "auto"
    evaluations: Whole = 20
    extend: bool = True
    events: dict[str, float] = Field(default_factory=dict)


class Table(BaseModel):
    """A ``[[workload]]``, ``[[optimizer]]`` or ``[[clip]]`` table: reserved words, and the component's own settings beside them."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    name: str
    steps: Whole | None = None
    batch: Whole | list[Whole] | None = None
    lr: Rate | list[Rate] | dict[str, Rate | list[Rate]] | None = None
    schedule: str | list[str] | None = None
    accumulate: Whole | list[Whole] | None = None
    seeds: Seeds | None = None
    relative: Rate | list[Rate] | None = None
    on: On | list[On] | None = None
    workloads: Annotated[list[str], Field(min_length=1)] | None = None

    def meets(self, workload: str) -> bool:
        """Whether an optimizer's or clip's table is for the workload of that name."""
        return self.workloads is None or workload in self.workloads

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Document(Page):
    """The whole page."""

    title: str = ""
    use: list[str] = Field(default_factory=list)
    run: Run
    untuned: Untuned = Untuned()
    workload: Annotated[list[Table], Field(min_length=1)]
    optimizer: Annotated[list[Table], Field(min_length=1)]
    clip: Annotated[list[Table], Field(min_length=1)]
