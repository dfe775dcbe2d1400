"""Implementations of a clip and the optimizer's step, from the plainest loop to a compiled program.

Each class holds some weights and one optimizer over them; ``update(clip)`` is a function that clips
the gradients and steps. All of them lead to the same weights as torch's own pair of calls; they
differ in how often they read and write memory, and in how many calls a step takes.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

from clipbench import engines, fast, optimizers
from clipbench.errors import UsageError, nearest
from clipbench.fast import one_pass

Update = Callable[[], object]

EPSILON = 1e-6  # torch's guard in clip_grad_norm_
FEW = 64  # elements a program is compiled with; it serves any number of them


class Unfit(Exception):  # noqa: N818 - an answer, not an error
    """An implementation does not have an optimizer or a clip; the message says why."""


class Torch:
    """Torch's default: the clip's own function, then ``optimizer.step()``.

    :param params: with their gradients.
    :param rule: the optimizer component.
    :raises Unfit: the implementation does not have the optimizer.
    """

    flat: ClassVar[bool] = False  # whether it is handed one tensor, of which the model's are views
    flags: ClassVar[Mapping[str, bool]] = {}

    def __init__(self, params: Sequence[nn.Parameter], rule: Any, lr: float) -> None:
        self.params = list(params)
        if self.flat and not getattr(rule, "flat", False):
            raise Unfit("its elements may not all be treated alike, as one flat tensor needs it")
        named = {f"p{number}": param for number, param in enumerate(self.params)}
        self.optimizer = _with_flags(
            optimizers.torch_optimizer(rule, self.params, lr, named), self.flags
        )

    @property
    def grads(self) -> list[Tensor]:
        """The gradients of all parameters that have one."""
        return [param.grad for param in self.params if param.grad is not None]

    def update(self, clip: Any) -> Update:
        """A function that clips the gradients and steps; it only steps if the clip is ``none``.

        :raises Unfit: the implementation does not have the clip.
        """
        step = self.optimizer.step
        if clip.name == "none":
            return step
        cut = self.cut(clip)

        def update() -> None:
            cut()
            step()

        return update

    def cut(self, clip: Any) -> Update:
        """A function that clips the gradients and does not step."""
        if self.flat and not getattr(clip, "flat", False):
            raise Unfit("it is another clip over one flat tensor")
        return engines.clipper(
            clip, {f"p{number}": param for number, param in enumerate(self.params)}
        )

    def zero_grad(self) -> None:
        """Clear the gradients before a backward pass; those that are views of one tensor keep
        their memory.
        """
        self.optimizer.zero_grad(set_to_none=not self.flat)

    def held(self) -> Iterator[Tensor]:
        """Weights, gradients and the optimizer's state."""
        yield from tensors([self.params, self.grads, list(self.optimizer.state.values())])


class Origin(Torch):
    """Written by hand, as articles print it: a loop over the parameters, and for the norm a
    number read from each of them.
    """

    def cut(self, clip: Any) -> Update:
        if clip.name == "value":

            def clamp() -> None:
                for param in self.params:
                    if param.grad is not None:
                        param.grad.data.clamp_(-clip.max_value, clip.max_value)

            return clamp
        if clip.name == "norm" and clip.norm_type == 2:

            def shorten() -> None:
                total = sum(grad.data.norm(2).item() ** 2 for grad in self.grads) ** 0.5
                factor = clip.max_norm / (total + EPSILON)
                if factor < 1:
                    for grad in self.grads:
                        grad.data.mul_(factor)

            return shorten
        raise Unfit("nobody writes it by hand")


class Loop(Torch):
    """torch's functions, tensor by tensor: ``foreach=False``."""

    flags: ClassVar[Mapping[str, bool]] = {"foreach": False}

    def cut(self, clip: Any) -> Update:
        foreach = self.flags["foreach"]
        if clip.name == "value":
            return partial(clip_grad_value_, self.params, clip.max_value, foreach=foreach)
        if clip.name == "norm":
            return partial(
                clip_grad_norm_, self.params, clip.max_norm, float(clip.norm_type), foreach=foreach
            )
        raise Unfit("torch has no function of its own for it")


class Foreach(Loop):
    """torch's functions, all tensors in one call: ``foreach=True``."""

    flags: ClassVar[Mapping[str, bool]] = {"foreach": True}


