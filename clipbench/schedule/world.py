"""What cells of one process share, compared after every cell with what it was before the first.

What changes numbers spoils the cells that come after: the cell that changed it has failed, and its process is of no more use. The
rest is put back, or ended where it can be; where it cannot, the process is of no more use either, but the cell's numbers are.
Names that a library adds as it wakes up are no change; a name that was there and now stands for something else is one.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import locale
import os
import random
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from clipbench.engines.failures import said

MANY = 64  # files that may stay open for reading: a data set that is mapped
SHOWN = 3  # names in a sentence

# ------------------------------------------------------------------------------------------------------- what changes numbers

FLAGS = {
    "the deterministic algorithms": ("_get_deterministic_algorithms", "_get_deterministic_algorithms_warn_only"),
    "the filling of new memory": ("_get_deterministic_fill_uninitialized_memory",),
    "the precision of float32 products": ("_get_float32_matmul_precision", "_get_onednn_allow_tf32"),
    "TF32": ("_get_cublas_allow_tf32", "_get_cudnn_allow_tf32"),
    "the reduced precision of products": (
        "_get_cpu_allow_fp16_reduced_precision_reduction",
        "_get_cublas_allow_fp16_reduced_precision_reduction",
        "_get_cublas_allow_bf16_reduced_precision_reduction",
        "_get_cublas_allow_fp16_accumulation",
        "_get_math_sdp_allow_fp16_bf16_reduction",
    ),
    "the libraries that torch calls": (
        "_get_cudnn_enabled",
        "_get_cudnn_benchmark",
        "_get_cudnn_deterministic",
        "_get_mkldnn_enabled",
        "_get_mkldnn_deterministic",
        "_get_nnpack_enabled",
        "_get_blas_preferred_backend",
        "_get_linalg_preferred_backend",
    ),
    "the kernels of attention": (
        "_get_math_sdp_enabled",
        "_get_flash_sdp_enabled",
        "_get_mem_efficient_sdp_enabled",
        "_get_cudnn_sdp_enabled",
        "_get_overrideable_sdp_enabled",
    ),
    "torch's modes": ("_len_torch_function_stack", "_len_torch_dispatch_stack"),
}
PRECISIONS = (("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("mkldnn", "all"), ("mkldnn", "matmul"))
HOOKS: tuple[Mapping[Any, Any], ...] = (
    *(value for name, value in vars(torch_module).items() if name.startswith("_global_") and isinstance(value, dict)),
    *(value for name, value in vars(torch_optimizer).items() if name.startswith("_global_") and isinstance(value, dict)),
)


def _asked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What torch answers, or that it refuses to: where its old and its new words for precision are mixed, or a mode raises."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - a stranger's mode may raise anything
        return type(error)


def _flags(names: tuple[str, ...]) -> Callable[[], Any]:
    there = [getattr(torch._C, name) for name in names if hasattr(torch._C, name)]  # noqa: SLF001 - the public words are slow

    def read() -> list[Any]:
        try:
            return [one() for one in there]
        except RuntimeError:  # one refuses to answer: the others still do
            return [_asked(one) for one in there]

    return read


def _precisions() -> list[Any]:
    getter = getattr(torch._C, "_get_fp32_precision_getter", None)  # noqa: SLF001
    return [_asked(getter, *where) for where in PRECISIONS] if getter is not None else []


def _autocast() -> list[Any]:
    asked = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return [*asked, torch.is_autocast_cache_enabled()]


def _gradients() -> list[Any]:
    transformed = torch._C._functorch.peek_interpreter_stack() is not None  # noqa: SLF001
    return [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), transformed]


def _luck() -> tuple[Any, ...]:
    """The states of the generators that everybody shares."""
    key = np.random.get_state(legacy=False)  # noqa: NPY002 - the state that must not move
    numpys = (key["state"]["key"].tobytes(), key["state"]["pos"], key["has_gauss"], key["gauss"])
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    torchs = [one.get_state().numpy().tobytes() for one in (torch.default_generator, *cuda)]
    return random.getstate(), numpys, torchs[0], torchs[1:]


def _arithmetic() -> list[float]:
    """Whether denormals are flushed, in torch and here, and how sums are rounded."""
    tiny, one = sys.float_info.min, float(len("1"))  # not folded by Python's compiler
    return [tiny * (one / 2), one + one * 2**-60, -one - one * 2**-60]


NUMBERS: dict[str, Callable[[], Any]] = {
    "torch's default dtype": torch.get_default_dtype,
    "torch's default device": torch.get_default_device,
    "torch's gradient mode": _gradients,
    "the number of torch's threads": lambda: [torch.get_num_threads(), torch.get_num_interop_threads()],
    **{words: _flags(names) for words, names in FLAGS.items()},
    "the precision of float32": _precisions,
    "autocast": _autocast,
    "the search for anomalies": lambda: [torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()],
    "the flushing of denormals or the rounding": _arithmetic,
    "NumPy's handling of errors": np.geterr,
    "hooks of all modules or optimizers": lambda: [len(hooks) for hooks in HOOKS],
}
GENERATORS = ("Python's random generator", "NumPy's random generator", "torch's random generator", "CUDA's random generator")

# ------------------------------------------------------------------------------------------------------------ what names mean

MODULES = tuple(
    """
    builtins math random time numpy numpy.linalg numpy.random torch torch._tensor torch._C._nn torch._C._linalg torch.autograd
    torch.autograd.functional torch.autograd.grad_mode torch.fft torch.func torch.functional torch.linalg torch.random
    torch.special torch.nn torch.nn.functional torch.nn.init torch.nn.parameter
    """.split()  # noqa: SIM905 - thirty words read better without quotes
)
OURS = "clipbench."
PACKAGES = ("torch.nn.modules.", "torch.nn.utils.", "torch.optim", OURS)
CLASSES_ALONE = ("torch.nn.modules.",)
LEFT_OUT = (
    "__annotations__",
    "__annotate__",
    "__annotations_cache__",
    "__warningregistry__",
    "__doc__",
    "__abstractmethods__",
    "Storage",
)  # torch moves the last with its default dtype
WRAPPED = ("__wrapped__", "_torchdynamo_orig_callable")
ABSENT = object()


class Names:
    """What the functions and classes of torch, NumPy and this package stand for, and every name of this package."""

    def __init__(self) -> None:
        self.spaces = dict(_spaces())
        self._note()

    def _note(self) -> None:
        self.before = {where: _watched(where, space) for where, space in self.spaces.items()}
        self.known = {where: {*space} for where, space in self.spaces.items()}
        self.looks = [(itemgetter(*names), self.spaces[where]) for where, names in self.before.items() if names]
        self.values = self._now()

    def _now(self) -> tuple[list[Any], list[int]]:
        return [look(space) for look, space in self.looks], list(map(len, self.spaces.values()))

    def changed(self) -> list[str]:
        """The names that stand for something else than at the start."""
        try:
            if self._now() == self.values:  # by identity first, and nearly always by identity alone
                return []
        except Exception:  # noqa: BLE001, S110 - something took a known place that cannot be compared
            pass
        found = [name for where in self.spaces for name in self._changed(where)]
        self._note()
        return found

    def _changed(self, where: str) -> Iterator[str]:
        space, before = self.spaces[where], self.before[where]
        for name, old in before.items():
            new = space.get(name, ABSENT)
            if new is not old and not _wrapped_by_torch(new, old):
                yield f"{where}.{name}"
        for name in space.keys() - self.known[where]:
            if _hides(where, name):
                yield f"{where}.{name}"


def _watched(where: str, space: Mapping[str, Any]) -> dict[str, Any]:
    """The names that are looked at, and their values: a library's constants are not, for their number."""
    return {name: value for name, value in space.items() if name not in LEFT_OUT and (where.startswith(OURS) or _is_code(value))}


