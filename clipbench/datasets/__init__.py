"""The sets of MedMNIST: where their files lie, how one is fetched, and how a file that may be
damaged or malicious is read.

A set is one ``.npz`` an image size, with ``{train,val,test}_{images,labels}``: Yang et al. 2023,
doi:10.1038/s41597-022-01721-8, and the larger sizes of 2024, doi:10.5281/zenodo.10519652. The
catalogue says which there are. Nothing but `fetch` uses the network, and nothing is created before
it.
"""

from __future__ import annotations

import hashlib
import http.client
import math
import os
import sys
import tokenize
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from clipbench.datasets.catalogue import FAMILIES, FREE, LARGEST, SIZES, Dataset, named
from clipbench.errors import UsageError

__all__ = [
    "FAMILIES",
    "SIZES",
    "SPLITS",
    "Archive",
    "Dataset",
    "fetch",
    "folder",
    "located",
    "named",
    "opened",
]

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # ours → the file's
MOST = 200_000  # images a split; the largest, of tissuemnist, has 165,466
# of a file: images of the largest set that is read, uncompressed, and labels
MOST_BYTES = LARGEST // 4 + 2**24
CHUNK = 2**20
TIMEOUT = 60.0  # seconds without a byte
# what MedMNIST publishes: against damage and mistakes, not against malice
MD5 = partial(hashlib.md5, usedforsecurity=False)
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    SyntaxError,
    tokenize.TokenError,
    RuntimeError,  # encrypted
    TypeError,  # the last four: headers of nonsense, which numpy reads as Python
    IndexError,
    KeyError,
    MemoryError,
)
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes; the others are refused


# -------------------------------------------------------------------------------- where a file lies


def folder() -> Path:
    """The data folder: ``CLIPBENCH_DATA`` if it is set, else the platform's folder for a user's
    data. It need not exist.
    """
    if path := os.environ.get("CLIPBENCH_DATA"):
        return _expanded(path, "CLIPBENCH_DATA")
    home = Path.home()
    usual = {
        "darwin": home / "Library" / "Application Support",
        "win32": home / "AppData" / "Local",
    }
    return (
        Path(os.environ.get("XDG_DATA_HOME") or usual.get(sys.platform, home / ".local" / "share"))
        / "clipbench"
    )


