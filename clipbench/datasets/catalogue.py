"""The sets of MedMNIST: which there are, at which sizes, and how their files are named.

Names, tasks and MD5 sums are those of the package ``medmnist`` 3.0.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clipbench.errors import UsageError, nearest

RECORD = "https://zenodo.org/records/10519652/files"
SIZES = (28, 64, 128, 224)
FREE = "CC BY 4.0"
LARGEST = 2**34  # bytes that the images of a file may take as float32
TOO_LARGE = ("pathmnist_128", "pathmnist_224", "octmnist_224", "tissuemnist_224")  # which take more


@dataclass(frozen=True)
class Family:
    """A set at all its sizes: its task, channels and classes, the MD5 sum of each file in the
    order of `SIZES`, and its licence.
    """

    task: str
    channels: int
    classes: int
    md5s: tuple[str, str, str, str]
    licence: str = FREE


# fmt: off
FAMILIES = {
    "pathmnist": Family("multi-class", 3, 9, (
        "a8b06965200029087d5bd730944a56c1", "55aa9c1e0525abe5a6b9d8343a507616",
        "ac42d08fb904d92c244187169d1fd1d9", "2c51a510bcdc9cf8ddb2af93af1eadec")),
    "chestmnist": Family("multi-label", 1, 14, (
        "02c8a6516a18b556561a56cbdd36c4a8", "9de6cd0b934ebb5b7426cfba5efbae16",
        "db107e5590b27930b62dbaf558aebee3", "45bd33e6f06c3e8cdb481c74a89152aa")),
    "dermamnist": Family("multi-class", 3, 7, (
        "0744692d530f8e62ec473284d019b0c7", "b70a2f5635c6199aeaa28c31d7202e1f",
        "2defd784463fa5243564e855ed717de1", "8974907d8e169bef5f5b96bc506ae45d"), "CC BY-NC 4.0"),
    "octmnist": Family("multi-class", 1, 4, (
        "c68d92d5b585d8d81f7112f81e2d0842", "e229e9440236b774d9f0dfef9d07bdaf",
        "0a97e76651ace45c5d943ee3f65b63ae", "abc493b6d529d5de7569faaef2773ba3")),
    "pneumoniamnist": Family("binary-class", 1, 2, (
        "28209eda62fecd6e6a2d98b1501bb15f", "8f4eceb4ccffa70c672198ea285246c6",
        "05b46931834c231683c68f40c47b2971", "d6a3c71de1b945ea11211b03746c1fe1")),
    "retinamnist": Family("ordinal-regression", 3, 5, (
        "bd4c0672f1bba3e3a89f0e4e876791e4", "afda852cc34dcda56f86ad2b2457dbcc",
        "e48e916a24454daf90583d4e6efb1a18", "eae7e3b6f3fcbda4ae613ebdcbe35348")),
    "breastmnist": Family("binary-class", 1, 2, (
        "750601b1f35ba3300ea97c75c52ff8f6", "742edef2a1fd1524b2efff4bd7ba9364",
        "363e4b3f8d712e9b5de15470a2aaadf1", "b56378a6eefa9fed602bb16d192d4c8b")),
    "bloodmnist": Family("multi-class", 3, 8, (
        "7053d0359d879ad8a5505303e11de1dc", "2b94928a2ae4916078ca51e05b6b800b",
        "adace1e0ed228fccda1f39692059dd4c", "b718ff6835fcbdb22ba9eacccd7b2601")),
    "tissuemnist": Family("multi-class", 1, 8, (
        "ebe78ee8b05294063de985d821c1c34b", "123ece2eba09d0aa5d698fda57103344",
        "61b955355d7425a89687b06cca3ce0c2", "b077128c4a949f0a4eb01517f9037b9c")),
    "organamnist": Family("multi-class", 1, 11, (
        "68e3f8846a6bd62f0c9bf841c0d9eacc", "2dcccc29b88e6da5a01161ef20cda288",
        "eeae80d0a227a8d099027e1b3cfd3b60", "50747347e05c87dd3aaf92c49f9f3170")),
    "organcmnist": Family("multi-class", 1, 11, (
        "b9ceb9546e10131b32923c5bbeaea2b1", "3ce34a8724ea6f548e6db4744d03b6a9",
        "773c1f009daa3fe5d9a2a201b2a7ed94", "050f5e875dc056f6768abf94ec9995d1")),
    "organsmnist": Family("multi-class", 1, 11, (
        "9ab87b696fb54e2a387ebe992d6ed5f1", "53a6d115339d874c25e309a994ff46d3",
        "ded0c5fa01a95dc4978b956f613e9b8e", "b354719e553fbbb2513d5533f52a4cb1")),
}
# fmt: on


@dataclass(frozen=True)
class Dataset:
    """A set at one size: one file."""

    name: str
    size: int

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    @property
    def stem(self) -> str:
        """The file's name without ``.npz``: ``pneumoniamnist``, ``pneumoniamnist_64``."""
        return self.name if self.size == SIZES[0] else f"{self.name}_{self.size}"

    @property
    def md5(self) -> str:
        return self.family.md5s[SIZES.index(self.size)]

    @property
    def url(self) -> str:
        return f"{RECORD}/{self.stem}.npz?download=1"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, as the file has it: 28×28, or 28×28×3."""
        return (
            (self.size, self.size)
            if self.family.channels == 1
            else (self.size, self.size, self.family.channels)
        )


def named(stem: str) -> Dataset:
    """The set called ``pneumoniamnist``, or one of its larger files, ``pneumoniamnist_64``.

    :raises UsageError: there is none, its task is not one of ours, or it is too large.
    """
    match = re.fullmatch(r"([a-z]+)(?:_(64|128|224))?", stem)
    if match is None or match[1] not in FAMILIES:
        known = ", ".join(name for name, family in FAMILIES.items() if not _refusal(family))
        hint = nearest(stem.lower(), FAMILIES)
        raise UsageError(
            f'there is no 2-D set "{stem}" in MedMNIST.{hint} There are: {known}; larger images '
            f"are NAME_64, NAME_128, NAME_224."
        )
    if reason := _refusal(FAMILIES[match[1]]):
        raise UsageError(
            f"{match[1]} is {reason}, and only binary-class and multi-class sets are trained here."
        )
    if stem in TOO_LARGE:
        raise UsageError(
            f"{stem}: its images take more than {LARGEST >> 30} GiB in float32; take a smaller "
            f"size of it."
        )
    return Dataset(match[1], int(match[2] or SIZES[0]))


def _refusal(family: Family) -> str:
    return "" if family.task in ("binary-class", "multi-class") else f"for {family.task}"
