"""What watched loops say of their clips: how much they do, whether they stand where they should,
and what other thresholds would have clipped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from clipbench.schema import Kind, Sighting
from clipbench.store import Store

NEVER_FIRED, ALWAYS_FIRED, AT_DEFAULT, OWN_CLIP, LEFT_OUT, NO_STEP, HOOKED = (
    *("never_fired", "always_fired", "at_default", "own_clip", "left_out", "no_step", "hooked"),
)
NOBODYS = "no parameter at all"  # how a record says that a clip was handed nothing
EXACT = 0.01  # of a threshold: how near a norm clip leaves the whole gradient to it
CONSTANT = 1e-3  # of what is kept: less than that is one factor for all steps
RARE = 0.2  # of the steps: gradients dropped more often are dropped by design
ALWAYS, MOSTLY = 0.95, 0.5  # shares of the steps
HEAVY = 10.0  # of the 99th percentile over the median: norms with spikes
# Thresholds that training libraries clip at if nobody says another, package → threshold, setting.
DEFAULTS = {
    "transformers": (1.0, "TrainingArguments(max_grad_norm=…)"),
    "nnunetv2": (12.0, "the trainer's `train_step`"),
    "ultralytics": (10.0, "the trainer's `optimizer_step`"),
}
ADAPTIVE = ("adam", "rmsprop", "adagrad", "adadelta", "lion", "lamb", "sophia", "adan")
CALL = re.compile(
    r"\w+ clip( of order \S+)? at (?P<threshold>\S+), called in \S+( through (?P<packages>.+))?"
)
MISPLACED = [*Sighting][[*Sighting].index(Sighting.CLIP_AFTER_STEP) :]
"""Sightings that say that a clip stands where it should not."""
USELESS = {Sighting.CLIP_AFTER_STEP, Sighting.CLIP_BEFORE_BACKWARD}


@dataclass(frozen=True)
class Finding:
    """Something that should be known of a loop's clip."""

    name: str
    steps: int
    """In how many steps it was seen."""
    first: int
    evidence: str
    about: Mapping[str, Any]
    """What else its sentences need."""


