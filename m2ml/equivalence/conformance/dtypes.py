"""Every dtype that JAX knows: the backend holds it bit for bit, or refuses it in one sentence. It never narrows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from m2ml import compat
from m2ml.equivalence.conformance.suite import REFUSALS, Check, DeclaredGap, Subject, one_sentence, trace

SHAPES = ((), (0,), (1,), (7,), (2, 0, 3), (3, 5))


def names() -> tuple[str, ...]:
    """Every dtype that ``jax.numpy`` has a scalar type for."""
    scalars = (getattr(jnp, name) for name in dir(jnp))
    found = {np.dtype(s.dtype) for s in scalars if isinstance(s, type(jnp.float32))}
    return tuple(sorted(dtype.name for dtype in found))


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def checks(subject: Subject) -> Iterable[Check]:
    for name in names():
        yield Check("dtypes", name, _held(name))
    for name in names():
        yield Check("dtypes", f"{name} is computed with", _computed(name))


def specials(dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    """``count`` values, the extremes of the dtype first."""
    if dtype.kind == "b":
        return np.arange(count) % 2 == 0
    if dtype.kind == "c":
        part = np.empty(0, dtype).real.dtype
        return np.concatenate([specials(part, count), specials(part, count)[::-1]]).view(dtype)
    if compat.is_inexact(dtype):
        floats = ml_dtypes.finfo(dtype)
        ends: list[Any] = [floats.max, floats.min, floats.tiny, np.nan, -0.0, np.inf]
    else:
        ends = [ml_dtypes.iinfo(dtype).max, ml_dtypes.iinfo(dtype).min]
    return np.array([*(np.array(end).astype(dtype) for end in ends), *np.zeros(count, dtype)], dtype)[:count]


def supports(subject: Subject, name: str) -> bool:
    """Whether the backend takes arrays of this dtype. A refusal must be `m2ml.UnsupportedDtype` in one sentence."""
    with compat.enable_x64():
        try:
            subject.backend.from_host(np.zeros(2, dtype_of(name)))
        except REFUSALS as error:
            text = one_sentence(error)
            assert name in text, f"a refused dtype is named; the error says {text!r}"
            return False
    return True


def supported(subject: Subject) -> tuple[str, ...]:
    """The dtypes that the backend holds."""
    return tuple(name for name in names() if supports(subject, name))


def _declared(subject: Subject, name: str) -> list[str]:
    return [gap.reason for gap in subject.backend.gaps if gap.primitive == "*" and gap.dtype == name]


def _held(name: str) -> Callable[[Subject], None]:
    def run(subject: Subject) -> None:
        reasons = _declared(subject, name)
        if not supports(subject, name):
            raise DeclaredGap(*reasons or ["the backend refuses it"])
        assert not reasons, f"{name} is declared as a gap, but arrays of it are taken: remove the gap"
        for shape in SHAPES:
            _round_trip(subject, specials(dtype_of(name), int(np.prod(shape))).reshape(shape))
        base = specials(dtype_of(name), 24).reshape(4, 6)
        for view in (base.T, base[::2, 1::3], base[::-1]):
            _round_trip(subject, view)

    return run


def _round_trip(subject: Subject, array: np.ndarray[Any, Any]) -> None:
    with compat.enable_x64():
        got = subject.backend.to_host(subject.backend.from_host(array))
    assert isinstance(got, np.ndarray), f"to_host gives a {type(got).__name__}"
    assert (got.dtype, got.shape) == (array.dtype, array.shape), f"{array.dtype}{array.shape} came back as {got.dtype}"
    if not _same_bits(got, array):
        raise AssertionError(f"{array.dtype.name}{list(array.shape)} came back with other bits: {got} for {array}")


def _same_bits(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> bool:
    """Equal, zeros of the same sign; any NaN is as good as another."""
    if not compat.is_inexact(x.dtype):
        return bool((x == y).all())
    if x.dtype.kind == "c":
        return _same_bits(x.real, y.real) and _same_bits(x.imag, y.imag)
    x, y = x.astype(np.float64), y.astype(np.float64)
    return bool((((x == y) & (np.signbit(x) == np.signbit(y))) | (np.isnan(x) & np.isnan(y))).all())


def _computed(name: str) -> Callable[[Subject], None]:
    def run(subject: Subject) -> None:
        if not supports(subject, name):
            raise DeclaredGap(*_declared(subject, name) or ["the backend refuses it"])
        with compat.enable_x64():
            _program(subject, dtype_of(name))

    return run


def _program(subject: Subject, dtype: np.dtype[Any]) -> None:
    """Reordered, selected and compared: what every dtype has. Results are exact, and of the declared dtype."""
    host = specials(dtype, 6).reshape(2, 3)

    def fn(x: Any) -> Any:
        return jax.lax.rev(x, (1,)), jnp.concatenate([x, x.T.reshape(2, 3)]), x[:, 1:], jnp.where(x == x, x, x[:1, :1])

    program = trace(fn, host)
    other = np.where(host == host, host, host[:1, :1])
    expected = (host[:, ::-1], np.concatenate([host, host.T.reshape(2, 3)]), host[:, 1:], other)
    for got, want in zip(subject.run(program, host), expected, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{got.dtype}{got.shape} for {want.dtype}"
        assert _same_bits(got, np.asarray(want)), f"{got} for {want}"
