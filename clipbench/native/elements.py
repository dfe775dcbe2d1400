"""The element-wise operations of generated programs: each is one expression of C++."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

CONVERT = "convert_element_type"
C_TYPES: Mapping[torch.dtype, str] = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}
# The name of an operation among torch's primitives → its expression of the operands {0}, {1}, …,
# and of the type of its result, {type}. Primitives have operands of one type and one size.
EXPRESSIONS: Mapping[str, str] = {
    "abs": "__builtin_fabs{f}({0})",
    "acos": "__builtin_acos{f}({0})",
    "acosh": "__builtin_acosh{f}({0})",
    "add": "({0} + {1})",
    "asin": "__builtin_asin{f}({0})",
    "asinh": "__builtin_asinh{f}({0})",
    "atan": "__builtin_atan{f}({0})",
    "atan2": "__builtin_atan2{f}({0}, {1})",
    "atanh": "__builtin_atanh{f}({0})",
    "bitwise_and": "({type})({0} & {1})",
    "bitwise_not": "!{0}",
    "bitwise_or": "({type})({0} | {1})",
    "bitwise_xor": "({type})({0} ^ {1})",
    "ceil": "__builtin_ceil{f}({0})",
    CONVERT: "({type})({0})",
    "cos": "__builtin_cos{f}({0})",
    "cosh": "cosh_({0})",
    "div": "({0} / {1})",
    "eq": "({0} == {1})",
    "erf": "__builtin_erf{f}({0})",
    "erfc": "__builtin_erfc{f}({0})",
    "exp": "exp_({0})",
    "exp2": "__builtin_exp2{f}({0})",
    "expm1": "expm1_({0})",
    "floor": "__builtin_floor{f}({0})",
    "fmax": "__builtin_fmax{f}({0}, {1})",
    "fmin": "__builtin_fmin{f}({0}, {1})",
    "fmod": "__builtin_fmod{f}({0}, {1})",
    "ge": "({0} >= {1})",
    "gt": "({0} > {1})",
    "hypot": "__builtin_hypot{f}({0}, {1})",
    "isfinite": "(({0}) - ({0}) == 0)",
    "le": "({0} <= {1})",
    "lgamma": "__builtin_lgamma{f}({0})",
    "log": "log_({0})",
    "log10": "__builtin_log10{f}({0})",
    "log1p": "log1p_({0})",
    "log2": "__builtin_log2{f}({0})",
    "lt": "({0} < {1})",
    "maximum": "larger({0}, {1})",
    "minimum": "smaller({0}, {1})",
    "mul": "({0} * {1})",
    "ne": "({0} != {1})",
    "neg": "(-{0})",
    "pow": "__builtin_pow{f}({0}, {1})",
    "remainder": "remainder_({0}, {1})",
    "reciprocal": "(({type})1 / {0})",
    "round": "__builtin_rint{f}({0})",
    "rsqrt": "(({type})1 / __builtin_sqrt{f}({0}))",
    "sign": "sign_({0})",
    "signbit": "(as_bits({0}) < 0)",
    "sin": "__builtin_sin{f}({0})",
    "sinh": "sinh_({0})",
    "sqrt": "__builtin_sqrt{f}({0})",
    "sub": "({0} - {1})",
    "tan": "__builtin_tan{f}({0})",
    "tanh": "tanh_({0})",
    "trunc": "__builtin_trunc{f}({0})",
    "where": "({0} ? {1} : {2})",
}
# of integers: the rest of the table holds for real numbers
WHOLE: Mapping[str, str] = {
    "abs": "({0} < 0 ? -{0} : {0})",
    "bitwise_not": "(~{0})",
    "div": "({type})quotient({0}, {1})",
    "fmod": "({type})rest({0}, {1})",
    "maximum": "({0} > {1} ? {0} : {1})",
    "minimum": "({0} < {1} ? {0} : {1})",
    "remainder": "({type})remainder_((int64_t)({0}), (int64_t)({1}))",
    "sign": "(({0} > 0) - ({0} < 0))",
    "signbit": "({0} < 0)",
}
ALIKE = frozenset(
    {
        *("add", "sub", "mul", "neg", "eq", "ne", "ge", "gt", "le", "lt", "where"),
        *("bitwise_and", "bitwise_or", "bitwise_xor", CONVERT),
    }
)
"""The operations whose expression holds for whole numbers and truth values, too."""


def expression(
    name: str, operands: Sequence[str], given: torch.dtype, result: torch.dtype
) -> str | None:
    """An operation on its operands as an expression of C++; None if the table has none for this
    type.

    :param given: the type of the operands; of ``where`` that of what it chooses from.
    """
    if {given, result} - C_TYPES.keys():
        return None
    if name == CONVERT and given is torch.bool:
        # as a choice: a conversion of truth values is not put into registers
        return f"({operands[0]} ? ({C_TYPES[result]})1 : ({C_TYPES[result]})0)"
    if given.is_floating_point or name in ALIKE or (given is torch.bool and name == "bitwise_not"):
        found = EXPRESSIONS.get(name)
    else:
        found = None if given is torch.bool else WHOLE.get(name)
    if found is None:
        return None
    suffix = "f" if given is torch.float32 else ""
    return found.format(*operands, type=C_TYPES[result], f=suffix)


def literal(value: float, dtype: torch.dtype) -> str:
    """A number as C++ has it, exactly."""
    if dtype is torch.bool:
        return "true" if value else "false"
    kind = C_TYPES[dtype]
    if not dtype.is_floating_point:
        return f"({kind}){int(value)}"
    number = float(torch.tensor(value, dtype=dtype))
    if math.isnan(number):
        return f'({kind})__builtin_nan("")'
    if math.isinf(number):
        return f"({kind}){'-' if number < 0 else ''}INFINITE"
    return f"({kind}){number.hex()}"