def _expanded(path: str, what: str) -> Path:
    """The path, its ``~`` or ``~name`` replaced by that user's home.

    :raises UsageError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{what} is {path}, and there is no such user here.") from None


def located(dataset: Dataset, path: str = "") -> Path:
    """The file of a set: the one at ``path``, else the one of its name in the data folder.

    :raises UsageError: it is not there; or it was not given, and the set's licence is not `FREE`.
    """
    if path:
        if not (expanded := _expanded(path, "path")).is_file():
            raise UsageError(f"{path}: there is no such file.")
        return expanded
    file = folder() / f"{dataset.stem}.npz"
    if dataset.family.licence != FREE:
        raise UsageError(
            f"{_warning(dataset)}; if that is all right, give its file as `path`; "
            f"{_advice(dataset)} fetches it."
        )
    if not file.is_file():
        raise UsageError(
            f"{file}: {dataset.stem} is not there; {_advice(dataset)} fetches it, or give its file "
            f"as `path`."
        )
    return file


def _warning(dataset: Dataset) -> str:
    """What stands against the one set that is not free: Abhishek, Jain & Hamarneh 2025,
    doi:10.1038/s41597-025-04382-5.
    """
    return (
        f"{dataset.name} is licensed {dataset.family.licence} (no commercial use) and leaks "
        "(images of the same lesion lie in training and test)"
    )


def _advice(dataset: Dataset) -> str:
    size = f" --size {dataset.size}" if dataset.size != SIZES[0] else ""
    accept = " --accept-licence" if dataset.family.licence != FREE else ""
    return f"`clipbench data fetch {dataset.name}{size}{accept}`"


# ----------------------------------------------------------------------------------- reading a file


@dataclass(frozen=True, eq=False)
class Archive:
    """A file whose headers and labels were found to be those of its set; its images are read when
    they are asked for.

    ``labels`` are split name → N whole numbers, 0 to the number of classes − 1.
    """

    file: Path
    dataset: Dataset
    labels: Mapping[str, np.ndarray]

    def sound(self) -> None:
        """Read all of it once.

        :raises UsageError: the file is damaged.
        """
        with _unzipped(self.file) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile

    def images(self, split: str) -> np.ndarray:
        """The images of a split, uint8 of N×size×size, or ×3.

        :raises UsageError: the file is damaged.
        """
        with _unzipped(self.file) as archive:
            return _array(archive, f"{SPLITS[split]}_images")


def opened(dataset: Dataset, file: Path, *, official: bool) -> Archive:
    """A file that was checked before anything is allocated for it: names, types, shapes and sizes
    in its headers, then labels.

    :param official: it must be the file that MedMNIST publishes, byte for byte.
    :raises UsageError: it is not, or it is no file of this set.
    """
    if official and (md5 := _md5(file)) != dataset.md5:
        raise UsageError(
            f"{file}: its MD5 is {md5}, and that of {dataset.stem} is {dataset.md5}; fetch it "
            f"anew, or give it as `path`."
        )
    with _unzipped(file) as archive:
        pixels = sum(_judge(archive, file, dataset, split) for split in SPLITS.values())
        if 4 * pixels > LARGEST:
            raise UsageError(
                f"{file}: its images take {4 * pixels / 2**30:.1f} GiB in float32, more than "
                f"{LARGEST >> 30} GiB."
            )
        labels = {
            split: _array(archive, f"{array}_labels").reshape(-1).astype(np.int64)
            for split, array in SPLITS.items()
        }
    classes = dataset.family.classes
    for split, numbers in labels.items():
        wrong = numbers[(numbers < 0) | (numbers >= classes)]
        if len(wrong):
            raise UsageError(
                f"{file}: {SPLITS[split]}_labels has {wrong[0]}, and {dataset.name} has 0 to "
                f"{classes - 1}."
            )
    return Archive(file, dataset, labels)


def _judge(archive: zipfile.ZipFile, file: Path, dataset: Dataset, split: str) -> int:
    """The number of pixels of one split whose headers are those of its set."""
    (dtype, shape), (label_dtype, label_shape) = (
        _header(archive, file, f"{split}_{what}") for what in ("images", "labels")
    )
    wanted = "×".join(map(str, ("N", *dataset.shape)))
    if dtype != np.uint8 or shape[1:] != dataset.shape or len(shape) == 1:
        hint = _hint_of_size(dataset, shape)
        raise UsageError(
            f"{file}: {split}_images is {_words(dtype, shape)}, and must be uint8 of "
            f"{wanted}.{hint}"
        )
    if not 1 <= shape[0] <= MOST:
        raise UsageError(
            f"{file}: {split}_images has {shape[0]} images, and must have 1 to {MOST}."
        )
    if label_dtype.kind not in "iu" or label_shape != (shape[0], 1):
        raise UsageError(
            f"{file}: {split}_labels is {_words(label_dtype, label_shape)}, and must be whole "
            f"numbers of {shape[0]}×1."
        )
    return math.prod(shape)


def _hint_of_size(dataset: Dataset, shape: tuple[int, ...]) -> str:
    """A hint if the images have the size of another file of the set: that file's name; else
    empty.
    """
    others = (Dataset(dataset.name, size) for size in SIZES)
    return next(
        (
            f' Did you mean dataset = "{other.stem}"?'
            for other in others
            if shape[1:] == other.shape
        ),
        "",
    )


def _words(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    return f"{dtype} of {'×'.join(map(str, shape)) or 'one number'}"


def _header(archive: zipfile.ZipFile, file: Path, array: str) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of one array, from the first bytes of its member."""
    try:
        info = archive.getinfo(f"{array}.npy")
    except KeyError:
        keys = (
            ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist())[:12])
            or "nothing"
        )
        raise UsageError(f"{file}: there is no array {array} in it; it has: {keys}.") from None
    if info.compress_type not in PLAIN:
        raise UsageError(
            f"{file}: {array} is compressed in a way that numpy never writes; save it anew with "
            f"numpy.savez_compressed."
        )
    with archive.open(info) as member:
        # a longer header than that of 1.0, of 64 KiB at most, is none of a plain array
        if npy.read_magic(member) != (1, 0):
            raise zipfile.BadZipFile
        shape, _, dtype = npy.read_array_header_1_0(member)
        if dtype.hasobject:
            raise UsageError(
                f"{file}: {array} holds Python objects, which could run any code and are "
                f"never read."
            )
        if info.file_size != member.tell() + dtype.itemsize * math.prod(shape):
            raise UsageError(
                f"{file}: {array} says it is {_words(dtype, shape)}, and is stored in "
                f"{info.file_size} bytes."
            )
    return dtype, shape


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return npy.read_array(member, allow_pickle=False)


