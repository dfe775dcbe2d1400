"""The first pass of a workload's model over some examples, and what went wrong with it in the
user's words: which input, which layer, which target, and what to do.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from clipbench import feed
from clipbench.conformance.findings import Fault, told

# What a loss says, as a warning, where outputs and targets have different shapes.
SPREAD = "Using a (target|input) size"
AXES = {1: "batch × channels × length", 2: "batch × channels × height × width"}
AXES[3] = "batch × channels × depth × height × width"


def output_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """What the model makes of some inputs.

    :raises Fault: it fails on them.
    """
    entered = list[tuple[str, nn.Module, Any]]()
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, given, name=name: entered.append((name, layer, given[0]))
        )
        for name, layer in module.named_modules()
        if list(layer.parameters(recurse=False))
    ]
    try:
        output = module(inputs)
    except Exception as error:
        raise Fault((entered and _refused(*entered[-1])) or _failed("the model", error)) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor):
        raise Fault(f"the model returned a {type(output).__name__}, and must return a tensor")
    return output


def loss_of(workload: Any, output: Tensor, targets: Tensor) -> Tensor:
    """The loss of some outputs, one number.

    :raises Fault: it fails on them, or is no single number.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=SPREAD)
            loss = feed.loss_of(workload, output, targets)
    except Exception as error:
        said = _failed("`loss`", error)
        raise Fault(_wrong_targets(output, targets) or said) from error
    if not isinstance(loss, Tensor):
        raise Fault(f"`loss` returned a {type(loss).__name__}, and must return a tensor")
    if loss.shape != ():
        raise Fault(
            f"`loss` returned {loss.numel()} numbers, of shape {tuple(loss.shape)}, and must "
            f"return one: their mean, such as torch's losses take without `reduction`"
        )
    return loss


def _failed(what: str, error: Exception) -> str:
    return f"{what} fails: {told(error)}"


def _size(tensor: Tensor) -> str:
    """``4 × 1 × 8 × 8``."""
    return " × ".join(map(str, tensor.shape)) or "a single number"


def _refused(name: str, layer: nn.Module, given: Any) -> str | None:
    """Why the layer that was entered last fails on what it was given; None if nothing is seen."""
    if not isinstance(given, Tensor):
        return None
    wanted = None
    if isinstance(layer, nn.Embedding):
        if given.is_floating_point():
            wanted = "whole numbers: `.long()`"
    elif not given.is_floating_point():
        wanted = "floating numbers: `images.float() / 255` for images of bytes"
    elif isinstance(layer, nn.modules.conv._ConvNd):  # noqa: SLF001 - torch has no public word for any convolution
        axes = len(layer.kernel_size)
        if given.ndim == axes + 1:
            wanted = f"{AXES[axes]}: the axis of channels is missing, `inputs.unsqueeze(1)` adds it"
        elif given.ndim == axes + 2 and given.shape[1] != layer.in_channels:
            wanted = f"{AXES[axes]} with {layer.in_channels} for channels"
    elif isinstance(layer, nn.Linear) and given.shape[-1] != layer.in_features:
        wanted = f"{layer.in_features} numbers in the last axis; nn.Flatten() before it makes one"
    return wanted and (
        f"layer `{name}`, {type(layer).__name__}, is given {_size(given)} of {_dtype(given)}, and "
        f"takes {wanted}"
    )


def _wrong_targets(output: Tensor, targets: Tensor) -> str | None:
    """What is wrong with targets for what a model returns; None if nothing is seen."""
    sizes = f"the outputs are {_size(output)} and the targets {_size(targets)}"
    if targets.is_floating_point():
        if output.ndim == targets.ndim + 1 and output.shape[1] > 1:
            return (
                f"{sizes}, {_dtype(targets)}: a loss of classes, such as cross_entropy, takes "
                f"whole numbers: `labels.long()`"
            )
        return f"{sizes}: both must have one shape" if output.shape != targets.shape else None
    if output.shape == targets.shape:
        return (
            f"the targets are whole numbers ({_dtype(targets)}), and a loss of numbers, such as "
            f"mse_loss or binary_cross_entropy_with_logits, takes floating ones: `targets.float()`"
        )
    if output.ndim == targets.ndim and targets.shape[1:2] == (1,):
        return (
            f"{sizes}: a loss of classes, such as cross_entropy, takes one label an example: "
            f"`labels.squeeze(1)`"
        )
    if output.ndim == targets.ndim + 1 and int(targets.max()) >= output.shape[1]:
        return (
            f"there is a target {int(targets.max())}, and the model gives {output.shape[1]} "
            f"number{'s' if output.shape[1] > 1 else ''} an example, one a class from 0 on: its "
            f"last layer is too small"
        )
    return None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
