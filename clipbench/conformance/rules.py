"""The claims about clips and optimizers: pure functions over several steps, and what torch does
in their place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipbench import registry, trees
from clipbench.conformance import steps
from clipbench.conformance.findings import (
    TOLERANCE,
    Fault,
    distance,
    no_draw,
    no_fallback,
    under,
    word,
)
from clipbench.conformance.settings import candidates, examples
from clipbench.trees import Tree

DTYPES = (torch.float32, torch.float64)
STEPS = 50
LR = 0.01
OVERFLOWING = 1e20  # a gradient of this size is finite in float32, and its norm is not
PROBES = 10  # pairs of gradients after one that is out of range


def answers(cls: type[Any]) -> None:
    """``update`` returns a pair of a tree of the parameters' names and a state of tensors, at every
    step and in every setting.
    """
    for settings in examples(cls):
        with under(settings):
            for _, _, state in steps.walk(cls, settings, torch.float32):
                steps.leaves(state, "state")


def shapes_kept(cls: type[Any]) -> None:
    """Result and state keep names, shapes and dtypes, in float32 and float64."""
    for settings, dtype in itertools.product(examples(cls), DTYPES):
        with under(settings):
            first: dict[str, tuple[Any, ...]] = {}
            for grads, result, state in steps.walk(cls, settings, dtype):
                kept = {
                    name: (leaf.shape, leaf.dtype)
                    for name, leaf in steps.leaves(state, "state").items()
                }
                first = first or kept
                for what, came, wanted in (
                    *(
                        (name, (result[name].shape, result[name].dtype), (leaf.shape, leaf.dtype))
                        for name, leaf in grads.items()
                    ),
                    *((name, kept.get(name), first.get(name)) for name in kept | first),
                ):
                    if came != wanted:
                        raise Fault(f"{what} became {_shape(came)} from {_shape(wanted)}")


def _shape(kind: tuple[Any, ...] | None) -> str:
    return f"{tuple(kind[0])} {kind[1]}" if kind else "nothing"


def never_lengthens(cls: type[Any]) -> str | None:
    """The whole gradient leaves no longer than it came, unless the clip says ``lengthens =
    True``.
    """
    if getattr(cls, "lengthens", False):
        return "it may, and says so"
    for settings in examples(cls):
        with under(settings):
            for grads, result, _ in itertools.islice(
                steps.walk(cls, settings, torch.float64), 1, None
            ):
                before, after = float(trees.norm(grads)), float(trees.norm(result))
                if not after <= before * (1 + TOLERANCE):
                    raise Fault(f"a gradient of norm {before:.6g} left with {after:.6g}")
    return None


def _with_one(value: float) -> Tree:
    """A gradient in float32 with one element that is not finite."""
    grads = steps.tree("grads broken", torch.float32)
    grads["conv.bias"][1] = value
    return grads


def signs_kept(cls: type[Any]) -> str | None:
    """No element of a finite gradient comes back with its sign turned, though the gradient's
    norm overflows.
    """
    zeroed = False
    for settings in examples(cls):
        with under(settings):
            component, params = cls(**settings), steps.tree("params", torch.float32)
            gradients = [
                steps.tree(f"grads {step}", torch.float32, size)
                for step, size in enumerate((*steps.SIZES, OVERFLOWING, *steps.SIZES))
            ]
            answers, _ = steps.answers(
                component, steps.start(component, steps.copy(params)), gradients, params
            )
            for grads, result in zip(gradients, answers, strict=True):
                turned = [
                    name
                    for name, grad in grads.items()
                    if (grad.sign() * result[name].sign() < 0).any()
                ]
                if turned:
                    raise Fault(
                        f"{turned[0]} came back with signs turned from a gradient whose norm is "
                        f"{_size(grads)}"
                    )
            zeroed |= not any(leaf.any() for leaf in answers[len(steps.SIZES)].values())
    return (
        "a finite gradient whose norm overflows comes back as zeros, as from torch's norm clip"
        if zeroed
        else None
    )


def clips_again(cls: type[Any]) -> None:
    """A gradient that overflows, or is not finite, does not stay in the clip's memory:
    afterwards it clips as it would have.
    """
    before = [steps.tree(f"grads {step}", torch.float32) for step in range(steps.WARM)]
    after = [
        steps.tree(f"grads after {step}", torch.float32, size)
        for step, size in enumerate((1.0, 1e3) * PROBES)
    ]
    spoilers = {
        "overflows": steps.tree("grads overflowing", torch.float32, OVERFLOWING),
        "is infinite": _with_one(math.inf),
        "is NaN": _with_one(math.nan),
    }
    for settings in examples(cls):
        with under(settings):
            component, params = cls(**settings), steps.tree("params", torch.float32)
            if steps.grows(component, params):
                continue
            _, state = steps.answers(
                component, steps.start(component, steps.copy(params)), before, params
            )
            wanted, _ = steps.answers(component, steps.copy(state), after, params)
            for what, spoiler in spoilers.items():
                answers, _ = steps.answers(component, steps.copy(state), [spoiler, *after], params)
                if fault := _spoiled_by(after, wanted, answers[1:]):
                    raise Fault(f"after a gradient that {what} {fault}")


def _spoiled_by(gradients: list[Tree], wanted: list[Tree], after_spoiler: list[Tree]) -> str | None:
    """What is wrong with answers that come after a gradient out of range, seen beside those
    without it; None if nothing is.
    """

    def clipped(answers: list[Tree]) -> int:
        pairs = zip(gradients, answers, strict=True)
        return sum(
            any(distance(result[name], grad) > 0 for name, grad in grads.items())
            for grads, result in pairs
        )

    def some(answers: list[Tree], mark: Any) -> bool:
        return any(bool(mark(leaf).any()) for result in answers for leaf in result.values())

    if some(after_spoiler, lambda leaf: ~leaf.isfinite()) and not some(
        wanted, lambda leaf: ~leaf.isfinite()
    ):
        return "finite ones come back that are not"
    if some(wanted, lambda leaf: leaf != 0) and not some(after_spoiler, lambda leaf: leaf != 0):
        return "all come back as zeros"
    if clipped(wanted) and not clipped(after_spoiler):
        return f"it clips none of {len(gradients)}, of which it clips {clipped(wanted)} otherwise"
    return None


def divergence_shown(cls: type[Any]) -> str | None:
    """A NaN in the gradient leaves one, and an infinite element is not made zero: what diverges
    is seen to.
    """
    cut = False
    for settings, value in itertools.product(examples(cls), (math.nan, math.inf, -math.inf)):
        with under(settings):
            component, params = cls(**settings), steps.tree("params", torch.float32)
            warm = (
                []
                if steps.grows(component, params)
                else [steps.tree(f"grads {step}", torch.float32) for step in range(steps.WARM)]
            )
            for earlier in ([], warm):
                answers, _ = steps.answers(
                    component,
                    steps.start(component, steps.copy(params)),
                    [*earlier, _with_one(value)],
                    params,
                )
                if all(leaf.isfinite().all() for leaf in answers[-1].values()):
                    at = float(answers[-1]["conv.bias"][1])
                    if math.isnan(value) or not at * value > 0:
                        raise Fault(
                            f"a gradient with an element of {value} comes back finite, that "
                            f"element as {at:g}"
                        )
                    cut = True
    return (
        "an infinite element is cut to a finite one, as by torch's value clip: only the loss tells"
        if cut
        else None
    )


def _size(grads: Tree) -> str:
    norm = float(trees.norm(grads))
    return f"{norm:.3g}" if math.isfinite(norm) else "infinite in float32"


def zero_stays_zero(cls: type[Any]) -> None:
    """A zero gradient stays zero, first or after others, and what follows it is finite."""
    for settings in examples(cls):
        with under(settings):
            for grads, result, _ in itertools.islice(
                steps.walk(cls, settings, torch.float64, (0.0, 0.0, 1.0, 0.0)), 1, None
            ):
                for name, leaf in result.items():
                    if not leaf.isfinite().all():
                        raise Fault(f"{name} is not finite")
                    if not grads[name].any() and leaf.any():
                        raise Fault(f"{name} is not zero after a zero gradient")


def finite_on_zero(cls: type[Any]) -> None:
    """A zero gradient gives a finite direction, first or after others."""
    for settings in examples(cls):
        with under(settings):
            for _, result, _ in steps.walk(cls, settings, torch.float64, (0.0, 0.0, 1.0, 0.0)):
                for name, leaf in result.items():
                    if not leaf.isfinite().all():
                        raise Fault(f"the direction of {name} is not finite")


def draws_nothing(cls: type[Any]) -> None:
    """``init`` and ``update`` draw from no global random state."""
    for settings in examples(cls):
        with under(settings), no_draw():
            for _ in steps.walk(cls, settings, torch.float64):
                pass


def changes_nothing_in_place(cls: type[Any]) -> None:
    """``init`` and ``update`` leave gradients, state and parameters as they were."""
    for settings in examples(cls):
        with under(settings):
            component, params = cls(**settings), steps.tree("params", torch.float64)
            handed = {"params": steps.copy(params)}
            state = steps.start(component, handed["params"])
            _compare_inputs(handed, {"params": params}, "init")
            for step, size in enumerate(steps.SIZES):
                handed = {
                    "grads": steps.tree(f"grads {step}", torch.float64, size),
                    "state": state,
                    "params": params,
                }
                before = steps.copy(handed)
                _, state = steps.update(
                    component, handed["grads"], handed["state"], handed["params"]
                )
                _compare_inputs(handed, before, "update")


def _compare_inputs(handed: Mapping[str, Any], before: Mapping[str, Any], hook: str) -> None:
    now, then = steps.leaves(dict(handed), hook), steps.leaves(dict(before), hook)
    for path in now | then:
        if path not in now or path not in then or distance(now[path], then[path]) > 0:
            raise Fault(f"{path.replace(hook, f'{hook} changed its ', 1)}")


def lanes_agree(cls: type[Any]) -> None:
    """Under vmap, every float setting a tensor and the state threaded, each lane is what the
    loop is alone.
    """
    floats = {name: candidates(cls, name) for name in registry.lane_fields(cls)}
    count = max([2, *map(len, floats.values())])
    lanes = {
        name: [values[lane % len(values)] for lane in range(count)]
        for name, values in floats.items()
    }
    stacked = {name: torch.tensor(values, dtype=torch.float64) for name, values in lanes.items()}
    others = [
        {name: value for name, value in settings.items() if name not in floats}
        for settings in examples(cls)
    ]
    for fixed in [
        settings for position, settings in enumerate(others) if settings not in others[:position]
    ]:
        plain = [
            cls(**fixed, **{name: values[lane] for name, values in lanes.items()})
            for lane in range(count)
        ]

        def start(settings: dict[str, Tensor], params: Tree, fixed: dict[str, Any] = fixed) -> Any:
            return steps.start(cls(**fixed, **settings), params)

        def update(
            settings: dict[str, Tensor],
            grads: Tree,
            state: Any,
            params: Tree,
            fixed: dict[str, Any] = fixed,
        ) -> Any:
            return steps.update(cls(**fixed, **settings), grads, state, params)

        with under(fixed), no_fallback():
            params = steps.tree("params", torch.float64, lanes=(count,))
            states = [
                steps.start(component, steps.lane(params, lane))
                for lane, component in enumerate(plain)
            ]
            together = torch.vmap(start, randomness="different")(stacked, steps.copy(params))
            for step, size in enumerate(steps.SIZES):
                grads = steps.tree(f"grads {step}", torch.float64, size, (count,))
                result, together = torch.vmap(update, randomness="different")(
                    stacked, steps.copy(grads), together, steps.copy(params)
                )
                joined = steps.leaves({"grads": result, "state": together}, "")
                for lane, component in enumerate(plain):
                    alone, states[lane] = steps.update(
                        component, steps.lane(grads, lane), states[lane], steps.lane(params, lane)
                    )
                    single = steps.leaves({"grads": alone, "state": states[lane]}, "")
                    for path, leaf in single.items():
                        apart = distance(joined[path][lane], leaf)
                        if apart > TOLERANCE:
                            own = {name: values[lane] for name, values in lanes.items()}
                            raise Fault(
                                f"step {step}, lane {own}: {path} is {apart:.2g} from the loop's"
                            )


def flat_agrees(cls: type[Any]) -> None:
    """One that says ``flat`` treats all elements alike, however they are divided into tensors."""
    for settings in examples(cls) if cls.flat else []:
        with under(settings):
            component, params = cls(**settings), steps.tree("params", torch.float64)
            whole = {"": trees.flatten(params)}
            state, other = steps.start(component, params), steps.start(component, whole)
            for step, size in enumerate(steps.SIZES):
                grads = steps.tree(f"grads {step}", torch.float64, size)
                named, state = steps.update(component, grads, state, params)
                joined, other = component.update({"": trees.flatten(grads)}, other, whole)
                if (apart := distance(joined[""], trees.flatten(named))) > TOLERANCE:
                    raise Fault(f"step {step}: {apart:.2g} from what it does to named tensors")


def in_place_equals_update(cls: type[Any]) -> None:
    """``clip_`` leaves in ``.grad`` what the first ``update`` returns."""
    for settings, (step, size) in itertools.product(examples(cls), enumerate(steps.SIZES)):
        with under(settings):
            component, params = cls(**settings), steps.parameters("params")
            grads = steps.tree(f"grads {step}", torch.float64, size)
            for name, param in params.items():
                param.grad = grads[name].clone()
            component.clip_(list(params.values()))
            weights = {name: param.detach().clone() for name, param in params.items()}
            clipped, _ = steps.update(component, grads, steps.start(component, weights), weights)
            for name, param in params.items():
                apart = math.inf if param.grad is None else distance(param.grad, clipped[name])
                if apart > TOLERANCE:
                    raise Fault(f"the gradient of {name} is {apart:.2g} from update's")


def size_is_a_number(cls: type[Any]) -> None:
    """``size`` is a positive, finite scalar."""
    for settings, size in itertools.product(examples(cls), steps.SIZES):
        with under(settings):
            value = cls(**settings).size(steps.tree("grads", torch.float64, size))
            if not isinstance(value, Tensor) or value.shape != ():
                came = (
                    f"a tensor of shape {tuple(value.shape)}"
                    if isinstance(value, Tensor)
                    else word(value)
                )
                raise Fault(f"size returned {came}, not a scalar tensor")
            if not (value.isfinite() and value > 0):
                raise Fault(f"the size of a gradient is {float(value)}")


def torch_equals_update(cls: type[Any]) -> str | None:
    """The torch object and the pure rule move the weights alike."""
    if not hasattr(cls, "update"):
        return "it has no update, so it runs in the loop only"
    for settings in examples(cls):
        with under(settings):
            component, stepped = cls(**settings), steps.parameters("params")
            params = {name: param.detach().clone() for name, param in stepped.items()}
            optimizer, state = (
                component.torch(list(stepped.values()), LR),
                steps.start(component, steps.copy(params)),
            )
            for step in range(STEPS):
                grads = steps.tree(f"grads {step}", torch.float64)
                for name, param in stepped.items():
                    param.grad = grads[name].clone()
                optimizer.step()
                direction, state = steps.update(component, grads, state, params)
                params = trees.map(lambda param, along: param - LR * along, params, direction)
                apart = max(
                    distance(param.detach(), params[name]) for name, param in stepped.items()
                )
                if apart > TOLERANCE:
                    raise Fault(f"after {step + 1} steps a weight is {apart:.2g} from update's")
    return None
