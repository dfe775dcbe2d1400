"""Laws of results, from which `verdicts.py` draws: a part of it.

What a law gives for a number of seeds is ``validation`` and ``test``, arms × settings × seeds each,
higher is better: of an arm, and of the one that it is compared with. Seeds are independent of each
other; the values of one seed are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

ARMS, SETTINGS = 2, 6
SHAPE = (ARMS, SETTINGS)
TRAINING, TEST = 0.6, 0.2  # shares of a data set; validation has as much as test
FITTED = ("digits", "wdbc", "temporal-order")
PLANNED = 20  # seeds of a headline
Row = dict[str, Any]
Drawn = tuple[np.ndarray, np.ndarray]
Law = Callable[[np.random.Generator, int], Drawn]


def generator(*names: object) -> np.random.Generator:
    """A generator of one's own for everything that is simulated, in whatever order."""
    return np.random.default_rng([ord(letter) for letter in json.dumps(names)])


# ---------------------------------------------------------------------- fitted to the stored seeds


def fit(cells: pd.DataFrame, problem: str) -> Row:
    """The stored seeds of a problem, for `fitted`: of SGD with the norm clip and without one, at
    the learning rates that are compared, a run's best checkpoint on validation and on test, arms ×
    settings × seeds, higher is better.
    """
    mine = cells[(cells["workload"] == problem) & (cells["optimizer"] == "sgd")]
    mine = mine[mine["percentile"].notna() | (mine["clip"] == "none")]
    mine = mine[mine["lr"].isin(mine.loc[mine["role"] == "select", "lr"])]
    sign = -1.0 if mine["metric"].iloc[0] == "log_loss" else 1.0
    found: Row = {}
    for role, column in (("validation", "best_validation"), ("test", "best_metric")):
        value = mine.assign(value=sign * mine[column].astype(float))
        # `pivot_table` would take the mean of two values.
        tables = [
            value[value["clip"] == clip].pivot(index="lr", columns="seed", values="value")  # noqa: PD010
            for clip in ("norm", "none")
        ]
        found[role] = np.stack([table.dropna(axis=1) for table in tables]).tolist()
    return found


def fitted(found: Mapping[str, Any]) -> Law:
    """The law whose seeds are the stored ones, each as likely as any other: what a seed does under
    all settings and both arms comes together, as it was.
    """
    validation, test = np.array(found["validation"]), np.array(found["test"])

    def law(generator: np.random.Generator, seeds: int) -> Drawn:
        drawn = generator.integers(validation.shape[2], size=seeds)
        return validation[:, :, drawn], test[:, :, drawn]

    return law


# ------------------------------------------------------------------------------------- adversarial

AXIS = -0.5 * np.abs(np.arange(SETTINGS) - np.array([[3.0], [2.0]]))  # arms × settings


def _around(means: np.ndarray, noise: np.ndarray, shared: float = 0.5) -> Drawn:
    """Values around means: a share of the noise (validation or test × arms × settings + 1 × seeds;
    the last is the seed's own) is common to all settings of a seed.
    """
    common = noise[1:, :1, -1:]
    own = noise[:, :, :-1]
    values = means[..., None] + np.sqrt(shared) * common + np.sqrt(1 - shared) * own
    return values[0], values[1]


def _size(seeds: int) -> tuple[int, ...]:
    return 2, ARMS, SETTINGS + 1, seeds


def normal(generator: np.random.Generator, seeds: int, shared: float = 0.5) -> Drawn:
    return _around(AXIS, generator.normal(size=_size(seeds)), shared)


def alike(generator: np.random.Generator, seeds: int) -> Drawn:
    """All settings have the same law: what is chosen is chance."""
    return _around(np.zeros(SHAPE), generator.normal(size=_size(seeds)))


def heavy_tails(generator: np.random.Generator, seeds: int) -> Drawn:
    return _around(AXIS, generator.standard_t(3, size=_size(seeds)))


def skewed(generator: np.random.Generator, seeds: int) -> Drawn:
    return _around(AXIS, -generator.lognormal(size=_size(seeds)))


def opposed(generator: np.random.Generator, seeds: int) -> Drawn:
    """A seed that is good for one arm is bad for the other."""
    validation, test = normal(generator, seeds, shared=0.0)
    common = np.array([1.0, -1.0])[:, None, None] * generator.normal(size=seeds)
    return validation + common, test + common


def flips(generator: np.random.Generator, seeds: int) -> Drawn:
    """Validation cannot tell two settings apart that test tells well: the choice flips, and each
    flip costs three deviations.
    """
    validation, _ = _around(AXIS, 0.2 * generator.normal(size=_size(seeds)))
    validation[:, 4] = validation[:, 3] + 0.02 * generator.normal(size=(ARMS, seeds))
    means = AXIS.copy()
    means[0, 4] -= 3.0
    _, test = _around(means, generator.normal(size=_size(seeds)))
    return validation, test