def _is_code(value: Any) -> bool:
    """Whether it can be called, or is how a class holds what can be."""
    return callable(value) or isinstance(value, classmethod | staticmethod | property)


def _spaces() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and (name in MODULES or name.startswith(PACKAGES)):
            if not name.startswith(CLASSES_ALONE):
                yield name, vars(module)
            if name.startswith((OURS, "torch")):
                yield from _classes(name, module)


def _classes(name: str, module: ModuleType) -> Iterator[tuple[str, dict[str, Any]]]:
    """The classes that are made in a module; their own dictionaries, which a class shows through a proxy only."""
    for key, value in list(vars(module).items()):
        if isinstance(value, type) and value.__module__ == name and (name != "torch" or value is torch.Tensor):
            yield f"{name}.{key}", gc.get_referents(vars(value))[0]


def _wrapped_by_torch(new: Any, old: Any) -> bool:
    """Whether torch has put a function of its own around one: around ``step`` of every optimizer class, at its first object."""
    code = getattr(new, "__code__", None)
    inner = any(getattr(new, name, ABSENT) is old for name in WRAPPED)
    return inner and code is not None and code.co_filename.startswith(str(Path(torch.__file__).parent))


def _hides(where: str, name: str) -> bool:
    """Whether a new name takes the place of one that was found elsewhere: of a base class, or of Python."""
    module, _, cls = where.rpartition(".")
    owner = getattr(sys.modules.get(module), cls, None)
    if isinstance(owner, type):
        return name not in LEFT_OUT and any(name in vars(base) for base in owner.__mro__[1:-1])
    return where != "builtins" and name in vars(builtins) and not name.startswith("__")


