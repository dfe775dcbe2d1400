"""What changes the numbers of every later cell of a process, and how it is read."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

FLAGS = {
    "the deterministic algorithms": (
        "_get_deterministic_algorithms",
        "_get_deterministic_algorithms_warn_only",
    ),
    "the filling of new memory": ("_get_deterministic_fill_uninitialized_memory",),
    "the precision of float32 products": (
        "_get_float32_matmul_precision",
        "_get_onednn_allow_tf32",
    ),
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
PRECISIONS = (
    ("generic", "all"),
    ("cuda", "all"),
    ("cuda", "matmul"),
    ("cuda", "conv"),
    ("mkldnn", "all"),
    ("mkldnn", "matmul"),
)
HOOKS: tuple[Mapping[Any, Any], ...] = (
    *(
        value
        for name, value in vars(torch_module).items()
        if name.startswith("_global_") and isinstance(value, dict)
    ),
    *(
        value
        for name, value in vars(torch_optimizer).items()
        if name.startswith("_global_") and isinstance(value, dict)
    ),
)


def asked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What torch answers, or the class of its error: it refuses if its old and new settings of
    precision are mixed.
    """
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - a user-defined mode may raise anything
        return type(error)


def _flags(names: tuple[str, ...]) -> Callable[[], Any]:
    there = [getattr(torch._C, name) for name in names if hasattr(torch._C, name)]  # noqa: SLF001 - the public words are slow

    def read() -> list[Any]:
        try:
            return [one() for one in there]
        except RuntimeError:  # one refuses to answer: the others still do
            return [asked(one) for one in there]

    return read


def _precisions() -> list[Any]:
    getter = getattr(torch._C, "_get_fp32_precision_getter", None)  # noqa: SLF001
    return [asked(getter, *where) for where in PRECISIONS] if getter is not None else []


def _autocast() -> list[Any]:
    asked = [
        (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
    ]
    return [*asked, torch.is_autocast_cache_enabled()]


def _gradients() -> list[Any]:
    transformed = torch._C._functorch.peek_interpreter_stack() is not None  # noqa: SLF001
    return [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), transformed]


def luck() -> tuple[Any, ...]:
    """The states of the random generators that all code of a process shares, in the order of
    `GENERATORS`.
    """
    state = np.random.get_state(legacy=False)  # noqa: NPY002 - the state that must not move
    numpys = (
        state["state"]["key"].tobytes(),
        state["state"]["pos"],
        state["has_gauss"],
        state["gauss"],
    )
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
    "the number of torch's threads": lambda: [
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
    ],
    **{words: _flags(names) for words, names in FLAGS.items()},
    "the precision of float32": _precisions,
    "autocast": _autocast,
    "the search for anomalies": lambda: [
        torch.is_anomaly_enabled(),
        torch.is_anomaly_check_nan_enabled(),
    ],
    "the flushing of denormals or the rounding": _arithmetic,
    "NumPy's handling of errors": np.geterr,
    "hooks of all modules or optimizers": lambda: [len(hooks) for hooks in HOOKS],
}
GENERATORS = (
    "Python's random generator",
    "NumPy's random generator",
    "torch's random generator",
    "CUDA's random generator",
)