def two_values(
    generator: np.random.Generator, seeds: int, lowest: float, highest: float, step: float
) -> Drawn:
    """A run succeeds or fails, with a chance from ``lowest`` to ``highest`` along the axis; the
    arm's are ``step`` higher. One run in ten has on test what it has not on validation.
    """
    chance = np.linspace(lowest, highest, SETTINGS) + np.array([[step], [0.0]])
    luck = 0.5 * generator.random(size=seeds) + 0.5 * generator.random(size=(*SHAPE, seeds))
    # The mean of two uniform numbers is triangular on 0 to 1.
    uniform = np.where(luck < 0.5, 2 * luck**2, 1 - 2 * (1 - luck) ** 2)
    validation = uniform < chance[..., None]
    test = validation ^ (generator.random(size=(*SHAPE, seeds)) < np.minimum(0.1, 1 - highest))
    return validation.astype(float), test.astype(float)


def outlier(generator: np.random.Generator, seeds: int) -> Drawn:
    """The setting that is otherwise the arm's best fails on one seed in twenty, and loses as much
    as 30 deviations then.
    """
    validation, test = normal(generator, seeds)
    failed = 30.0 * (generator.random(size=seeds) < 0.05)
    validation[0, 3] -= failed
    test[0, 3] -= failed
    return validation, test


def unseen_outlier(generator: np.random.Generator, seeds: int) -> Drawn:
    """As `outlier`, but seen on test only: no choice avoids it."""
    validation, test = normal(generator, seeds)
    test[0] -= 30.0 * (generator.random(size=seeds) < 0.05)
    return validation, test


def rare_choice(generator: np.random.Generator, seeds: int) -> Drawn:
    """A setting that is lost on test looks good enough on validation to be chosen by about one
    set of three seeds in 250.
    """
    validation, test = normal(generator, seeds)
    validation[1, 5] = -4.0 + 2.5 * generator.normal(size=seeds)
    test[1, 5] -= 30.0
    return validation, test


def constant(_: np.random.Generator, seeds: int) -> Drawn:
    """No seed differs from another."""
    values = np.repeat(AXIS[..., None], seeds, axis=2)
    return values, values


ADVERSARIAL: dict[str, Law] = {
    "normal": normal,
    "all settings alike": alike,
    "heavy tails (t, 3 degrees)": heavy_tails,
    "skewed (lognormal)": skewed,
    "arms opposed": opposed,
    "choice flips, at a price": flips,
    "success .1 to .8, arm .1 higher": partial(two_values, lowest=0.1, highest=0.8, step=0.1),
    "success .5 to .95, arms equal": partial(two_values, lowest=0.5, highest=0.95, step=0.0),
    "success .9 to .98, arms equal": partial(two_values, lowest=0.9, highest=0.98, step=0.0),
    "best setting lost on 1 seed in 20": outlier,
    "1 seed in 20 lost, on test only": unseen_outlier,
    "lost setting, chosen 1 time in 250": rare_choice,
    "no spread": constant,
}


# ------------------------------------------------------------------------- splits of one data set


def data_set(generator: np.random.Generator, examples: int = 400, bank: int = 4000) -> Law:
    """The law over splits of one data set that is drawn here: 60 % for training, 20 % each for
    validation and test.

    A setting gets an example right with a chance of its own, and each example that it is trained
    on moves all of its results: both are the data set's, and no seed tells of other data sets.
    Seeds are drawn from a ``bank`` of so many splits, with replacement.
    """
    easy = generator.normal(size=(1, 1, examples))
    right = AXIS[..., None] * 0.5 + 1.0 + easy + 0.7 * generator.normal(size=(*SHAPE, examples))
    correct = (right > 0).astype(float)
    influence = 0.5 * generator.normal(size=(*SHAPE, examples))
    rank = generator.random(size=(bank, examples)).argsort(axis=1)
    part = round(TEST * examples)

    def mean_over(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return values @ chosen.T / chosen.sum(axis=1)

    moved = mean_over(influence, (rank >= 2 * part).astype(float))
    scores = [
        mean_over(correct, chosen.astype(float))
        + moved
        + 0.01 * generator.normal(size=(*SHAPE, bank))
        for chosen in (rank < part, (rank >= part) & (rank < 2 * part))
    ]

    def law(generator: np.random.Generator, seeds: int) -> Drawn:
        which = generator.integers(bank, size=seeds)
        return scores[0][..., which], scores[1][..., which]

    return law
