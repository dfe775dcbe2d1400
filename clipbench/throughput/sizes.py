"""Model sizes without a model: shapes of parameters, from a few large tensors to many tiny ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import prod

from clipbench.errors import UsageError, nearest

Shape = tuple[int, ...]


def _dense(*widths: int) -> list[Shape]:
    """Weights and biases of fully connected layers of these widths."""
    return [shape for before, after in pairwise(widths) for shape in ((after, before), (after,))]


def _batch_norm(channels: int) -> list[Shape]:
    return [(channels,), (channels,)]


def _convolution(before: int, after: int, kernel: int) -> list[Shape]:
    """A convolution without bias, and its batch norm."""
    return [(after, before, kernel, kernel), *_batch_norm(after)]


def _resnet(depths: Sequence[int], bottleneck: bool) -> Iterator[Shape]:
    """The parameters of a residual network for ImageNet, in the order of its layers (He et al.
    2016).
    """
    yield from _convolution(3, 64, 7)
    before = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        after = 4 * width if bottleneck else width
        for block in range(depth):
            if bottleneck:
                yield from (
                    *_convolution(before, width, 1),
                    *_convolution(width, width, 3),
                    *_convolution(width, after, 1),
                )
            else:
                yield from (*_convolution(before, width, 3), *_convolution(width, after, 3))
            if block == 0 and before != after:
                yield from _convolution(before, after, 1)
            before = after
    yield from _dense(before, 1000)


def named(shapes: Iterable[Shape]) -> str:
    """``11.7M in 62 tensors``: the name of a size in tables and figures."""
    held = list(shapes)
    return f"{count(sum(prod(shape) for shape in held))} in {len(held)} tensors"


def count(parameters: int) -> str:
    """A number of parameters in three digits: ``990``, ``9.6k``, ``11.7M``."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)


# Word on the command line → shapes. The last two are those of ResNet-18 and ResNet-50.
SIZES: dict[str, list[Shape]] = {
    "1k": _dense(30, 31, 1),
    "10k": _dense(64, 128, 13),
    "tiny": [(8, 8)] * 150,
    "250k": _dense(784, 256, 180, 10),
    "2M": _dense(1024, 1024, 900, 10),
    "11.7M": list(_resnet((2, 2, 2, 2), bottleneck=False)),
    "25.6M": list(_resnet((3, 4, 6, 3), bottleneck=True)),
}


def sizes_named(words: str | None) -> dict[str, list[Shape]]:
    """Name → shapes of the sizes asked for: all if nothing is said, none of them for ``none``.

    :param words: comma-separated, such as ``1k,tiny``.
    :raises UsageError: a word that is no size.
    """
    asked = (
        list(SIZES)
        if words is None
        else []
        if words == "none"
        else [word.strip() for word in words.split(",")]
    )
    for word in asked:
        if word not in SIZES:
            hint = nearest(word, SIZES)
            raise UsageError(
                f'--sizes: there is no size "{word}".{hint} There are: {", ".join(SIZES)}; or none.'
            )
    return {named(SIZES[word]): SIZES[word] for word in asked}