class Run:
    """A watched loop: one optimizer's steps.

    :param cell: its row of ``cells``.
    """

    def __init__(self, store: Store, cell: Mapping[str, Any]) -> None:
        self.store, self.cell = store, cell
        self.settings: dict[str, Any] = json.loads(cell["settings"])

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Its steps in order; NaN where a value was not seen, or is not finite."""
        rows = self.store.read("curves", cells=[self.cell["cell"]]).drop(columns="cell")
        numbers = {name: rows[name].to_numpy(float, na_value=np.nan) for name in rows}
        return pd.DataFrame(numbers).sort_values("step", ignore_index=True)

    @cached_property
    def events(self) -> pd.DataFrame:
        """What happened in it."""
        return self.store.read("events", cells=[self.cell["cell"]]).sort_values("step")

    @property
    def norms(self) -> np.ndarray:
        """The raw gradient's norm of each step in which it was seen and is finite."""
        norms = self.curve["grad_norm"].to_numpy()
        return norms[np.isfinite(norms)]

    @cached_property
    def fired(self) -> np.ndarray:
        """Whether a clip altered the gradient, step by step."""
        kept = self.curve["kept"]
        return ((kept.notna() & (kept != 1)) | (self.curve["changed"] > 0)).to_numpy()

    @property
    def share(self) -> float:
        """The share of the steps in which a clip altered the gradient."""
        return float(self.fired.mean()) if len(self.fired) else 0.0

    @property
    def clips(self) -> list[str]:
        """The clips that were seen, in words."""
        return [str(one) for one in self._of(Sighting.CLIP)["detail"]]

    @property
    def clip_cost(self) -> float:
        """The share of a step's time that torch's clip takes; NaN if it was not seen on a CPU."""
        with np.errstate(all="ignore"):
            cost = self.curve["clip_seconds"] / self.curve["seconds"]
        return float(cost.median()) if self.cell["device"] == "cpu" else math.nan

    @property
    def is_adaptive(self) -> bool:
        """Whether its optimizer divides a gradient by its own size."""
        name = str(self.cell["optimizer"]).lower()
        return any(word in name for word in ADAPTIVE)

    @cached_property
    def by_whole_norm(self) -> bool:
        """Whether a norm clip leaves the whole gradient as long as its threshold, if it fires."""
        if self.cell["clip"] != "norm" or not self.fired.any():
            return self.cell["clip"] == "norm"
        rows = self.curve[self.fired]
        left = (rows["kept"] * rows["grad_norm"] / rows["threshold"]).dropna()
        return len(left) > 0 and bool(abs(left.median() - 1) < EXACT)

    @cached_property
    def factor(self) -> float:
        """What the loop's own code multiplies every gradient by; NaN if it does nothing of the
        kind.
        """
        kept = self.curve["kept"].dropna()
        torchs = self.curve["threshold"].notna().any()
        if torchs or not len(kept) or not self.fired.all():
            return math.nan
        middle = float(kept.median())
        spread = float(kept.max() - kept.min())
        return middle if spread <= CONSTANT * abs(middle) else math.nan

    @property
    def is_clipped(self) -> bool:
        """Whether anything that was seen is a clip, of torch or by the loop's own code."""
        return bool(self.clips) and math.isnan(self.factor)

    def _of(self, kind: str) -> pd.DataFrame:
        return self.events[self.events["kind"] == kind]

    def facts(self) -> dict[str, Any]:
        """What its sentences and tables are made of."""
        at = np.flatnonzero(self.fired)
        norms, lr, kept = self.norms, self.curve["lr"], self.curve["kept"]
        quantiles = np.percentile(norms, [1, 50, 90, 99]) if len(norms) else [math.nan] * 4
        return {
            "steps": len(self.curve),
            "optimizer": self.cell["optimizer"],
            "lr_first": float(lr.iloc[0]) if len(lr) else math.nan,
            "lr": " → ".join(f"{one:g}" for one in dict.fromkeys([*lr[:1], *lr[-1:]])),
            "lrs": [group["lr"] for group in self.settings["groups"] if "lr" in group],
            "seen": len(norms),
            "factor": self.factor,
            "changes": int(self._of(Sighting.CHANGE)["value"].sum()),
            "dropped": int(self._of(Sighting.DROPPED)["value"].sum()),
            "parameters": self.settings["parameters"],
            "tensors": self.settings["tensors"],
            "clip": self.cell["clip"],
            "threshold": _some(self.cell["threshold"]),
            "fired": self.share,
            "first": int(at[0]) if len(at) else None,
            "last": int(at[-1]) if len(at) else None,
            "kept": float(kept.median()) if len(kept) else math.nan,
            "kept_fired": float(kept[self.fired].median()) if len(at) else math.nan,
            "norm_1": quantiles[0],
            "norm_50": quantiles[1],
            "norm_90": quantiles[2],
            "norm_99": quantiles[3],
            "norm_max": float(norms.max()) if len(norms) else math.nan,
            "skipped": int(self._of(Sighting.SKIPPED_STEP)["value"].sum()),
            "spikes": len(self._of(Kind.SPIKE)),
            "status": self.cell["status"],
            "reason": self.cell["reason"],
            "diverged_at": self.cell["diverged_at"],
            "cost": self.clip_cost,
        }

    def findings(self) -> list[Finding]:
        """What should be known, the clips out of place first."""
        found = [
            Finding(str(row.kind), int(row.value), int(row.step), str(row.detail), {})
            for kind in MISPLACED
            for row in self._of(kind).itertuples()
        ]
        found = _once(found)
        if not len(self.curve):
            return [Finding(NO_STEP, 0, 0, "", {})]
        # with the parameters of another model a clip may be another's; with none it is nobody's
        missed = self._of(Sighting.CLIP_MISSED)
        if self.clips:
            missed = missed[missed["detail"].str.endswith(NOBODYS)]
        found += [
            Finding(str(row.kind), int(row.value), int(row.step), str(row.detail), {})
            for row in missed.head(1).itertuples()
        ]
        if self.is_clipped and not found:  # else the clip does not yet do what it is there for
            found += self._by_share()
        found += [
            Finding(str(row.kind), int(row.value), int(row.step), "", {})
            for row in self._of(Sighting.NO_GRADIENT).itertuples()
        ]
        return found + self._by_settings()

    def _by_share(self) -> list[Finding]:
        facts = self.facts()
        finite = [clip for clip in self.clips if " at inf, " not in clip]
        if not finite:
            return []
        told = {
            **facts,
            "adaptive": self.is_adaptive,
            "decay": float(self.settings["groups"][0].get("weight_decay") or 0.0),
            "length": facts["lr_first"] * facts["threshold"] if self.by_whole_norm else math.nan,
        }
        if not self.fired.any() and facts["norm_max"] < min(self._thresholds(), default=math.inf):
            return [Finding(NEVER_FIRED, len(self.curve), 0, "; ".join(finite), told)]
        if self.share >= ALWAYS:
            count = int(self.fired.sum())
            return [Finding(ALWAYS_FIRED, count, facts["first"], "; ".join(finite), told)]
        return []

    def _thresholds(self) -> list[float]:
        return [float(one) for one in self.curve["threshold"].dropna()]

    def _by_settings(self) -> list[Finding]:
        found = []
        for row in self._of(Sighting.CLIP).itertuples():
            call = CALL.fullmatch(row.detail)
            through = (call["packages"] or "").split(", ") if call else []
            for package, (threshold, setting) in DEFAULTS.items():
                if call and package in through and float(call["threshold"]) == threshold:
                    about = {"package": package, "threshold": threshold, "setting": setting}
                    found.append(
                        Finding(AT_DEFAULT, int(row.value), int(row.step), row.detail, about)
                    )
        for name, value in self.settings["own_clip"].items():
            about = {"setting": name, "value": value, "optimizer": self.cell["optimizer"]}
            found.append(Finding(OWN_CLIP, len(self.curve), 0, f"{name}={value}", about))
        if self.settings.get("hooked"):
            about = {"tensors": self.settings["hooked"]}
            found.append(Finding(HOOKED, len(self.curve), 0, "", about))
        if self.settings["left_out"]:
            about = {"tensors": self.settings["left_out"], "model": self.settings["model"]}
            found.append(Finding(LEFT_OUT, len(self.curve), 0, "", about))
        return found


def _once(found: Sequence[Finding]) -> list[Finding]:
    """One finding a kind: the first of those that several calls gave, with the steps of all."""
    kinds: dict[str, list[Finding]] = {}
    for one in found:
        kinds.setdefault(one.name, []).append(one)
    return [
        Finding(
            name,
            max(one.steps for one in several),
            min(one.first for one in several),
            several[0].evidence,
            {},
        )
        for name, several in kinds.items()
    ]


def runs(store: Store) -> list[Run]:
    """The watched loops of a store, the newest last."""
    cells = store.read("cells").sort_values("attempt")
    return [Run(store, row) for row in cells.astype(object).to_dict("records")]


def _some(value: Any) -> float:
    return math.nan if value is None or value is pd.NA else float(value)
