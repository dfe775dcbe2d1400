"""The claims about workloads: what feed and the engines ask of one."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from clipbench import feed, metrics, trees
from clipbench.conformance import first_pass
from clipbench.conformance.findings import Doubt, Fault, distance, no_draw
from clipbench.conformance.settings import examples
from clipbench.engines import shares
from clipbench.engines.record import CHUNK
from clipbench.streams import Shuffled

DTYPES = (torch.float32, torch.float64)
BATCH = 4  # examples: more cost a large model more and tell no more
DRAWN = 3  # batches drawn together


def _built(cls: type[Any]) -> Any:
    return cls(**examples(cls)[0])


def _batch(workload: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> feed.Batch:
    """A first, small batch of training."""
    train = feed.splits(workload, seed, dtype).get("train")
    size = BATCH if train is None else min(BATCH, len(train[0]))
    return next(feed.batches(workload, seed, size, 1, dtype))


def hooks_present(cls: type[Any]) -> str | None:
    """``model``, ``data`` and ``metric`` are there to be called."""
    workload = _built(cls)
    for hook in ("model", "data", "metric"):
        if not callable(getattr(workload, hook, None)):
            raise Fault(f"there is no `{hook}`")
    return (
        None if hasattr(workload, "loss") else "without a `loss`, the module's output is the loss"
    )


def splits_match(cls: type[Any]) -> None:
    """Validation and test are there, and train unless batches are sampled, each with a target
    for every input.
    """
    for name, (inputs, targets) in feed.splits(_built(cls), 0).items():
        if not len(inputs) or len(inputs) != len(targets):
            raise Fault(f'split "{name}" has {len(inputs)} inputs and {len(targets)} targets')


def finite_start(cls: type[Any]) -> None:
    """At the seeded start loss and gradient are finite, in float32 and float64."""
    workload = _built(cls)
    for dtype in DTYPES:
        module, (inputs, targets) = feed.model(workload, 0, dtype), _batch(workload, 0, dtype)
        loss = first_pass.loss_of(workload, first_pass.output_of(module, inputs), targets)
        if loss.dtype != dtype or not loss.isfinite():
            raise Fault(f"the first loss in {dtype} is {loss.item()}, {loss.dtype}")
        loss.backward()
        grads = {
            name: trees.dense(param.grad)
            for name, param in module.named_parameters()
            if param.grad is not None
        }
        broken = [name for name, grad in grads.items() if not grad.isfinite().all()]
        if broken or not grads:
            raise Fault(
                f"the first gradient in {dtype} is not finite: {', '.join(broken)}"
                if grads
                else "nothing has a gradient"
            )


def parts_add_up(cls: type[Any]) -> str:
    """Whether parts of a batch, and single examples, have together the loss and the gradient of the
    whole.

    :raises Fault: the workload says by `weight` how they add up, and they do not.
    """
    workload, size = _built(cls), len(_batch(_built(cls))[0])
    for number in (2, size):
        if size % number == 0 and (difference := shares.apart(workload, size, number)) is not None:
            if hasattr(workload, "weight"):
                raise Fault(difference)
            return (
                f'{difference}; this matters for `accumulate` and `on = "example"` alone, which '
                f"are refused unless you {shares.remedy(difference)}"
            )
    return (
        "it does, by its `weight`"
        if hasattr(workload, "weight")
        else "its loss is a mean over examples"
    )


def seeds_decide(cls: type[Any]) -> str | None:
    """The same seed gives the same weights and first batch, another seed others."""
    workload = _built(cls)

    def drawn(seed: int) -> dict[str, Tensor]:
        inputs, targets = _batch(workload, seed)
        return {
            **feed.model(workload, seed).state_dict(),
            "the first inputs": inputs,
            "the first targets": targets,
        }

    first, again, other = drawn(0), drawn(0), drawn(1)
    for name, tensor in first.items():
        if distance(tensor, again[name]) > 0:
            raise Fault(f"the same seed gave another {name}")
    same = all(distance(tensor, other[name]) == 0 for name, tensor in first.items())
    return "no randomness: every seed is the same run, n = 1" if same else None


def draws_alike(cls: type[Any]) -> str | None:
    """What ``samples`` draws is what as many calls of ``sample`` draw."""
    workload = _built(cls)
    one, many = (feed.source(workload, 0, BATCH, 2 * DRAWN) for _ in range(2))
    if isinstance(one, Shuffled) or one.many is None:
        return "each is drawn by itself"
    one.many = None
    for _ in range(2):
        alone = [torch.stack(part) for part in zip(*one.some(DRAWN), strict=True)]
        for what, apart, together in zip(
            ("inputs", "targets"), alone, many.take(DRAWN), strict=True
        ):
            if apart.shape != together.shape or distance(apart, together) > 0:
                raise Fault(f"`samples` draws other {what} than `sample`")
    return None


def splits_finite(cls: type[Any]) -> None:
    """No input and no target of any split is NaN or infinite, nor is the untrained module's loss
    where it is evaluated.
    """
    workload = _built(cls)
    for split, pair in feed.splits(workload, 0).items():
        for what, tensor in zip(("inputs", "targets"), pair, strict=True):
            if broken := int((~tensor.isfinite()).sum()):
                raise Fault(
                    f'split "{split}" has {what} that are not finite: {broken} of '
                    f"{tensor.numel()} numbers"
                )
    for split in ("validation", "test"):
        outputs, targets = _outputs(workload, split)
        loss = float(feed.loss_of(workload, outputs, targets).mean())
        if not math.isfinite(loss):
            raise Fault(f'on split "{split}" the untrained module has a loss of {loss}')


@torch.no_grad()
def _outputs(workload: Any, split: str) -> tuple[Tensor, Tensor]:
    """What the untrained module makes of a whole split, and its targets."""
    module = feed.model(workload, 0).eval()
    inputs, targets = feed.splits(workload, 0)[split]
    return torch.cat([torch.atleast_1d(module(chunk)) for chunk in inputs.split(CHUNK)]), targets


def metric_is_a_number(cls: type[Any]) -> str:
    """The metric of the untrained module on the test split is finite."""
    workload = _built(cls)
    value = float(workload.metric(*_outputs(workload, "test")))
    if not math.isfinite(value):
        raise Fault(f"on the test split it is {value}")
    return f"{value:.3g} before training"


def reference_declared(cls: type[Any]) -> str | None:
    """``reference_loss`` is declared, and lies above the least that the loss can be; what else is
    declared is a number.
    """
    workload = _built(cls)
    if not hasattr(workload, "reference_loss"):
        raise Fault("there is no `reference_loss`, the loss of the best constant prediction")
    losses = {
        name: getattr(workload, name, None)
        for name in ("reference_loss", "optimum", "target", "chance", "target_metric")
    }
    for name, value in losses.items():
        if value is not None and (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise Fault(f"`{name}` is {value!r}, and must be a number or None")
    reference, floor = losses["reference_loss"], losses["optimum"] or 0.0
    if reference is None:
        return "none: it is compared with its own first loss"
    if reference <= floor and not getattr(workload, "unbounded", False):
        raise Fault(
            f"`reference_loss` is {reference}, and must be above {floor}, the least that the "
            f"loss can be"
        )
    return None


def judged_by_metric(cls: type[Any]) -> str | None:
    """What runs are judged by: the metric, between ``chance`` and ``target_metric``; None if it can
    be nothing but the loss, for it is that of a function.

    :raises Fault: one of both is there without the other, or a model that meets the target is no
        better than a constant prediction.
    :raises Doubt: there is a constant prediction, and what it has of the metric is not said.
    """
    workload = _built(cls)
    name = metrics.name_of(workload.metric).replace("_", " ")
    chance, target = (getattr(workload, word, None) for word in ("chance", "target_metric"))
    if (chance is None) != (target is None):
        raise Fault(
            f"of `chance` and `target_metric` one is there without the other; {_what(name)}"
        )
    if chance is not None and target is not None:
        if not (target > chance if metrics.direction(workload.metric) else target < chance):
            raise Fault(
                f"`target_metric` is {target:g}, and must be a better {name} than {chance:g}, "
                f"`chance`"
            )
        return f"a constant prediction has {name} {chance:g}, the target is {target:g}"
    if getattr(workload, "reference_loss", None) is None or getattr(workload, "unbounded", False):
        return None
    raise Doubt(
        f"without `chance` they are judged by the loss alone, and a run whose loss fell counts as "
        f"learned even if its {name} is no better than that of a constant prediction; {_what(name)}"
    )


def _what(name: str) -> str:
    """What to write, for runs to be judged by a metric of this name."""
    return (
        f"write `chance = …`, the {name} of the best constant prediction, and `target_metric = …`, "
        f"the {name} from which on you would call a model trained"
    )


def draws_nothing(cls: type[Any]) -> None:
    """Data, batches, evaluation and loss draw from no global random state; weights and training do,
    from one that is forked and seeded for them.
    """
    workload = _built(cls)
    with no_draw("`data`", "`data(self, generator)` is handed a generator to draw from"):
        # Not through feed.splits, which remembers the data of an earlier call.
        arguments = (
            [trees.generator(workload.name, 0, "split")]
            if inspect.signature(workload.data).parameters
            else []
        )
        feed.listed(workload, workload.data(*arguments))
    with no_draw("`sample`, or `model` of its own"):
        module = feed.model(workload, 0)
        inputs, targets = _batch(workload)
    with (
        torch.no_grad(),
        no_draw(
            "the model, where it is evaluated,", "dropout by hand needs `training=self.training`"
        ),
    ):
        outputs = module.eval()(inputs)
    with no_draw("`loss`"):
        feed.loss_of(workload, outputs, targets)
