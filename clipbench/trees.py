"""Arithmetic on trees: plain dictionaries from a parameter's name to its tensor; and random
numbers with a name and a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Tree = dict[str, Tensor]


def map(function: Callable[..., Tensor], *trees: Tree) -> Tree:
    """``function`` applied leaf by leaf over trees of the same names."""
    return {name: function(*(tree[name] for tree in trees)) for name in trees[0]}


def zeros_like(tree: Tree) -> Tree:
    """A tree of zeros in the shapes of ``tree``."""
    return {name: torch.zeros_like(leaf) for name, leaf in tree.items()}


def zero(tree: Tree) -> Tensor:
    """A scalar zero of the tree's dtype and device: the start of a running mean or a step count."""
    return next(iter(tree.values())).new_zeros(())


def like(number: Any, tree: Tree) -> Any:
    """A setting in the tree's dtype if it is a tensor, as in lanes: otherwise ``torch.clamp``
    would widen its result.
    """
    return number.to(next(iter(tree.values())).dtype) if isinstance(number, Tensor) else number


def dot(left: Tree, right: Tree) -> Tensor:
    """The inner product of two trees, a scalar."""
    return torch.stack([(left[name] * right[name]).sum() for name in left]).sum()


def norm(tree: Tree, order: float = 2.0) -> Tensor:
    """The vector norm over all leaves together, a scalar: a norm of norms, as
    ``torch.nn.utils.get_total_norm`` takes it.

    A leaf of no elements adds nothing, where torch refuses to take its largest: only of that order
    is it asked for.
    """
    # the question costs a norm of small leaves 5 %
    one = torch.linalg.vector_norm if order == 2 else length
    return torch.linalg.vector_norm(
        torch.stack([one(leaf, order) for leaf in tree.values()]), order
    )


def length(leaf: Tensor, order: float = 2.0) -> Tensor:
    """The vector norm of one tensor, a scalar; 0 of no elements."""
    return torch.linalg.vector_norm(leaf, order) if leaf.numel() else leaf.new_zeros(())


def scale(tree: Tree, factor: Tensor | float) -> Tree:
    """Every leaf times ``factor``."""
    return {name: leaf * factor for name, leaf in tree.items()}


def scale_to(tree: Tree, limit: Tensor | float, size: Tensor) -> Tree:
    """``tree``, whose norm is ``size``, shortened to ``limit`` if it is longer.

    Exact: unchanged where ``size <= limit``, zero stays zero, no epsilon. A NaN size changes
    nothing, so that NaN stays visible.
    """
    return scale(tree, torch.where(size > limit, limit / size, torch.ones_like(size)))


def dense(leaf: Tensor) -> Tensor:
    """``leaf`` with all its elements, of which a sparse gradient has only those that are not
    zero.
    """
    return leaf if leaf.layout is torch.strided else leaf.to_dense()


def flatten(tree: Tree, out: Tensor | None = None) -> Tensor:
    """The leaves as one vector of ``sum(leaf.numel())`` elements, written into ``out`` if given."""
    return torch.cat([leaf.reshape(-1) for leaf in tree.values()], out=out)


# ------------------------------------------------------------------------------------- paired seeds


def seed_of(workload: str, seed: int, stream: str) -> int:
    """A 63-bit seed from the workload, the cell's seed and the stream's name, the same in every
    process and on every machine.
    """
    digest = hashlib.sha256(f"{workload}\0{seed}\0{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(workload: str, seed: int, stream: str) -> torch.Generator:
    """A CPU generator for one named stream of one workload and seed: every method draws the same
    numbers from it.
    """
    return torch.Generator().manual_seed(seed_of(workload, seed, stream))


@contextmanager
def seeded(workload: str, seed: int, stream: str, device: str = "cpu") -> Iterator[None]:
    """The global random state, forked and seeded: the only place it may be drawn from (layers
    draw weights and dropout from it).
    """
    own = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=own):
        torch.default_generator.manual_seed(seed_of(workload, seed, stream))
        for index in own:
            torch.cuda.default_generators[index].manual_seed(seed_of(workload, seed, stream))
        yield


class AlikeEverywhere(TorchDispatchMode):
    """Within it, float32 numbers from ``uniform_``, ``normal_`` and ``randn`` are the same on every
    processor.

    torch scales a uniform number with or without a fused multiply-add, and draws normal ones by
    other approximations of log and cos, as the processor allows. Here the arithmetic is float64's,
    and only its result is rounded.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would load its compiler, which takes a second, to leave this mode out of it; what
        is drawn within it is never compiled.
        """
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.uniform_.default and args[0].dtype == torch.float32:
            return _uniform(*args, **kwargs)
        if func is torch.ops.aten.normal_.default and args[0].dtype == torch.float32:
            return args[0].copy_(
                torch.empty_like(args[0], dtype=torch.float64).normal_(*args[1:], **kwargs)
            )
        normal = func in (torch.ops.aten.randn.default, torch.ops.aten.randn.generator)
        if normal and (kwargs.get("dtype") or torch.get_default_dtype()) == torch.float32:
            return func(*args, **{**kwargs, "dtype": torch.float64}).float()
        return func(*args, **kwargs)


def _uniform(
    tensor: Tensor, low: float = 0.0, high: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """Fill ``tensor`` from [low, high): the very numbers of a processor with fused multiply-add."""
    unit = torch.empty_like(tensor).uniform_(generator=generator).double()
    # Both ends as torch rounds them: their difference is float32's, too.
    begin, width = torch.tensor(low), torch.tensor(high) - torch.tensor(low)
    return tensor.copy_(unit * width.double() + begin.double())
