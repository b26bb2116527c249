"""Cases of the primitives that treat each element alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.extend.core.primitives
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

from m2ml.equivalence.primitives.cases import Case, covers, public
from m2ml.equivalence.primitives.values import (
    COMPLEX,
    EVERY,
    FLOATS,
    INTEGERS,
    NUMBERS,
    REAL,
    SIGNED,
    UNSIGNED,
    Draw,
    array,
    coin,
    dtype_among,
    either_nan,
    one_of,
    shapes,
)

#: Where a function is defined, with a little beyond, so that the edges and the NaNs outside are met.
DOMAINS = {
    "acos": (-1.1, 1.1),
    "asin": (-1.1, 1.1),
    "atanh": (-1.1, 1.1),
    "erf_inv": (-1.0, 1.0),
    "acosh": (0.9, None),
    "log": (-1.0, None),
    "log1p": (-1.1, None),
    "log2": (-1.0, None),
    "sqrt": (-1.0, None),
    "rsqrt": (-1.0, None),
}

#: Beyond these arguments engines reduce angles differently: each loses what rounding the angle loses.
ANGLES = dict.fromkeys(("sin", "cos", "tan"), (-30.0, 30.0))

UNARY_FLOAT = (
    "acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 "
    "lgamma log log1p log2 logistic rsqrt sin sinh sqrt tan tanh"
)
#: Those that XLA also defines for complex numbers; of these m2ml compares finite, moderate ones.
UNARY_COMPLEX = frozenset("cos cosh exp expm1 log log1p logistic rsqrt sin sinh sqrt tan tanh".split())


@covers(*UNARY_FLOAT.split())
def unary_float(draw: Draw, name: str) -> Case:
    dtype = dtype_among(draw, *FLOATS, *(COMPLEX if name in UNARY_COMPLEX else ()))
    low, high = DOMAINS.get(name) or ANGLES.get(name) or (None, None)
    if coin(draw) and name not in ANGLES and dtype != "complex64":
        low, high = None, None
    x = array(draw, shapes(draw), dtype, low=low, high=high, finite=dtype == "complex64")
    if name == "digamma":  # at its pole in 0 newer releases of JAX give -inf, older ones NaN
        x = np.where(x == 0, np.ones_like(x), x)
    return public(name), [x]


@covers("ceil", "floor", "is_finite")
def unary_exact(draw: Draw, name: str) -> Case:
    return public(name), [array(draw, shapes(draw), dtype_among(draw, *FLOATS))]


@covers("round")
def rounding(draw: Draw, name: str) -> Case:
    method = one_of(draw, lax.RoundingMethod.AWAY_FROM_ZERO, lax.RoundingMethod.TO_NEAREST_EVEN)
    x = array(draw, shapes(draw), dtype_among(draw, *FLOATS))
    halves = np.where(np.isfinite(x), np.rint(x.astype(np.float64)) + 0.5, x).astype(x.dtype)
    return lambda x: lax.round(x, method), [halves if coin(draw) else x]


@covers("neg", "sign", "abs", "square")
def unary_number(draw: Draw, name: str) -> Case:
    unsigned = UNSIGNED if name != "abs" else ()
    dtype = dtype_among(draw, *FLOATS, *SIGNED, *unsigned, *COMPLEX)
    dtype = one_of(draw, dtype, dtype, "complex64") if name in ("abs", "sign") else dtype
    x = array(draw, shapes(draw), dtype, finite=dtype == "complex64")
    if name in ("abs", "sign") and dtype == "complex64":  # the squares of large and small parts are out of range
        x = x * np.complex64(one_of(draw, 1.0, 1e25, 1e-25))
    return public(name), [x]


@covers("not", "population_count", "clz")
def unary_bits(draw: Draw, name: str) -> Case:
    function = public({"not": "bitwise_not"}.get(name, name))
    return function, [array(draw, shapes(draw), dtype_among(draw, *INTEGERS, *(("bool",) if name == "not" else ())))]


@covers("real", "imag", "conj")
def complex_parts(draw: Draw, name: str) -> Case:
    return public(name), [array(draw, shapes(draw), "complex64")]


@covers("complex")
def make_complex(draw: Draw, name: str) -> Case:
    shape = shapes(draw)
    return lax.complex, [array(draw, shape, "float32", copy=copy) for copy in range(2)]


@covers("integer_pow")
def integer_pow(draw: Draw, name: str) -> Case:
    exponent = one_of(draw, *range(-4, 9))
    dtype = dtype_among(draw, *FLOATS, *COMPLEX, *(SIGNED + UNSIGNED if exponent >= 0 else ()))
    x = array(draw, shapes(draw), dtype, finite=dtype == "complex64")
    return lambda x: lax.integer_pow(x, exponent), [x]


def _two(draw: Draw, dtype: str, **domain: Any) -> list[np.ndarray]:
    shape = shapes(draw)
    return [array(draw, shape, dtype, copy=copy, **domain) for copy in range(2)]


@covers("add", "sub", "mul", "div")
def arithmetic(draw: Draw, name: str) -> Case:
    dtype = dtype_among(draw, *NUMBERS)
    return public(name), _two(draw, dtype, finite=dtype == "complex64")


@covers("add_any")
def add_any(draw: Draw, name: str) -> Case:
    """The sum of cotangents: what reverse mode makes of a value used twice."""
    x, y = _two(draw, dtype_among(draw, *FLOATS))

    def pull(x: Any, y: Any) -> Any:
        return jax.linear_transpose(lambda v: (v, lax.neg(v)), x)((x, y))

    return pull, [x, y]


@covers("max", "min")
def extremes(draw: Draw, name: str) -> Case:
    return public(name), _two(draw, dtype_among(draw, *EVERY))


@covers("rem", "nextafter", "atan2")
def binary_real(draw: Draw, name: str) -> Case:
    dtypes = {"rem": REAL, "nextafter": ("float32", "bfloat16", "float16")}.get(name, FLOATS)
    return public(name), _two(draw, dtype_among(draw, *dtypes))


@covers("pow")
def power(draw: Draw, name: str) -> Case:
    dtype = dtype_among(draw, *FLOATS)
    if coin(draw):
        shape = shapes(draw)
        exponents = array(draw, shape, "int32", **one_of(draw, {"low": -5, "high": 5}, {}))
        return lax.pow, [array(draw, shape, dtype), exponents]
    return lax.pow, _two(draw, dtype, scales=(1.0, 3.0))


@covers("and", "or", "xor", "shift_left", "shift_right_arithmetic", "shift_right_logical", "mulhi")
def bits(draw: Draw, name: str) -> Case:
    function = public({"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}.get(name, name))
    dtypes = INTEGERS + (("bool",) if name in ("and", "or", "xor") else ())
    return function, _two(draw, dtype_among(draw, *dtypes))


@covers("eq", "ne", "ge", "gt", "le", "lt")
def comparisons(draw: Draw, name: str) -> Case:
    dtype = dtype_among(draw, *EVERY) if name in ("eq", "ne") else dtype_among(draw, *REAL, "bool")
    x, y = _two(draw, dtype)
    return public(name), [x, np.where(np.arange(x.size).reshape(x.shape) % 3 == 0, x, y)]


@covers("clamp")
def clamp(draw: Draw, name: str) -> Case:
    shape, dtype = shapes(draw), dtype_among(draw, *REAL)
    ends = shape if coin(draw) else ()
    return lax.clamp, [array(draw, s, dtype, copy=i) for i, s in enumerate((ends, shape, ends))]


@covers("select_n")
def select_n(draw: Draw, name: str) -> Case:
    shape, dtype, count = shapes(draw), dtype_among(draw, *EVERY), one_of(draw, *range(1, 5))
    kind = one_of(draw, "bool", "int32") if count == 2 else "int32"
    which = array(draw, shape, kind, low=0, high=count - 1) if kind == "int32" else array(draw, shape, "bool")
    which = which if coin(draw) or not which.size else which.reshape(-1)[0].reshape(())
    return lax.select_n, [which, *(array(draw, shape, dtype, copy=i) for i in range(count))]


@covers("convert_element_type")
def convert(draw: Draw, name: str) -> Case:
    source = dtype_among(draw, *EVERY)
    x = array(draw, shapes(draw), source)
    if source in FLOATS and coin(draw):  # numbers in the middle between two of a narrower dtype
        x = np.where(np.isfinite(x), np.rint(x.astype(np.float64)) + 0.5, x).astype(x.dtype)
    targets = [jnp.dtype(dtype_among(draw, *(d for d in EVERY if d != source))) for _ in range(3)]
    if source == "complex64":  # to a real number goes the real part only, with a warning
        return lambda x: [lax.convert_element_type(x if t.kind == "b" else lax.real(x), t) for t in targets], [x]
    return lambda x: [lax.convert_element_type(x, t) for t in targets], [x]


@covers("bitcast_convert_type")
def bitcast(draw: Draw, name: str) -> Case:
    width = {1: ("int8", "uint8"), 2: ("int16", "uint16", "float16", "bfloat16"), 4: ("int32", "uint32", "float32")}
    size, other = one_of(draw, *width), one_of(draw, *width)
    shape = shapes(draw)
    shape = (*shape, other // size) if other > size else shape
    target = jnp.dtype(one_of(draw, *width[other]))
    return lambda x: lax.bitcast_convert_type(x, target), [array(draw, shape, one_of(draw, *width[size]))]


@covers("reduce_precision")
def reduce_precision(draw: Draw, name: str) -> Case:
    exponent, mantissa = one_of(draw, *range(1, 10)), draw(st.integers(0, 24))
    # Without mantissa bits the XLA of jax 0.5 makes NaN infinite, newer ones keep it.
    x = array(draw, shapes(draw), dtype_among(draw, *FLOATS), finite=mantissa == 0)
    return lambda x: lax.reduce_precision(x, exponent, mantissa), [x]


@covers("igamma", "igammac", "igamma_grad_a", "random_gamma_grad")
def incomplete_gamma(draw: Draw, name: str) -> Case:
    """Loops in XLA, slow to compile: few shapes."""
    shape, dtype = one_of(draw, (), (0, 3), (257,)), one_of(draw, "float32", "float32", "bfloat16")
    low = 0.5 if name == "random_gamma_grad" else 0.05
    parts = [array(draw, shape, dtype, low=low, high=12.0), array(draw, shape, dtype, low=low, high=12.0)]
    return public(name), parts


@covers("regularized_incomplete_beta")
def incomplete_beta(draw: Draw, name: str) -> Case:
    shape = one_of(draw, (), (0, 3), (257,))
    ends = ((0.3, 6.0), (0.3, 6.0), (0.0, 1.0))
    return lax.betainc, [array(draw, shape, "float32", low=low, high=high) for low, high in ends]


@covers("polygamma", "zeta")
def polygamma(draw: Draw, name: str) -> Case:
    shape = one_of(draw, (), (0, 3), (257,))
    order = array(draw, shape, "int32", low=1, high=4).astype(np.float32)
    return public(name), [order + (name == "zeta"), array(draw, shape, "float32", low=0.5, high=20.0)]


@covers("polynomial")
def polynomial(draw: Draw, name: str) -> Case:
    function, shape, dtype = public("polynomial"), shapes(draw), dtype_among(draw, *FLOATS)
    coefficients = [array(draw, (), dtype, finite=True, scales=(1.0,)) for _ in range(one_of(draw, *range(1, 6)))]
    return lambda x, *a: function(x, a), [array(draw, shape, dtype, finite=True, scales=(1.0,)), *coefficients]


@covers("one_minus_square")
def one_minus_square(draw: Draw, name: str) -> Case:
    return public("one_minus_square"), [array(draw, shapes(draw), dtype_among(draw, *FLOATS))]


@covers("eq_to", "le_to", "lt_to")
def total_order(draw: Draw, name: str) -> Case:
    """Comparisons in which NaN equals itself and -0 comes before 0; sort uses them."""
    primitive = getattr(jax.extend.core.primitives, f"{name}_p")
    x, y = (either_nan(draw, x) for x in _two(draw, dtype_among(draw, *FLOATS, *INTEGERS)))
    return primitive.bind, [x, np.where(np.arange(x.size).reshape(x.shape) % 3 == 0, x, y)]
