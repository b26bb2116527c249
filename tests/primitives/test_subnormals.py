"""Numbers below the least normal one, which XLA's CPU takes for zero wherever it compares: any of those that became
equal may be chosen, as it was, and nothing else."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from m2ml.equivalence.equations import CHOOSING, equation_bounds, judge_equation
from m2ml.equivalence.primitives import check, traced
from m2ml.plugins import registry

BACKENDS = [registry.get(name) for name in ("cpu", "mlx")]
TINY = float(np.finfo(np.float32).tiny)
#: Zeros of both signs and subnormal numbers of both, in no order, beside numbers that every engine tells apart.
MIXED = (0.0, -2.9e-39, 5.9e-39, -0.0, 1e-45, TINY, -TINY, -1.0, 2.0, -5.9e-39, 0.0, 2.9e-39)

WINDOW = {"window_dimensions": (3,), "window_strides": (1,), "padding": "VALID"}
ONE = lax.ScatterDimensionNumbers((), (0,), (0,))


def scattered(function):
    return lambda x: function(x, np.zeros((1, 1), np.int32), x[1:2], ONE)


CHOICES = {
    "clamp": lambda x: [lax.clamp(low, x, high) for low, high in ((x[::-1], x), (x[1], x[2]))],
    "cummax": lax.cummax,
    "cummin": lax.cummin,
    "max": lambda x: [lax.max(x, np.roll(MIXED, i).astype(x.dtype)) for i in range(len(MIXED))],
    "min": lambda x: [lax.min(x, np.roll(MIXED, i).astype(x.dtype)) for i in range(len(MIXED))],
    "nextafter": lambda x: [lax.nextafter(x, np.roll(MIXED, i).astype(x.dtype)) for i in range(len(MIXED))],
    "reduce_max": lambda x: [jnp.max(part, 0) for part in (x[:4], x[1:2], x)],
    "reduce_min": lambda x: [jnp.min(part, 0) for part in (x[:4], x[1:3], x)],
    "reduce_window_max": lambda x: lax.reduce_window(x, x.dtype.type(-np.inf), lax.max, **WINDOW),
    "reduce_window_min": lambda x: lax.reduce_window(x, x.dtype.type(np.inf), lax.min, **WINDOW),
    "scatter_max": scattered(lax.scatter_max),
    "scatter_min": scattered(lax.scatter_min),
    "sort": lambda x: [lax.sort(x), *lax.sort((x, np.arange(len(MIXED)), x * 3), num_keys=1)],
    "top_k": lambda x: lax.top_k(x, 7),
}


def test_every_primitive_that_chooses_is_tried():
    assert set(CHOICES) == set(CHOOSING)


@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16, "float16"], ids=str)
@pytest.mark.parametrize("name", CHOICES)
def test_any_of_the_numbers_taken_for_zero_may_be_chosen(name, dtype):
    x = np.array(MIXED).astype(dtype)
    for first in range(0, len(MIXED), 3):
        turned = np.roll(x, first)
        code = traced(CHOICES[name], [turned])
        check(code, [turned], BACKENDS)


@pytest.mark.parametrize("values", [(0.0, 5.88e-39), (5.88e-39, 0.0), (-1e-40, 1e-40), (TINY, 0.0)])
def test_the_neighbour_of_a_number_taken_for_zero(values):
    arrays = [np.float32(value) for value in values]
    check(traced(lax.nextafter, arrays), arrays, BACKENDS)


@pytest.mark.parametrize(
    ("function", "arrays", "wrong"),
    [
        (lax.max, ((0.0, 1e-39), (-1e-39, 0.0)), (0.0, 2.5 * TINY)),
        (lax.min, ((1.0, 1e-39), (2.0, 0.0)), (2.0, 0.0)),
        (lax.sort, ((0.0, 2e-39, -3e-39, 1.0),), (1.0, 0.0, 0.0, 0.0)),
        (lax.nextafter, ((0.0, 1e-39), (0.0, 1.0)), (0.0, 1.0)),
    ],
)
def test_a_wrong_choice_beside_them_is_seen(function, arrays, wrong):
    arrays = [np.array(x, np.float32) for x in arrays]
    (step,) = traced(function, arrays).steps
    bounds = equation_bounds(step.equation, arrays)
    (report,) = judge_equation(step.equation, arrays, [np.array(wrong, np.float32)], bounds)
    assert not report.ok


@pytest.mark.parametrize("name", ["sqrt", "rsqrt", "log", "log1p"])
def test_beside_a_branch_cut_a_number_taken_for_zero_may_have_lost_its_sign(name):
    x = lax.complex(*np.float32([[-0.457, -1.0, -2.0] * 4, [-0.0, -1e-40, 1e-40, 0.0] * 3]))
    check(traced(getattr(lax, name), [x]), [np.asarray(x)], BACKENDS)


def test_which_of_them_comes_first_may_be_either():
    x = np.array([0.0, -2.9e-39, 1e-39, 1.0], np.float32)
    (step,) = traced(lambda x: lax.argmax(x[:3], 0, np.int32), [x]).steps[-1:]
    unstable = equation_bounds(step.equation, [x[:3]])[0].unstable
    assert unstable.all()
    assert int(jax.jit(lambda x: lax.argmax(x, 0, np.int32))(x)) == 3
