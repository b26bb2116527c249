"""How a run carries values: wide, and rounded only where a program says so.

A float of any width travels as float64 and a complex number as complex128, unrounded; integers and booleans
travel in their own dtype and wrap around. Widths matter again where a value leaves the program (`narrow`) and
in the few primitives that read bits or round by definition.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from m2ml.interpreter import Rules
from m2ml.precision import Array as Array
from m2ml.precision import is_complex as is_complex
from m2ml.precision import is_float as is_float
from m2ml.precision import is_integer as is_integer
from m2ml.precision import is_unsigned as is_unsigned
from m2ml.precision import narrow as narrow
from m2ml.precision import round_to_dtype as round_to_dtype
from m2ml.precision import round_to_format as round_to_format
from m2ml.precision import wide as wide
from m2ml.precision import widen as widen

#: The rule of every primitive; each family of rules adds its own.
rules = Rules()


def least(dtype: Any) -> Any:
    """The identity of max: minus infinity, or the least integer, or False."""
    if dtype == np.bool_:
        return False
    return ml_dtypes.iinfo(dtype).min if is_integer(dtype) else -np.inf


def greatest(dtype: Any) -> Any:
    """The identity of min: infinity, or the greatest integer, or True."""
    if dtype == np.bool_:
        return True
    return ml_dtypes.iinfo(dtype).max if is_integer(dtype) else np.inf
