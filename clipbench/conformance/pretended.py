"""A CUDA device that is none: real arithmetic on the CPU, under the rules of a device.

Tensors lie in the CPU's memory, and a mark on their storage says that they are "on cuda". It finds
tensors of two devices in one operation, waits of the host where there may be none, pageable copies,
and whatever a CUDA graph does not see: a captured step is recorded, undone, and replayed operation
by operation into the same memory. Numbers are those of the CPU, to the last bit.

What it cannot show: kernels and their rounding, memory, streams, the profiler, and other processes.
"""

# ruff: noqa: SLF001 - where torch keeps such things it has no public names

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipbench.engines import program

CPU = torch.device("cpu")
ON_CUDA, ON_CPU = (vars(torch._C.TensorBase)[name].__get__ for name in ("is_cuda", "is_cpu"))
_ops = torch.ops.aten
WAITS = {
    _ops._local_scalar_dense.default,
    _ops.nonzero.default,
    _ops.equal.default,
    _ops._unique2.default,
    _ops.masked_select.default,
}
"""Operations whose result the host needs."""
SCALARS = {
    _ops.fill_.Tensor,
    _ops._to_copy.default,
    _ops._index_put_impl_.default,
    _ops.index_put_.default,
    _ops._foreach_add_.List,
}
"""Operations, beside those by element, that take a scalar of the CPU."""
BORN = {
    getattr(torch, name)
    for name in (
        *("tensor", "as_tensor", "from_numpy", "zeros", "ones", "full", "empty", "arange"),
        *("linspace", "eye", "rand", "randn", "randint", "randperm"),
    )
}


class Misplaced(RuntimeError):  # noqa: N818 - what a device says, in its own words
    """What a device would have raised, or would have waited for."""


class Waited(Misplaced):
    """The host would have waited for the device, where it must not."""


class Marks:
    """Where storages are said to lie."""

    def __init__(self) -> None:
        # the weak reference keeps an address from being used again
        self._places: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self._pinned: dict[int, StorageWeakRef] = {}

    def place(self, tensor: Tensor) -> torch.device | None:
        """The device of a tensor; None if nobody has said."""
        reference, place = self._places.get(_storage(tensor)._cdata, (None, None))
        return None if reference is None or reference.expired() else place

    def pin(self, tensor: Tensor) -> Tensor:
        """``tensor``, which is now said to lie in memory of the host that does not move."""
        storage = _storage(tensor)
        self._pinned[storage._cdata] = StorageWeakRef(storage)
        return self.put(tensor, CPU)

    def pinned(self, tensor: Tensor) -> bool:
        """Whether a device may copy it while the host goes on."""
        reference = self._pinned.get(_storage(tensor)._cdata)
        return reference is not None and not reference.expired()

    def put(self, tree: Any, place: torch.device) -> Any:
        """``tree``, whose tensors are now said to lie there."""
        for tensor in _tensors(tree):
            storage = _storage(tensor)
            self._places[storage._cdata] = StorageWeakRef(storage), place
        return tree


