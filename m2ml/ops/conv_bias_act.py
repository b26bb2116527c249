"""Two-dimensional convolution with bias and activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.activations import ACTIVATIONS
from m2ml.ops.arguments import require, require_floating, require_one_of, wide
from m2ml.ops.inputs import normal

Array = jax.Array
Pair = int | tuple[int, int]
Padding = str | int | tuple[tuple[int, int], tuple[int, int]]

_NAME = "conv_bias_act"


@op(shapes="x[*b h w c], weight[kh kw ci o], bias?[o] -> y[*b _ _ o]")
def conv_bias_act(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    /,
    *,
    strides: Pair = 1,
    padding: Padding = "SAME",
    dilation: Pair = 1,
    groups: int = 1,
    activation: str = "none",
) -> Array:
    """``activation(conv(x, weight) + bias)``, channels last.

    ``x`` is ``[*b, height, width, channels]``; ``weight`` ``[kernel height, kernel width, channels / groups, out
    channels]``, Flax's layout (MLX has the out channels first, PyTorch then the channels); ``bias`` ``[out channels]``
    or None. As in all of them the kernel is not flipped: ``y[i, j] = sum x[i s + k d - p, ...] weight[k, ...]``.
    ``strides`` and ``dilation`` (of the kernel) are one number or two; ``padding`` is ``"SAME"`` or ``"VALID"`` as in
    XLA, a number, or ``((top, bottom), (left, right))``, zeros all. Input and output channels fall into ``groups``;
    each output sees its own group alone. ``activation`` is one of `m2ml.ops.activations`. The result has the wider
    dtype of ``x`` and ``weight``; half precision is added up in float32 and rounded once, after the activation.

    Raises ValueError for channels that do not fit the groups and for illegal static arguments, TypeError where an array
    is not floating.
    """
    require_floating(_NAME, x=x, weight=weight, bias=bias)
    require_one_of(_NAME, "activation", activation, ACTIVATIONS)
    at = Geometry.of(x.shape, weight.shape, strides=strides, padding=padding, dilation=dilation)
    _check_groups(x.shape[-1], weight.shape[2], weight.shape[3], groups)
    batch = x.shape[:-3]
    dtype = jnp.promote_types(x.dtype, weight.dtype)
    y = jax.lax.conv_general_dilated(
        wide(x.astype(dtype)).reshape(-1 if x.size else int(np.prod(batch)), *x.shape[-3:]),
        wide(weight.astype(dtype)),
        at.strides,
        at.pads,
        rhs_dilation=at.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    y = y if bias is None else y + wide(bias)
    return ACTIVATIONS[activation](y).astype(dtype).reshape(*batch, *y.shape[1:])


@dataclass(frozen=True)
class Geometry:
    """Where the taps of a convolution lie, and the height and width of its result: pairs for both axes.

    ``pads`` are the zeros before and after each axis.
    """

    strides: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    sizes: tuple[int, int]

    @staticmethod
    def of(x: Sequence[int], weight: Sequence[int], *, strides: Pair, padding: Padding, dilation: Pair) -> Geometry:
        """The geometry of arguments of these shapes. Raises ValueError for static arguments that are none."""
        steps, spread, given = _pair("strides", strides), _pair("dilation", dilation), _padding(padding)
        images = x[-3:-1]
        window = [(taps - 1) * apart + 1 for taps, apart in zip(weight[:2], spread, strict=True)]
        pads = jax.lax.padtype_to_pads(images, window, steps, given) if isinstance(given, str) else given
        rows, columns = (
            max((n + sum(pad) - taken) // step + 1, 0)
            for n, pad, taken, step in zip(images, pads, window, steps, strict=True)
        )
        (top, bottom), (left, right) = pads
        return Geometry(steps, spread, ((top, bottom), (left, right)), (rows, columns))


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    fits = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(v, int) and v > 0 for v in pair)
    require(_NAME, fits, f"{name} is {value!r}; it must be one positive number or two")
    return pair


def _padding(value: Any) -> Any:
    if value in ("SAME", "VALID"):
        return value
    pads = ((value, value), (value, value)) if isinstance(value, int) else value
    fits = isinstance(pads, tuple) and len(pads) == 2
    fits = fits and all(isinstance(p, tuple) and len(p) == 2 and min(p) >= 0 for p in pads)
    require(
        _NAME, fits, f"padding is {value!r}; it must be 'SAME', 'VALID', a number or ((top, bottom), (left, right))"
    )
    return pads


def _check_groups(channels: int, inputs: int, outputs: int, groups: int) -> None:
    require(_NAME, groups > 0, f"groups is {groups}; it must be positive")
    fits = channels == groups * inputs
    said = f"x has {channels} channels but weight takes {inputs} in each of {groups} groups, {groups * inputs} in all"
    require(_NAME, fits, said)
    require(_NAME, outputs % groups == 0, f"{outputs} output channels do not fall into {groups} groups")


@conv_bias_act.give_samples
def samples() -> Iterator[Sample]:
    cases: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
        ((1, 5, 5, 2), (3, 3, 2, 3), {}),
        ((2, 6, 5, 3), (3, 3, 3, 2), {"strides": 2}),
        ((2, 5, 7, 2), (3, 2, 2, 4), {"strides": (2, 1), "padding": "VALID", "activation": "relu"}),
        ((1, 6, 6, 4), (3, 3, 1, 4), {"groups": 4, "padding": 1, "activation": "silu"}),
        ((1, 6, 4, 4), (3, 3, 2, 6), {"groups": 2, "padding": ((0, 2), (1, 0))}),
        ((1, 9, 8, 2), (3, 3, 2, 2), {"dilation": 2, "activation": "relu6"}),
        ((1, 8, 9, 1), (2, 3, 1, 2), {"dilation": (1, 3), "strides": (3, 2), "padding": 2}),
        ((3, 4, 4, 5), (1, 1, 5, 7), {"activation": "gelu"}),
        ((4, 3, 2), (2, 2, 2, 3), {"activation": "gelu_tanh"}),
        ((2, 1, 4, 4, 2), (3, 3, 2, 2), {}),
        ((0, 4, 4, 2), (3, 3, 2, 2), {}),
        ((1, 3, 3, 1), (5, 4, 1, 1), {}),
        ((1, 4, 4, 33), (2, 2, 33, 3), {"padding": "VALID"}),
        ((1, 2, 11, 70), (3, 3, 1, 70), {"groups": 70, "activation": "relu6"}),
        ((1, 7, 9, 3), (1, 1, 3, 48), {"activation": "relu6"}),
        ((1, 3, 5, 2), (3, 3, 2, 17), {"strides": (1, 2), "activation": "relu"}),
    ]
    for i, (x, weight, static) in enumerate(cases):
        bias = normal((weight[-1],), 80 + i) if i % 3 else None
        yield Sample(f"{x} by {weight}", (normal(x, i, 3.0), normal(weight, 40 + i), bias), static)
    yield Sample("one row", (normal((1, 1, 5, 2), 70), normal((1, 3, 2, 2), 71), None), {"padding": "VALID"})


@conv_bias_act.law
def a_moved_picture_moves_the_result(op: Any, x: Any, weight: Any, bias: Any, **static: Any) -> None:
    """One row of zeros more on top is one more of padding there."""
    if x.dtype == np.float32 and x.size:
        static = {**static, "padding": ((1, 1), (0, 0))}
        taller = np.concatenate([np.zeros_like(x[..., :1, :, :]), x], axis=-3)
        got = op(taller, weight, bias, **{**static, "padding": ((0, 1), (0, 0))})
        np.testing.assert_allclose(got, op(x, weight, bias, **static), rtol=1e-5, atol=1e-4)


@conv_bias_act.law
def without_a_kernel_only_the_bias_is_left(op: Any, x: Any, weight: Any, bias: Any, **static: Any) -> None:
    if bias is not None and x.dtype == np.float32:
        y = op(x, np.zeros_like(weight), np.abs(bias), **{**static, "activation": "relu"})
        np.testing.assert_allclose(y, np.broadcast_to(np.abs(bias), y.shape))


@conv_bias_act.law
def worked_numbers(op: Any, *args: Any, **static: Any) -> None:
    """Numbers counted up, taken at two places one column apart; strides, dilation, groups, padding and activation."""
    x = np.arange(1, 9, dtype=np.float32).reshape(1, 1, 4, 2)
    weight = np.array([1, 10], np.float32).reshape(1, 2, 1, 1).repeat(2, 3)
    y = op(x, weight, np.array([0, -70], np.float32), groups=2, padding="VALID", dilation=(1, 2), activation="relu")
    np.testing.assert_allclose(y[0, 0], [[51, 0], [73, 14]])
    np.testing.assert_allclose(
        op(x, weight, None, groups=2, padding=((0, 0), (1, 0)), strides=2)[0, 0], [[10, 20], [53, 64]]
    )


def _cost(x: Any, weight: Any, bias: Any = None, **static: Any) -> tuple[int, int]:
    y = jax.eval_shape(lambda *arrays: conv_bias_act.definition(*arrays, **static), x, weight)
    products = 2 * y.size * weight.size // weight.shape[-1]
    return products, (x.size + weight.size + y.size) * x.dtype.itemsize


conv_bias_act.give_cost(_cost)


@conv_bias_act.fault
def kernel_flipped(x: Array, weight: Array, *rest: Any, **static: Any) -> Any:
    return conv_bias_act.definition(x, weight[::-1, ::-1], *rest, **static)


@conv_bias_act.fault
def bias_after_the_activation(x: Array, weight: Array, bias: Any = None, **static: Any) -> Any:
    y = conv_bias_act.definition(x, weight, **static)
    return y if bias is None else y + bias


@conv_bias_act.fault
def bias_ignored(x: Array, weight: Array, bias: Any = None, **static: Any) -> Any:
    return conv_bias_act.definition(x, weight, None, **static)


@conv_bias_act.fault
def activation_ignored(*arrays: Any, activation: str = "none", **static: Any) -> Any:
    return conv_bias_act.definition(*arrays, **static)


@conv_bias_act.fault
def strides_exchanged(*arrays: Any, strides: Pair = 1, **static: Any) -> Any:
    pair = strides[::-1] if isinstance(strides, tuple) else strides
    return conv_bias_act.definition(*arrays, strides=pair, **static)


@conv_bias_act.fault
def padding_at_the_other_end(*arrays: Any, padding: Padding = "SAME", **static: Any) -> Any:
    pads = tuple(p[::-1] for p in padding) if isinstance(padding, tuple) else padding
    return conv_bias_act.definition(*arrays, padding=pads, **static)


@conv_bias_act.fault
def groups_dealt_in_turn(x: Array, *arrays: Any, groups: int = 1, **static: Any) -> Any:
    dealt = x.reshape(*x.shape[:-1], -1, groups).swapaxes(-1, -2).reshape(x.shape) if x.size else x
    return conv_bias_act.definition(dealt, *arrays, groups=groups, **static)


@conv_bias_act.fault
def half_precision_inside(x: Array, weight: Array, *rest: Any, **static: Any) -> Any:
    return conv_bias_act.definition(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16), *rest, **static).astype(
        x.dtype
    )