@contextmanager
def _unzipped(file: Path) -> Iterator[zipfile.ZipFile]:
    """The file as a zip archive; whatever is wrong with it on the way is one sentence."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except OSError as error:
        raise UsageError(f"{file}: this file cannot be read ({error.strerror or error}).") from None
    except DAMAGE as error:
        raise UsageError(f"{file}: this is no .npz file, or it is damaged or cut off.") from error


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, MD5).hexdigest()


# ----------------------------------------------------------------------------------------- fetching

Watch = Callable[[int, int | None], object]


def fetch(
    dataset: Dataset,
    into: Path,
    *,
    accept_licence: bool = False,
    watch: Watch = lambda _come, _all: None,
) -> bool:
    """Whether a set's file was downloaded into a folder: False if it was already there.

    The bytes go to a temporary name in that folder and get their own once their MD5 sum is right:
    whatever happens on the way, no part of a file is left. There is no resuming.

    :param accept_licence: fetch a set that is not `FREE`.
    :param watch: called with the number of bytes of each piece, and of the whole where the server
        says.
    :raises UsageError: the licence is not accepted; another file has the name; the server does not
        deliver; or the sum is wrong.
    """
    if dataset.family.licence != FREE and not accept_licence:
        raise UsageError(f"{_warning(dataset)}; if that is all right: {_advice(dataset)}.")
    file = into / f"{dataset.stem}.npz"
    if file.exists():
        if (md5 := _md5(file)) == dataset.md5:
            return False
        raise UsageError(
            f"{file}: a file of that name is there, and its MD5 is {md5}, not {dataset.md5}; move "
            f"it away and fetch again."
        )
    into.mkdir(parents=True, exist_ok=True)
    _sweep(into)
    digest = MD5()
    unfinished = into / f".{dataset.stem}-{os.getpid()}.part"
    try:
        with unfinished.open("wb") as stream:
            for piece, whole in _pieces(dataset.url):
                stream.write(piece)
                digest.update(piece)
                watch(len(piece), whole)
            stream.flush()
            os.fsync(stream.fileno())
        if digest.hexdigest() != dataset.md5:
            raise UsageError(
                f"{dataset.url}: what came has the MD5 {digest.hexdigest()}, not {dataset.md5}; it "
                f"was not kept. Try again."
            )
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _sweep(folder: Path) -> None:
    """Remove what downloads left behind whose process was killed."""
    for unfinished in folder.glob(".*-*.part"):
        process = unfinished.stem.rpartition("-")[2]
        if process.isdecimal() and not _lives(int(process)):
            unfinished.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class _StayOnHttps(urllib.request.HTTPRedirectHandler):
    """Follows a redirect, but not from https to anything else."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if req.type == "https" and not newurl.startswith("https:"):
            raise UsageError(
                f"{req.full_url}: the server sends us on to {newurl}, which is not https; nothing "
                f"was kept."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _pieces(url: str) -> Iterator[tuple[bytes, int | None]]:
    """The body, piece by piece, each with the length that the server announced."""
    come = 0
    try:
        with urllib.request.build_opener(_StayOnHttps).open(url, timeout=TIMEOUT) as response:
            length = response.headers.get("Content-Length")
            whole = int(length) if length else None
            while piece := response.read(CHUNK):
                come += len(piece)
                if come > MOST_BYTES:
                    raise UsageError(
                        f"{url}: more than {MOST_BYTES >> 30} GiB came, and no set is as large; "
                        f"nothing was kept."
                    )
                yield piece, whole
    except urllib.error.HTTPError as error:
        error.close()
        raise UsageError(
            f"{url}: the server answered {error.code} ({error.reason}); nothing was kept."
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(
            f"{url}: the download failed ({reason}); nothing was kept. Try again."
        ) from None
    if whole is not None and come != whole:
        raise UsageError(
            f"{url}: the download was cut off after {come} of {whole} bytes; nothing was kept. "
            f"Try again."
        )
