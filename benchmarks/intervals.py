"""How often the paired jackknife's interval covers the true difference, under the laws of
`laws.py`: a part of `verdicts.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import laws
import numpy as np
from laws import PLANNED, Row, generator

from clipbench import tuning

SEEDS = (12, 20, 24)
REPETITIONS = 2000  # at the planned number of seeds, half as many at others
TRUTH = 400_000  # people who tune on three seeds of their own and train on a fourth
QUADRUPLE = tuning.TUNED_ON + 1


class Paired(NamedTuple):
    """What the report computes of paired results: a difference and its standard error."""

    difference: float
    error: float


def paired(validation: np.ndarray, test: np.ndarray) -> Paired:
    """Of arms × settings × seeds, as `clipbench.analysis.headline` does."""
    one, other = (tuning.expected(*side) for side in zip(validation, test, strict=True))
    return Paired(one.estimate - other.estimate, tuning.standard_error(one.without - other.without))


def truth(law: laws.Law, rng: np.random.Generator, people: int = TRUTH) -> float:
    """The true difference: its mean over people with seeds of their own, none of them shared."""
    total, chunk = 0.0, 20_000
    for _ in range(people // chunk):
        validation, test = (
            values.reshape(laws.ARMS, laws.SETTINGS, chunk, QUADRUPLE)
            for values in law(rng, chunk * QUADRUPLE)
        )
        score = validation[..., :-1].mean(axis=3)
        tied = score >= score.max(axis=1, keepdims=True) - tuning.TIE
        reached = (tied * test[..., -1]).sum(axis=1) / tied.sum(axis=1)
        total += float((reached[0] - reached[1]).sum())
    return total / (people // chunk * chunk)


def sample(law: laws.Law, rng: np.random.Generator, seeds: int, count: int) -> np.ndarray:
    """Differences and their errors, repetitions × 2."""
    return np.array([paired(*law(rng, seeds)) for _ in range(count)])


def covered(found: np.ndarray, true: float | np.ndarray, seeds: int) -> Row:
    """How often the 95 % interval contains the truth, of those that have bounds; and the mean
    error as a share of the differences' deviation.
    """
    difference, error = found.T
    bounds = [tuning.interval(*one, seeds) for one in zip(difference, error, strict=True)]
    low, high = (np.array([getattr(one, side) for one in bounds]) for side in ("low", "high"))
    bounded = ~np.isnan(low)
    inside = bounded & (low <= true) & (true <= high)
    spread = float((difference - true).std(ddof=1))
    return {
        "seeds": seeds,
        "repetitions": len(found),
        "bounded": int(bounded.sum()),
        "covered": int(inside.sum()),
        "error": float(error.mean()) / spread if spread > tuning.TIE else None,
    }


def everything_on(law: laws.Law, name: str) -> tuple[list[Row], np.ndarray]:
    """The coverage at each number of seeds; and, at the planned one, the differences less the
    truth, and their errors.
    """
    true = truth(law, generator("truth", name))
    rows, kept = [], np.empty(0)
    for seeds in SEEDS:
        count = REPETITIONS if seeds == PLANNED else REPETITIONS // 2
        found = sample(law, generator("coverage", name, seeds), seeds, count)
        rows.append({"law": name, "true": true, **covered(found, true, seeds)})
        if seeds == PLANNED:
            kept = found - np.array([true, 0.0])
    return rows, kept


def over_splits(data_sets: int = 200, each: int = 10, people: int = 100_000) -> Row:
    """Coverage at the planned number of seeds if the seeds redraw the splits of a data set: of the
    expectation over its splits, and of the population's value, without and with the factor of
    Nadeau and Bengio (2003), √(1 + n · test / training).
    """
    found, own = [], []
    for number in range(data_sets):
        rng = generator("splits", number)
        law = laws.data_set(rng)
        own.append(truth(law, rng, people))
        found.append(sample(law, rng, PLANNED, each))
    pooled, population = np.concatenate(found), float(np.mean(own))
    wide = pooled * np.array([1.0, math.sqrt(1 + PLANNED * laws.TEST / laws.TRAINING)])
    return {
        "splits": covered(pooled, np.repeat(own, each), PLANNED),
        "population": covered(pooled, population, PLANNED),
        "population, with the factor": covered(wide, population, PLANNED),
    }