# -------------------------------------------------------------------------------------------------------------- what is put back

SIGNALS = tuple(
    getattr(signal, f"SIG{name}")
    for name in "HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM CHLD CONT TSTP XCPU XFSZ".split()  # noqa: SIM905
    if hasattr(signal, f"SIG{name}")
)
LIMITS = tuple(getattr(resource, f"RLIMIT_{name}") for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "STACK"))
STREAMS = ((sys, "stdin"), (sys, "stdout"), (sys, "stderr"))
CALLED = ((sys, "excepthook"), (sys, "unraisablehook"), (sys, "displayhook"), (threading, "excepthook"))


@dataclass(frozen=True)
class Held:
    """Something of the process that is put back: what it is, how it is read, and how set."""

    words: str
    read: Callable[[], Any]
    put_back: Callable[[Any], object]


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - at every cell: paths are slow
    except OSError:  # it was removed
        return None


_ENVIRON: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # noqa: SLF001 - to decode it all takes long


def _environ(then: Mapping[bytes, bytes]) -> None:
    os.environ.clear()
    os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in then.items()})


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _handlers(then: list[Any]) -> None:
    for number, handler in zip(SIGNALS, then, strict=True):
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _attributes(places: tuple[tuple[Any, str], ...], words: str) -> Held:
    def put_back(then: list[Any]) -> None:
        for (owner, name), value in zip(places, then, strict=True):
            setattr(owner, name, value)

    return Held(words, lambda: [getattr(owner, name) for owner, name in places], put_back)


def _collector(then: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if then[0] else gc.disable)()
    gc.set_threshold(*then[1])


def _limits(then: list[tuple[int, int]]) -> None:
    for limit, pair in zip(LIMITS, then, strict=True):
        resource.setrlimit(limit, pair)


def _affinity(then: set[int]) -> None:
    os.sched_setaffinity(0, then)


HELD = (
    Held("the working folder", _folder, os.chdir),
    Held("the environment variables", lambda: dict(_ENVIRON), _environ),
    Held("the mask of new files", _umask, os.umask),
    Held("the handlers of signals", lambda: [signal.getsignal(number) for number in SIGNALS], _handlers),
    Held(
        "the signals that are blocked",
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda then: signal.pthread_sigmask(signal.SIG_SETMASK, then),
    ),
    Held(
        "an alarm",
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        lambda _: signal.setitimer(signal.ITIMER_REAL, 0),
    ),
    Held(
        "the limits of the process",
        lambda: [resource.getrlimit(limit) for limit in LIMITS],
        _limits,
    ),
    Held("the locale", lambda: locale.setlocale(locale.LC_ALL), lambda then: locale.setlocale(locale.LC_ALL, then)),
    Held("the path of imports", lambda: [*sys.path], lambda then: sys.path.__setitem__(slice(None), then)),
    _attributes(STREAMS, "the standard streams"),
    _attributes(CALLED, "the hooks of exceptions"),
    Held("the depth of recursion", sys.getrecursionlimit, sys.setrecursionlimit),
    Held("the switching of threads", sys.getswitchinterval, sys.setswitchinterval),
    Held("a tracing function", sys.gettrace, sys.settrace),
    Held("a profiling function", sys.getprofile, sys.setprofile),
    Held("the collector of garbage", lambda: (gc.isenabled(), gc.get_threshold()), _collector),
    *([Held("the processors it runs on", lambda: os.sched_getaffinity(0), _affinity)] if hasattr(os, "sched_getaffinity") else []),
)
COMPILED = ("the depth of recursion", "the environment variables", "the path of imports")
COMPILERS = (b"TORCH", b"TRITON", b"INDUCTOR", b"KMP_", b"OMP_", b"CUDA_", b"CUBLAS_", b"PYTORCH_")  # variables of libraries


