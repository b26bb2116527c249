"""Batch normalisation and activation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.activations import ACTIVATIONS
from m2ml.ops.arguments import require, require_at_least, require_floating, require_one_of, wide
from m2ml.ops.inputs import normal

Array = jax.Array


@op(shapes="x[*b c], mean[c], variance[c], weight?[c], bias?[c] -> y[*b c], mean[c], variance[c]")
def batch_norm_act(
    x: Array,
    mean: Array,
    variance: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    /,
    *,
    train: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
) -> tuple[Array, Array, Array]:
    """``activation((x - m) / sqrt(v + eps) * weight + bias)`` per channel (Ioffe and Szegedy, 2015).

    ``x`` is ``[*b, c]``, channels last; ``mean`` and ``variance`` are the running statistics ``[c]``; ``weight`` and
    ``bias`` ``[c]``, or None for ones and zeros. In training m and v are those of ``x`` over all axes but the last, and
    the running ones move to them by ``momentum``: ``(1 - momentum) mean + momentum m``. Otherwise m and v are the
    running ones, which stay. Gives ``(y, mean, variance)``, each in the dtype it came in; half precision is worked out
    in float32 and rounded once. ``activation`` is one of `m2ml.ops.activations`.

    As in PyTorch and MLX, v is divided by n, but what moves the running variance by n - 1, and a batch of one value per
    channel is refused in training; Flax divides both by n, and its ``momentum`` is one minus this one. Gradients flow
    through all three results; put a stop_gradient around the running ones where a loss depends on them. Raises
    TypeError where an array is not floating and ValueError for an unknown activation, a batch of one value, or a
    momentum outside 0 to 1.
    """
    require_floating("batch_norm_act", x=x, mean=mean, variance=variance, weight=weight, bias=bias)
    require_one_of("batch_norm_act", "activation", activation, ACTIVATIONS)
    require_at_least("batch_norm_act", 0, eps=eps)
    require("batch_norm_act", 0 <= momentum <= 1, f"momentum is {momentum}; it must be from 0 to 1")
    axes, used_mean, used_variance = tuple(range(x.ndim - 1)), wide(mean), wide(variance)
    new_mean, new_variance = mean, variance
    if train:
        count = math.prod(x.shape[:-1])
        require("batch_norm_act", count > 1, f"training takes more than one value per channel; x is {list(x.shape)}")
        used_mean = jnp.mean(wide(x), axis=axes)
        used_variance = jnp.mean(jnp.square(wide(x) - used_mean), axis=axes)
        new_mean = ((1 - momentum) * wide(mean) + momentum * used_mean).astype(mean.dtype)
        unbiased = used_variance * (count / (count - 1))
        new_variance = ((1 - momentum) * wide(variance) + momentum * unbiased).astype(variance.dtype)
    y = (wide(x) - used_mean) * jax.lax.rsqrt(used_variance + eps)
    y = y if weight is None else y * wide(weight)
    y = y if bias is None else y + wide(bias)
    return ACTIVATIONS[activation](y).astype(x.dtype), new_mean, new_variance


@batch_norm_act.give_samples
def samples() -> Iterator[Sample]:
    shapes = [(7, 3), (2, 3, 3, 5), (33, 1), (4, 31), (2, 257), (3, 8), (5, 2, 4), (6, 2), (17, 3)]
    for i, shape in enumerate(shapes):
        c, activation = shape[-1], list(ACTIVATIONS)[i % len(ACTIVATIONS)]
        statistics = normal((c,), i), np.square(normal((c,), 10 + i)) + np.float32(0.5)
        weight, bias = normal((c,), 20 + i, 3.0) if i % 3 else None, normal((c,), 30 + i, 2.0) if i % 4 else None
        for train in (True, False):
            static = {"train": train, "activation": activation, "momentum": 0.1 if i % 2 else 0.4}
            yield Sample(f"{shape}, {activation}, {train=}", (normal(shape, 40 + i), *statistics, weight, bias), static)
    one, small = np.ones(3, np.float32), normal((4, 3), 50, 1e-3)
    yield Sample("two rows", (normal((2, 3), 51), one, one, None, one), {"train": True})
    yield Sample("no leading axis", (normal((3,), 52), normal((3,), 55), one, one, one), {"train": False})
    yield Sample("no rows", (normal((0, 3)), one, one, None, None), {"train": False})
    yield Sample("large eps", (small, one, one, None, None), {"train": True, "eps": 0.25})
    yield Sample("small values", (small, one, one, None, None), {"train": True})
    yield Sample("far from zero", (normal((9, 3), 53) + np.float32(1000), one, one, None, None), {"train": True})
    yield Sample("beyond six", (normal((9, 3), 54, 20.0), one, one, None, one), {"train": False, "activation": "relu6"})


@batch_norm_act.law
def running_statistics_move_by_the_momentum(
    op: Any, x: Any, mean: Any, variance: Any, *args: Any, **static: Any
) -> None:
    """Towards those of the batch in training, not at all otherwise."""
    if x.dtype == np.float32:
        _, new_mean, new_variance = op(x, mean, variance, *args, **static)
        by = static.get("momentum", 0.1) if static["train"] else 0
        batch = x.reshape(-1, x.shape[-1]).astype(float) if by else np.ones((1, 1))
        np.testing.assert_allclose(new_mean, (1 - by) * mean + by * batch.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            new_variance, (1 - by) * variance + by * batch.var(0, ddof=1 if by else 0), rtol=1e-4
        )


@batch_norm_act.law
def each_channel_stands_alone(op: Any, x: Any, mean: Any, variance: Any, weight: Any, bias: Any, **static: Any) -> None:
    """Channels in the other order give results in the other order."""
    if x.dtype == np.float32:
        given = [None if v is None else v[..., ::-1].copy() for v in (x, mean, variance, weight, bias)]
        for one, other in zip(op(x, mean, variance, weight, bias, **static), op(*given, **static), strict=True):
            np.testing.assert_allclose(one[..., ::-1], other, rtol=1e-4, atol=1e-4)


@batch_norm_act.law
def worked_numbers(op: Any, *args: Any, **static: Any) -> None:
    x, one = np.array([[1.0], [3.0]], np.float32), np.ones(1, np.float32)
    y, mean, variance = op(x, one, one, 8 * one, one, train=True, eps=3.0, momentum=0.5, activation="relu")
    np.testing.assert_allclose(np.concatenate([y[:, 0], mean, variance]), [0, 5, 1.5, 1.5], rtol=1e-6)
    y, mean, variance = op(x, -one, one, 8 * one, one, train=False, eps=3.0, activation="relu6")
    np.testing.assert_allclose(np.concatenate([y[:, 0], mean, variance]), [6, 6, -1, 1], rtol=1e-6)


@batch_norm_act.give_main
def main_sizes() -> Iterator[Sample]:
    numbers = [normal((256,), i) for i in range(4)]
    arrays = (normal((4, 16, 16, 256)), numbers[0], np.square(numbers[1]) + np.float32(0.5), *numbers[2:])
    yield Sample("inference on 4 x 16 x 16 x 256", arrays, {"train": False, "activation": "relu"})


batch_norm_act.give_cost(
    lambda x, *arrays, train, **static: (10 * x.size, (3 if train else 2) * x.size * x.dtype.itemsize)
)


@batch_norm_act.fault
def running_statistics_stay(x: Array, mean: Array, variance: Array, *rest: Any, **static: Any) -> Any:
    return batch_norm_act.definition(x, mean, variance, *rest, **static)[0], mean, variance


@batch_norm_act.fault
def momentum_of_flax(*arrays: Any, momentum: float = 0.1, **static: Any) -> Any:
    return batch_norm_act.definition(*arrays, momentum=1 - momentum, **static)


@batch_norm_act.fault
def always_the_batch(x: Array, *arrays: Any, train: bool, **static: Any) -> Any:
    return batch_norm_act.definition(x, *arrays, train=x.size > x.shape[-1], **static)


@batch_norm_act.fault
def always_the_running_statistics(*arrays: Any, train: bool, **static: Any) -> Any:
    y, _, _ = batch_norm_act.definition(*arrays, train=False, **static)
    return y, *batch_norm_act.definition(*arrays, train=train, **static)[1:]


@batch_norm_act.fault
def activation_ignored(*arrays: Any, activation: str = "none", **static: Any) -> Any:
    return batch_norm_act.definition(*arrays, **static)


@batch_norm_act.fault
def relu_without_six(*arrays: Any, activation: str = "none", **static: Any) -> Any:
    return batch_norm_act.definition(*arrays, activation="relu" if activation == "relu6" else activation, **static)


@batch_norm_act.fault
def eps_ignored(*arrays: Any, eps: float = 1e-5, **static: Any) -> Any:
    return batch_norm_act.definition(*arrays, eps=0.0, **static)


@batch_norm_act.fault
def biased_running_variance(x: Array, mean: Array, variance: Array, *rest: Any, **static: Any) -> Any:
    y, new_mean, new_variance = batch_norm_act.definition(x, mean, variance, *rest, **static)
    kept, n = (1 - static["momentum"]) * variance, max(x.size // x.shape[-1], 1)
    return y, new_mean, kept + (new_variance - kept) * (n - 1) / n if static["train"] else new_variance


@batch_norm_act.fault
def first_channel_for_all(x: Array, mean: Array, variance: Array, *rest: Any, **static: Any) -> Any:
    y, _, _ = batch_norm_act.definition(x, 0 * mean + mean[:1], 0 * variance + variance[:1], *rest, **static)
    return y, *batch_norm_act.definition(x, mean, variance, *rest, **static)[1:]


@batch_norm_act.fault
def last_row_dropped(x: Array, *arrays: Any, **static: Any) -> Any:
    rows = x.reshape(-1, x.shape[-1])
    y, _, _ = batch_norm_act.definition(x, *arrays, **static)
    return y, *batch_norm_act.definition(rows[: max(len(rows) - 1, 1)], *arrays, **static)[1:]