def _storage(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return tensor.untyped_storage()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


_MARKS = Marks()  # of the process: what an engine keeps from one run to the next stays where it was


class Device(TorchDispatchMode):
    """Every operation as a device would take it."""

    def __init__(self, count: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.marks, self.count = _MARKS, count
        self.waits: list[str] = []
        """What the host waited for, in order."""
        self.strict = False
        """Whether a wait is an error."""
        self.launched = 0
        """Operations on the device that would be a kernel."""
        self.current = 0
        """The index that ``cuda`` stands for."""
        self.record: list[tuple[Any, ...]] | None = None
        self.undo: list[tuple[Tensor, Tensor]] = []
        self.asked = False  # torch reads "cpu" off a tensor and asks for it: that is no copy
        self.free = False  # whether the copy under way lets the host go on

    def named(self, device: Any) -> torch.device:
        """A device as torch would have it, ``cuda`` with its index.

        :raises Misplaced: there is no such device.
        """
        found = torch.device(device)
        if found.type != "cuda":
            return CPU
        index = self.current if found.index is None else found.index
        if index >= self.count:
            raise Misplaced(f"pretended CUDA: invalid device ordinal {index}")
        return torch.device("cuda", index)

    def wait(self, what: object) -> None:
        """Note that the host waits for the device.

        :raises Waited: it must not, here.
        """
        self.waits.append(str(what))
        if self.strict or self.record is not None:
            raise Waited(f"pretended CUDA: the host waits for the device in {what}")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        given = _tensors((args, kwargs))
        places = [self.marks.place(one) for one in given]
        there = [place for place in places if place is not None and place.type == "cuda"]
        asked = kwargs.get("device")
        made = None if asked is None else self.named(asked)
        if made is not None:
            kwargs["device"] = CPU
        moved = self._moves(func, places, made)
        if moved:
            if not (self.free or self._lets_go(func, given, kwargs, args)):
                self.wait(f"{func} between host and device")
        elif there:
            self._check(func, args, given, places)
        if self.record is not None:
            self.undo += [
                (one, one.clone())
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.alias_info and argument.alias_info.is_write
                for one in _tensors(value)
            ]
        out = func(*args, **kwargs)
        views = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
        self.launched += bool(there) and not views
        self._mark(func, out, places, there, made, moved)
        if self.record is not None and (there or (made is not None and made.type == "cuda")):
            self.record.append((func, args, kwargs, out))
        return out

    def _moves(self, func: Any, places: Iterable[Any], made: torch.device | None) -> bool:
        """Whether it copies between host and device, which waits for pageable memory."""
        kinds = {place.type for place in places if place is not None}
        if func is _ops._to_copy.default:
            return self.asked or (made is not None and made.type == "cuda" and "cuda" not in kinds)
        return func is _ops.copy_.default and kinds == {"cpu", "cuda"}

    def _lets_go(self, func: Any, given: list[Tensor], kwargs: Any, args: Any) -> bool:
        """Whether a copy in place is one from pinned memory that the host does not wait for."""
        asked = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        return func is _ops.copy_.default and bool(asked) and self.marks.pinned(given[1])

    def _check(self, func: Any, args: Any, given: list[Tensor], places: list[Any]) -> None:
        """:raises Misplaced: tensors of two devices."""
        picked = _tensors(args[1:2]) if "index" in func.__name__ else []
        scalars = torch.Tag.pointwise in func.tags or func in SCALARS
        odd = [
            one
            for one, place in zip(given, places, strict=True)
            if place == CPU and not (one.ndim == 0 and scalars)
        ]
        cards = {place for place in places if place is not None and place.type == "cuda"}
        if any(one is index for one in odd for index in picked):
            self.wait(f"{func} by an index of the CPU")
        elif odd or len(cards) > 1:
            named = sorted({str(place) for place in places if place is not None})
            raise Misplaced(f"pretended CUDA: tensors on {' and '.join(named)} in {func}")
        if func in WAITS or any(one.dtype is torch.bool for one in picked):
            self.wait(func)

    def _mark(
        self,
        func: Any,
        out: Any,
        places: list[Any],
        there: list[torch.device],
        made: torch.device | None,
        moved: bool,
    ) -> None:
        if made is not None and made.type == "cuda":
            self.marks.put(out, made)
        elif there and not moved:
            self.marks.put(out, there[0])
        elif CPU in places and func is not _ops.copy_.default:
            self.marks.put(out, CPU)


class Front(TorchFunctionMode):
    """What never reaches the operations: the device that a tensor says it has, and copies that are
    none on a CPU.
    """

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device, self.marks = device, device.marks

    def __torch_function__(  # noqa: PLR0911 - a question each
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Tensor) else None
        place = None if first is None else self.marks.place(first)
        cuda = place is not None and place.type == "cuda"
        if cuda and func == Tensor.device.__get__:
            return place
        if cuda and func in (ON_CUDA, ON_CPU):
            return func == ON_CUDA
        if cuda and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"can't convert {place} device type tensor to numpy")
        if cuda and func is Tensor.tolist:
            self.device.wait("tolist")
        if func is torch.device:
            return func(*args, **kwargs)
        if func in BORN:
            asked = kwargs.pop("device", None)
            born = func(*args, **kwargs)
            if first is not None and self.marks.place(born) is not None:
                return born
            return self.marks.put(born, CPU if asked is None else self.device.named(asked))
        if first is not None and func is Tensor.pin_memory:
            return self.marks.pin(first.clone())
        if first is not None and func is Tensor.is_pinned:
            return self.marks.pinned(first)
        if first is not None and func in (Tensor.cpu, Tensor.cuda, Tensor.to):
            return self._moved(func, first, place, args[1:], kwargs)
        return func(
            *map(self._plain, args), **{name: self._plain(one) for name, one in kwargs.items()}
        )

    def _moved(self, func: Any, tensor: Tensor, place: Any, rest: Any, kwargs: Any) -> Any:
        """A tensor where it is asked for: itself if it is there already."""
        alike = kwargs.pop("other", next((one for one in rest if isinstance(one, Tensor)), None))
        if alike is not None:
            kwargs |= {"device": self.marks.place(alike) or CPU, "dtype": alike.dtype}
            rest = tuple(one for one in rest if one is not alike)
        asked = (
            CPU
            if func is Tensor.cpu
            else "cuda"
            if func is Tensor.cuda
            else kwargs.pop("device", next(filter(_is_device, rest), None))
        )
        rest = tuple(one for one in rest if not _is_device(one))
        target = None if asked is None else self.device.named(asked)
        if target is not None and target != (place or CPU):
            dtype = kwargs.get("dtype") or next(
                (one for one in rest if isinstance(one, torch.dtype)), None
            )
            self.device.asked = True
            asked_to_go_on = bool(kwargs.get("non_blocking"))
            self.device.free = asked_to_go_on and self.marks.pinned(tensor)
            try:
                return self.marks.put(
                    _ops._to_copy.default(tensor, device=target, dtype=dtype), target
                )
            finally:
                self.device.asked = self.device.free = False
        others = rest or any(one is not None for one in kwargs.values())
        return func(tensor, *rest, **kwargs) if func is Tensor.to and others else tensor

    def _plain(self, value: Any) -> Any:
        return self.device.named(value) if _is_device(value) and "cuda" in str(value) else value


def _is_device(value: Any) -> bool:
    return isinstance(value, str | torch.device) and str(value).partition(":")[0] in ("cuda", "cpu")


class Graph:
    """A captured step: its operations, replayed into the memory in which they were recorded."""

    record: list[tuple[Any, ...]]

    def replay(self) -> None:
        """Take the step again."""
        for func, args, kwargs, out in self.record:
            for old, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if not any(one.alias_info for one in func._schema.returns):
                    old.copy_(new)


@contextmanager
def pretended(count: int = 1) -> Iterator[Device]:
    """As if this process had ``count`` CUDA devices; whatever is run inside obeys their rules.

    >>> with pretended() as device:
    ...     torch.ones(2, device="cuda") + torch.ones(2)
    Traceback (most recent call last):
    ...
    clipbench.conformance.pretended.Misplaced: ... tensors on cpu and cuda:0 in aten.add.Tensor
    """
    device = Device(count)
    grouped, autocast, make_fx = (
        torch._C._group_tensors_by_device_and_dtype,
        torch.autocast,
        vars(program)["make_fx"],
    )

    def group(lists: Any, *more: Any) -> Any:
        return {
            (device.marks.place(found[0][0][0]) or where, dtype): found  # type: ignore[arg-type]
            for (where, dtype), found in grouped(lists, *more).items()
        }

    with ExitStack() as held:
        for name, stand in _card(device).items():
            held.enter_context(mock.patch.object(torch.cuda, name, stand))
        for place, name, stand in (
            (torch.backends.cudnn, "is_acceptable", lambda _: False),
            (torch, "autocast", lambda _, *more, **others: autocast("cpu", *more, **others)),
            (torch._C, "_group_tensors_by_device_and_dtype", group),
            (program, "make_fx", functools.partial(_traced, make_fx)),
        ):
            held.enter_context(mock.patch.object(place, name, stand))
        held.enter_context(device)
        held.enter_context(Front(device))
        yield device


def _card(device: Device) -> dict[str, Any]:
    """What stands in ``torch.cuda`` for what asks or sets up a card."""
    generator, count = torch.Generator(), device.count
    about = SimpleNamespace(
        name="pretended", total_memory=2**34, major=9, minor=0, multi_processor_count=1
    )

    @contextmanager
    def capture(graph: Graph, **_: Any) -> Iterator[None]:
        device.record, device.undo = [], []
        try:
            yield
        finally:
            graph.record, device.record = device.record, None
            with torch.no_grad():  # a capture records, and takes no step
                for tensor, was in reversed(device.undo):
                    tensor.copy_(was)

    def select(index: Any) -> None:
        device.current = device.named(index if isinstance(index, str) else f"cuda:{index}").index

    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "is_bf16_supported": lambda *_: True,
        "current_device": lambda: device.current,
        "set_device": select,
        "device_count": lambda: count,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (2**33, 2**34),
        "get_device_name": lambda *_: about.name,
        "get_device_properties": lambda *_: about,
        "get_arch_list": lambda: ["sm_75", "sm_90", "compute_90"],
        "get_device_capability": lambda *_: (about.major, about.minor),
        "default_generators": (generator,) * count,
        "get_rng_state": lambda *_: generator.get_state(),
        "set_rng_state": lambda *_: None,
        "CUDAGraph": Graph,
        "graph": capture,
    }


def _traced(make_fx: Any, function: Any, tracing_mode: str = "real", **options: Any) -> Any:
    """A trace with real tensors, whose marks are known; pretended ones have no storage."""
    del tracing_mode
    return make_fx(function, tracing_mode="real", **options)
