"""Tiny files in MedMNIST's format, which nobody has to fetch: noise, brighter from class to
class.
"""

import numpy as np

from clipbench import datasets

COUNTS = {"train": 60, "val": 24, "test": 24}


def arrays(stem="pneumoniamnist", **changes):
    """What a file of the set holds, every class as often as any other; ``changes`` replace
    arrays by name, or leave None out.
    """
    dataset = datasets.named(stem)
    draw = np.random.default_rng(0)
    found = {}
    for split, count in COUNTS.items():
        labels = np.arange(count) % dataset.family.classes
        level = (40 + 150 * labels / dataset.family.classes).reshape(
            -1, *(1 for _ in dataset.shape)
        )
        found[f"{split}_images"] = (
            draw.normal(level, 40, (count, *dataset.shape)).clip(0, 255).astype(np.uint8)
        )
        found[f"{split}_labels"] = labels.astype(np.uint8).reshape(-1, 1)
    found |= changes
    return {key: array for key, array in found.items() if array is not None}


def write(file, stem="pneumoniamnist", **changes):
    """Write such a file, compressed as the published ones; returns it."""
    np.savez_compressed(file, **arrays(stem, **changes))
    return file
