"""How each primitive rounds: exactly, once, as a sum of terms, or by a formula; and the units of each dtype."""

from __future__ import annotations

import functools
import math
from typing import Any

import ml_dtypes
import numpy as np

from m2ml import compat
from m2ml.interpreter import Equation

#: Primitives whose result is one of their operands' values, or exact by IEEE 754: they add no rounding error.
EXACT = frozenset(
    """abs and argmax argmin bitcast_convert_type broadcast_in_dim ceil clamp clz complex concatenate conj
    copy_p cummax cummin dynamic_slice dynamic_update_slice empty eq eq_to expand_dims floor gather ge gt imag
    iota iota_2x32_shape is_finite le le_to lt lt_to max min ne neg nextafter not optimization_barrier or pad
    population_count real reduce_and reduce_max reduce_min reduce_or reduce_precision reduce_window_max
    reduce_window_min reduce_xor rem reshape rev rng_bit_generator round scatter scatter_max scatter_min
    select_and_gather_add select_n shift_left shift_right_arithmetic shift_right_logical sign slice sort split
    squeeze stack threefry2x32 tile top_k transpose unstack xor""".split()
)

#: Those of them that put numbers somewhere else and never look at one.
MOVES = frozenset(
    """bitcast_convert_type broadcast_in_dim complex concatenate copy_p dynamic_slice dynamic_update_slice expand_dims
    gather imag optimization_barrier pad real reshape rev scatter select_n slice split squeeze stack tile transpose
    unstack""".split()
)

#: Exact for real numbers, rounded for complex ones, whose size they work out.
COMPLEX_ROUNDED = frozenset({"abs", "sign"})

#: Primitives correctly rounded by every engine, to half a unit in the last place; complex ones from rounded parts.
ROUNDED = frozenset("add add_any convert_element_type div mul neg sqrt square sub".split())

#: Those that move by a unit of their real result, whatever their operands.
BY_A_UNIT = ROUNDED - EXACT - {"convert_element_type"}

#: Sums of products or values: the error grows with the number of terms.
SUMS = frozenset(
    """conv_general_dilated cumlogsumexp cumprod cumsum dot_general fft polynomial ragged_dot ragged_dot_general
    reduce_prod reduce_sum reduce_window reduce_window_sum reduce scaled_dot scatter_add scatter_mul scatter_sub
    select_and_scatter select_and_scatter_add""".split()
)

#: Primitives that may give zeros of either sign. A sum does by what it starts from, and a sine on MLX's CPU; of
#: zeros of both signs XLA and MLX take different ones for the extremum.
ANY_ZERO = SUMS - {"cumprod", "reduce_prod", "scatter_mul"} | set(
    """clamp cummax cummin reduce_max reduce_min reduce_window_max reduce_window_min scatter_max scatter_min
    sin""".split()
)

#: Primitives of one rounding or of sums: an engine that flushes sees a number or zero. The formulas of others halve
#: and double it on the way: zero may come of numbers up to a few times the least normal one.
ARITHMETIC = EXACT | ROUNDED | SUMS

#: Functions of complex numbers whose side of a branch cut XLA's CPU chooses with no regard to the sign of a zero.
CUT = frozenset("acos acosh asin asinh sqrt".split())


@functools.cache
def unit(dtype: Any) -> float:
    """Largest relative error of rounding to ``dtype``: half the gap above 1; 0 for integers and booleans."""
    dtype = np.dtype(dtype)
    if not compat.is_inexact(dtype):
        return 0.0
    return float(ml_dtypes.finfo(real_dtype(dtype)).eps) / 2


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of the parts of a complex dtype; any other dtype itself."""
    dtype = np.dtype(dtype)
    return np.empty(0, dtype).real.dtype if dtype.kind == "c" else dtype


@functools.cache
def tiny(dtype: Any) -> float:
    """Smallest normal number of a floating dtype: below it an engine may flush to zero."""
    return float(ml_dtypes.finfo(real_dtype(dtype)).tiny)


def terms(equation: Equation) -> int:
    """How many terms each output element of a sum-like equation adds or multiplies."""
    if equation.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(equation.inputs[0].shape[i] for i in contracted)
    if equation.name == "conv_general_dilated":
        kernel = equation.inputs[1].shape
        return math.prod(kernel) // max(kernel[equation.params["dimension_numbers"].rhs_spec[0]], 1)
    if equation.name.startswith("reduce_window"):
        return math.prod(equation.params["window_dimensions"])
    if equation.name.startswith("cum"):
        return int(equation.inputs[0].shape[equation.params["axis"]])
    if equation.name.startswith("scatter"):
        return max(math.prod(equation.inputs[2].shape), 1)
    return max(math.prod(equation.inputs[0].shape) // max(math.prod(equation.shape), 1), 1)