class Fused(Torch):
    """The optimizer's fused step, which divides the gradients by a norm clip's factor as it
    reads them (``grad_scale``).
    """

    flags: ClassVar[Mapping[str, bool]] = {"fused": True}

    def update(self, clip: Any) -> Update:
        if clip.name != "norm":
            return super().update(clip)
        optimizer: Any = self.optimizer
        norm_type = float(clip.norm_type)

        def update() -> None:
            norm = get_total_norm(self.grads, norm_type)
            # its kernels take no other
            optimizer.grad_scale = ((norm + EPSILON) / clip.max_norm).clamp(min=1).float()
            optimizer.step()
            optimizer.grad_scale = None  # the next step may be one without a clip

        return update

    def cut(self, clip: Any) -> Update:
        if clip.name == "value":
            return partial(clip_grad_value_, self.params, clip.max_value, foreach=True)
        raise Unfit("no fused step takes it")


class Fast(Torch):
    """``clipbench.fast``: the clip and the step in one call on torch's own optimizer, whose
    gradients keep their memory.
    """

    compiled: ClassVar[bool] = False

    def __init__(self, params: Sequence[nn.Parameter], rule: Any, lr: float) -> None:
        super().__init__(params, rule, lr)
        if type(self.optimizer) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
            raise Unfit("clipbench.fast leaves it to torch's own pair")

    def update(self, clip: Any) -> Update:
        if clip.name == "none":
            return super().update(clip)
        if clip.name == "value":
            return partial(
                fast.value_clipped_step, self.optimizer, clip.max_value, compiled=self.compiled
            )
        if clip.name == "norm" and clip.norm_type == 2:
            return partial(
                fast.norm_clipped_step, self.optimizer, clip.max_norm, compiled=self.compiled
            )
        raise Unfit("clipbench.fast has no such clip")

    def cut(self, clip: Any) -> Update:
        if clip.name == "value":
            return partial(
                fast.clip_grad_value_, self.params, clip.max_value, compiled=self.compiled
            )
        raise Unfit("clipbench.fast has no such clip without a step")

    def held(self) -> Iterator[Tensor]:
        yield from super().held()
        yield from fast.held(self.optimizer)


class FastCompiled(Fast):
    """The same, ``compiled=True``: by kernels that this machine's C++ compiler makes."""

    compiled: ClassVar[bool] = True

    def __init__(self, params: Sequence[nn.Parameter], rule: Any, lr: float) -> None:
        super().__init__(params, rule, lr)
        if type(self.optimizer) is not torch.optim.SGD or not self.params[0].is_cpu:
            raise Unfit("clipbench.fast has kernels of its own for SGD on a CPU only")
        with warnings.catch_warnings(action="ignore"):
            if not one_pass.kernels():
                raise Unfit("clipbench.fast could not compile its kernels")


class Flat(Torch):
    """torch's defaults over flat memory: all weights are views of one tensor, all gradients
    views of another.
    """

    flat: ClassVar[bool] = True


class Compiled(Torch):
    """The clip and the rule as one program of torch's compiler over one flat tensor; a norm is
    taken before it.
    """

    flat: ClassVar[bool] = True

    def __init__(self, params: Sequence[nn.Parameter], rule: Any, lr: float) -> None:
        super().__init__(params, rule, lr)
        if not hasattr(rule, "update"):
            raise Unfit("its rule is not known as a pure function")
        (self.whole,) = self.params
        self.rule, self.lr = rule, lr
        self.state = _state(rule, self.whole)

    def update(self, clip: Any) -> Update:
        if clip.name not in ("none", "value", "norm"):
            raise Unfit("no program was written for it")
        whole, state, program = (
            self.whole.detach(),
            self.state,
            _program(self.rule, clip.name, self.lr),
        )
        limit = torch.tensor(
            getattr(clip, "max_value", 1.0), dtype=whole.dtype, device=whole.device
        )
        few = whole[:FEW].clone()
        _compile(program, few, few.clone(), limit, _state(self.rule, few))

        @torch.no_grad()
        def update() -> None:
            (grad,), amount = self.grads, limit
            if clip.name == "norm":
                norm = torch.linalg.vector_norm(grad, float(clip.norm_type))
                amount = (clip.max_norm / (norm + EPSILON)).clamp(max=1)
            program(whole, grad, amount, state)

        return update

    def held(self) -> Iterator[Tensor]:
        yield from tensors([self.params, self.grads, self.state])


IMPLEMENTATIONS: dict[str, type[Torch]] = {
    "origin": Origin,
    "torch": Torch,
    "loop": Loop,
    "foreach": Foreach,
    "fused": Fused,
    "fast": Fast,
    "fast-compiled": FastCompiled,
    "flat": Flat,
    "compiled": Compiled,
}
DEFAULT = "torch"


