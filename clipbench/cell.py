"""A cell: one run of the matrix, and its identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from clipbench import registry
from clipbench.schema import Role
from clipbench.vocabulary import (
    ACCUMULATE,
    DEFAULTS,
    EXAMPLE,
    KEPT,
    OF_PILOT,
    ON,
    PERCENTILE,
    RANK,
    RANKS,
    RELATIVE,
    SCHEDULE,
)


@dataclass(frozen=True)
class Part:
    """One component as a study wrote it: its name, version and settings (those at their defaults
    left out).

    ``threshold`` names a clip's first setting, None for other components and for clips without
    settings.
    """

    name: str
    version: int | str
    settings: Mapping[str, Any] = field(default_factory=dict)
    threshold: str | None = None

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "settings": dict(self.settings)}

    @property
    def own(self) -> dict[str, Any]:
        """The settings that the component is built with."""
        return {
            name: value
            for name, value in self.settings.items()
            if name not in KEPT or name == self.threshold
        }

    @property
    def label(self) -> str:
        """``momentum(weight_decay=0.01)``: the name, and the settings other than the threshold."""
        others = [
            f"{name}={plain(value)}"
            for name, value in sorted(self.settings.items())
            if name not in (*OF_PILOT, self.threshold)
        ]
        return f"{self.name}({', '.join(others)})" if others else self.name


@dataclass(frozen=True)
class Cell:
    """Everything one training run is made of.

    ``role`` and ``extended`` say who asked for the cell; they are recorded, and no part of the
    identity.
    """

    workload: Part
    optimizer: Part
    clip: Part
    lr: float
    seed: int
    steps: int
    batch: int
    device: str = "cpu"
    dtype: str = "float32"
    evaluations: int = 20
    events: Mapping[str, float] = field(default_factory=dict)
    replica: int = 0
    role: str = field(default=Role.SELECT, compare=False)
    extended: bool = field(default=False, compare=False)

    def document(self) -> dict[str, Any]:
        """The document whose hash is the identity. A field added later is left out at its
        default: old cells keep their ids.
        """
        document: dict[str, Any] = {
            "workload": self.workload.document(),
            "optimizer": self.optimizer.document(),
            "clip": self.clip.document(),
            "lr": self.lr,
            "seed": self.seed,
            "steps": self.steps,
            "batch": self.batch,
            "device": self.device,
            "dtype": self.dtype,
            "evaluations": self.evaluations,
            "events": dict(self.events),
        }
        if self.replica:
            document["replica"] = self.replica
        return document

    @cached_property
    def canonical(self) -> str:
        """The document as canonical JSON: sorted keys, no spaces, shortest floats."""
        return json.dumps(
            self.document(), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of SHA-256 over the canonical JSON."""
        return identity(self.canonical)

    @property
    def problem(self) -> str:
        """The workload with its settings, as tables and figures name it."""
        return self.workload.label

    @property
    def arm(self) -> str:
        """The optimizer and the clip, without lr and threshold: what a comparison compares."""
        return (
            self.optimizer.label
            if self.clip.name == "none"
            else f"{self.optimizer.label} + {self.clip.label}"
        )

    @property
    def on(self) -> str:
        """What the clip is applied to: ``gradient``, ``update``, ``example``, ``rank`` or
        ``shard``.
        """
        return str(self.clip.settings.get(ON, DEFAULTS[ON]))

    @property
    def ranks(self) -> int:
        """The number of processes that the batch, or the weights, are spread over; 1 if `on` knows
        none.
        """
        return int(self.clip.settings.get(RANKS, DEFAULTS[RANKS]))

    @property
    def pieces(self) -> int:
        """The number of equal pieces of a batch whose gradients are clipped each by itself; 0 if
        the batch's gradient is clipped.
        """
        return {EXAMPLE: self.batch, RANK: self.ranks}.get(self.on, 0)

    @property
    def schedule(self) -> str:
        """The learning rate's schedule, as ``lr_schedules.canonical`` writes it."""
        return str(self.optimizer.settings.get(SCHEDULE, DEFAULTS[SCHEDULE]))

    @property
    def accumulate(self) -> int:
        """The number of equal parts in which a batch is taken; their gradients are added up
        before the clip.
        """
        return int(self.workload.settings.get(ACCUMULATE, DEFAULTS[ACCUMULATE]))

    @property
    def relative(self) -> float | None:
        """The threshold as a multiple of the pilot's median size, if the study gave it so."""
        return self.clip.settings.get(RELATIVE)

    @property
    def percentile(self) -> float | None:
        """The threshold as a percentile of the pilot's sizes, if the study gave it so."""
        return None if self.clip.threshold == PERCENTILE else self.clip.settings.get(PERCENTILE)

    @property
    def number(self) -> float | None:
        """The threshold as a plain number, the clip's default if the study gave none; None without
        a threshold, or if the pilot has to say it.
        """
        name = self.clip.threshold
        if name is None or self.needs_pilot:
            return None
        given = self.clip.settings.get(name)
        return float(
            getattr(registry.find("clip", self.clip.name), name) if given is None else given
        )

    @property
    def needs_pilot(self) -> bool:
        """Whether the study gave the threshold in the pilot's terms."""
        return self.relative is not None or self.percentile is not None

    def clip_settings(self, size: float | None = None) -> dict[str, Any]:
        """The clip's settings with the threshold as a number, to three digits.

        :param size: of the pilot's gradients, their median or the percentile that the study gave.
        """
        settings = self.clip.own
        if self.needs_pilot:
            if size is None or self.clip.threshold is None:
                raise ValueError(f"the threshold of {self.clip.name} needs the pilot's sizes")
            multiple = 1.0 if self.relative is None else self.relative
            settings[self.clip.threshold] = float(f"{multiple * size:.3g}")
        return settings


def identity(canonical: str) -> str:
    """The id that belongs to a canonical JSON document."""
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def unversioned(canonical: str) -> str:
    """The id of a cell without its components' versions."""
    document = json.loads(canonical)
    for kind in ("workload", "optimizer", "clip"):
        document[kind] = {**document[kind], "version": ""}
    return identity(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def from_json(canonical: str, role: str = Role.SELECT) -> Cell:
    """The cell that a stored row's ``settings`` describe."""
    document = json.loads(canonical)
    clip = document["clip"]
    threshold = registry.threshold_field(registry.find("clip", clip["name"]))
    return Cell(
        Part(**document.pop("workload")),
        Part(**document.pop("optimizer")),
        Part(**document.pop("clip"), threshold=threshold),
        **document,
        role=role,
    )


def plain(value: Any) -> str:
    """A setting's value as a label shows it: ``0.01``, ``inf``."""
    return f"{value:g}" if isinstance(value, float) else str(value)
