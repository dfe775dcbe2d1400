"""How often families of verdicts say something wrong, and how often a comparison is decided: a part
of `verdicts.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from laws import PLANNED, Row, generator
from scipy import stats

from clipbench import verdicts
from clipbench.schema import Verdict
from clipbench.verdicts import LEVEL, Comparison

FAMILIES = 20_000

WORDS = (
    Verdict.BETTER,
    Verdict.PERHAPS_BETTER,
    Verdict.SAME,
    Verdict.UNDECIDED,
    Verdict.PERHAPS_WORSE,
    Verdict.WORSE,
)
BETTER, PERHAPS_BETTER, SAME, UNDECIDED, PERHAPS_WORSE, WORSE = range(len(WORDS))
COUNTS = (2, 8, 16)
RATIOS = (0.1, 0.25, 0.5, 1.0)  # standard error / margin
CORRELATIONS = (0.0, 0.5, 0.95)
TRUTHS = {  # in margins, repeated as often as a family needs
    "all 0": (0.0,),
    "all just above 0": (0.001,),
    "all at the margin": (1.0,),
    "at the margin, either side": (1.0, -1.0),
    "just beyond, either side": (1.001, -1.001),
    "0 and the margin": (0.0, 1.0),
    "0 and half the margin": (0.0, 0.5),
    "mixed": (0.0, 0.5, 1.0, -1.0, 2.0, 0.25, -0.5, -2.0),
}


def decided(
    difference: np.ndarray, error: np.ndarray, seeds: int, margin: float, level: float = LEVEL
) -> np.ndarray:
    """What `verdicts.decide` says of each of many families (families × comparisons), by `WORDS`:
    written anew for arrays, by bounds in place of p-values.
    """
    families, count = difference.shape
    bars = stats.t.ppf(1 - level / 2 / np.arange(1, count + 1), seeds - 1)
    bar = np.concatenate([[np.inf], bars])  # by the number of comparisons that count
    size = np.abs(difference)
    with np.errstate(divide="ignore", invalid="ignore"):
        evidence = np.stack([size, margin - size], axis=2) / error[..., None]
        beyond = (size - margin) / error
    evidence[~(error > 0)] = -np.inf
    unsaid = np.ones((families, count, 2), dtype=bool)
    counted = np.full((families, count), count)
    going = np.arange(families)
    for _ in range(2 * count):
        left = np.where(unsaid[going], evidence[going], -np.inf).reshape(len(going), -1)
        best = left.argmax(axis=1)
        now = unsaid[going].any(axis=2).sum(axis=1)
        said = np.take_along_axis(left, best[:, None], axis=1)[:, 0] >= bar[now]
        going, best, now = going[said], best[said], now[said]
        unsaid[going, best // 2, best % 2] = False
        counted[going, best // 2] = now
        if not len(going):
            break
    matters = beyond >= bar[counted]
    up = np.where(matters, BETTER, PERHAPS_BETTER)
    down = np.where(matters, WORSE, PERHAPS_WORSE)
    words = np.where(unsaid[..., 0], UNDECIDED, np.where(difference > 0, up, down))
    return np.where(unsaid[..., 1], words, SAME)


def wrong(words: np.ndarray, true: np.ndarray, margin: float) -> np.ndarray:
    """Where a word says what is not so."""
    true = np.broadcast_to(true, words.shape)
    lies = np.stack(
        [
            true <= margin,
            true <= 0,
            np.abs(true) >= margin,
            np.zeros(words.shape, dtype=bool),
            true >= 0,
            true >= -margin,
        ]
    )
    return np.take_along_axis(lies, words[None], axis=0)[0]


def same_as_decided(difference: np.ndarray, error: np.ndarray, margin: float) -> bool:
    """Whether `verdicts.decide` itself says the same of all these families."""
    words = decided(difference, error, PLANNED, margin)
    return all(
        verdicts.decide([Comparison(d, e, PLANNED, margin) for d, e in zip(*one, strict=True)])
        == [WORDS[word] for word in said]
        for *one, said in zip(difference, error, words, strict=True)
    )


def normals(
    rng: np.random.Generator, families: int, count: int, correlation: float, seeds: int = PLANNED
) -> tuple[np.ndarray, np.ndarray]:
    """Means of normal seeds (families × comparisons) in true standard errors, and the standard
    errors that were estimated. Two comparisons of one seed have this correlation.
    """
    matrix = np.where(np.eye(count, dtype=bool), 1.0, correlation)
    values = rng.normal(size=(families, seeds, count)) @ np.linalg.cholesky(matrix).T
    return values.mean(axis=1) * math.sqrt(seeds), values.std(axis=1, ddof=1)


def pattern(name: str, count: int) -> np.ndarray:
    return np.array(list(itertools.islice(itertools.cycle(TRUTHS[name]), count)))


def rate(noise: np.ndarray, error: np.ndarray, true: np.ndarray, margin: float) -> Row:
    """How many families say anything wrong, and how many say what `verdicts.decide` does not, of
    the first ten.
    """
    words = decided(true + noise, error, PLANNED, margin)
    return {
        "families": len(words),
        "wrong": int(wrong(words, true, margin).any(axis=1).sum()),
        "agreed": same_as_decided((true + noise)[:10], error[:10], margin),
    }


def on_normal(families: int = FAMILIES) -> list[Row]:
    """The error rates of families of normal results."""
    rows = []
    for count, correlation in itertools.product(COUNTS, CORRELATIONS):
        noise, error = normals(
            generator("families", count, correlation), families, count, correlation
        )
        for name, ratio in itertools.product(TRUTHS, RATIOS):
            about = {"count": count, "correlation": correlation, "truths": name, "ratio": ratio}
            rows.append(about | rate(noise, error, pattern(name, count) / ratio, 1 / ratio))
    return rows


def on_law(name: str, kept: np.ndarray, families: int = FAMILIES // 4) -> list[Row]:
    """The error rates of families of comparisons by the jackknife under one law: what was
    simulated for the coverage, drawn anew and moved to its truth.
    """
    rows = []
    unit = float(kept[:, 0].std(ddof=1))
    for count in COUNTS:
        rng = generator("families", name, count)
        drawn = kept[rng.integers(len(kept), size=(families, count))]
        for truths, ratio in itertools.product(TRUTHS, RATIOS[1:3]):
            margin = unit / ratio
            about = {"law": name, "count": count, "truths": truths, "ratio": ratio}
            true = pattern(truths, count) * margin
            rows.append(about | rate(drawn[..., 0], drawn[..., 1], true, margin))
    return rows


# ------------------------------------------------------------- the worst that truths can do to it

PLACES = (0.0, 1e-6, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1 - 1e-6, 1.0, 1.000001, 1.1, 2.0)
ERRORS = (0.05, 0.1, 0.2, 0.4, 1.0)


def search(count: int, tried: int, families: int = 4000, anew: int = 200_000) -> list[Row]:
    """The configurations of true differences, standard errors and correlations under which a
    family of ``count`` is wrong most often; the worst ten are simulated anew, for the most of many
    rates is too high.
    """
    rng = generator("search", count)
    each = list(itertools.product(PLACES, (1, -1), ERRORS))
    worst = []
    for correlation in (-0.49, *CORRELATIONS) if count > 2 else (-0.95, -0.5, *CORRELATIONS):
        noise, error = normals(rng, families, count, correlation)
        for which in rng.integers(len(each), size=(tried, count)):
            some = [each[one] for one in which]
            worst.append((_wrong_in(some, noise, error), correlation, some))
    worst.sort(key=lambda one: -one[0])
    rows = []
    for _, correlation, some in worst[:10]:
        chunks = [
            _wrong_in(some, *normals(rng, families, count, correlation))
            for _ in range(anew // families)
        ]
        rows.append(
            {
                "count": count,
                "tried": len(worst),
                "correlation": correlation,
                "true": [place * sign for place, sign, _ in some],
                "error": [ratio for *_, ratio in some],
                "families": anew,
                "wrong": round(sum(chunks) * families),
            }
        )
    return rows


def _wrong_in(
    some: Sequence[tuple[float, int, float]], noise: np.ndarray, error: np.ndarray
) -> float:
    """The share of families that are wrong if their margin is 1."""
    true = np.array([place * sign for place, sign, _ in some])
    scale = np.array([ratio for *_, ratio in some])
    words = decided(true + noise * scale, error * scale, PLANNED, 1.0)
    return float(wrong(words, true, 1.0).any(axis=1).mean())


def any_dependence() -> Row:
    """The most that two comparisons with known errors can be wrong, however they depend on each
    other: one whose true difference is zero, and one whose difference lies inside the margin.

    Shaffer's count is proved for nulls. The second has none that is true, and yet may get a wrong
    sign, or "by what matters". The worst dependence brings the first to a wrong word at the whole
    level just if the second is settled, and at half of it else, never if the second is wrong. No
    two clips do that.
    """
    bar = stats.norm.isf(LEVEL / 4)
    true, width = np.meshgrid(np.linspace(0, 2, 401), np.linspace(0, 4, 401))
    margin = 2 * bar + width  # in standard errors
    settled = np.zeros_like(true)
    for centre in (true, -true):
        settled += stats.norm.cdf(margin - bar - centre) - stats.norm.cdf(bar - centre)
    mistaken = stats.norm.cdf(bar - margin - true) + stats.norm.sf(margin + bar - true)
    most = LEVEL / 2 + np.minimum(LEVEL / 2, settled) + mistaken
    place = np.unravel_index(most.argmax(), most.shape)
    return {"wrong": float(most[place]), "true": float(true[place]), "margin": float(margin[place])}


# ------------------------------------------------------------------------------------------- power


def powers(families: int = FAMILIES) -> list[Row]:
    """How often a single comparison gets each word."""
    rows = []
    for ratio, true in itertools.product(RATIOS, (0.0, 0.5, 1.0, 2.0, 3.0)):
        noise, error = normals(generator("power", ratio, true), families, 1, 0.0)
        words = decided(true / ratio + noise, error, PLANNED, 1 / ratio)
        said = np.bincount(words[:, 0], minlength=len(WORDS))
        rows.append({"ratio": ratio, "true": true, "families": families, "said": said.tolist()})
    return rows


def planned(families: int = 10_000) -> list[Row]:
    """How often a single comparison is decided on the seeds that `verdicts.seeds_needed` asks
    for.
    """
    rows = []
    for ratio in RATIOS[1:]:
        one = Comparison(0.0, ratio, PLANNED, 1.0)
        seeds = int(verdicts.seeds_needed(one, LEVEL))
        unit = ratio * math.sqrt(PLANNED / seeds)
        noise, error = normals(generator("planned", ratio), families, 1, 0.0, seeds)
        said = {
            name: int((decided(true + noise * unit, error * unit, seeds, 1.0) == word).sum())
            for name, true, word in (("same", 0.0, SAME), ("better", 2.0, BETTER))
        }
        rows.append({"ratio": ratio, "seeds": seeds, "families": families, **said})
    return rows