def implementations_named(words: str | None) -> list[str]:
    """The implementations asked for: all if nothing is said.

    :param words: comma-separated, such as ``torch,flat``.
    :raises UsageError: a word that is none of them.
    """
    asked = (
        list(IMPLEMENTATIONS)
        if words is None
        else list(dict.fromkeys(word.strip() for word in words.split(",")))
    )
    for word in asked:
        if word not in IMPLEMENTATIONS:
            hint = nearest(word, IMPLEMENTATIONS)
            raise UsageError(
                f'--implementation: there is no implementation "{word}".{hint} There are: '
                f"{', '.join(IMPLEMENTATIONS)}."
            )
    return asked


@torch.no_grad()
def flattened(params: Sequence[nn.Parameter]) -> nn.Parameter:
    """One new parameter: from now on all of ``params`` are views of it, and their gradients
    views of its gradient.
    """
    whole = nn.Parameter(torch.cat([param.detach().flatten() for param in params]))
    whole.grad = torch.cat(
        [
            torch.zeros_like(param).flatten() if param.grad is None else param.grad.flatten()
            for param in params
        ]
    )
    sizes = [param.numel() for param in params]
    for param, weights, grad in zip(
        params, whole.detach().split(sizes), whole.grad.split(sizes), strict=True
    ):
        param.data, param.grad = weights.view(param.shape), grad.view(param.shape)
    return whole


def _with_flags(
    optimizer: torch.optim.Optimizer, flags: Mapping[str, bool]
) -> torch.optim.Optimizer:
    """The same optimizer with some flags of its class set.

    :raises Unfit: the class knows no such flag, or refuses it.
    """
    if not flags:
        return optimizer
    cls: Any = type(optimizer)
    known = inspect.signature(cls).parameters
    name = f"{cls.__module__.removesuffix('.' + cls.__name__.lower())}.{cls.__name__}"
    if not flags.keys() <= known.keys():
        raise Unfit(f"{name} knows no `{', '.join(flags)}`")
    settings = {key: value for key, value in optimizer.defaults.items() if key in known}
    try:
        return cls(
            [param for group in optimizer.param_groups for param in group["params"]],
            **{**settings, **flags},
        )
    except RuntimeError as error:  # a device or a dtype without such a step
        raise Unfit(f"{name} refuses it: {error}") from error


@lru_cache(maxsize=64)
def _program(rule: Any, kind: str, lr: float) -> Callable[..., None]:
    """The compiled update of one flat tensor, for all sizes; ``amount`` is the clip's limit or
    factor.
    """

    def step(whole: Tensor, grad: Tensor, amount: Tensor, state: Any) -> None:
        clipped = {
            "none": lambda: grad,
            "value": lambda: grad.clamp(-amount, amount),
            "norm": lambda: grad * amount,
        }[kind]()
        direction, new = rule.update({"p": clipped}, state, {"p": whole})
        whole.add_(direction["p"], alpha=-lr)
        for old, value in zip(tensors(state), tensors(new), strict=True):
            old.copy_(value)

    # torch allows one code object few programs
    step.__code__ = step.__code__.replace(co_name=f"step_{kind}")
    # In this process: a pool of compilers would be left behind when it ends.
    return torch.compile(step, dynamic=True, fullgraph=True, options={"compile_threads": 1})


def _state(rule: Any, whole: Tensor) -> Any:
    """The rule's first state, in a form that a compiled program can change in place.

    Every name has a tensor of its own, with at least one dimension: torch's compiler loses what is
    written to others.
    """

    def copied(held: Any) -> Any:
        return (
            torch.atleast_1d(held.clone())
            if isinstance(held, Tensor)
            else {name: copied(one) for name, one in held.items()}
        )

    return copied(rule.init({"p": whole.detach().clone()}))


@torch.no_grad()
def _compile(program: Callable[..., None], *arguments: Any) -> None:
    """Call a program for the first time, on tensors that nobody else needs.

    :raises Unfit: there is no compiler, or it fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch's own of itself
            program(*arguments)
    except Exception as error:
        said = " ".join(str(error).split())
        missing = "compiler" in said.lower() and "found" in said.lower()
        raise Unfit(
            "no C++ compiler was found" if missing else f"torch's compiler failed: {said[:150]}"
        ) from error


def tensors(held: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries and lists, in their order."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, Mapping | list):
        for one in held.values() if isinstance(held, Mapping) else held:
            yield from tensors(one)
