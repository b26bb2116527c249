"""The checks catch wrong rules: each fault below is planted in the mlx table and must be found."""

import mlx.core as mx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from m2ml_mlx.rules import rules

from m2ml.equivalence.primitives.cases import load
from m2ml.equivalence.primitives.check import check, traced
from m2ml.errors import M2mlError
from m2ml.plugins import registry

CASES = load()
RIGHT = dict(rules)


def dropped_tail(equation, *arrays):
    out = RIGHT[equation.name](equation, *arrays)
    flat = mx.flatten(out)
    return mx.reshape(mx.where(mx.arange(flat.size) == flat.size - 1, mx.zeros_like(flat), flat), out.shape)


def rounded_to_half(equation, *arrays):
    out = RIGHT[equation.name](equation, *arrays)
    return out.astype(mx.bfloat16).astype(out.dtype)


def forward_only(equation, *arrays):
    """A parameter that is ignored."""
    changed = type(equation)(**{f: getattr(equation, f) for f in equation.__dataclass_fields__})
    object.__setattr__(changed, "params", {**equation.params, "reverse": False})
    return RIGHT[equation.name](changed, *arrays)


FAULTS = {
    "log1p": lambda e, x: mx.log(1 + x),
    "expm1": lambda e, x: mx.exp(x) - 1,
    "logistic": lambda e, x: 1 / (1 + mx.exp(-mx.clip(x, -10, 10))),
    "max": lambda e, x, y: mx.where(x > y, x, y),
    "neg": lambda e, x: 0 - x,
    "sign": lambda e, x: mx.where(x < 0, -mx.ones_like(x), mx.ones_like(x)),
    "rem": lambda e, x, y: mx.remainder(x, y),
    "round": lambda e, x: mx.round(x),
    "shift_left": lambda e, x, y: mx.left_shift(x, y),
    "cumsum": forward_only,
    "cummax": forward_only,
    "tanh": rounded_to_half,
    "reduce_sum": dropped_tail,
    "transpose": dropped_tail,
    "dot_general": dropped_tail,
    "conv_general_dilated": dropped_tail,
    "gather": dropped_tail,
    "fft": dropped_tail,
    "sort": lambda e, *xs: list(xs),
    "argmax": lambda e, x: mx.zeros(e.shape, mx.int32).astype(RIGHT["argmax"](e, x).dtype),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name, monkeypatch):
    monkeypatch.setitem(rules, name, FAULTS[name])

    @settings(max_examples=20, phases=[Phase.generate])
    @given(st.data())
    def run(data):
        function, arrays = CASES[name](data.draw, name)
        check(traced(function, arrays), arrays, [registry.get("mlx")])

    with pytest.raises((AssertionError, M2mlError, ExceptionGroup)):
        run()