def _strict_filters() -> list[Any]:
    """The filters that make warnings errors; all others are only about what is printed, and libraries add some as they wake up."""
    return [one for one in warnings.filters if one[0] == "error"]


# --------------------------------------------------------------------------------------------------------------- what is left open

FILES = "/proc/self/fd"
OF_DRIVERS = ("/dev/nvidia", "anon_inode:", "socket:", "pipe:", "/proc/", "/memfd:")  # what CUDA opens as it wakes up
PR_SET_CHILD_SUBREAPER = 36


def _open_files() -> dict[str, str]:
    """Descriptor → what it leads to; empty where the system does not tell."""
    found = {}
    with suppress(FileNotFoundError):
        for name in os.listdir(FILES):  # noqa: PTH208 - at every cell: paths are slow
            with suppress(FileNotFoundError):  # the one that read the list
                found[name] = os.readlink(f"{FILES}/{name}")  # noqa: PTH115
    return found


def _only_read(name: str, target: str) -> bool:
    """Whether a descriptor is of a file that lies in a folder, and only for reading."""
    try:
        flags = Path(f"/proc/self/fdinfo/{name}").read_text(encoding="ascii").partition("flags:")[2].split()[0]
    except (OSError, IndexError):
        return False
    return Path(target).is_file() and int(flags, 8) & os.O_ACCMODE == os.O_RDONLY


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children(process: int | str = "self") -> set[int]:
    """The processes that a process has started and that are not gone."""
    found: set[int] = set()
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            found.update(map(int, file.read_text(encoding="ascii").split()))
    return found


def _end(process: int) -> bool:
    """End a child with all that it has started; whether it was still running."""
    offspring = _children(process)
    ended, _ = os.waitpid(process, os.WNOHANG)
    if not ended:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    for one in offspring:  # which are now ours, or those of whoever takes orphans in
        with suppress(OSError):
            os.kill(one, signal.SIGKILL)
    return not ended


