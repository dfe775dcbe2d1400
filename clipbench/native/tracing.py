"""One lane's program in torch's primitives: operations on elements of one type and one size, folds,
views, products and moves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from clipbench.native.translation import Untranslated


def primitives(
    function: Callable[..., Any], arguments: Sequence[Tensor], whole: Collection[str] = ()
) -> GraphModule:
    """The program of a function that takes and returns tensors.

    :param whole: the names of operations that are not taken apart.
    :raises Untranslated: the function cannot be traced.
    """
    try:
        from torch._decomp import decomposition_table
    except ImportError as error:
        raise Untranslated("anything, for this torch has no table of decompositions") from error
    table: Any = {
        operation: apart
        for operation, apart in decomposition_table.items()
        if operation.name().partition("::")[2].partition(".")[0] not in whole
    }
    try:
        with torch.no_grad():
            return make_fx(
                function,
                tracing_mode="fake",
                decomposition_table=table,
                _allow_non_fake_inputs=True,
            )(*arguments)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise Untranslated(f"what torch cannot trace ({said[:200]})") from error