def _adopt() -> None:
    """Be the parent of what a child leaves behind, where the system allows it: it could not be found otherwise."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}  # noqa: SLF001


# ------------------------------------------------------------------------------------------------------------------ the world


@dataclass(frozen=True)
class Change:
    """What is no longer as it was: what changes ``numbers``; ``notes`` on the rest, ``lasting`` if that could not be undone."""

    numbers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lasting: bool = False


class World:
    """The process as it is before its first cell."""

    def __init__(self) -> None:
        _adopt()
        self.names = Names()
        self.numbers = {words: read() for words, read in NUMBERS.items()}
        self.luck = _luck()
        self.held = [one.read() for one in HELD]
        self.filters = _strict_filters()
        self._accept()

    def _accept(self) -> None:
        """Take what is open and running as it is now."""
        self.files, self.children, self.threads = _open_files(), _children(), _threads()

    def compare(self, names: bool = True, by_compiler: bool = False) -> Change:
        """What has changed since the start; what can be is put back.

        :param names: whether names are looked at, too: packaged components replace none, and there are thousands.
        :param by_compiler: whether torch's compiler ran: it has files, threads and processes of its own.
        """
        try:
            return self._compared(names, by_compiler)
        except Exception as error:  # noqa: BLE001 - what is compared, or compares, may have been replaced
            return Change(numbers=(f"something by which it can no longer be compared ({said(error)})",))

    def _compared(self, names: bool, by_compiler: bool) -> Change:
        numbers = [*self._numbers(), *(self._names() if names else ())]
        if by_compiler:
            self._let_compiler()
        notes, lasting = self._put_back()
        if by_compiler:
            self._accept()
        else:
            left = [note for note in (self._left_open(), self._left_running(), self._left_cuda()) if note]
            notes, lasting = notes + left + self._left_children(), lasting or bool(left)
        return Change(tuple(numbers), tuple(notes), lasting)

    def _let_compiler(self) -> None:
        """Take over what torch's compiler sets up for itself."""
        for number, one in enumerate(HELD):
            if one.words in COMPILED:
                self.held[number] = one.read()

    def _numbers(self) -> Iterator[str]:
        for words, then in self.numbers.items():
            now = _asked(NUMBERS[words])
            if now != then:
                yield f"{words} ({then} before, {now} now)" if isinstance(now, torch.dtype | torch.device) else words
        luck = _asked(_luck)
        if not isinstance(luck, tuple):  # a mode of torch raises, which has been told
            return
        for words, then, now in zip(GENERATORS, self.luck, luck, strict=True):
            if now != then and not (words == GENERATORS[-1] and not then):  # CUDA's come with CUDA
                yield words
        self.luck = luck

    def _names(self) -> list[str]:
        changed = self.names.changed()
        more = f" and {len(changed) - SHOWN} other names" if len(changed) > SHOWN else ""
        return [", ".join(f"`{name}`" for name in changed[:SHOWN]) + more] if changed else []

    def _put_back(self) -> tuple[list[str], bool]:
        notes, lasting = [], False
        for number, (one, then) in enumerate(zip(HELD, self.held, strict=True)):
            now = one.read()
            if now == then or (isinstance(then, dict) and self._woken(number, then, now)):
                continue
            try:
                one.put_back(then)
                notes.append(f"it changed {one.words}, and that was put back")
            except Exception:  # noqa: BLE001 - whatever stands in the way
                notes.append(f"it changed {one.words} for good, so that its worker was replaced")
                lasting = True
        if (strict := _strict_filters()) != self.filters:
            warnings.filters[:] = [*self.filters, *(one for one in warnings.filters if one not in strict)]  # type: ignore[index]
            notes.append("it made warnings errors, and that was put back")
        return notes, lasting

    def _woken(self, number: int, then: Mapping[bytes, bytes], now: dict[bytes, bytes]) -> bool:
        """Whether the environment has only got variables that a library sets as it wakes up."""
        only = all(name not in then and name.startswith(COMPILERS) for name, _ in now.items() ^ then.items())
        if only:
            self.held[number] = now
        return only

    def _left_open(self) -> str:
        """What is said of files that were opened and left so, or closed; nothing where there are none that matter."""
        try:
            now = _open_files()
        except OSError:  # not one more can be opened
            return "it used up the files that a process may open, so that its worker was replaced"
        new = now.items() - self.files.items()
        if not new and len(now) == len(self.files):
            return ""
        if self.files.keys() - now.keys():
            return "it closed files that were not its own, so that its worker was replaced"
        if torch.cuda.is_initialized():
            new = {(name, target) for name, target in new if not target.startswith(OF_DRIVERS)}
        if len(new) < MANY and all(_only_read(*one) for one in new):
            return ""
        targets = sorted({target for _, target in new})
        more = f" and {len(targets) - 1} more" if len(targets) > 1 else ""
        return f"it left {targets[0]}{more} open, so that its worker was replaced"

    def _left_running(self) -> str:
        """What is said of threads that go on; nothing where there are none."""
        new = [thread for thread in _threads() - self.threads if thread.is_alive()]
        return f"it left the thread {new[0].name} running, so that its worker was replaced" if new else ""

    def _left_cuda(self) -> str:
        """What is said of a device that answers no more; nothing where it does, or is not used."""
        if torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                return "the device met an error that does not go away, so that its worker was replaced"
        return ""

    def _left_children(self) -> list[str]:
        """What is said of processes that were left behind, all of which are ended."""
        if not _has_children():
            return []
        running = False
        for process in _children() - self.children:
            with suppress(OSError):
                running |= _end(process)
        return ["it left processes running, which were ended"] if running else []
